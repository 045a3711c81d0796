"""Trains the runs that a store does not hold yet, many at once, with checkpoints, into ToyRecords."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from llmsuper.kernels import choose_backend, usable_cores, worker_threads
from llmsuper.toy.batch import CURVE_POINTS, LAST, Batch, Trained, checkpoint_path, read_checkpoint
from llmsuper.toy.measure import measure_rows, theory_values
from llmsuper.toy.record import ToyRecord
from llmsuper.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from llmsuper.toy.record import ToyStore
    from llmsuper.toy.run import ToyRun

CHECKPOINT_SECONDS = 60.0
"""A kill costs at most so much work of each batch."""

SOURCE = ("distribution", "alpha", "scale", "activation_density", "seed")
"""Parameters that make a run's samples."""
SHAPE = ("n", "m", "batch", "steps", "warmup", "final_lr", "test_samples")
"""Parameters that runs which train at once share."""

ROOM_BYTES = 4 << 30
"""For the largest tensor of a batch, (sources, rows, n), on a GPU. On a CPU a batch has one source: its tensor stays in cache."""
VARIANTS = 16
"""Most variants of a batch on a CPU: more would leave cores idle at the end of a sweep. Fewer where there are more cores than
sources, so that each has a batch."""


def train_runs(
    runs: Iterable[ToyRun],
    store: ToyStore,
    *,
    device: str = "auto",
    watch: Callable[[float], None] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Iterator[ToyRecord]:
    """Train each run that has no record, store its record, and yield it as soon as it is there.

    Runs of one shape train at once, and one batch on each core or all on the GPU. What a run is in the middle of is kept in
    the store's folder, below `.checkpoints`, every `checkpoint_seconds` and when the caller stops early; the next call goes
    on from there. `watch` is called with the work (see `work_of`) of what has been trained since its last call, and of what
    was restored.

    Raises `BackendError` for a device that is not here, and `LlmsuperError` for a folder that cannot be written.
    """
    device = choose_backend("torch", device).device
    missing = [run for run in dict.fromkeys(runs) if not store.has(run)]
    if not missing:
        return
    store.check_writable()
    folder = store.folder / ".checkpoints"
    grids = make_batches(missing, device, {run: _kept_step(folder, run) for run in missing})
    stop, lock = threading.Event(), threading.Lock()

    def advanced(work: float) -> None:
        if watch is not None:
            with lock:
                watch(work)

    def train(grid: list[list[ToyRun]], step: int) -> list[ToyRecord]:
        return _train_batch(Batch(grid, device), folder, step, stop, advanced, checkpoint_seconds)

    threads = usable_cores() if device == "cpu" else 1
    with worker_threads(threads, "toy") as pool:
        waiting = {pool.submit(train, grid, step) for step, grid in grids}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    for record in future.result():
                        store.put(record)
                        checkpoint_path(folder, record.run).unlink(missing_ok=True)
                        yield record
        finally:
            stop.set()  # whoever is still training writes a checkpoint and ends
            for future in waiting:
                future.cancel()
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def work_of(run: ToyRun) -> float:
    """What a run costs, in multiply-adds of its products and as many again for what does not grow with m; for time left."""
    return float(run.steps) * run.batch * run.n * (3 * (run.m + 1) + 30)


def make_batches(
    runs: Sequence[ToyRun], device: str, steps: dict[ToyRun, int] | None = None
) -> list[tuple[int, list[list[ToyRun]]]]:
    """(step to go on from, grid of variants × sources) of each batch, the longest first.

    A batch has the runs of one shape and one step; its sources have the same variants. On a CPU a batch has one source.
    """
    by_source: dict[Any, list[ToyRun]] = defaultdict(list)
    for run in runs:
        step = steps.get(run, 0) if steps else 0
        by_source[_pick(run, SHAPE), step, _pick(run, SOURCE)].append(run)
    alike: dict[Any, list[list[ToyRun]]] = defaultdict(list)
    parts = -(-usable_cores() // len(by_source)) if device == "cpu" and by_source else 1
    for (shape, step, _), variants in by_source.items():
        most = min(VARIANTS, -(-len(variants) // parts)) if device == "cpu" else len(variants)
        for start in range(0, len(variants), most):
            part = sorted(variants[start : start + most], key=_variant)
            alike[shape, step, tuple(map(_variant, part))].append(part)
    found = []
    for (_, step, _), sources in alike.items():
        one = sources[0][0]
        most = 1 if device == "cpu" else max(1, ROOM_BYTES // (4 * one.batch * one.n))
        for start in range(0, len(sources), most):
            columns = sources[start : start + most]
            found.append((step, [list(row) for row in zip(*columns, strict=True)]))
    return sorted(found, key=lambda batch: -sum(work_of(run) for row in batch[1] for run in row))


def _train_batch(
    batch: Batch,
    folder: Path,
    step: int,
    stop: threading.Event,
    advanced: Callable[[float], None],
    checkpoint_seconds: float,
) -> list[ToyRecord]:
    if step:
        batch.restore(folder)
    work = sum(work_of(run) / run.steps for run in batch.runs)
    advanced(work * step)
    saved = time.monotonic()
    while batch.step < batch.first.steps:
        advanced(work * batch.advance())
        stopped = stop.is_set()
        if stopped or time.monotonic() - saved > checkpoint_seconds:
            batch.save(folder)
            saved = time.monotonic()
        if stopped:
            return []
    return [make_record(trained, batch.device) for trained in batch.finish()]


def make_record(trained: Trained, device: str) -> ToyRecord:
    """Measure what was trained. Raises `CheckpointError` where training has diverged to numbers that are not finite."""
    run = trained.run
    rows = measure_rows(trained.W)
    strong = round(rows["phi_one"] * run.n)
    last = np.array(trained.losses[-min(LAST, run.steps) :])
    every = max(1, run.steps // CURVE_POINTS)
    curve = [(s, loss) for s, loss in zip(trained.steps, trained.losses, strict=True) if s % every == 0]
    return ToyRecord(
        run=run,
        test_loss=trained.test_loss,
        test_loss_stderr=trained.test_loss_stderr,
        training_loss=float(last.mean()),
        training_loss_std=float(last.std()),
        curve={"step": [s for s, _ in curve], "loss": [float(f"{loss:.6g}") for _, loss in curve]},
        **rows,
        theory=theory_values(run, trained.W, trained.b, rows["phi_half"], strong),
        made_by={
            "tool": "llmsuper",
            "version": __version__,
            "device": device,
            "precision": "float32",
            "trained_at_once": trained.at_once,
            "seconds": round(trained.seconds, 3),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _kept_step(folder: Path, run: ToyRun) -> int:
    return int(read_checkpoint(folder, run)["step"]) if checkpoint_path(folder, run).exists() else 0


def _pick(run: ToyRun, names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(getattr(run, name) for name in names)


def _variant(run: ToyRun) -> tuple[Any, ...]:
    """What is left of a run's parameters without its shape and its source."""
    return tuple(value for name, value in asdict(run).items() if name not in SHAPE + SOURCE)
