"""Fits L = E + Σⱼ Cⱼ/xⱼ^γⱼ, one falling term per variable, by Huber's loss on log L.

The recipe is Hoffmann et al. 2022 (arXiv 2203.15556, approach 3): log L̂ is the log-sum-exp of e and aⱼ − γⱼ ln xⱼ, the
objective Σ huber(log L − log L̂) with δ = 10⁻³. Two things differ, both for the sake of reaching the minimum:

- The objective is a *sum*, scaled by 1/δ², and has its gradient. As a mean it is so small that L-BFGS takes a point high on
  the valley's wall for converged, which is how Besiroglu et al. 2024 (arXiv 2404.10102) explain the original estimate.
- ln xⱼ is centred and the search runs in coordinates that the Gauss-Newton matrix makes round. The starts come from a grid
  of exponents alone, for each of which E and Cⱼ are a non-negative linear problem; the best six then all end in the minimum
  that the replication finds from 4,500 starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from llmsuper.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

DELTA = 1e-3
"""Half-width of Huber's quadratic part, in log loss; Hoffmann et al. 2022."""
LEVEL = 0.95
START_EXPONENTS = (0.15, 0.35, 0.7, 1.2)
POLISHED_STARTS = 6
FADED = -10.0
"""Log of a term's nats at the middle of the data, below which the points do not show the term."""
LBFGS = {"maxiter": 1000, "ftol": 1e-10, "gtol": 1e-5, "maxcor": 20}


@dataclass(frozen=True, slots=True)
class AdditiveFit:
    """A fitted L = E + Σⱼ Cⱼ/xⱼ^γⱼ. L and E in nats; Cⱼ in nats times the variable's unit to the γⱼ."""

    variables: tuple[str, ...]
    names: tuple[str, ...]
    """(1 + 2k,) names of the parameters: the floor, the coefficients, the exponents."""
    values: tuple[float, ...]
    """(1 + 2k,) the estimates, in the order of `names`."""
    objective: float
    """Σ huber(log L − log L̂), unscaled."""
    delta: float
    n_points: int
    scatter: float
    """How far one point lies from the curve: 1.4826 × the median |log L − log L̂|, a relative error."""
    ranges: dict[str, tuple[float, float]]
    """Smallest and largest value of each variable in the data."""
    draws: NDArray[np.float64] = field(repr=False, compare=False)
    """(draws, 1 + 2k): the estimates of each bootstrap resample of the points; (0, 1 + 2k) without a bootstrap."""

    def __getitem__(self, name: str) -> float:
        return self.values[self.names.index(name)]

    def stderr(self) -> dict[str, float] | None:
        """Standard deviation of each parameter over the bootstrap; None without one."""
        return dict(zip(self.names, self.draws.std(axis=0, ddof=1).tolist(), strict=True)) if len(self.draws) else None

    def interval(self) -> dict[str, tuple[float, float]] | None:
        """95 % percentile interval of each parameter over the bootstrap; None without one."""
        return dict(zip(self.names, map(percentiles, self.draws.T), strict=True)) if len(self.draws) else None

    def predict(self, *x: float) -> float:
        """The curve's loss in nats at one value of each variable, in the order of `variables`."""
        return float(self._loss(np.array(self.values), np.array(x)))

    def predict_draws(self, *x: float) -> NDArray[np.float64]:
        """(draws,) losses in nats of every bootstrap curve at the same place."""
        return self._loss(self.draws, np.array(x))

    def _loss(self, parameters: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        k = len(self.variables)
        terms = parameters[..., 1 : k + 1] * x ** -parameters[..., k + 1 :]
        return np.asarray(parameters[..., 0] + terms.sum(axis=-1))

    @property
    def formula(self) -> str:
        """Such as `E + A/n_params^alpha + B/train_tokens^beta`."""
        k = len(self.variables)
        terms = zip(self.names[1 : k + 1], self.variables, self.names[k + 1 :], strict=True)
        return " + ".join([self.names[0], *(f"{c}/{x}^{g}" for c, x, g in terms)])

    def to_dict(self) -> dict[str, Any]:
        """Numbers for JSON: estimates, bootstrap errors and intervals (null without a bootstrap), ranges, quality."""
        return {
            "law": self.formula,
            "parameters": dict(zip(self.names, self.values, strict=True)),
            "stderr": self.stderr(),
            "interval": self.interval(),
            "level": LEVEL,
            "draws": len(self.draws),
            "objective": self.objective,
            "delta": self.delta,
            "points": self.n_points,
            "scatter": self.scatter,
            "ranges": self.ranges,
        }


def percentiles(draws: NDArray[np.float64]) -> tuple[float, float]:
    """The central 95 % of some draws."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def fit_additive(
    points: pd.DataFrame,
    variables: Sequence[str],
    names: Sequence[str],
    y: str = "loss_nats",
    bootstrap: int = 0,
    rng: np.random.Generator | None = None,
    delta: float = DELTA,
) -> AdditiveFit:
    """Fit columns `variables` of `points`; `names` are those of the floor, the k coefficients and the k exponents.

    The minimum over several starts, and `bootstrap` refits of resampled rows, each from the minimum.

    A `delta` far above the residuals, such as 1, makes it least squares on log L. Without `rng` the seed is 0.

    Raises FitError when a column is missing, a value is not finite and positive, a variable does not vary, or there are
    fewer points than parameters and one more; and when the optimum is not identified (an exponent or a coefficient at zero).
    """
    x, loss = _checked(points, variables, y)
    log_x = np.log(x)
    centre = log_x.mean(axis=1, keepdims=True)
    z, target, weights = log_x - centre, np.log(loss), np.ones_like(loss)
    counts = np.empty((0, len(loss)))
    if bootstrap:
        rng = rng or np.random.default_rng(0)
        counts = rng.multinomial(len(loss), np.full(len(loss), 1 / len(loss)), size=bootstrap).astype(float)
    import scipy.optimize  # noqa: F401  before the limit, which is set on the libraries that are loaded

    with threadpool_limits(1):  # threads that wait for each other over 5 × 5 matrices make this ten times slower
        polished = [_minimise(start, z, target, weights, delta) for start in _starts(z, loss)]
        best, value = min(polished, key=lambda found: found[1])
        draws = [_minimise(best, z, target, count, delta, rounds=1)[0] for count in counts]
    thetas = np.array([best, *draws])
    k = len(x)
    lost = (thetas[:, : k + 1].min(axis=1) < FADED) | (thetas[:, k + 1 :].min(axis=1) <= 0)
    if lost.any():
        which = "the best fit loses" if lost[0] else f"{lost.sum()} of {bootstrap} bootstrap resamples lose"
        raise FitError(
            f"L = E + {' + '.join(f'C/{v}^γ' for v in variables)} on {len(loss)} points: {which} a term (no floor, or an "
            "exponent at zero), so the law is not identified. Use points over a wider range, or fewer variables."
        )
    residuals = target - _log_terms(best, z)[0]
    natural = _natural(thetas, centre[:, 0])
    return AdditiveFit(
        variables=tuple(variables),
        names=tuple(names),
        values=tuple(natural[0].tolist()),
        objective=value * delta**2,
        delta=delta,
        n_points=len(loss),
        scatter=float(1.4826 * np.median(np.abs(residuals))),
        ranges={v: (float(row.min()), float(row.max())) for v, row in zip(variables, x, strict=True)},
        draws=natural[1:],
    )


def _checked(points: pd.DataFrame, variables: Sequence[str], y: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """(k, n) variables and (n,) losses, or a FitError."""
    what = f"a fit of {y} in {', '.join(variables)}"
    if missing := [name for name in (*variables, y) if name not in points.columns]:
        raise FitError(f"{what}: no column {missing[0]!r}; there are: {', '.join(points.columns)}. Rename or add it.")
    values = points[[*variables, y]].to_numpy(dtype=float).T
    for name, row in zip((*variables, y), values, strict=True):
        if bad := int((~(np.isfinite(row) & (row > 0))).sum()):
            raise FitError(f"{what}: {bad} of {len(row)} values of {name!r} are not positive numbers. Drop those rows.")
    need = 2 + 2 * len(variables)
    if values.shape[1] < need:
        raise FitError(f"{what}: {values.shape[1]} points for {need - 1} parameters. Give at least {need} points.")
    for name, row in zip(variables, values, strict=False):
        if len(np.unique(row)) < 3:
            raise FitError(
                f"{what}: {name!r} takes only {len(np.unique(row))} different values. An exponent and a floor need three."
            )
    return values[:-1], values[-1]


def _starts(z: NDArray[Any], loss: NDArray[Any]) -> list[NDArray[Any]]:
    """The few best (e, a₁ … a_k, γ₁ … γ_k) of a grid of exponents, by relative least squares with E, Cⱼ ≥ 0."""
    from scipy.optimize import nnls

    scored = []
    for exponents in product(START_EXPONENTS, repeat=len(z)):
        basis = np.vstack([np.ones_like(loss), np.exp(-np.array(exponents)[:, None] * z)]) / loss
        coefficients, misfit = nnls(basis.T, np.ones_like(loss))
        # a start with a coefficient of zero would have an infinite logarithm
        start = np.array([*np.log(np.maximum(coefficients, 1e-2)), *exponents])
        scored.append((misfit, start))
    return [start for _, start in sorted(scored, key=lambda found: found[0])[:POLISHED_STARTS]]


def _log_terms(theta: NDArray[Any], z: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """log L̂ (n,), and each term's share of L̂ (1 + k, n)."""
    k = len(z)
    logs = np.empty((1 + k, z.shape[1]))
    logs[0] = theta[0]
    logs[1:] = theta[1 : k + 1, None] - theta[k + 1 :, None] * z
    top = logs.max(axis=0)
    shares = np.exp(logs - top)
    total = shares.sum(axis=0)
    return top + np.log(total), shares / total


def _objective(
    theta: NDArray[Any], z: NDArray[Any], target: NDArray[Any], weights: NDArray[Any], delta: float
) -> tuple[float, NDArray[Any]]:
    """Σ w huber(r)/δ² and its gradient."""
    predicted, shares = _log_terms(theta, z)
    r = (target - predicted) / delta
    slope = np.minimum(np.maximum(r, -1), 1)
    value = float(weights @ (slope * (r - slope / 2)))
    pull = shares * (-weights * slope / delta)
    return value, np.concatenate([pull.sum(axis=1), -(pull[1:] * z).sum(axis=1)])


def _minimise(
    start: NDArray[Any], z: NDArray[Any], target: NDArray[Any], weights: NDArray[Any], delta: float, rounds: int = 20
) -> tuple[NDArray[Any], float]:
    """L-BFGS in coordinates that the Gauss-Newton matrix makes round, again from where it ends while that gains."""
    from scipy.optimize import minimize

    theta, value = start, np.inf
    for _ in range(rounds):
        predicted, shares = _log_terms(theta, z)
        jacobian = np.vstack([shares, -shares[1:] * z])
        curvature = jacobian * (weights / np.maximum(np.abs(target - predicted), delta) / delta) @ jacobian.T
        curvature[np.diag_indices_from(curvature)] += 1e-9 * np.trace(curvature)  # a term that has faded has none
        widths = np.linalg.inv(np.linalg.cholesky(curvature)).T

        def rounded(u: NDArray[Any], origin: NDArray[Any] = theta, to: NDArray[Any] = widths) -> Any:
            height, gradient = _objective(origin + to @ u, z, target, weights, delta)
            return height, gradient @ to

        found = minimize(rounded, np.zeros_like(theta), jac=True, method="L-BFGS-B", options=LBFGS)
        theta, gain, value = theta + widths @ found.x, value - found.fun, float(found.fun)
        if gain < 1e-9 * value:
            break
    return theta, value


def _natural(theta: NDArray[Any], centre: NDArray[Any]) -> NDArray[Any]:
    """E, Cⱼ, γⱼ of the uncentred law, for each row of θ."""
    k = len(centre)
    exponents = theta[:, k + 1 :]
    return np.hstack([np.exp(theta[:, :1]), np.exp(theta[:, 1 : k + 1] + exponents * centre), exponents])
