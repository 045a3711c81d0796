"""The loss that a fitted law expects at a size or a compute budget, the shape to buy for it, and how far that extrapolates.

Every prediction carries a `Reach` for each variable: the range of the data behind the law, and the factor by which the asked
value lies outside. A law says nothing of where it stops holding, so the factor is part of the answer, not a warning.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmsuper.errors import FitError, lookup
from llmsuper.scaling.additive import LEVEL, percentiles

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from numpy.typing import NDArray

    from llmsuper.scaling.additive import AdditiveFit

FLOPS_PER_PARAMETER_AND_TOKEN = 6.0
"""C = 6 N D, Hoffmann et al. 2022 and Kaplan et al. 2020 (arXiv 2001.08361)."""
EXPONENTS = np.geomspace(0.1, 5.0, 200)
"""The trial exponents of `shared_power_draws`."""


@dataclass(frozen=True, slots=True)
class Reach:
    """One variable of a prediction against the data behind the law."""

    variable: str
    value: float
    low: float
    high: float

    @property
    def factor(self) -> float:
        """How many times the value lies beyond the nearest end of the data; 1 inside."""
        return max(self.value / self.high, self.low / self.value, 1.0)

    def __str__(self) -> str:
        span = f"the data's {self.low:.4g} to {self.high:.4g}"
        if self.factor == 1:
            return f"{self.variable} {self.value:.4g}: inside {span}"
        side = "above" if self.value > self.high else "below"
        return f"{self.variable} {self.value:.4g}: EXTRAPOLATES, {self.factor:.3g} times {side} {span}"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a law expects. `interval` is of the curve; one run lies about `scatter` nats from it besides."""

    law: str
    formula: str
    loss: Estimate
    method: str
    """How the interval was made."""
    scatter: float
    reaches: tuple[Reach, ...]
    shape: dict[str, Estimate]
    """The compute-optimal n_params, train_tokens and the d_model that N(m) implies; empty unless just a budget was given."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "law": self.law,
            "formula": self.formula,
            "loss_nats": self.loss.value,
            "interval": [self.loss.low, self.loss.high],
            "level": LEVEL,
            "method": self.method,
            "scatter_nats": self.scatter,
            "extrapolates": any(reach.factor > 1 for reach in self.reaches),
            "reach": [{**asdict(reach), "factor_outside": reach.factor} for reach in self.reaches],
            "compute_optimal": {name: asdict(estimate) for name, estimate in self.shape.items()} or None,
        }

    def text(self) -> str:
        """A readable block of lines."""
        low, high = self.loss.low, self.loss.high
        return "\n".join(
            [
                f"{self.law}: {self.formula}",
                f"  loss {self.loss.value:.4f} nats, {LEVEL:.0%} {low:.4f} to {high:.4f} ({self.method})",
                f"  that is the interval of the curve; one run scatters about it by {self.scatter:.3f} nats",
                *(f"  compute-optimal {name} {estimate}" for name, estimate in self.shape.items()),
                *(f"  {reach}" for reach in self.reaches),
            ]
        )


def compute_optimal(
    A: NDArray[np.float64] | float,
    B: NDArray[np.float64] | float,
    alpha: NDArray[np.float64] | float,
    beta: NDArray[np.float64] | float,
    flops: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """N = G (C/6)^a and D = G⁻¹ (C/6)^b, which minimise A/N^α + B/D^β with 6 N D = C; scalars or (draws,).

    a = β/(α + β), b = α/(α + β), G = (αA/(βB))^(1/(α + β)): Hoffmann et al. 2022, equation 4.
    """
    total = np.asarray(alpha) + beta
    G = (np.asarray(alpha) * A / (np.asarray(beta) * B)) ** (1 / total)
    budget = flops / FLOPS_PER_PARAMETER_AND_TOKEN
    return G * budget ** (beta / total), budget ** (alpha / total) / G


def predict_chinchilla(
    *,
    width: float | None = None,
    params: float | None = None,
    tokens: float | None = None,
    flops: float | None = None,
    bootstrap: int = 200,
    seed: int = 0,
) -> Prediction:
    """L(N, D) of the 240 points of `fit_chinchilla`: two of N (or a width, by N(m)), D and C; or C alone, split at best.

    Units: parameters, tokens, floating-point operations. `bootstrap` is at least 2: an interval needs draws.
    Raises `FitError` for any other choice of the four.
    """
    from llmsuper.scaling.chinchilla import fit_chinchilla, width_exponent
    from llmsuper.scaling.losses import load_losses, load_shapes

    points = load_losses("chinchilla")
    points = points[points["excluded_by_besiroglu2024"] == 0]
    line = width_exponent(load_shapes("chinchilla"))
    fit = fit_chinchilla(points, bootstrap, np.random.default_rng(seed))
    N, D = (line.params(width) if width is not None else params), tokens
    too_many = (width is not None and params is not None) or None not in (N, D, flops)
    shape: dict[str, Estimate] = {}
    per = FLOPS_PER_PARAMETER_AND_TOKEN
    if flops is not None and not too_many:
        if D is not None:
            N = flops / (per * D)
        elif N is not None:
            D = flops / (per * N)
        else:
            N, D = map(float, compute_optimal(fit["A"], fit["B"], fit["alpha"], fit["beta"], flops))
            shape = _optimal_estimates(fit, flops, (N, D), line.width)
    if too_many or N is None or D is None:
        raise FitError(
            f"chinchilla: width {width}, params {params}, tokens {tokens}, flops {flops} do not fix one N and one D. "
            "Give two of: a size (params or width), tokens, flops; or flops alone for the best split."
        )
    loss = fit.predict(N, D)
    budgets = points["train_flop"].astype(float)
    implied = width if width is not None else line.width(N)
    reaches = [Reach(name, value, *fit.ranges[name]) for name, value in (("n_params", N), ("train_tokens", D))]
    reaches.append(Reach("train_flop", per * N * D, float(budgets.min()), float(budgets.max())))
    reaches.append(Reach("d_model" if width is not None else "d_model implied by N(m)", implied, *line.widths))
    return Prediction(
        law="chinchilla",
        formula=fit.formula,
        loss=Estimate(loss, *percentiles(fit.predict_draws(N, D))),
        method=f"percentiles of {len(fit.draws)} bootstrap resamples of {fit.n_points} points, seed {seed}",
        scatter=fit.scatter * loss,
        reaches=tuple(reaches),
        shape=shape,
    )


def _optimal_estimates(
    fit: AdditiveFit, flops: float, best: tuple[float, float], width: Callable[[float], float]
) -> dict[str, Estimate]:
    """The best N, D and width, with the spread of the best over the bootstrap."""
    _, A, B, alpha, beta = fit.draws.T
    N, D = compute_optimal(A, B, alpha, beta, flops)
    low, high = percentiles(N)
    return {
        "n_params": Estimate(best[0], low, high),
        "train_tokens": Estimate(best[1], *percentiles(D)),
        "d_model": Estimate(width(best[0]), width(low), width(high)),
    }


def predict_liu2025(*, width: float, family: str, dataset: str, bootstrap: int = 500, seed: int = 0) -> Prediction:
    """The paper's law A/m^α + E at a width, with the floor E of one family and data set.

    The interval resamples models within families, all data sets of a model together. The delta method with the covariance of
    the fit makes it a fifth narrower, for it takes a model's four residuals for independent.
    Raises `UnknownNameError` for a family or data set that has no floor.
    """
    from llmsuper.scaling.fit import fit_law
    from llmsuper.scaling.losses import load_losses

    losses = load_losses("liu2025")
    lookup(dict.fromkeys(losses["family"]), family, "family in liu2025")
    lookup(dict.fromkeys(losses["dataset"]), dataset, "data set in liu2025")
    fit = fit_law("power-floor", losses, x="d_model", group=("family", "dataset"))
    loss = float(fit.predict({"d_model": [width]}, f"{family}/{dataset}")[0])
    alpha, A, E = shared_power_draws(losses, family, dataset, bootstrap, np.random.default_rng(seed))
    widths = losses.loc[losses["family"] == family, "d_model"].astype(float)
    return Prediction(
        law="liu2025",
        formula=f"E[{family}/{dataset}] + A/d_model^alpha",
        loss=Estimate(loss, *percentiles(E + A * width**-alpha)),
        method=f"percentiles of {bootstrap} bootstrap resamples of the models within families, seed {seed}",
        scatter=fit.rmse,
        reaches=(
            Reach(f"d_model ({family})", width, float(widths.min()), float(widths.max())),
            Reach("d_model (all families)", width, *fit.ranges["d_model"]),
        ),
        shape={},
    )


def shared_power_draws(
    losses: pd.DataFrame, family: str, dataset: str, draws: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(draws,) of α, A, and the E of one group, refitted to models drawn with replacement within each family.

    A and α are shared and each family and data set has its E, so for a given α the fit is a regression within groups; α is the
    best of `EXPONENTS`, whose steps of 2 % are small beside the spread of the draws.
    """
    models = losses.groupby("model_id", sort=False)["family"].first()
    counts = np.empty((draws, len(models)))
    for name in models.unique():
        members = np.flatnonzero(models == name)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    weights = counts[:, models.index.get_indexer(losses["model_id"])]  # (draws, n)
    codes, names = (losses["family"] + "/" + losses["dataset"]).factorize()
    group = np.eye(len(names))[codes]  # (n, groups)
    m, y = losses["d_model"].to_numpy(dtype=float), losses["loss_nats"].to_numpy(dtype=float)
    sizes = weights @ group
    y_mean = weights @ (group * y[:, None]) / sizes
    shrink = np.full(draws, -np.inf)
    alpha, A, E = np.empty(draws), np.empty(draws), np.empty(draws)
    here = list(names).index(f"{family}/{dataset}")
    for exponent in EXPONENTS:
        x = m**-exponent
        x_mean = weights @ (group * x[:, None]) / sizes
        xx = weights @ x**2 - (sizes * x_mean**2).sum(axis=1)
        xy = weights @ (x * y) - (sizes * x_mean * y_mean).sum(axis=1)
        better = xy**2 / xx > shrink  # what the regression takes off the sum of squares
        shrink[better], alpha[better] = (xy**2 / xx)[better], exponent
        A[better] = (xy / xx)[better]
        E[better] = (y_mean[:, here] - xy / xx * x_mean[:, here])[better]
    return alpha, A, E


PREDICTORS: dict[str, Callable[..., Prediction]] = {"chinchilla": predict_chinchilla, "liu2025": predict_liu2025}
"""The laws that predict, by name."""
