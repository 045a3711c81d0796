"""ToyRun: all the parameters of one toy training run, and the one place where the sign of γ is read.

The paper (arXiv:2505.10465v4, equation 2) and its scripts turn one knob, γ, whose sign chooses between two regularisers of the
rows Wᵢ, both applied before the step of the optimiser with its current learning rate η (or its own: `lr_regulariser`):

    γ ≥ 0   "weight-decay"   Wᵢ ← Wᵢ − η γ Wᵢ
    γ < 0   "unit-norm"      Wᵢ ← Wᵢ + η |γ| Wᵢ (1/‖Wᵢ‖ − 1)
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from llmsuper.errors import LlmsuperError, lookup
from llmsuper.toy.features import feature_frequencies

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REGULARISERS: dict[str, int] = {"weight-decay": 1, "unit-norm": -1}
"""The regularisers by name, and the sign of γ that means each."""

INITIALISATIONS: dict[str, float] = {"normal": 1.0, "zero-bias": 0.0}
"""Standard deviation of b at the start by name; W is N(0, 1/m) in all. The authors' code: "normal"; their paper does not say."""


def read_gamma(gamma: float) -> tuple[str, float]:
    """(regulariser, strength ≥ 0) that the signed γ of the paper stands for."""
    return ("unit-norm", -gamma) if gamma < 0 else ("weight-decay", gamma)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyRun:
    """The parameters of one run; two runs with equal parameters have equal results, to rounding.

    Defaults are those of the paper's small model (n = 1,000). Raises `LlmsuperError` for parameters that no run can have.
    """

    m: int
    """Columns of W: hidden dimensions."""
    regulariser: str
    strength: float
    n: int = 1000
    """Rows of W: features."""
    distribution: str = "power"
    """Name in `features.FREQUENCIES`: power i^−alpha, exponential exp(−i/scale), linear n − i."""
    alpha: float | None = None
    """Exponent of `power`; None for the others."""
    scale: float | None = None
    """Scale of `exponential`, in features; None for the others."""
    activation_density: float = 1.0
    """E = Σ pᵢ, active features a sample."""
    seed: int = 0
    steps: int = 20_000
    batch: int = 2_048
    lr: float = 0.01
    """Peak learning rate of W."""
    lr_bias: float = 0.01
    """Peak learning rate of b."""
    lr_regulariser: float | None = None
    """Peak of η in the regulariser; None: `lr`, as in the paper. A run of smaller batches keeps the paper's: see
    docs/toy-models.md."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises linearly."""
    final_lr: float = 0.05
    """Where the cosine ends, as a share of the peak. In the authors' code only, not in the paper."""
    loss_scale: float = 1.0
    """Factor of the mean squared error whose gradient the optimiser sees; it matters through Adam's ε alone."""
    initialisation: str = "normal"
    test_samples: int = 204_800
    """Fresh samples for the test loss: in the paper 100 times the batch."""

    def __post_init__(self) -> None:
        lookup(REGULARISERS, self.regulariser, "row regulariser")
        lookup(INITIALISATIONS, self.initialisation, "initialisation")
        for wrong, found, rule in (
            (not 1 <= self.m <= self.n, f"m = {self.m}, n = {self.n}", "a toy model needs 1 <= m <= n"),
            (self.strength < 0, f"strength = {self.strength:g}", "the strength of a regulariser is not negative"),
            (self.steps < 1 or self.batch < 1, f"steps = {self.steps}, batch = {self.batch}", "both are at least 1"),
            (self.test_samples < 2, f"test_samples = {self.test_samples}", "an error of the mean needs two"),
            (not 0 <= self.warmup <= 1, f"warmup = {self.warmup:g}", "it is a share of the steps, 0 to 1"),
            (not 0 <= self.final_lr <= 1, f"final_lr = {self.final_lr:g}", "it is a share of the peak, 0 to 1"),
            (
                min(self.lr, self.lr_bias, self.regulariser_rate, self.loss_scale) <= 0,
                f"{self.lr:g}, {self.lr_bias:g}, {self.regulariser_rate:g}, {self.loss_scale:g}",
                "lr, lr_bias, lr_regulariser and loss_scale are above 0",
            ),
        ):
            if wrong:
                raise LlmsuperError(f"toy run: {found}; {rule}. Correct it in the sweep.")
        self.frequencies()

    def frequencies(self) -> NDArray[np.float64]:
        """(n,) float64 probabilities pᵢ, most frequent first. Raises `LlmsuperError` where E is above its maximum."""
        return feature_frequencies(
            self.distribution, self.n, self.activation_density, alpha=self.alpha, scale=self.scale
        )

    @property
    def gamma(self) -> float:
        """The signed γ of the paper."""
        return REGULARISERS[self.regulariser] * self.strength

    @property
    def regulariser_rate(self) -> float:
        """Peak learning rate in the regulariser."""
        return self.lr if self.lr_regulariser is None else self.lr_regulariser

    @property
    def key(self) -> str:
        """The parameters as a file name: the ones that vary most in words, all of them in the digest."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:10]
        shape = f"{self.distribution}{'' if self.alpha is None else format(self.alpha, 'g')}"
        density = f"E{self.activation_density:.4g}"
        return f"n{self.n}-m{self.m}-{shape}-{density}-gamma{self.gamma:.4g}-seed{self.seed}-{digest}"
