"""Processes for tests, forked from a server that has imported torch, and what they are started to do.

This module is imported in them: it must not import `conftest`, which would start a Hub of its own there.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import socket
import traceback
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import torch

from llmsuper.errors import CheckpointError
from llmsuper.geometry.overlap import GramAccumulator
from llmsuper.geometry.passes import one_pass
from llmsuper.hub.stream import HeadStream
from llmsuper.kernels import choose_backend
from llmsuper.measure import Settings, measure_head, measure_heads
from llmsuper.processes import _keep_to_own_part, join_processes
from llmsuper.store import ResultStore
from llmsuper.types import HeadLocation, ModelEntry, TensorInfo

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["accelerate", "scipy.stats", "torch.distributed", "tests.launched"])
PATIENCE = 120.0
"""Seconds after which a process of a test counts as hanging."""


def run(count: int, work: Callable[..., Any], *arguments: Any, died: int | None = None) -> list[Any]:
    """What `work` returns in each of so many processes; or (name, text) of the error that it raises in all that live."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ends = [SERVER.Pipe(duplex=False) for _ in range(count)]
    started = [
        SERVER.Process(target=child, args=(ends[rank][1], rank, count, port, work, arguments), daemon=True)
        for rank in range(count)
    ]
    for process, (_, theirs) in zip(started, ends, strict=True):
        process.start()
        theirs.close()
    said = []
    try:
        for rank, (ours, _) in enumerate(ends):
            if rank != died:
                assert ours.poll(PATIENCE), f"process {rank} hangs"
                said.append(ours.recv())
        for process in started:
            process.join(PATIENCE)
    finally:
        for process in started:
            process.kill()
    if died is not None:
        assert started[died].exitcode == -signal.SIGKILL
    for well, what in said:
        assert well == said[0][0], what
    return [what if well else what[:2] for well, what in said]


def child(answer: Any, rank: int, count: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= environment(rank, count, port)
    try:
        answer.send((True, work(*arguments)))
    except BaseException as error:  # noqa: BLE001  the test is told of it
        answer.send((False, (type(error).__name__, str(error), traceback.format_exc())))


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun says to a process on the only machine of a run."""
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    return {name: str(value) for name, value in here.items()} | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}


# ---- what they do


def measured(settings: Settings) -> Any:
    return measure_head(ModelEntry("a/b"), settings, processes=join_processes())


def without_a_copy() -> Any:
    record = measured(Settings(keep_heads=False))
    return record.statistics, record.made_by["bytes_moved_by_process"]


def gram_of_a_share() -> Any:
    processes = join_processes()
    generator = torch.Generator().manual_seed(7)
    rows = torch.randn(20_000, 33, generator=generator).bfloat16()
    location = HeadLocation(
        ModelEntry("made/up"), "0", "f", TensorInfo("w", "BF16", (20_000, 33), 0, 1_320_000), False, 0
    )
    stream = HeadStream(location, Bytes(rows), share=(processes.rank, processes.count))  # type: ignore[arg-type]
    accumulators = [GramAccumulator(), GramAccumulator()]
    one_pass(stream, accumulators[:1])
    processes.merge(accumulators)
    assert accumulators[1].rows == 0  # nobody has fed this one
    return accumulators[0].gram, accumulators[0].direction


class Bytes:
    """A source of the rows of a matrix."""

    name, etag, size, moved, requests = "bytes", None, 1 << 30, 0, 0

    def __init__(self, rows: torch.Tensor) -> None:
        self.bytes = rows.view(torch.uint8).numpy().tobytes()

    def read_into(self, offset: int, buffer: memoryview, stop: threading.Event | None = None) -> None:  # noqa: ARG002
        buffer[:] = self.bytes[offset : offset + len(buffer)]


def swept(folder: Path, shard: Any, names: tuple[str, ...]) -> Any:
    entries = [ModelEntry(name) for name in names]
    outcomes = measure_heads(entries, ResultStore(folder), Settings(shard=shard), processes=join_processes())
    return [(o.entry.repo, type(o.error).__name__, str(o.error), o.record and o.record.made_by) for o in outcomes]


def failing(where: int) -> Any:
    processes = join_processes()
    heard = []
    for _ in range(2):  # an error is over when all have heard of it
        try:
            with processes.together():
                if processes.rank == where:
                    raise CheckpointError(f"of {processes.rank}")
                processes.merge([GramAccumulator()])
        except CheckpointError as error:
            heard.append(str(error))
    try:
        processes.from_first(lambda: (_ for _ in ()).throw(CheckpointError("of the first")))
    except CheckpointError as error:
        heard.append(str(error))
    return heard, processes.gathered(processes.rank), processes.from_first(lambda: "first")


def killed_in_the_middle(folder: Path) -> None:
    processes = join_processes()
    if processes.rank == 1:
        read = HeadStream._read

        def read_or_die(self: HeadStream, start: int, *more: Any) -> torch.Tensor:
            if self.location.entry.repo == "a/2" and start > self.location.rows // 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return read(self, start, *more)

        HeadStream._read = read_or_die  # type: ignore[method-assign]
    entries = [ModelEntry("a/1"), ModelEntry("a/2")]
    list(measure_heads(entries, ResultStore(folder), Settings(shard="rows"), processes=processes))


def told_to_stop() -> None:
    processes = join_processes()
    if processes.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    processes.gathered(0)


def tiles_compiled_in(folder: Path) -> Any:
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(2, 300, 24, generator=generator) + 0.5, dim=2)
    tile = choose_backend("torch", "cpu", "float32").overlap_sums
    found = [tile(rows[0], rows[k], bins=200, diagonal=k == 0) for k in (0, 1)]
    return pickle.dumps(found), [path.stat().st_mtime_ns for path in folder.rglob("*.nbc")]


def joined_by_hand(folder: Path) -> Any:
    import torch.distributed as dist

    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name)
    rank = int(os.environ.pop("RANK"))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=1 - rank, world_size=2)
    before = signal.getsignal(signal.SIGTERM), os.sched_getaffinity(0)
    processes = join_processes()
    assert (signal.getsignal(signal.SIGTERM), os.sched_getaffinity(0)) == before
    return rank, processes.gathered((rank, processes.rank))


def part_of_the_machine(place: int, count: int, gpus: str) -> Any:
    os.environ |= {"LOCAL_RANK": str(place), "LOCAL_WORLD_SIZE": str(count), "CUDA_VISIBLE_DEVICES": gpus}
    _keep_to_own_part()
    return os.environ["CUDA_VISIBLE_DEVICES"], sorted(os.sched_getaffinity(0))


def command(arguments: tuple[str, ...]) -> Any:
    from llmsuper.cli import main

    out, err = io.StringIO(), io.StringIO()
    status = None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as left:
            status = left.code
    return status, out.getvalue(), err.getvalue()
