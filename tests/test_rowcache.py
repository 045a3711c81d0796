"""A head that was fetched once is not fetched again, nothing wrong is ever taken for it, and it goes when it is told to."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors
import torch
from huggingface_hub import snapshot_download

from llmsuper.cli.table import size
from llmsuper.errors import CatalogError, CheckpointError, HubError, LlmsuperError
from llmsuper.hub.client import Patience
from llmsuper.hub.head import UnopenedFile, open_head
from llmsuper.hub.headcopy import HEADER_BYTES, HeadCopy
from llmsuper.hub.repository import open_repository
from llmsuper.hub.rowcache import RowCache
from llmsuper.hub.stream import default_block_rows, stream_rows
from llmsuper.measure import Settings, measure_head, measure_heads, plan_head
from llmsuper.store import ResultStore
from llmsuper.types import HeadLocation, ModelEntry, TensorInfo
from tests.checkpoints import Checkpoint, opt_like, pythia_like
from tests.command import PROGRAM, json_lines, llmsuper, shell, succeed, the_error, weights_requests
from tests.conftest import HOME
from tests.test_resume import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmsuper.hub.head import Head
    from tests.fake_hub import FakeHub

HEADER_READ = 1 << 16
SMALL = pythia_like()
"""A head of one block."""
LARGE = pythia_like(rows=20_000, tokens=19_950)
"""A head of eight blocks."""
BLOCKS = 8
BLOCK = LARGE.head.nbytes // BLOCKS
ENTRY = ModelEntry("a/b")


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Patience, "pause", 0.001)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The statistics of LARGE, from a local folder."""
    return measure_head(ModelEntry(str(LARGE.write(tmp_path_factory.mktemp("large"))), local=True)).statistics


def opened(entry: ModelEntry = ENTRY) -> Head:
    cache = RowCache()
    return open_head(open_repository(entry, cache=cache), cache)


def copy_of(entry: ModelEntry = ENTRY) -> HeadCopy:
    copy = opened(entry).copy
    assert copy is not None
    return copy


def moved(hub: FakeHub) -> list[int]:
    """Bytes of each request for weights since the log was last empty."""
    return [request.sent for request in weights_requests(hub)]


def stored_rows(path: Path) -> bytes:
    return path.read_bytes()[HEADER_BYTES:]


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def files() -> list[Path]:
    return [path for path in RowCache().folder.rglob("*") if path.is_file()]


def gathered(head: Head) -> torch.Tensor:
    return torch.cat([block.rows.clone() for block in head.rows()])


def test_the_large_head_has_the_blocks_that_these_tests_count_on() -> None:
    assert -(-20_000 // default_block_rows(20_000, 128)) == BLOCKS
    assert LARGE.head.nbytes == BLOCKS * BLOCK


# ---- once and no more


def test_a_second_run_asks_for_the_commit_and_nothing_else(hub: FakeHub) -> None:
    hub.add("a/b", SMALL)
    (first,) = json_lines("overlap", "a/b")
    assert first["made_by"]["bytes_moved"] == HEADER_READ + SMALL.head.nbytes
    hub.take_log()
    (second,) = json_lines("overlap", "a/b", "--force")
    assert [(r.method, r.path) for r in hub.take_log()] == [("GET", "/api/models/a/b/revision/main")]
    assert (second["made_by"]["bytes_moved"], second["made_by"]["requests"]) == (0, 0)
    assert {**second, "made_by": None} == {**first, "made_by": None}
    (plan,) = json_lines("plan", "a/b")
    assert (plan["bytes_to_move"], plan["head_bytes"]) == (0, SMALL.head.nbytes)


def closed_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{found.getsockname()[1]}"


@pytest.mark.parametrize("gone", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": closed_port()}], ids=lambda e: next(iter(e)))
def test_without_the_hub_the_record_is_the_same(gone: dict[str, str], hub: FakeHub) -> None:
    """By branch and by commit, in a process that has never seen the Hub."""
    commit = hub.add("a/b", SMALL)
    (first,) = json_lines("overlap", "a/b", "--results", "first")
    hub.take_log()
    done = shell(f"llmsuper overlap a/b a/b@{commit} --force --json", **gone)
    assert (done.returncode, done.stderr, hub.take_log()) == (0, "", [])
    for line, revision in zip(done.stdout.splitlines(), ("main", commit), strict=True):
        record = json.loads(line)
        assert record["made_by"]["bytes_moved"] == record["made_by"]["requests"] == 0
        assert {**record, "made_by": None} == {**first, "revision": revision, "made_by": None}


def test_without_the_hub_what_is_not_here_is_one_error_each_and_no_number(hub: FakeHub) -> None:
    """Never seen; planned and not fetched; fetched, and rotted since."""
    hub.add("a/kept", SMALL)
    hub.add("a/planned", pythia_like(seed=1))
    hub.add("a/rotten", pythia_like(seed=2))
    succeed("overlap", "a/kept", "a/rotten", "--results", "online")
    succeed("plan", "a/planned")
    snapshot_download("a/planned", allow_patterns="*.json")
    flip(copy_of(ModelEntry("a/rotten")).path, HEADER_BYTES)
    hub.take_log()
    models = "a/never a/planned a/rotten a/kept"
    done = shell(f"llmsuper overlap {models} -q; llmsuper plan a/kept a/planned -q", HF_HUB_OFFLINE="1")
    assert hub.take_log() == []
    measured, *plans = done.stdout.splitlines()
    assert measured.startswith("a/kept\t")
    assert plans == ["a/kept\t0", f"a/planned\t{SMALL.head.nbytes}"]
    *errors, summary = done.stderr.splitlines()
    for line, thing in zip(errors, ("a/never@main: ", "a/planned@", "a/rotten@"), strict=True):
        assert line.startswith(f"error: {thing}")
        assert "offline mode is on (HF_HUB_OFFLINE=1)" in line
    assert summary == "3 of 4 models failed: a/never, a/planned, a/rotten"


def test_without_the_hub_a_commit_is_known_by_its_files(hub: FakeHub) -> None:
    """The weights alone: there is no small file that the Hub cache could know the commit by."""
    commit = hub.add("a/b", {"model.safetensors": SMALL["model.safetensors"]})
    before = measure_head(ENTRY)
    hub.fault("status", "/api/models/a/b", times=100, arg=(503, {}, b""))
    for revision in ("main", commit):
        again = measure_head(replace(ENTRY, revision=revision))
        assert (again.commit, again.statistics) == (commit, before.statistics)


def test_a_snapshot_that_was_downloaded_since_is_read_where_it_is(hub: FakeHub) -> None:
    hub.add("a/b", SMALL)
    succeed("plan", "a/b")
    snapshot_download("a/b")
    assert plan_head(ENTRY).total_bytes == 0
    assert measure_head(ENTRY).made_by["bytes_moved"] == 0
    assert RowCache().kept() == []


def test_a_commit_of_the_readme_keeps_the_head_and_one_of_the_weights_does_not(hub: FakeHub) -> None:
    """The same head under two commits is one file; another head is another."""
    first = hub.add("a/b", SMALL)
    before = measure_head(ENTRY)
    second = hub.add("a/b", {"README.md": b"about"})
    hub.take_log()
    after = measure_head(ENTRY)
    assert moved(hub) == [HEADER_READ]
    assert (before.commit, after.commit) == (first, second)
    assert before.statistics == after.statistics
    assert len(RowCache().kept()) == 1

    other = pythia_like(seed=9)
    hub.add("a/b", {"model.safetensors": other["model.safetensors"]})
    hub.take_log()
    changed = measure_head(ENTRY)
    assert moved(hub) == [HEADER_READ, SMALL.head.nbytes]
    assert changed.statistics != after.statistics
    assert {stored_rows(kept.path) for kept in RowCache().kept()} == {raw(SMALL.head), raw(other.head)}
    hub.take_log()
    assert measure_head(replace(ENTRY, revision=first)).statistics == before.statistics
    assert moved(hub) == []


def test_a_copy_of_a_model_shares_its_head(hub: FakeHub) -> None:
    hub.add("a/b", SMALL)
    hub.add("c/d", SMALL)
    measure_head(ENTRY)
    hub.take_log()
    measure_head(ModelEntry("c/d"))
    assert moved(hub) == [HEADER_READ]
    assert len(RowCache().kept()) == 1


# ---- interruptions and rot


def interrupted(blocks: int = 5, **options: Any) -> HeadCopy:
    """A pass that its consumer leaves after so many blocks; one more may have been read ahead."""
    head = opened()
    stream = stream_rows(head.location, head.source, copy=head.copy, workers=1, **options)
    passing = iter(stream)
    list(islice(passing, blocks))
    passing.close()  # type: ignore[attr-defined]
    assert head.copy is not None
    assert len(head.copy.logged()) >= blocks
    return head.copy


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def cut(path: Path, by: int) -> None:
    os.truncate(path, path.stat().st_size - by)


def append(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


DAMAGE: dict[str, tuple[Callable[[HeadCopy], Any], int]] = {
    "none": (lambda _: None, 0),
    "a byte of the first block": (lambda copy: flip(copy.part, HEADER_BYTES), 1),
    "a byte of the third block": (lambda copy: flip(copy.part, HEADER_BYTES + 3 * BLOCK - 1), 1),
    "a byte in two blocks": (lambda copy: (flip(copy.part, HEADER_BYTES), flip(copy.part, HEADER_BYTES + BLOCK)), 2),
    "a byte in the room of the header": (lambda copy: flip(copy.part, 17), 0),
    "the last line of the log is cut": (lambda copy: cut(copy.log, 5), 1),
    "only the last line feed is cut": (lambda copy: cut(copy.log, 1), 0),
    "a line of the log is of another block": (lambda copy: append(copy.log, b"0 %d 00000000\n" % BLOCK), 1),
    "the log goes on in another tongue": (lambda copy: append(copy.log, b"\xff\xfe 7 seven\n1 2\n"), 0),
    "a line of the log is beyond the head": (lambda copy: append(copy.log, b"%d 9 00000000\n" % LARGE.head.nbytes), 0),
    "the log is lost": (lambda copy: copy.log.unlink(), 99),
    "the part is lost": (lambda copy: copy.part.unlink(), 99),
    "the part is cut at two blocks": (lambda copy: os.truncate(copy.part, HEADER_BYTES + 2 * BLOCK), 99),
}
"""What may happen to the files of an interrupted head, and how many of its blocks are then fetched again."""


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_rerun_fetches_what_is_missing_or_damaged_and_nothing_else(
    damage: str, hub: FakeHub, exact: dict[str, Any]
) -> None:
    hub.add("a/b", LARGE)
    copy = interrupted()
    kept = len(copy.logged())
    assert plan_head(ENTRY).head_bytes == (BLOCKS - kept) * BLOCK
    inflict, again = DAMAGE[damage]
    inflict(copy)
    again = min(again, kept - 2 if "cut at two" in damage else kept)
    hub.take_log()
    record = measure_head(ENTRY)
    assert moved(hub) == [BLOCK] * (BLOCKS - kept + again)
    assert record.statistics == exact
    assert stored_rows(copy.path) == raw(LARGE.head)
    assert copy.complete
    assert not copy.part.exists()
    hub.take_log()
    assert measure_head(ENTRY).statistics == exact
    assert moved(hub) == []


def test_a_plan_counts_each_kept_byte_once(hub: FakeHub) -> None:
    hub.add("a/b", LARGE)
    copy = interrupted(4, block_rows=2500)
    blocks = len(copy.logged())
    interrupted(3, block_rows=1000)  # inside what is kept
    with copy.log.open("a") as log:
        log.write(f"{BLOCKS * BLOCK} 1000 00000000\n{BLOCK // 2} {BLOCK} 00000000\n")
    assert plan_head(ENTRY).head_bytes == (BLOCKS - blocks) * BLOCK


@pytest.mark.parametrize("block", [0, 3, 7])
def test_a_whole_head_that_rots_is_noticed_and_healed(block: int, hub: FakeHub, exact: dict[str, Any]) -> None:
    hub.add("a/b", LARGE)
    measure_head(ENTRY)
    copy = copy_of()
    flip(copy.path, HEADER_BYTES + block * BLOCK + 77)
    hub.take_log()
    assert measure_head(ENTRY).statistics == exact
    assert moved(hub) == [BLOCK]
    assert stored_rows(copy.path) == raw(LARGE.head)
    hub.take_log()
    assert measure_head(ENTRY).statistics == exact
    assert moved(hub) == []


def test_a_whole_head_without_its_log_is_not_trusted(hub: FakeHub, exact: dict[str, Any]) -> None:
    hub.add("a/b", LARGE)
    measure_head(ENTRY)
    copy_of().log.unlink()
    hub.take_log()
    assert measure_head(ENTRY).statistics == exact
    assert moved(hub) == [BLOCK] * BLOCKS


def test_a_head_of_the_wrong_length_is_fetched_anew(hub: FakeHub, exact: dict[str, Any]) -> None:
    hub.add("a/b", LARGE)
    measure_head(ENTRY)
    copy = copy_of()
    cut(copy.path, 1)
    assert not copy.complete
    assert measure_head(ENTRY).statistics == exact
    assert stored_rows(copy.path) == raw(LARGE.head)


def test_blocks_of_another_size_count_too(hub: FakeHub, exact: dict[str, Any]) -> None:
    """Six blocks of 1,000 rows are two of 2,500 and a bit, which alone is not enough for a third."""
    hub.add("a/b", LARGE)
    interrupted(6, block_rows=1000)
    hub.take_log()
    assert measure_head(ENTRY).statistics == exact
    assert moved(hub) == [BLOCK] * 6
    for block_rows in (999, 2500, 7000, 20_000):
        head = opened()
        hub.take_log()
        rows = [b.rows.clone() for b in stream_rows(head.location, head.source, copy=head.copy, block_rows=block_rows)]
        assert torch.equal(torch.cat(rows), LARGE.head)
        assert moved(hub) == []


def test_blocks_of_another_size_that_have_rotted_do_not_count(hub: FakeHub, exact: dict[str, Any]) -> None:
    hub.add("a/b", LARGE)
    head = opened()
    for block in stream_rows(head.location, head.source, copy=head.copy, block_rows=1000):
        block.release()
    flip(copy_of().path, HEADER_BYTES + 100)
    hub.take_log()
    assert measure_head(ENTRY).statistics == exact
    assert moved(hub) == [BLOCK]
    assert stored_rows(copy_of().path) == raw(LARGE.head)


def test_a_process_that_is_killed_in_mid_head(hub: FakeHub, exact: dict[str, Any]) -> None:
    """SIGKILL when seven of eight blocks are there; the next run fetches the eighth, and the result is exact."""
    hub.add("a/b", LARGE)
    copy = copy_of()  # the header is read, and remembered
    hub.fault("stall_body", copy.path.parent.name, origin="cdn", after=BLOCKS - 1, times=100, arg=(1000, 600))
    command = [str(PROGRAM), "overlap", "a/b", "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        wait_for(lambda: len(copy.logged()) == BLOCKS - 1 or run.poll() is not None, "seven blocks")
        os.kill(run.pid, signal.SIGKILL)
        printed, said = run.communicate()
    assert (run.returncode, printed, said) == (-signal.SIGKILL, "", "")
    assert not copy.complete
    hub.faults.clear()
    hub.take_log()
    record = measure_head(ENTRY)
    assert moved(hub) == [BLOCK]
    assert record.statistics == exact
    assert stored_rows(copy.path) == raw(LARGE.head)


def test_a_head_with_a_checksum_of_its_own_is_not_kept_when_that_fails(hub: FakeHub) -> None:
    """A byte that flips on the way to a torch archive; in a safetensors file it could not be noticed."""
    checkpoint = opt_like()
    hub.add("a/b", checkpoint)
    succeed("plan", "a/b")
    copy = copy_of()
    fault = hub.fault("flip", copy.path.parent.name, origin="cdn", arg=1000)
    done = llmsuper("overlap", "a/b")
    assert (done.exit_code, done.stdout, fault.struck) == (5, "", 1)
    assert "CRC-32" in the_error(done)
    assert RowCache().kept() == []
    assert not copy.log.exists()
    hub.take_log()
    record = measure_head(ENTRY)
    assert moved(hub) == [checkpoint.head.nbytes]
    assert stored_rows(copy.path) == raw(checkpoint.head)
    folder = checkpoint.write(Path("local"))
    assert record.statistics == measure_head(ModelEntry(str(folder), local=True)).statistics


def test_a_flipped_block_of_an_interrupted_pass_is_caught_by_the_pass_that_ends(hub: FakeHub) -> None:
    checkpoint = opt_like(rows=20_000, tokens=19_950)
    hub.add("a/b", checkpoint)
    copy = copy_of()
    hub.fault("flip", copy.path.parent.name, origin="cdn", arg=1000)
    assert len(interrupted(3).logged()) >= 3  # the first of them wrong, and nothing yet says so
    with pytest.raises(CheckpointError, match="CRC-32"):
        measure_head(ENTRY)
    assert RowCache().kept() == []
    assert torch.equal(gathered(opened()), checkpoint.head)


# ---- two at a time


def waits_for_a_lock(pid: int) -> bool:
    return any(" -> " in line and f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines())


@pytest.mark.skipif(not Path("/proc/locks").is_file(), reason="there is no /proc/locks to see that a process waits in")
def test_two_processes_on_one_head_fetch_it_once(hub: FakeHub) -> None:
    """The first stands still in mid-head until the second waits for it (or, were that broken, asks for the head too)."""
    hub.add("a/b", LARGE)
    copy = copy_of()
    hub.take_log()
    stalled = hub.fault("stall_body", copy.path.parent.name, origin="cdn", after=BLOCKS - 1, arg=(1000, 600))
    environment = {**os.environ, "HF_HUB_DOWNLOAD_TIMEOUT": "600"}

    def start(results: str) -> subprocess.Popen[str]:
        command = [str(PROGRAM), "overlap", "a/b", "--json", "--results", results]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    with start("one") as one:
        wait_for(lambda: stalled.struck or one.poll() is not None, "the first to stand still")
        with start("two") as two:
            wait_for(
                lambda: waits_for_a_lock(two.pid) or len(moved(hub)) > BLOCKS or two.poll() is not None,
                "the second to wait",
            )
            hub.released.set()
            printed = [json.loads(run.communicate()[0]) for run in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0)
    assert moved(hub) == [BLOCK] * BLOCKS
    assert [record["made_by"]["bytes_moved"] for record in printed] == [LARGE.head.nbytes, 0]
    assert printed[0]["statistics"] == printed[1]["statistics"]


def test_two_threads_on_one_head_fetch_it_once(hub: FakeHub, exact: dict[str, Any]) -> None:
    hub.add("a/b", LARGE)
    plan_head(ENTRY)
    hub.take_log()
    together = threading.Barrier(2, timeout=10)

    def measure() -> dict[str, Any]:
        together.wait()
        return measure_head(ENTRY).statistics

    with ThreadPoolExecutor(2) as pool:
        found = [future.result() for future in [pool.submit(measure) for _ in range(2)]]
    assert found == [exact, exact]
    assert moved(hub) == [BLOCK] * BLOCKS


def test_one_thread_with_two_passes_over_one_head_does_not_wait_for_itself(hub: FakeHub) -> None:
    """Two revisions with the same head, side by side."""
    first = hub.add("a/b", LARGE)
    hub.add("a/b", {"README.md": b"about"})
    old, new = opened(replace(ENTRY, revision=first)), opened()
    for left, right in zip(old.rows(), new.rows(), strict=True):
        assert torch.equal(left.rows, right.rows)
    assert copy_of().complete


def test_a_lock_that_nobody_holds_any_more_is_no_hindrance(hub: FakeHub) -> None:
    hub.add("a/b", SMALL)
    copy = copy_of()
    copy.path.parent.mkdir(parents=True)
    with closing(os.fdopen(os.open(copy._lock_path, os.O_CREAT | os.O_RDWR), "wb")) as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # and released by closing, as when a process dies
    measure_head(ENTRY)
    assert copy.complete


# ---- room


def test_a_disk_without_room_is_one_error_before_a_byte_moves(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("a/b", SMALL)
    plan_head(ENTRY)
    hub.take_log()
    usage = shutil.disk_usage(HOME)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=SMALL.head.nbytes - 1))
    done = llmsuper("overlap", "a/b")
    assert (done.exit_code, moved(hub), RowCache().kept()) == (1, [], [])
    message = the_error(done)
    assert "cannot be written (0.00 GB are free, the head has 0.00 GB)" in message
    for way_out in ("llmsuper cache --clear", "HF_ASSETS_CACHE", "--no-cache --stat norms,overlap"):
        assert way_out in message
    assert succeed("overlap", "a/b", "--no-cache", "--stat", "norms,overlap").stdout
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=SMALL.head.nbytes))
    assert succeed("overlap", "a/b").stdout


def test_a_disk_that_fills_up_in_mid_head(hub: FakeHub, exact: dict[str, Any]) -> None:
    """No file may grow beyond 1 MB of the head's 2.56: one error, nothing that passes for whole, and the rest later."""
    hub.add("a/b", LARGE)
    copy = copy_of()
    done = shell("ulimit -f 2000; llmsuper overlap a/b")  # of 512 bytes
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: head cache ")
    assert "cannot be written (File too large)" in line
    assert [kept.complete for kept in RowCache().kept()] == [False]
    kept = len(copy.logged())
    assert kept < BLOCKS
    hub.take_log()
    assert measure_head(ENTRY).statistics == exact
    assert moved(hub) == [BLOCK] * (BLOCKS - kept)


def test_an_assets_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    done = shell("llmsuper cache", HF_ASSETS_CACHE=str(in_the_way / "assets"))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: head cache {in_the_way / 'assets'}: cannot be written (a file lies where")


# ---- without keeping


def test_no_cache_leaves_nothing_and_still_moves_the_head_once(hub: FakeHub) -> None:
    hub.add("a/b", SMALL)
    hub.add("c/d", pythia_like(seed=1))
    store, most = ResultStore("reports"), []

    def watch(_: HeadLocation) -> Callable[[int], None]:
        most.append(len(RowCache().kept()))
        return lambda _: None

    entries = [ENTRY, ModelEntry("c/d")]
    outcomes = list(measure_heads(entries, store, Settings(keep_heads=False), watch=watch))
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert moved(hub) == [HEADER_READ, SMALL.head.nbytes] * 2
    assert most == [0, 0]  # the first is gone before the second comes
    assert files() == []
    hub.take_log()
    succeed("overlap", "a/b", "--no-cache", "--force")
    assert moved(hub) == [HEADER_READ, SMALL.head.nbytes]
    assert files() == []


def test_no_cache_does_not_read_the_cache_either(hub: FakeHub) -> None:
    hub.add("a/b", SMALL)
    measure_head(ENTRY)
    kept = {path: path.stat().st_mtime_ns for path in files()}
    for statistics in (("norms",), ("norms", "centred_overlap")):
        hub.take_log()
        measure_head(ENTRY, Settings(statistics, keep_heads=False))
        assert moved(hub) == [HEADER_READ, SMALL.head.nbytes]
    assert {path: path.stat().st_mtime_ns for path in files()} == kept


# ---- what is kept


@pytest.mark.parametrize("make", [pythia_like, opt_like], ids=["safetensors", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_kept_head_is_an_ordinary_safetensors_file(make: Any, dtype: torch.dtype, hub: FakeHub) -> None:
    checkpoint: Checkpoint = make(dtype=dtype)
    commit = hub.add("a/b", checkpoint)
    measure_head(ENTRY)
    (kept,) = RowCache().kept()
    with safetensors.safe_open(kept.path, "pt") as file:
        assert list(file.keys()) == [checkpoint.head_name] == [kept.tensor]
        assert torch.equal(file.get_tensor(checkpoint.head_name), checkpoint.head)
        about = file.metadata()
    assert about["source"] == kept.source == f"a/b@{commit}/{checkpoint.head_file}"
    assert about["dtype"] == {torch.float32: "F32", torch.bfloat16: "BF16"}[dtype]
    assert json.loads(about["shape"]) == list(checkpoint.head.shape)
    assert about["made_by"].startswith("llmsuper ")


def made_up(name: str, **about: Any) -> HeadLocation:
    info = TensorInfo(name, **{"dtype": "F16", "shape": (4, 8), "begin": 64, "end": 128, **about})
    return HeadLocation(ENTRY, "c" * 40, "model.safetensors", info, tied=False, checkpoint_bytes=128)


def with_long_path(location: HeadLocation) -> HeadLocation:
    return replace(location, file="folder/" * 900 + location.file)


@pytest.mark.parametrize(
    "about",
    [{"dtype": "Q8_0", "shape": (4, 32), "end": 64 + 4 * 34}, {"byteorder": "big"}],
    ids=["quantised", "big endian"],
)
def test_what_safetensors_has_no_name_for_is_kept_as_bytes(about: dict[str, Any], hub: FakeHub) -> None:  # noqa: ARG001
    location = made_up("head", **about)
    content = bytes(range(location.nbytes))
    copy = RowCache().head(location, "0" * 64)
    with copy.opened() as opened_copy:
        assert opened_copy is not None
        opened_copy.write(0, memoryview(bytearray(content)))
        opened_copy.finish()
    with safetensors.safe_open(copy.path, "pt") as file:
        tensor, said = file.get_tensor("head"), file.metadata()
    assert (tensor.dtype, raw(tensor)) == (torch.uint8, content)
    assert tensor.shape == (4, location.row_bytes)
    assert (said["dtype"], said["byteorder"]) == (location.tensor.dtype, location.tensor.byteorder)


HOSTILE_NAMES = [
    "../../../x",
    "a/b",
    "a-b",
    "A-b",
    "",
    ".",
    "..",
    ".hidden",
    "n" * 5000,
    "\N{PILE OF POO}" * 900,
    "\ud800",
]


def test_every_tensor_has_a_file_of_its_own_in_the_folder(hub: FakeHub) -> None:  # noqa: ARG001
    cache = RowCache()
    copies = {name: cache.head(with_long_path(made_up(name)), "0" * 64) for name in HOSTILE_NAMES}
    assert len({str(copy.path).lower() for copy in copies.values()}) == len(HOSTILE_NAMES)
    for name, copy in copies.items():
        with copy.opened() as opened_copy:
            assert opened_copy is not None
            opened_copy.write(0, memoryview(bytearray(64)))
            opened_copy.finish()
        assert copy.path.resolve().parent == (cache.folder / "heads" / ("0" * 64)).resolve()
        assert stored_rows(copy.path) == bytes(64), name[:20]
    kept = cache.kept()
    assert len(kept) == len(HOSTILE_NAMES)
    assert all(head.complete for head in kept)


def test_the_key_is_content_and_place(hub: FakeHub) -> None:  # noqa: ARG001
    """Another reading of the same file is another head; an ETag that is no digest of the content is not trusted alone."""
    cache, here = RowCache(), made_up("w")
    elsewhere = replace(here, entry=ModelEntry("c/d"), commit="d" * 40)
    other_reading = made_up("w", begin=0, end=64)
    for etag, shared in (("0" * 64, True), ("0" * 40, True), ('W-"5f-17"', False), ("../..", False)):
        path = cache.head(here, etag).path
        assert (cache.head(elsewhere, etag).path == path) is shared, etag
        assert cache.head(other_reading, etag).path != path
        assert path.resolve().is_relative_to((cache.folder / "heads").resolve())


def test_a_read_that_ends_after_its_pass_writes_nowhere(hub: FakeHub, tmp_path: Path) -> None:  # noqa: ARG001
    """The number of a closed descriptor may be another file's by then."""
    copy = RowCache().head(made_up("w"), "0" * 64)
    with copy.opened() as late:
        assert late is not None
    (tmp_path / "mine").write_bytes(b"mine" * 2000)
    others = [os.open(tmp_path / "mine", os.O_RDWR) for _ in range(20)]
    late.write(0, memoryview(bytearray(64)))
    assert late.read(0, memoryview(bytearray(64))) is False
    late.finish()
    for fd in others:
        os.close(fd)
    assert (tmp_path / "mine").read_bytes() == b"mine" * 2000
    assert not copy.complete
    assert copy.logged() == {}


# ---- what is remembered


def test_claims_are_checked_where_the_place_is_remembered(hub: FakeHub) -> None:
    hub.add("a/b", SMALL)
    measure_head(ENTRY)
    for wrong in ({"columns": 63}, {"rows": 641}):
        with pytest.raises(CatalogError, match="the model list claims"):
            plan_head(replace(ENTRY, **wrong))
    assert plan_head(replace(ENTRY, columns=64, rows=640)).total_bytes == 0


def test_what_was_asked_for_is_part_of_what_is_remembered(hub: FakeHub) -> None:
    """By tensor, by file and by the names of the model list; each twice, read and then remembered."""
    hub.add("a/b", SMALL)
    own, embedding = "embed_out.weight", "gpt_neox.embed_in.weight"
    listed = replace(ENTRY, lm_head=(embedding, own))
    for _ in range(2):
        assert plan_head(ENTRY).location.tensor.name == own
        assert plan_head(listed).location.tensor.name == embedding
        assert plan_head(ENTRY, embedding).location.tensor.name == embedding
        assert plan_head(listed, file="model.safetensors").location.tensor.name == own
        with pytest.raises(CheckpointError, match="no file is named 'embed_out"):
            plan_head(ENTRY, file=own)


REWRITTEN: dict[str, Callable[[str], str]] = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda _: "",
    "a list": lambda _: "[]",
    "an object": lambda _: "{}",
    "another version's": lambda text: json.dumps({**json.loads(text), "more": 1, "files": None, "tensor": {}}),
}


@pytest.mark.parametrize("rewrite", REWRITTEN.values(), ids=REWRITTEN.keys())
def test_a_memory_that_makes_no_sense_is_no_memory(rewrite: Callable[[str], str], hub: FakeHub) -> None:
    hub.add("a/b", SMALL)
    before = measure_head(ENTRY)
    memories = [path for path in files() if path.suffix == ".json"]
    assert len(memories) == 3  # the branch, the commit, the head's place
    for path in memories:
        path.write_text(rewrite(path.read_text()))
    hub.take_log()
    hub.fault("status", "/api/models/a/b", times=100, arg=(503, {}, b""))
    with pytest.raises(HubError):
        plan_head(ENTRY)
    hub.faults.clear()
    hub.take_log()
    assert measure_head(ENTRY).statistics == before.statistics
    assert moved(hub) == [HEADER_READ]


def test_a_file_that_changes_behind_its_commit_is_an_error(hub: FakeHub) -> None:
    hub.add("a/b", SMALL)
    plan_head(ENTRY)
    hub.fault("etag", "/resolve/.*safetensors", origin="hub", method="HEAD", times=9, arg='"' + "f" * 64 + '"')
    with pytest.raises(HubError, match=r"a/b@\w{7}/model\.safetensors: its ETag is f{64}, and was .*cache --clear"):
        measure_head(ENTRY)
    assert not any(kept.complete for kept in RowCache().kept())


def test_revisions_whose_names_look_alike_are_told_apart(hub: FakeHub) -> None:
    cache = RowCache()
    for revision in ("refs/pr/1", "refs-pr-1", "Refs-pr-1", "../x", "main"):
        cache.remember_files(replace(ENTRY, revision=revision), "c" * 40, {revision: 1})
        assert cache.recall_files(replace(ENTRY, revision="unheard of")) is None
    for revision in ("refs/pr/1", "refs-pr-1", "Refs-pr-1", "../x", "main"):
        assert cache.recall_files(replace(ENTRY, revision=revision)) == ("c" * 40, {revision: 1})
    assert hub.take_log() == []


def test_a_file_that_cannot_be_opened_is_tried_once_for_all_threads() -> None:
    """Else each of eight workers would wait for a Hub that is gone, one after another."""
    tries: list[int] = []

    def refuse() -> Any:
        tries.append(1)
        raise HubError("gone")

    source = UnopenedFile("a/b", "0" * 64, 128, refuse)
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(source.read, 0, 8) for _ in range(8)]
    assert [str(read.exception()) for read in reads] == ["gone"] * 8
    assert len(tries) == 1
    assert (source.moved, source.requests) == (0, 0)


# ---- llmsuper cache


def test_the_verb_shows_and_clears(hub: FakeHub) -> None:
    folder = RowCache().folder
    assert succeed("cache").stdout == f"0 heads, 0 B, in {folder}\n"
    assert succeed("cache", "--json").stdout == succeed("cache", "-q").stdout == ""
    commit = hub.add("a/b", SMALL)
    succeed("overlap", "a/b")
    hub.add("a/b", LARGE)
    copy = interrupted()
    whole = next(kept for kept in RowCache().kept() if kept.complete)
    part = next(kept for kept in RowCache().kept() if not kept.complete)
    assert whole.nbytes == HEADER_BYTES + SMALL.head.nbytes
    assert 5 * BLOCK <= part.nbytes < LARGE.head.nbytes

    title, *lines, total = succeed("cache").stdout.splitlines()
    assert title.split() == ["head", "tensor", "bytes"]
    assert sorted(line.split() for line in lines) == sorted(
        [
            [f"a/b@{commit}/model.safetensors", "embed_out.weight", f"{whole.nbytes:,}"],
            ["(not", "complete)", "embed_out.weight", f"{part.nbytes:,}"],
        ]
    )
    assert total == f"2 heads, {size(whole.nbytes + part.nbytes)}, in {folder}"
    for line in json_lines("cache"):
        assert Path(line["path"]).stat().st_size >= line["bytes"]
        assert line["complete"] is (line["source"] is not None) is (line["path"] == str(whole.path))
    assert set(succeed("cache", "-q").stdout.splitlines()) == {str(whole.path), str(copy.part)}

    (cleared,) = json_lines("cache", "--clear")
    assert cleared["folder"] == str(folder)
    assert cleared["freed_bytes"] >= whole.nbytes + part.nbytes
    assert files() == []
    assert succeed("cache", "-q").stdout == ""
    assert succeed("cache", "--clear", "-q").stdout == "0\n"
    assert succeed("cache", "--clear").stdout == f"0 B freed in {folder}\n"
    hub.take_log()
    measure_head(ENTRY)
    assert len(moved(hub)) == 1 + BLOCKS


def test_the_verb_is_not_put_off_by_what_is_not_a_head(hub: FakeHub) -> None:
    hub.add("a/b", SMALL)
    measure_head(ENTRY)
    (kept,) = RowCache().kept()
    kept.path.with_name("x-12345678.safetensors").write_bytes(b"\0" * 9000)
    kept.path.with_name("y-12345678.safetensors").write_bytes(b"")
    found = {Path(line["path"]).name: line["complete"] for line in json_lines("cache")}
    assert found == {kept.path.name: True, "x-12345678.safetensors": False, "y-12345678.safetensors": False}


def test_a_cache_that_is_cleared_in_mid_head_harms_nobody(hub: FakeHub) -> None:
    """The pass goes on, though what it fetches is not kept; one that began since is not mixed up with it."""
    hub.add("a/b", LARGE)
    first = opened()
    passing = iter(stream_rows(first.location, first.source, copy=first.copy, workers=1))
    rows = [block.rows.clone() for block in islice(passing, 3)]
    RowCache().clear()

    def another() -> HeadCopy:
        return interrupted(2)

    with ThreadPoolExecutor(1) as pool:
        begun_since = pool.submit(another).result(timeout=30)
    logged = begun_since.logged()
    rows += [block.rows.clone() for block in passing]
    assert torch.equal(torch.cat(rows), LARGE.head)
    assert begun_since.logged() == logged
    assert begun_since.part.is_file()
    assert not begun_since.complete
    hub.take_log()
    assert torch.equal(gathered(opened()), LARGE.head)
    assert moved(hub) == [BLOCK] * (BLOCKS - len(logged))
    assert stored_rows(begun_since.path) == raw(LARGE.head)


def test_what_a_killed_run_without_cache_leaves_is_shown_and_cleared(hub: FakeHub) -> None:
    """The folder of such a run goes with it, unless it is killed."""
    hub.add("a/b", LARGE)
    stalled = hub.fault("stall_body", "xet-bridge", origin="cdn", after=BLOCKS, times=100, arg=(1000, 600))
    command = [str(PROGRAM), "overlap", "a/b", "-q", "--no-cache"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        wait_for(lambda: stalled.struck or run.poll() is not None, "the head to be half read")
        os.kill(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        run.communicate()
    (left,) = json_lines("cache")
    assert (left["complete"], left["tensor"]) == (False, "embed_out.weight")
    succeed("cache", "--clear")
    assert files() == []
    assert list(RowCache().folder.iterdir()) == []


def test_an_error_of_the_disk_is_one_of_ours(hub: FakeHub) -> None:
    hub.add("a/b", SMALL)
    copy = copy_of()
    copy.path.parent.parent.mkdir(parents=True, exist_ok=True)
    copy.path.parent.touch()  # a file where a folder should be
    with pytest.raises(LlmsuperError, match="cannot be written"):
        measure_head(ENTRY)
