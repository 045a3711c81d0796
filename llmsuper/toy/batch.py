"""Trains many runs of one shape at once, step by step, and keeps and restores what they are in the middle of.

A batch is a grid: U sources of data (frequencies and seed) × V variants (whatever else differs, such as γ). Samples are drawn
once for each source and serve all its variants; the products of a variant's U runs are one batched product.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmsuper.errors import LlmsuperError
from llmsuper.toy.data import Sampler
from llmsuper.toy.model import Room, loss_and_gradient, sample_losses
from llmsuper.toy.optim import Optimiser
from llmsuper.toy.run import INITIALISATIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from llmsuper.toy.run import ToyRun

CURVE_POINTS = 200
LAST = 100
"""Steps at the end whose losses are all kept: the authors take their mean for the loss of the run."""

DRAWN_AT_ONCE = {"cpu": 1 << 15, "cuda": 1 << 22}
"""Active features, or samples if those are more, that are drawn together: enough to make the cost of small operations vanish."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What training one run left: W (n, m) and b (n,) float32, its losses, and its share of the time."""

    run: ToyRun
    W: torch.Tensor
    b: torch.Tensor
    test_loss: float
    test_loss_stderr: float
    steps: list[int]
    losses: list[float]
    seconds: float
    at_once: int


class Batch:
    """`grid[v][u]` is the run of variant v on source u; all share n, m, batch, steps, schedule and number of test samples."""

    def __init__(self, grid: Sequence[Sequence[ToyRun]], device: str) -> None:
        import torch

        self.grid, self.device = grid, device
        self.first = grid[0][0]
        self.runs = [run for row in grid for run in row]
        initial = torch.stack([initial_parameters(run) for run in self.runs])
        self.theta = initial.to(device).view(len(grid), len(grid[0]), *initial.shape[1:])
        flat = self.theta.view(-1, *initial.shape[1:])
        self.optimiser = Optimiser(self.runs, flat)
        self.step = 0
        self.seconds = 0.0
        self._room = Room()
        self._logged = logged_steps(self.first.steps)
        self._losses = torch.zeros(len(self.runs), len(self._logged), device=device)
        self._gradient = torch.empty_like(self.theta)
        self._frequencies = np.stack([run.frequencies() for run in grid[0]])
        self._sampler = self._new_sampler("training", self.first.batch)

    def advance(self) -> int:
        """Train as many steps as are drawn together; returns how many that was."""
        began = time.monotonic()
        sampler, batch = self._sampler, self.first.batch
        each = len(self.grid[0]) * batch * max(1.0, sampler.density)
        count = min(max(1, int(DRAWN_AT_ONCE[self.device] / each)), self.first.steps - self.step)
        theta, gradient = self.theta.view(-1, *self.theta.shape[2:]), self._gradient.view(-1, *self.theta.shape[2:])
        for samples in sampler.draw(self.step, count):
            logged = self._logged.get(self.step)
            losses = []
            for v in range(len(self.grid)):
                loss, self._gradient[v] = loss_and_gradient(
                    self.theta[v], samples, batch, self._room, with_loss=logged is not None
                )
                losses.append(loss)
            if logged is not None:
                self._losses[:, logged] = _joined(losses)
            self.optimiser.step(theta, gradient, self.step)
            self.step += 1
        self._wait()
        self.seconds += time.monotonic() - began
        return count

    def finish(self) -> list[Trained]:
        """Test every run on fresh samples and hand over what it has become, in the order of `runs`."""
        began = time.monotonic()
        total, squares = self._test_sums()
        count = self.first.test_samples
        mean = total / count
        stderr = np.sqrt(np.maximum(squares / count - mean**2, 0.0) / (count - 1))
        parameters = self.theta.view(-1, *self.theta.shape[2:]).cpu()
        losses = self._losses.double().cpu().numpy()
        self.seconds += time.monotonic() - began
        return [
            Trained(
                run=run,
                W=parameters[i, :, :-1].contiguous(),
                b=parameters[i, :, -1].contiguous(),
                test_loss=float(mean[i]),
                test_loss_stderr=float(stderr[i]),
                steps=list(self._logged),
                losses=losses[i].tolist(),
                seconds=self.seconds / len(self.runs),
                at_once=len(self.runs),
            )
            for i, run in enumerate(self.runs)
        ]

    def save(self, folder: Path) -> None:
        """Write one checkpoint a run, each to a temporary file that is then renamed."""
        import torch

        folder.mkdir(parents=True, exist_ok=True)
        theta = self.theta.view(-1, *self.theta.shape[2:])
        for i, run in enumerate(self.runs):
            state = {
                "step": self.step,
                "seconds": self.seconds / len(self.runs),
                **{
                    name: tensor[i].detach().cpu().clone()
                    for name, tensor in (
                        ("theta", theta),
                        ("mean", self.optimiser.mean),
                        ("square", self.optimiser.square),
                        ("losses", self._losses),
                    )
                },
            }
            descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    torch.save(state, file)
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary).replace(checkpoint_path(folder, run))
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise

    def restore(self, folder: Path) -> None:
        """Go on from the runs' checkpoints, which are all of one step."""
        theta = self.theta.view(-1, *self.theta.shape[2:])
        for i, run in enumerate(self.runs):
            state = read_checkpoint(folder, run)
            theta[i], self.optimiser.mean[i], self.optimiser.square[i] = (
                state[name].to(self.device) for name in ("theta", "mean", "square")
            )
            self._losses[i] = state["losses"].to(self.device)
            self.step = state["step"]
            self.seconds += state["seconds"]

    def _test_sums(self) -> tuple[Any, Any]:
        """(runs,) float64 sums over the test samples of the loss and of its square."""
        import torch

        sums = [torch.zeros(len(self.runs), dtype=torch.float64, device=self.device) for _ in range(2)]
        size = self.first.batch
        whole, rest = divmod(self.first.test_samples, size)
        # the odd samples that do not fill a batch come from a stretch of the stream that no whole batch touches
        for batch, first, steps in ((size, 0, whole), (rest, self.first.test_samples, 1)):
            if not batch:
                continue
            sampler = self._new_sampler("test", batch)
            for step in range(first, first + steps):
                for samples in sampler.draw(step, 1):
                    both = [sample_losses(variant, samples, self._room) for variant in self.theta]
                    for total, parts in zip(sums, zip(*both, strict=True), strict=True):
                        total += torch.cat(parts)
        return sums[0].cpu().numpy(), sums[1].cpu().numpy()

    def _new_sampler(self, stream: str, batch: int) -> Sampler:
        return Sampler(self._frequencies, [run.seed for run in self.grid[0]], batch, stream, self.device)

    def _wait(self) -> None:
        import torch

        if self.device != "cpu":
            torch.cuda.synchronize()


def initial_parameters(run: ToyRun) -> torch.Tensor:
    """θ (n, m + 1) at step 0, float32 on the CPU: W ~ N(0, 1/m), b ~ N(0, 1) or as `run.initialisation` says."""
    import torch

    generator = torch.Generator().manual_seed(run.seed)
    W = torch.randn(run.n, run.m, generator=generator) / run.m**0.5
    b = torch.randn(run.n, 1, generator=generator) * INITIALISATIONS[run.initialisation]
    return torch.cat([W, b], dim=1)


def logged_steps(steps: int) -> dict[int, int]:
    """The steps whose loss is kept, by their place: about CURVE_POINTS evenly, and the LAST."""
    chosen = sorted({*range(0, steps, max(1, steps // CURVE_POINTS)), *range(max(0, steps - LAST), steps)})
    return {step: place for place, step in enumerate(chosen)}


def checkpoint_path(folder: Path, run: ToyRun) -> Path:
    return folder / f"{run.key}.pt"


def read_checkpoint(folder: Path, run: ToyRun) -> dict[str, Any]:
    """What `save` wrote; plain tensors and numbers, nothing in it is executed. Raises `LlmsuperError` if it is not that."""
    import pickle

    import torch

    path = checkpoint_path(folder, run)
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["theta"].shape != (run.n, run.m + 1) or not 0 <= state["step"] <= run.steps:
            raise ValueError(f"theta {tuple(state['theta'].shape)}, step {state['step']}")
        return state
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise LlmsuperError(
            f"{path}: is not a checkpoint of this run ({type(error).__name__}). Delete it to train from the start."
        ) from error


def _joined(losses: Sequence[torch.Tensor | None]) -> torch.Tensor:
    import torch

    return torch.cat([loss for loss in losses if loss is not None])
