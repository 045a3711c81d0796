"""Adam for many runs at once, with a row regulariser before each step, and the learning-rate schedule.

As in the authors' `exp/adamw.py`: β = (0.9, 0.999), ε = 1e-8, the regulariser acts on W and not on b, with the present learning
rate, before the step; the row norm of the pull to unit norm gets + ε before it divides.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from llmsuper.toy.run import ToyRun

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def learning_rate(step: int, steps: int, warmup: float, final: float) -> float:
    """Share of the peak at step 0 … steps − 1: linear over the first `warmup` share of the steps, then a cosine to `final`."""
    rising, done = int(steps * warmup), step + 1
    if done < rising:
        return done / rising
    through = (done - rising) / (steps - rising) if rising < steps else 0.0
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * through))


class Optimiser:
    """State of Adam for θ (G, n, m + 1) of these runs, which share their number of steps and their schedule."""

    def __init__(self, runs: Sequence[ToyRun], theta: torch.Tensor) -> None:
        import torch

        self.schedule = (runs[0].steps, runs[0].warmup, runs[0].final_lr)
        self.mean = torch.zeros_like(theta)
        self.square = torch.zeros_like(theta)

        def column(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=theta.dtype, device=theta.device).view(-1, 1, 1)

        self._lr = column([run.lr for run in runs]).repeat(1, 1, theta.shape[2])  # (G, 1, m + 1)
        self._lr[:, :, -1:] = column([run.lr_bias for run in runs])
        decay, pull = (
            [run.strength * run.regulariser_rate if run.regulariser == name else 0.0 for run in runs]
            for name in ("weight-decay", "unit-norm")
        )
        self._decay, self._pull, self._pulls = column(decay), column(pull), any(pull)
        # the authors' loss is a mean over features too; Adam's ε makes the difference that Adam does not cancel
        self._scale = column([run.loss_scale / run.n for run in runs])

    def step(self, theta: torch.Tensor, gradient: torch.Tensor, step: int) -> None:
        """Update θ in place; `gradient`, of the loss as a sum over features, is used up."""
        import torch

        share = learning_rate(step, *self.schedule)
        W = theta[:, :, :-1]
        shrink = share * self._decay
        if self._pulls:
            norms = torch.linalg.vector_norm(W, dim=2, keepdim=True)
            shrink = shrink + share * self._pull * (1 - 1 / (norms + EPSILON))
        W.mul_(1 - shrink)

        gradient.mul_(self._scale)
        self.mean.lerp_(gradient, 1 - BETAS[0])
        self.square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        unbias = [1 - beta ** (step + 1) for beta in BETAS]
        size = torch.sqrt(self.square).div_(math.sqrt(unbias[1])).add_(EPSILON)
        theta.addcmul_(torch.div(self.mean, size, out=size), self._lr, value=-share / unbias[0])
