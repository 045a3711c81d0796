"""Training toy models: the same alone, in a batch, on resume and after kill -9; the records; the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llmsuper.errors import BackendError, LlmsuperError
from llmsuper.kernels import one_thread_per_block
from llmsuper.toy import train
from llmsuper.toy.batch import Batch, checkpoint_path, logged_steps
from llmsuper.toy.record import ToyRecord, ToyStore
from llmsuper.toy.run import read_gamma
from llmsuper.toy.train import make_batches, train_runs, work_of
from tests.command import json_lines, llmsuper, succeed, the_error
from tests.test_toy import toy_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llmsuper.toy.run import ToyRun


def knob(gamma: float, **changes: Any) -> ToyRun:
    """A small run with that γ."""
    regulariser, strength = read_gamma(gamma)
    return toy_run(regulariser=regulariser, strength=strength, **changes)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer over small products than one alone."""
    with one_thread_per_block():
        yield


RUNS = [knob(gamma, seed=seed) for seed in (0, 1) for gamma in (-1.0, -0.5, 0.5)]


def without_cost(record: ToyRecord) -> ToyRecord:
    """The record without what differs from one run of the same thing to the next: time, and who trained beside it."""
    return replace(record, made_by={})


def trained(folder: Path, runs: list[ToyRun], **options: Any) -> dict[ToyRun, ToyRecord]:
    return {record.run: without_cost(record) for record in train_runs(runs, ToyStore(folder), device="cpu", **options)}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[ToyRun, ToyRecord]:
    """RUNS, trained together and never stopped."""
    return trained(tmp_path_factory.mktemp("toy"), RUNS)


def parameters(grid: list[list[ToyRun]]) -> dict[ToyRun, torch.Tensor]:
    batch = Batch(grid, "cpu")
    while batch.step < batch.first.steps:
        batch.advance()
    return {found.run: torch.cat([found.W, found.b[:, None]], dim=1) for found in batch.finish()}


def test_a_run_is_the_same_alone_and_in_a_batch() -> None:
    grid = [
        [knob(gamma, seed=seed, alpha=alpha) for seed, alpha in ((0, 1.0), (1, 1.0), (1, 0.0))] for gamma in (-1.0, 0.5)
    ]
    together = parameters(grid)
    for run, theta in together.items():
        alone = parameters([[run]])[run]
        torch.testing.assert_close(theta, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[grid[0][0]], together[grid[0][1]], atol=0.1)  # seeds do differ


def test_runs_train_by_device(records: dict[ToyRun, ToyRecord]) -> None:
    on_cpu, on_gpu = make_batches(RUNS, "cpu"), make_batches(RUNS, "cuda")
    assert [(len(grid), len(grid[0])) for _, grid in on_cpu] == [(3, 1), (3, 1)]
    assert [(len(grid), len(grid[0])) for _, grid in on_gpu] == [(3, 2)]
    for batches in (on_cpu, on_gpu):
        assert {run for _, grid in batches for row in grid for run in row} == set(RUNS) == set(records)
    mixed = [*RUNS, knob(1.0), replace(RUNS[0], m=7), replace(RUNS[0], steps=31)]
    every = [run for _, grid in make_batches(mixed, "cuda", {RUNS[0]: 8}) for row in grid for run in row]
    assert sorted(run.key for run in every) == sorted(run.key for run in mixed)


def test_records_say_what_was_trained(records: dict[ToyRun, ToyRecord]) -> None:
    for run, record in records.items():
        assert record.run == run
        assert record.curve["step"] == list(range(run.steps))
        assert record.curve["loss"][-1] < record.curve["loss"][0]
        assert record.training_loss == pytest.approx(sum(record.curve["loss"]) / run.steps, rel=1e-5)
        assert record.norms["rows"] + record.norms["zero_rows"] == run.n
        assert record.norm_profile["rank"][-1] == run.n
        assert record.overlap["columns"] == run.m
        assert record.theory["isotropic"] == 1 / run.m
    strong = [record.phi_half for run, record in records.items() if run.gamma == -1.0]
    weak = [record.phi_half for run, record in records.items() if run.gamma == 0.5]
    assert min(strong) >= max(weak)


def test_seeds_are_the_only_difference_between_seeds(records: dict[ToyRun, ToyRecord], tmp_path: Path) -> None:
    again = trained(tmp_path, RUNS[:1])
    assert again[RUNS[0]] == records[RUNS[0]]
    assert records[RUNS[0]].test_loss != records[RUNS[3]].test_loss


def test_a_store_gives_back_what_was_put(tmp_path: Path) -> None:
    store = ToyStore(tmp_path)
    (record,) = train_runs(RUNS[:1], store, device="cpu")
    assert list(store.records()) == [record] == [store.get(record.run)]
    frame = store.frame()
    assert frame["gamma"].tolist() == [-1.0]
    assert frame["overlap.ratio_to_isotropic"][0] == record.overlap["ratio_to_isotropic"]
    assert frame["theory.weak_loss"][0] == record.theory["weak_loss"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{record.run.key}.json"]
    with pytest.raises(LlmsuperError, match="is not a record of llmsuper"):
        store.get(RUNS[1])
    kept = json.loads((tmp_path / f"{record.run.key}.json").read_text())
    kept["run"]["m"] = 1000
    (tmp_path / "odd.json").write_text(json.dumps(kept))
    with pytest.raises(
        LlmsuperError, match=r"odd\.json: is not a record of llmsuper \(LlmsuperError: toy run: m = 1000"
    ):
        store.frame()


def test_what_is_stored_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path, RUNS[:2])
    monkeypatch.setattr(train, "Batch", lambda *_: pytest.fail("a stored run was trained again"))
    assert trained(tmp_path, RUNS[:2]) == {}


def test_a_caller_who_stops_can_go_on(tmp_path: Path) -> None:
    long = [replace(run, steps=640, batch=256) for run in RUNS[:3]]
    whole = trained(tmp_path / "whole", long)
    begun, seen = threading.Event(), []

    class StopError(Exception):
        """The caller's own reason."""

    def stop(work: float) -> None:
        seen.append(work)
        if len(seen) > 2 and not begun.is_set():
            begun.set()
            raise StopError

    with pytest.raises(StopError):
        trained(tmp_path / "cut", long, watch=stop, checkpoint_seconds=0.0)
    kept = list((tmp_path / "cut" / ".checkpoints").iterdir())
    assert 1 <= len(kept) <= 3  # on several cores the runs are in several batches, not all of which have begun
    work: list[float] = []
    assert trained(tmp_path / "cut", long, watch=work.append) == whole
    assert sum(work) == pytest.approx(sum(map(work_of, long)))
    assert not (tmp_path / "cut" / ".checkpoints").exists()


KILLED = """
import sys
from llmsuper.toy.record import ToyStore
from llmsuper.toy.run import ToyRun
from llmsuper.toy.train import train_runs
import json
runs = [ToyRun(**given) for given in json.loads(sys.argv[2])]
list(train_runs(runs, ToyStore(sys.argv[1]), device="cpu", checkpoint_seconds=0.0))
"""


def test_a_kill_costs_no_more_than_time(tmp_path: Path) -> None:
    runs = [replace(run, steps=1000, batch=512) for run in RUNS[:2]]
    whole = trained(tmp_path / "whole", runs)
    arguments = [tmp_path / "killed", json.dumps([asdict(run) for run in runs])]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *map(str, arguments)], env={**os.environ})
    kept = [checkpoint_path(tmp_path / "killed" / ".checkpoints", run) for run in runs]
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in kept) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed: make the runs longer"
    steps = [torch.load(path, weights_only=True)["step"] for path in kept]
    assert all(0 < step < 1000 for step in steps)
    assert trained(tmp_path / "killed", runs) == whole


def test_a_checkpoint_that_is_none_is_one_error(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path / ".checkpoints", RUNS[0])
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(LlmsuperError, match=r"is not a checkpoint of this run .* Delete it to train from the start"):
        trained(tmp_path, RUNS[:1])


def test_a_device_that_is_not_here_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match="'cuda' is not on this machine"):
        list(train_runs(RUNS[:1], ToyStore(tmp_path), device="cuda"))


def test_losses_are_kept_evenly_and_at_the_end() -> None:
    kept = list(logged_steps(20_000))
    assert kept[:3] == [0, 100, 200]
    assert kept[-100:] == list(range(19_900, 20_000))
    assert list(logged_steps(3)) == [0, 1, 2]


# ---- the command line

SWEEP = """
title = "a small one"
[common]
n = 50
alpha = 1.0
batch = 32
test_samples = 64
gamma = [-1.0, 0.5]
[full]
m = [2, 3, 5]
steps = 8
[reduced]
m = 2
steps = 3
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SWEEP)
    return path


def test_the_sweeps_are_listed() -> None:
    names = succeed("toy", "-q").stdout.split()
    assert names == ["activation_density", "epsilon", "exponents", "initialisation", "large", "seeds", "weight_decay"]
    assert [line["sweep"] for line in json_lines("toy")] == names


def test_a_sweep_is_listed_trained_and_found_again(sweep: Path, tmp_path: Path) -> None:
    common = ["toy", sweep, "--results", tmp_path / "out", "--device", "cpu"]
    listed = json_lines(*common, "--list")
    assert [(line["m"], line["gamma"], line["stored"]) for line in listed] == [
        (m, gamma, False) for gamma in (-1.0, 0.5) for m in (2, 3, 5)
    ]
    text = succeed(*common).stdout
    assert text.count("exponent ") == 2
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len(stamps) == 6
    again = json_lines(*common)
    assert [(line["run"]["m"], line["run"]["strength"]) for line in again] == [
        (m, g) for g in (1.0, 0.5) for m in (2, 3, 5)
    ]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == stamps
    assert all(line["stored"] for line in json_lines(*common, "--list"))
    assert len(json_lines(*common, "--reduced")) == 2
    assert len(list((tmp_path / "out").iterdir())) == 8
    assert len(json_lines(*common, "--only", "m=3", "--only", "gamma=-1")) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["weight_decai"], 3, "no sweep is named 'weight_decai'"),
        (["weight_decay", "--only", "widht=3", "--list"], 3, "no parameter of a toy run is named 'widht'"),
        (["weight_decay", "--only", "m=11", "--list"], 1, "no run has it"),
        (["weight_decay", "--device", "tpu"], 6, "runs on cuda or cpu, not on 'tpu'"),
    ],
)
def test_a_command_that_is_wrong_is_one_error(arguments: list[str], status: int, said: str, tmp_path: Path) -> None:
    done = llmsuper("toy", *arguments, "--results", tmp_path)
    assert done.exit_code == status
    assert said in the_error(done)


def test_what_needs_a_sweep_says_so() -> None:
    done = llmsuper("toy", "--reduced")
    assert done.exit_code == 2
    assert "name one" in done.stderr
