"""Several processes measure what one would: the same numbers, no byte twice, one voice, and no hang when one is killed."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llmsuper.errors import BackendError
from llmsuper.geometry import STATISTICS
from llmsuper.geometry.overlap import GramAccumulator
from llmsuper.hub.stream import count_blocks
from llmsuper.measure import Settings, measure_head, measure_heads
from llmsuper.processes import ALONE, Processes, join_processes
from llmsuper.settings import SHARED_BYTES
from llmsuper.store import ResultStore
from llmsuper.types import HeadLocation, ModelEntry, TensorInfo
from tests.checkpoints import pythia_like, weight_files
from tests.command import weights_requests
from tests.conftest import empty_home
from tests.launched import (
    command,
    failing,
    gram_of_a_share,
    joined_by_hand,
    killed_in_the_middle,
    measured,
    part_of_the_machine,
    run,
    swept,
    told_to_stop,
    without_a_copy,
)

if TYPE_CHECKING:
    from tests.fake_hub import FakeHub

ROWS, COLUMNS, TOKENS = 9_000, 24, 8_900
BLOCKS = 8
HEADER_READ = 1 << 16
SUMMED = tuple(name for name, row in STATISTICS.items() if not row.reads)


# ---- the numbers


def without_costs(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__ if name != "made_by"}


def head_on_the_hub(hub: FakeHub, repo: str = "a/b", **options: Any) -> int:
    """Adds a checkpoint whose head has several blocks, some of them with padding; the bytes of its head."""
    checkpoint = pythia_like(rows=ROWS, columns=COLUMNS, tokens=TOKENS, kind="anisotropic", **options)
    hub.add(repo, checkpoint)
    return int(checkpoint.head.nbytes)


@pytest.mark.parametrize("count", [2, 3])
def test_a_shared_head_has_the_record_of_one_process_and_each_reads_its_own_rows(count: int, hub: FakeHub) -> None:
    nbytes = head_on_the_hub(hub)
    settings = Settings((*SUMMED, "pairs")) if count == 2 else Settings(SUMMED)
    alone = measure_head(ModelEntry("a/b"), settings)
    empty_home()
    hub.take_log()
    records = run(count, measured, settings)
    for record in records:
        assert without_costs(record) == without_costs(alone)  # to the last digit
    header, *ranges = [request.sent for request in weights_requests(hub)]
    assert header == HEADER_READ
    assert sum(ranges) == nbytes
    if count == 2:  # where `pairs` has had every row on each process, the second one's from the cache
        return
    row_bytes, block = 2 * COLUMNS, ROWS // BLOCKS * 2 * COLUMNS
    moved = records[0].made_by["bytes_moved_by_process"]
    assert moved == [HEADER_READ + 3 * block, 3 * block, 2 * block]
    assert (len(ranges), nbytes) == (BLOCKS, ROWS * row_bytes)
    hub.take_log()
    assert without_costs(measure_head(ModelEntry("a/b"), settings)) == without_costs(alone)
    assert weights_requests(hub) == []  # the shares have made one whole


def test_without_the_cache_a_share_still_crosses_the_network_once(hub: FakeHub) -> None:
    nbytes = head_on_the_hub(hub)
    (found, moved), _ = run(2, without_a_copy)
    assert found == measure_head(ModelEntry("a/b"), Settings()).statistics
    assert moved == [HEADER_READ + nbytes // 2, nbytes // 2]


def test_the_gram_matrix_is_the_same_to_the_last_bit_however_many_sum_it_up() -> None:
    ((gram, direction),) = run(1, gram_of_a_share)
    for other, same in run(3, gram_of_a_share):
        assert np.array_equal(gram, other)
        assert np.array_equal(direction, same)


# ---- what is shared


def located(rows: int, columns: int = 4096) -> HeadLocation:
    info = TensorInfo("w", "BF16", (rows, columns), 0, 2 * rows * columns)
    return HeadLocation(ModelEntry("made/up"), "0", "f", info, False, 0)


@pytest.mark.parametrize(
    ("shard", "rows", "count", "jobs", "statistics", "shared"),
    [
        ("auto", 50_000, 4, 4, ("overlap",), True),  # 410 MB
        ("auto", 20_000, 4, 4, ("overlap",), False),  # 164 MB, and there is one for each process
        ("auto", 20_000, 4, 3, ("overlap",), True),
        ("auto", 50_000, 1, 1, ("overlap",), False),
        ("rows", 20_000, 4, 4, ("overlap",), True),
        ("models", 50_000, 4, 1, ("overlap",), False),
        ("rows", 100, 4, 1, ("overlap",), False),  # one block
        ("rows", 50_000, 1_000, 1, ("overlap",), False),
        ("rows", 50_000, 4, 1, ("overlap", "pairs"), True),
        ("rows", 50_000, 4, 1, ("overlap", "controls"), False),  # for which one process needs every row
    ],
)
def test_what_is_shared(
    shard: Any, rows: int, count: int, jobs: int, statistics: tuple[str, ...], shared: bool
) -> None:
    from llmsuper.found import FoundHead
    from llmsuper.measure import _Job

    location = located(rows)
    assert (location.nbytes > SHARED_BYTES) == (rows == 50_000)
    assert (count_blocks(location) == 1) == (rows == 100)
    found = FoundHead(None, location, None, None, "", (), 0, 0, 0.0)  # type: ignore[arg-type]
    job = _Job(location.entry, found, Settings(statistics, shard=shard))
    assert job.shared(Processes(0, count), jobs) is shared


@pytest.mark.parametrize("count", range(1, 20))
def test_every_process_is_in_the_tree_once(count: int) -> None:
    all_of_them = [Processes(rank, count) for rank in range(count)]
    children = [child for process in all_of_them for child in process._children]
    assert sorted(children) == list(range(1, count))
    for process in all_of_them:
        assert all(all_of_them[child]._parent == process.rank < child for child in process._children)
        assert process._children == sorted(process._children)


# ---- many models


@pytest.mark.parametrize("shard", ["models", "rows"])
def test_models_are_measured_and_stored_once_and_an_error_stops_no_other(
    shard: Any, hub: FakeHub, tmp_path: Path
) -> None:
    sizes = {name: head_on_the_hub(hub, name, seed=k) for k, name in enumerate(("a/1", "a/2", "a/3"))}
    bad = pythia_like(rows=ROWS, columns=COLUMNS, tokens=TOKENS)
    bad.head[ROWS // BLOCKS + 5] = float("nan")  # in the second block
    hub.add("a/nan", bad | weight_files(bad.tensors))
    names = ("a/1", "a/nan", "a/gone", "a/2", "a/3")
    first, second = run(2, swept, tmp_path, shard, names)
    assert first == second
    assert sorted(repo for repo, *_ in first) == sorted(names)
    errors = {repo: (kind, text) for repo, kind, text, made in first if made is None}
    assert {repo: kind for repo, (kind, _) in errors.items()} == {"a/nan": "CheckpointError", "a/gone": "HubError"}
    (said,) = (text for kind, text in errors.values() if kind == "CheckpointError")
    assert said.startswith("a/nan, model.safetensors, 'embed_out.weight': row ")
    assert f"row {ROWS // BLOCKS + 5} holds a NaN" in said
    assert said.count("a/nan") == 1
    assert sorted(record.repo for record in ResultStore(tmp_path).records()) == sorted(sizes)
    for repo, _, _, made in first:
        if made is not None:
            each = made.get("bytes_moved_by_process", [made["bytes_moved"]])
            assert len(each) == (2 if shard == "rows" else 1)
            assert sum(each) == made["bytes_moved"] == sizes[repo] + HEADER_READ
    again = run(2, swept, tmp_path, shard, ("a/1", "a/2"))
    assert [(repo, kind) for repo, kind, *_ in again[1]] == [("a/1", "NoneType"), ("a/2", "NoneType")]


@pytest.mark.parametrize("where", [0, 2])
def test_an_error_of_one_is_raised_on_all_which_go_on(where: int) -> None:
    for heard, ranks, first in run(3, failing, where):
        assert heard == [f"of {where}", f"of {where}", "of the first"]
        assert (ranks, first) == ([0, 1, 2], "first")


# ---- killed


def test_a_killed_process_is_an_error_of_the_others_and_loses_nothing_stored(hub: FakeHub, tmp_path: Path) -> None:
    head_on_the_hub(hub, "a/1")
    nbytes = head_on_the_hub(hub, "a/2")
    said = run(3, killed_in_the_middle, tmp_path, died=1)
    assert {name for name, _ in said} == {"LostProcessError"}
    assert "process 1 of 3: it has ended" in said[0][1]
    assert "records that were stored are kept: run the same command again" in said[0][1]
    assert [record.repo for record in ResultStore(tmp_path).records()] == ["a/1"]
    hub.take_log()
    (again,) = measure_heads([ModelEntry("a/2")], ResultStore(tmp_path))
    assert again.record is not None
    assert sum(request.sent for request in weights_requests(hub)) < nbytes  # what the others had read was kept


def test_what_a_launcher_ends_says_so(hub: FakeHub) -> None:  # noqa: ARG001
    lost, stopped = run(2, told_to_stop)
    assert lost[0] == stopped[0] == "LostProcessError"
    assert stopped[1].startswith("process 1 of 2: it was told to stop (SIGTERM), as launchers do when another process")
    assert lost[1].startswith("process 1 of 2: it has ended")


# ---- joining


def test_a_process_group_that_is_there_is_used_as_it_is(tmp_path: Path) -> None:
    for rank, everyone in run(2, joined_by_hand, tmp_path):
        assert everyone == [(1, 0), (0, 1)]
        assert rank in (0, 1)


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert join_processes() is ALONE
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join_processes() is ALONE
    assert (ALONE.gathered(3), ALONE.from_first(lambda: 4), ALONE.total(sum_ := GramAccumulator())) == ([3], 4, sum_)


def test_a_launcher_that_starts_one_process_in_place_of_several_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert join_processes() is ALONE
    monkeypatch.setenv("MASTER_PORT", "29500")  # which it sets for several
    with pytest.raises(BackendError, match=r"has started one.*--multi_gpu --num_processes P`, or `torchrun"):
        join_processes()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind processes to cores")
def test_each_process_keeps_to_one_gpu_and_its_share_of_the_cores() -> None:
    cores = sorted(os.sched_getaffinity(0))
    found = [run(1, part_of_the_machine, place, len(cores), "4,7")[0] for place in range(len(cores))]
    assert [gpu for gpu, _ in found] == list(itertools.islice(itertools.cycle("47"), len(cores)))
    assert [[core] for core in cores] == [mine for _, mine in found]
    assert run(1, part_of_the_machine, 0, len(cores) + 1, "5") == [("5", cores)]  # more processes than cores


# ---- the command line


def test_the_first_process_speaks_and_all_leave_with_the_same_status(hub: FakeHub, tmp_path: Path) -> None:
    head_on_the_hub(hub, "a/1")
    arguments = ("overlap", "a/1", "a/gone", "--results", str(tmp_path), "--shard", "rows", "--json")
    (code, out, err), (other, *silence) = run(2, command, arguments)
    assert code == other == 1
    assert silence == ["", ""]
    assert [json.loads(line)["repo"] for line in out.splitlines()] == ["a/1"]
    assert "error: a/gone" in err
    assert "1 of 2 models failed" in err
    (code, _, err), (other, *silence) = run(2, command, ("overlap", "a/gone", "--results", str(tmp_path)))
    assert code == other == 4
    assert silence == ["", ""]
    assert err.count("error: ") == 1


def test_accelerate_launches_the_module(hub: FakeHub, tmp_path: Path) -> None:
    """As a user does; everything that this starts is real but the Hub."""
    nbytes = head_on_the_hub(hub)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = ("accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", port)
    program = str(Path(sys.executable).with_name(launch[0]))
    done = subprocess.run(
        [program, *launch[1:], "-m", "llmsuper", "overlap", "a/b", "--results", str(tmp_path), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    record = json.loads(line)
    assert record["made_by"]["bytes_moved_by_process"] == [HEADER_READ + nbytes // 2, nbytes // 2]
    assert record["statistics"] == measure_head(ModelEntry("a/b")).statistics
    (stored,) = ResultStore(tmp_path).records()
    assert stored.statistics == record["statistics"]
