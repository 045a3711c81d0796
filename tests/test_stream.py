"""The rows arrive exact, in order, once over the network, in bounded memory, and stop when told to."""

from __future__ import annotations

import gc
import os
import random
import re
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import CancelledError, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llmsuper.errors import CheckpointError, HubError, LlmsuperError
from llmsuper.hub.client import Patience
from llmsuper.hub.crc import moved_along
from llmsuper.hub.locate import locate_head
from llmsuper.hub.repository import open_repository
from llmsuper.hub.rowcache import RowCache
from llmsuper.hub.source import LocalFile
from llmsuper.hub.stream import LOCAL_READERS, READERS, HeadStream, default_block_rows, stream_rows
from llmsuper.types import HeadLocation, ModelEntry, TensorInfo
from tests.checkpoints import ARCHITECTURES, Checkpoint, build, safetensors_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fake_hub import FakeHub

REPO = "org/tiny"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience, "pause", 0.001)


def opened(hub: FakeHub, checkpoint: Checkpoint, **options: Any) -> HeadStream:
    """A stream of the checkpoint's head from the fake Hub, whose log is then empty; `keep=True`: by way of the cache."""
    hub.add(REPO, checkpoint)
    repository = open_repository(ModelEntry(REPO))
    location = locate_head(repository)
    source = repository.open(location.file)
    if options.pop("keep", False):
        options["copy"] = RowCache().head(location, str(source.etag))
    hub.take_log()
    return stream_rows(location, source, **options)


def gathered(stream: HeadStream, *, release: bool = True) -> torch.Tensor:
    """All rows; fails unless they come in order, each once."""
    parts, start = [], 0
    for block in stream:
        assert block.start == start
        assert block.rows.shape == (min(stream.block_rows, stream.location.rows - start), stream.location.columns)
        start += len(block.rows)
        parts.append(block.rows.clone())
        if release:
            block.release()
    assert start == stream.location.rows
    return torch.cat(parts)


class Memory:
    """A source of so many rows whose bytes are made up, which counts the reads that have begun."""

    name, etag, size, moved, requests = "memory", "0", 1 << 40, 0, 0

    def __init__(self, rows: int, columns: int, wait: threading.Event | None = None) -> None:
        self.location = HeadLocation(
            ModelEntry("made/up"),
            "0" * 40,
            "f",
            TensorInfo("w", "F32", (rows, columns), 0, rows * columns * 4),
            False,
            0,
        )
        self.begun, self.wait, self.lock = 0, wait, threading.Lock()

    def read(self, offset: int, n: int) -> bytes:
        raise NotImplementedError

    def read_into(self, offset: int, buffer: memoryview, stop: threading.Event | None = None) -> None:
        with self.lock:
            self.begun += 1
        while self.wait is not None and not self.wait.wait(0.001):
            if stop is not None and stop.is_set():
                raise CancelledError
        first = offset // (4 * self.location.columns)
        count = len(buffer) // (4 * self.location.columns)
        rows = torch.arange(first, first + count, dtype=torch.float32)[:, None].expand(count, self.location.columns)
        buffer[:] = rows.contiguous().numpy().tobytes()

    def close(self) -> None: ...


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("llmsuper-rows")]


# ---- exact


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("shards", [1, 3])
def test_the_rows_of(hub: FakeHub, name: str, shards: int) -> None:
    checkpoint = build(name, rows=500, columns=24, tokens=480, format="safetensors", shards=shards)
    stream = opened(hub, checkpoint, block_rows=77, workers=3)
    got = gathered(stream)
    assert got.dtype == checkpoint.head.dtype
    assert torch.equal(got, checkpoint.head)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_rows_in(hub: FakeHub, dtype: torch.dtype) -> None:
    checkpoint = build("pythia", rows=100, columns=7, tokens=90, dtype=dtype)
    assert torch.equal(gathered(opened(hub, checkpoint, block_rows=33)), checkpoint.head)


@pytest.mark.parametrize("block_rows", [1, 7, 499, 500, 501, 10_000])
@pytest.mark.parametrize("workers", [1, 2, 9])
def test_the_rows_whatever_the_blocks(tmp_path: Path, block_rows: int, workers: int) -> None:
    head = torch.randn(500, 3)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes({"lm_head.weight": head}))
    repository = open_repository(ModelEntry(str(tmp_path), local=True))
    location = locate_head(repository)
    source = repository.open(location.file)
    stream = stream_rows(location, source, block_rows=block_rows, workers=workers)
    assert stream.blocks == -(-500 // min(500, block_rows))
    assert stream.workers == min(workers, stream.blocks)
    for _ in range(2):
        assert torch.equal(gathered(stream), head)
    source.close()


def test_a_local_file_that_was_cut_after_its_header_was_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes({"lm_head.weight": torch.randn(500, 3)}))
    repository = open_repository(ModelEntry(str(tmp_path), local=True))
    location = locate_head(repository)
    os.truncate(tmp_path / location.file, location.tensor.end - 1)
    source = LocalFile(tmp_path / location.file)
    with pytest.raises(CheckpointError, match="the file ends at byte"):
        gathered(stream_rows(location, source, block_rows=100))
    source.close()


@pytest.mark.parametrize(
    ("rows", "row_bytes"),
    [(50304, 1024), (50257, 3072), (50304, 5120), (151936, 1792), (152064, 16384), (512, 256), (8193, 64), (1, 1)],
)
def test_the_default_blocks_are_even_and_bounded(rows: int, row_bytes: int) -> None:
    size = default_block_rows(rows, row_bytes)
    blocks = -(-rows // size)
    assert blocks == 1 or blocks % 8 == 0
    assert size <= 8192
    assert size * row_bytes <= max(16 << 20, 2048 * row_bytes)
    assert rows - (blocks - 1) * size > size - blocks, "the last block is nearly as large as the others"


@pytest.mark.parametrize("options", [{"workers": 0}, {"block_rows": 0}])
def test_senseless_options(options: dict[str, int]) -> None:
    source = Memory(10, 2)
    with pytest.raises(ValueError, match="at least 1"):
        stream_rows(source.location, source, **options)


# ---- shared


@pytest.mark.parametrize("count", [1, 2, 3, 5, 13])
def test_shares_are_every_block_once_and_no_other_bytes(hub: FakeHub, count: int) -> None:
    checkpoint = build("pythia", rows=1000, columns=24, tokens=990)
    whole = opened(hub, checkpoint, block_rows=100)
    starts: list[int] = []
    for rank in range(count):
        stream = stream_rows(whole.location, whole.source, block_rows=100, share=(rank, count))
        before, mine = hub.bytes_sent("cdn"), 0
        for block in stream:
            assert torch.equal(block.rows, checkpoint.head[block.start : block.start + 100])
            starts.append(block.start)
            mine += block.rows.nbytes
        assert hub.bytes_sent("cdn") - before == mine
        assert stream.blocks == -(-(10 - rank) // count)
    assert sorted(starts) == list(range(0, 1000, 100))


@pytest.mark.parametrize("options", [{"share": (2, 2)}, {"share": (-1, 2)}, {"share": (0, 0)}])
def test_a_share_of_nothing(options: dict[str, tuple[int, int]]) -> None:
    source = Memory(10, 2)
    with pytest.raises(ValueError, match="share"):
        stream_rows(source.location, source, **options)


def test_shares_that_are_kept_side_by_side_become_one_whole(hub: FakeHub) -> None:
    checkpoint = build("pythia", rows=1000, columns=24, tokens=990)
    first = opened(hub, checkpoint, block_rows=100, share=(0, 2), keep=True)
    copy = first.copy
    assert copy is not None
    second = stream_rows(first.location, first.source, block_rows=100, share=(1, 2), copy=copy)
    with ThreadPoolExecutor(1) as other:
        for block in first:  # as two processes do it: neither waits for the other
            block.release()
            other.submit(lambda: [block.release() for block in second]).result()
    assert not copy.complete
    assert copy.kept_bytes == checkpoint.head.nbytes
    for stream in (first, second):
        stream.settle([first.checksum, second.checksum])
    assert copy.complete
    moved = hub.bytes_sent()
    assert torch.equal(gathered(stream_rows(first.location, first.source, copy=copy)), checkpoint.head)
    assert hub.bytes_sent() == moved == checkpoint.head.nbytes


@pytest.mark.parametrize("count", [1, 3])
def test_the_checksum_of_a_torch_record_is_that_of_all_shares(hub: FakeHub, count: int) -> None:
    checkpoint = build("pythia", rows=1000, columns=24, tokens=990, format="torch")
    whole = opened(hub, checkpoint, keep=True)
    assert whole.location.tensor.crc32 is not None
    shares = [
        stream_rows(whole.location, whole.source, block_rows=77, share=(rank, count), copy=whole.copy)
        for rank in range(count)
    ]

    def read() -> None:
        for share in shares:
            for block in share:
                block.release()
        for share in shares:
            share.settle([share.checksum for share in shares])

    read()
    assert whole.copy is not None
    assert whole.copy.complete
    whole.copy.discard()
    hub.fault("flip", origin="cdn", after=2, arg=500)
    with pytest.raises(CheckpointError, match=r"have CRC-32 \w{8}, the file says \w{8}\. Something on the way"):
        read()
    assert whole.copy.kept_bytes == 0


@pytest.mark.parametrize("parts", [[0], [1], [5, 0, 7], [1000, 1, 30_000, 12], [65_537] * 9])
def test_a_checksum_from_those_of_parts(parts: list[int]) -> None:
    data = random.Random(0).randbytes(sum(parts))
    total, at = 0, 0
    for length in parts:
        total ^= moved_along(zlib.crc32(data[at : at + length]), len(data) - at - length)
        at += length
    assert total == zlib.crc32(data)


# ---- economical


def test_the_bytes_moved_are_the_head_and_the_header(hub: FakeHub) -> None:
    checkpoint = build("qwen_untied", rows=60_000, columns=64, tokens=59_000)
    hub.add(REPO, checkpoint)
    repository = open_repository(ModelEntry(REPO))
    location = locate_head(repository)
    source = repository.open(location.file)
    told: list[int] = []
    stream = stream_rows(location, source, on_bytes=told.append)
    assert torch.equal(gathered(stream), checkpoint.head)
    assert hub.bytes_sent("cdn") == location.nbytes + 65_536 <= 1.01 * location.nbytes
    assert source.moved == hub.bytes_sent("cdn")
    log = [request for request in hub.take_log() if request.origin == "cdn"]
    assert len(log) == 1 + stream.blocks == 9
    assert source.requests == len(log) + 1
    assert sum(told) == location.nbytes


@pytest.mark.parametrize("fault", [("cut", 20_000), ("rst", 20_000), ("short", 15_000), ("status", (503, {}, b""))])
def test_bytes_are_not_fetched_twice_after_a_fault(hub: FakeHub, fault: tuple[str, Any]) -> None:
    checkpoint = build("pythia", rows=4000, columns=32, tokens=3900)
    stream = opened(hub, checkpoint, block_rows=500, workers=4)
    header = stream.source.moved
    hub.fault(fault[0], origin="cdn", times=5, after=1, arg=fault[1])
    assert torch.equal(gathered(stream), checkpoint.head)
    assert stream.source.moved == header + checkpoint.head.nbytes


def test_an_expiring_url_and_a_moving_branch_in_the_middle(hub: FakeHub) -> None:
    checkpoint = build("pythia", rows=4000, columns=32, tokens=3900)
    stream = opened(hub, checkpoint, block_rows=100, workers=4)
    parts = []
    for block in stream:
        if block.start in (1000, 2000):
            hub.add(REPO, build("pythia", rows=4000, columns=32, tokens=3900, seed=block.start))
            hub.expire_urls()
        parts.append(block.rows.clone())
        block.release()
    assert torch.equal(torch.cat(parts), checkpoint.head)
    assert {r.path.split("/")[4] for r in hub.take_log() if r.method == "HEAD"} == {stream.location.commit}


def test_keeping_moves_the_head_once(hub: FakeHub) -> None:
    checkpoint = build("pythia", rows=4000, columns=32, tokens=3900)
    told: list[int] = []
    stream = opened(hub, checkpoint, block_rows=300, workers=4, keep=True, on_bytes=told.append)
    assert torch.equal(gathered(stream), checkpoint.head)
    first = hub.bytes_sent()
    for _ in range(3):
        assert torch.equal(gathered(stream), checkpoint.head)
    assert hub.bytes_sent() == first == checkpoint.head.nbytes
    assert sum(told) == 4 * first


def test_without_keeping_every_pass_moves_it(hub: FakeHub) -> None:
    checkpoint = build("pythia", rows=400, columns=32, tokens=390)
    stream = opened(hub, checkpoint, block_rows=100)
    for _ in range(2):
        assert torch.equal(gathered(stream), checkpoint.head)
    assert hub.bytes_sent() == 2 * checkpoint.head.nbytes


def test_a_pass_left_early_is_not_taken_for_a_copy(hub: FakeHub) -> None:
    checkpoint = build("pythia", rows=4000, columns=32, tokens=3900)
    stream = opened(hub, checkpoint, block_rows=100, workers=4, keep=True)
    list(islice(stream, 3))
    assert torch.equal(gathered(stream), checkpoint.head)
    moved = hub.bytes_sent()
    assert torch.equal(gathered(stream), checkpoint.head)
    assert hub.bytes_sent() == moved


def test_two_passes_at_once(hub: FakeHub) -> None:
    checkpoint = build("pythia", rows=1000, columns=32, tokens=900)
    stream = opened(hub, checkpoint, block_rows=100, workers=2, keep=True)
    for left, right in zip(stream, stream, strict=True):
        assert torch.equal(left.rows, right.rows)
    assert torch.equal(gathered(stream), checkpoint.head)


FULL = """
import resource, sys
sys.path.insert(0, {root!r})
from llmsuper.errors import LlmsuperError
from llmsuper.hub.rowcache import RowCache
from llmsuper.hub.stream import stream_rows
from tests.test_stream import Memory
source = Memory(4000, 64)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
try:
    copy = RowCache().head(source.location, "etag")
    for block in stream_rows(source.location, source, block_rows=500, copy=copy):
        block.release()
except LlmsuperError as error:
    print(error)
"""


def test_a_disk_that_fills_up(hub: FakeHub) -> None:  # noqa: ARG001
    root = str(__file__).rsplit("/tests/", 1)[0]
    done = subprocess.run([sys.executable, "-c", FULL.format(root=root)], capture_output=True, text=True, check=True)
    assert re.match(
        r"head cache \S+: cannot be written \(File too large\)\. Free some space with `llmsuper cache", done.stdout
    )


def test_a_disk_without_room_is_noticed_at_once(hub: FakeHub) -> None:  # noqa: ARG001
    source = Memory(1 << 46, 64)
    copy = RowCache().head(source.location, "etag")
    with pytest.raises(LlmsuperError, match=r"GB are free, the head has \d+\.\d+ GB\). Free some space"):
        next(iter(stream_rows(source.location, source, copy=copy)))
    assert source.begun == 0


# ---- bounded


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_reading_ahead_is_bounded_by_the_workers(workers: int) -> None:
    source = Memory(100, 2)
    blocks = iter(stream_rows(source.location, source, block_rows=1, workers=workers))
    for taken in range(1, 20):
        block = next(blocks)
        block.release()
        assert source.begun <= taken + workers
    blocks.close()  # type: ignore[attr-defined]


def test_what_is_on_this_machine_takes_fewer_readers(hub: FakeHub) -> None:
    stream = opened(hub, build("pythia", rows=1000, columns=24, tokens=990), block_rows=10, keep=True)
    assert stream.workers == READERS
    gathered(stream)
    assert stream.workers == LOCAL_READERS < READERS  # the second pass reads the copy


@pytest.mark.parametrize("rows", [1_000, 100_000])
def test_memory_does_not_depend_on_the_number_of_rows(rows: int) -> None:
    source = Memory(rows, 2)
    seen = set()
    for block in stream_rows(source.location, source, block_rows=100, workers=3):
        seen.add(block.rows.untyped_storage().data_ptr())
        block.release()
    assert len(seen) <= 4


def test_a_block_that_is_not_released_stays_as_it_is() -> None:
    source = Memory(1000, 2)
    blocks = list(stream_rows(source.location, source, block_rows=10, workers=3))
    for block in blocks:
        assert block.rows[:, 0].tolist() == list(range(block.start, block.start + 10))


def test_a_second_release_does_nothing() -> None:
    source = Memory(1000, 2)
    held = []
    for block in stream_rows(source.location, source, block_rows=10, workers=2):
        if block.start % 20 == 0:
            block.release()
            block.release()
        else:
            held.append(block)
    for block in held:
        assert block.rows[:, 0].tolist() == list(range(block.start, block.start + 10))


def test_a_release_may_come_late_and_from_another_pass() -> None:
    source = Memory(100, 2)
    stream = stream_rows(source.location, source, block_rows=10, workers=2)
    first = list(stream)
    second: Iterator[Any] = iter(stream)
    for old in first:
        old.release()
        block = next(second)
        assert block.rows[:, 0].tolist() == list(range(block.start, block.start + 10))


# ---- stopping


def test_closing_early_ends_the_threads() -> None:
    gate = threading.Event()
    source = Memory(1000, 2, wait=gate)
    blocks = iter(stream_rows(source.location, source, block_rows=10, workers=4))
    gate.set()
    next(blocks)
    gate.clear()
    blocks.close()  # type: ignore[attr-defined]
    begun = source.begun
    while reading_threads():
        time.sleep(0.001)
    assert source.begun == begun < 12


def test_leaving_a_loop_over_the_hub_early_ends_the_threads(hub: FakeHub) -> None:
    stream = opened(hub, build("pythia", rows=4000, columns=32, tokens=3900), block_rows=100, workers=4)
    for block in stream:
        if block.start == 200:
            break
    gc.collect()
    while reading_threads():
        time.sleep(0.001)
    assert hub.bytes_sent() < stream.location.nbytes / 2


def test_an_exception_in_the_consumer_ends_the_threads(hub: FakeHub) -> None:
    stream = opened(hub, build("pythia", rows=4000, columns=32, tokens=3900), block_rows=100, workers=4, keep=True)
    with pytest.raises(ZeroDivisionError):
        for block in stream:
            block.start / 0
    gc.collect()
    while reading_threads():
        time.sleep(0.001)


def test_a_block_that_cannot_be_had_ends_the_pass_and_the_next_one_is_whole(hub: FakeHub) -> None:
    checkpoint = build("pythia", rows=4000, columns=32, tokens=3900)
    stream = opened(hub, checkpoint, block_rows=100, workers=4, keep=True)
    hub.fault("no_content_range", origin="cdn", after=7)
    with pytest.raises(HubError, match="Content-Range None"):
        gathered(stream)
    while reading_threads():
        time.sleep(0.001)
    assert torch.equal(gathered(stream), checkpoint.head)
