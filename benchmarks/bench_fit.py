"""Times `llmsuper fit liu2025`, intervals and all, beside the authors' optimiser for one fit of the same 108 losses.

    python benchmarks/bench_fit.py [--draws 1000] [--steps 20000]

The authors (arXiv:2505.10465, `LLMs/nonlinearfit-3.ipynb`) minimise the mean squared error of L = A/m^α + E, one E for each
family and data set, by full-batch Adam: 20,000 steps, learning rate 1 for A and 0.001 for the rest, from A = 500, α = 1, E = 1.
It is written again here from that description. Exits with status 1 where the two minima disagree.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

import machine
import torch

from llmsuper.scaling.fit import fit_law
from llmsuper.scaling.losses import load_losses
from llmsuper.scaling.summary import summarise

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

AGREEMENT = 1e-3
"""Relative, of α: their steps of 0.001 end near the minimum, not in it."""


def adam(losses: pd.DataFrame, steps: int) -> tuple[float, float, float]:
    """A, α and the mean squared error after so many steps of the authors' optimiser."""
    groups = losses.groupby(["family", "dataset"]).ngroup().to_numpy(copy=True)
    width = torch.tensor(losses["d_model"].to_numpy(dtype="float32"))
    loss = torch.tensor(losses["loss_nats"].to_numpy(dtype="float32"))
    group = torch.from_numpy(groups)
    A, alpha = torch.tensor(500.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    E = torch.ones(int(groups.max()) + 1, requires_grad=True)
    optimiser = torch.optim.Adam([{"params": [A], "lr": 1.0}, {"params": [alpha, E], "lr": 1e-3}])
    for _ in range(steps):
        optimiser.zero_grad()
        error = (A / width**alpha + E[group] - loss).square().mean()
        error.backward()
        optimiser.step()
    return A.item(), alpha.item(), error.item()


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=1_000, help="of the bootstrap over models")
    parser.add_argument("--steps", type=int, default=20_000)
    options = parser.parse_args()

    machine.print_description(machine.description())
    torch.set_num_threads(1)  # vectors of 108 losses are not worth sharing
    losses = load_losses("liu2025")
    fitted, fit_s, fit_cpu = timed(lambda: fit_law("power-floor", losses, x="d_model", group=("family", "dataset")))
    _, all_s, all_cpu = timed(lambda: summarise("liu2025", fitted, draws=options.draws, seed=0, moved={}))
    (A, alpha, error), adam_s, adam_cpu = timed(lambda: adam(losses, options.steps))

    print(f"\n{'':<44}{'alpha':>9}{'A':>9}{'MSE':>12}{'wall s':>9}{'CPU s':>9}")
    row = "{:<44}{:9.4f}{:9.2f}{:12.7f}{:9.3f}{:9.3f}".format
    print(row(f"authors: Adam, {options.steps:,} steps", alpha, A, error, adam_s, adam_cpu))
    found = (fitted.params["alpha"], fitted.params["A"], fitted.mse)
    print(row("llmsuper: one fit", *found, fit_s, fit_cpu))
    print(row(f"  with every interval, {options.draws:,} draws and tests", *found, fit_s + all_s, fit_cpu + all_cpu))
    print(f"\none fit, authors ÷ llmsuper           {adam_s / fit_s:8.0f} ×")
    print(f"one fit of theirs ÷ everything of ours{adam_s / (fit_s + all_s):8.1f} ×")
    if abs(alpha / fitted.params["alpha"] - 1) > AGREEMENT:
        raise SystemExit(f"error: the exponents are more than {AGREEMENT:g} apart: the times compare nothing.")


if __name__ == "__main__":
    main()
