"""Times training of toy models, many at once, beside the authors' loop, one run after another on dense samples.

    python benchmarks/bench_toy.py                        # n = 1,000, m = 10, 39 and 100, ten γ; a minute or two
    python benchmarks/bench_toy.py --device cuda --sources 17
    python benchmarks/bench_toy.py --density              # where building x densely would pay

First both train the same run from the same start and are compared; then they take turns, in one process, and the best
round of each counts. A run-step is one step of one run. The authors' loop (arXiv:2505.10465, `exp-10.py`) is written from its
description: dense samples from two n × batch draws, autograd, mean squared error, and the same optimiser. It is given every
core, llmsuper one batch a core, as `llmsuper toy` does.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import machine
import numpy as np
import torch

from llmsuper.kernels import one_thread_per_block, usable_cores
from llmsuper.toy.batch import Batch, initial_parameters
from llmsuper.toy.data import Sampler
from llmsuper.toy.model import Room, loss_and_gradient
from llmsuper.toy.optim import learning_rate
from llmsuper.toy.run import ToyRun, read_gamma

if TYPE_CHECKING:
    from collections.abc import Callable

GAMMAS = np.linspace(-1, 1, 10)
AGREEMENT = 0.05
"""Relative, of the mean loss of the last steps: the two draw different samples."""


class Authors:
    """One run, step by step, as the authors train it."""

    def __init__(self, run: ToyRun, device: str) -> None:
        theta = initial_parameters(run).to(device)
        self.run, self.device, self.done = run, device, 0
        self.W, self.b = (t.clone().requires_grad_() for t in (theta[:, :-1], theta[:, -1]))
        self.p = torch.from_numpy(run.frequencies()).float().to(device)
        self.state = [(torch.zeros_like(t), torch.zeros_like(t)) for t in (self.W, self.b)]

    def advance(self, steps: int) -> list[float]:
        """Losses, each a sum over features."""
        run, losses = self.run, []
        shape = run.batch, run.n
        for _ in range(steps):
            x = (torch.rand(shape, device=self.device) < self.p) * torch.rand(shape, device=self.device) * 2
            y = torch.relu(x @ self.W @ self.W.T + self.b)
            loss = (y - x).square().mean() * run.loss_scale
            loss.backward()
            share = learning_rate(self.done, run.steps, run.warmup, run.final_lr)
            self.done += 1
            with torch.no_grad():
                self._regularise(share * run.lr)
                for tensor, (mean, square), peak in zip(
                    (self.W, self.b), self.state, (run.lr, run.lr_bias), strict=True
                ):
                    gradient = tensor.grad
                    mean.mul_(0.9).add_(gradient, alpha=0.1)
                    square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                    size = (square.sqrt() / (1 - 0.999**self.done) ** 0.5).add_(1e-8)
                    tensor.addcdiv_(mean, size, value=-share * peak / (1 - 0.9**self.done))
                    tensor.grad = None
            losses.append(loss.item() * run.n / run.loss_scale)
        return losses

    def _regularise(self, rate: float) -> None:
        if self.run.regulariser == "weight-decay":
            self.W.mul_(1 - rate * self.run.strength)
        else:
            norms = self.W.norm(dim=1, keepdim=True) + 1e-8
            self.W.add_(self.W * (1 / norms - 1), alpha=rate * self.run.strength)


def compare(run: ToyRun, device: str) -> None:
    """Both from one start to one loss, or there is nothing to compare."""
    theirs = np.mean(Authors(run, device).advance(run.steps)[-run.steps // 4 :])
    batch = Batch([[run]], device)
    while batch.step < run.steps:
        batch.advance()
    (trained,) = batch.finish()
    ours = np.mean(
        [loss for step, loss in zip(trained.steps, trained.losses, strict=True) if step >= run.steps * 3 // 4]
    )
    apart = abs(ours / theirs - 1)
    print(
        f"loss over the last quarter of {run.steps} steps: authors {theirs:.4f}, llmsuper {ours:.4f}, {apart:.1e} apart"
    )
    if not apart < AGREEMENT:
        raise SystemExit(f"error: they are more than {AGREEMENT:g} apart: the times would compare nothing.")


def ours(runs: list[list[list[ToyRun]]], device: str, blocks: int) -> float:
    """Run-steps a second of these grids, one a core, or one after another on a GPU."""
    batches = [Batch(grid, device) for grid in runs]
    for batch in batches:
        batch.advance()

    def work(batch: Batch) -> int:
        torch.set_num_threads(1)
        return sum(batch.advance() for _ in range(blocks)) * len(batch.runs)

    began = time.perf_counter()
    with one_thread_per_block(), ThreadPoolExecutor(len(batches) if device == "cpu" else 1) as pool:
        done = sum(pool.map(work, batches))
    return done / (time.perf_counter() - began)


def authors(run: ToyRun, device: str, steps: int) -> float:
    """Run-steps a second, on every core."""
    model = Authors(run, device)
    model.advance(2)
    began = time.perf_counter()
    model.advance(steps)
    return steps / (time.perf_counter() - began)


def grid_of(run: ToyRun, sources: int, first_seed: int) -> list[list[ToyRun]]:
    """The ten γ, each on as many seeds."""
    knobs = [dict(zip(("regulariser", "strength"), read_gamma(float(gamma)), strict=True)) for gamma in GAMMAS]
    return [[replace(run, **knob, seed=first_seed + seed) for seed in range(sources)] for knob in knobs]


def dense_gradient(theta: torch.Tensor, p: torch.Tensor, batch: int) -> torch.Tensor:
    """What `loss_and_gradient` gives, from dense samples drawn here; five products instead of three."""
    W, b = theta[:, :-1].contiguous(), theta[:, -1]
    x = (torch.rand(batch, len(W)) < p) * torch.rand(batch, len(W)) * 2
    h = x @ W
    y = torch.addmm(b, h, W.T).clamp_min_(0)
    slope = (y - x).mul_(y > 0)
    encoder = x.T @ (slope @ W)
    return torch.cat([encoder + (h.T @ slope).T, slope.sum(dim=0)[:, None]], dim=1).mul_(2 / batch)


def density(run: ToyRun, steps: int = 8) -> tuple[float, float]:
    """Seconds a run-step for drawing and for the gradient, with x as a list of what is active and as a dense tensor."""
    torch.set_num_threads(1)
    p, theta, room = run.frequencies(), initial_parameters(run), Room()
    sampler, dense_p = Sampler(p[None], [0], run.batch, "training", "cpu"), torch.from_numpy(p).float()

    def sparse() -> None:
        for samples in sampler.draw(0, steps):
            loss_and_gradient(theta[None], samples, run.batch, room, with_loss=False)

    def dense() -> None:
        for _ in range(steps):
            dense_gradient(theta, dense_p, run.batch)

    return best(sparse, steps), best(dense, steps)


def best(work: Callable[[], object], steps: int, rounds: int = 3) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) / steps)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--widths", type=int, nargs="+", default=[10, 39, 100])
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--sources", type=int, default=1, help="seeds beside each other in a batch of ours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--density", action="store_true", help="time dense against sparse samples instead")
    parser.add_argument("--save", action="store_true", help="add rows to results/toy-<device>.csv")
    options = parser.parse_args()
    device = options.device
    row = machine.description()
    machine.print_description(row)
    cores = usable_cores()
    first = ToyRun(m=39, regulariser="unit-norm", strength=0.5, alpha=1.0, batch=options.batch)
    if options.density:
        for E in (1.0, 7.5, 30.0, 100.0, 300.0):
            a, b = density(replace(first, alpha=0.0, activation_density=E))
            print(
                f"m = {first.m}, E = {E:5.1f}: sparse {1e3 * a:6.1f} ms, dense {1e3 * b:6.1f} ms a run-step, one core"
            )
        return
    compare(replace(first, n=200, m=10, steps=400, batch=256), device)
    for m in options.widths:
        run = replace(first, m=m, steps=10**6)
        grids = [grid_of(run, options.sources, 100 * core) for core in range(cores if device == "cpu" else 1)]
        theirs, mine = [], []
        for _ in range(options.rounds):
            torch.set_num_threads(cores)
            theirs.append(authors(run, device, 12 if device == "cpu" else 200))
            mine.append(ours(grids, device, 1 if device == "cpu" else 4))
        ratios = sorted(a / b for a, b in zip(mine, theirs, strict=True))
        print(
            f"n = {run.n:,}, m = {m:4d}, batch {run.batch}: authors {max(theirs):9.1f}, llmsuper {max(mine):9.1f} run-steps/s; "
            f"ratio of the best {max(mine) / max(theirs):6.2f}, of rounds {' '.join(f'{r:.2f}' for r in ratios)}; "
            f"20,000 steps of one run: {20_000 / max(theirs):7.0f} s and {20_000 / max(mine):7.1f} s"
        )
        if options.save:
            saved = {
                "m": m,
                "batch": run.batch,
                "device": device,
                "at_once": len(grids[0]) * options.sources * len(grids),
            }
            saved |= {"authors_per_s": round(max(theirs), 2), "llmsuper_per_s": round(max(mine), 2)}
            machine.save_row(f"toy-{machine.device()}.csv", row | saved)


if __name__ == "__main__":
    main()
