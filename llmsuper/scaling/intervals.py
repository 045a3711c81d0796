"""Intervals of a fit: from the profile of its sum of squares, and from a bootstrap over models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import interpolate, optimize, stats

from llmsuper.errors import FitError
from llmsuper.scaling.solve import project, solve

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmsuper.scaling.design import Design
    from llmsuper.scaling.fit import ScalingLawFit
    from llmsuper.scaling.laws import Array

    Codes = np.ndarray[Any, np.dtype[np.intp]]

_FEWEST = 6  # resampling four or five points means nothing
_GRID = 61  # trials of the exponent that all draws of a bootstrap share; a spline and a parabola refine between them


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided interval of one parameter. An end that the points do not determine is None: open, never a number."""

    name: str
    estimate: float
    low: float | None
    high: float | None
    level: float
    method: str

    @property
    def open(self) -> bool:
        return self.low is None or self.high is None

    def to_dict(self) -> dict[str, Any]:
        return {
            "estimate": self.estimate,
            "low": self.low,
            "high": self.high,
            "open": self.open,
            "level": self.level,
            "method": self.method,
        }

    def __str__(self) -> str:
        low, high = ("open" if end is None else f"{end:.3g}" for end in (self.low, self.high))
        return f"[{low}, {high}]"


def jacobian_interval(fit: ScalingLawFit, name: str, level: float = 0.95) -> Interval:
    """estimate ± t × standard error. Raises `FitError` where the fit has no standard errors."""
    if name not in fit.stderr:
        known = ", ".join(fit.stderr) or "none: use `bootstrap_models`"
        raise FitError(f"{fit.law}: {name!r} has no standard error from the Jacobian. Those there are: {known}.")
    value = dict(zip(fit.names, (*fit.solution.exponents, *fit.solution.linear), strict=True))[name]
    half = float(stats.t.ppf(0.5 + level / 2, fit.degrees_of_freedom)) * fit.stderr[name]
    return Interval(name, float(value), float(value) - half, float(value) + half, level, "jacobian")


def profile_interval(fit: ScalingLawFit, name: str | None = None, level: float = 0.95) -> Interval:
    """Where the sum of squares, minimised over everything but this exponent, stays within the F bound of its minimum.

    RSS(α) ≤ RSS(α̂) (1 + F/(n − k)), F the `level` quantile of F(1, n − k) (Bates and Watts, Nonlinear Regression Analysis,
    1988, section 6.1): the part connected to the estimate. An end that the bound does not reach within the law's range of
    exponents is open. `name` is the first exponent unless given.

    For log-least-squares of a pure power, which is linear, this is the Jacobian interval. Raises `FitError` for huber-log,
    which has no such statistic, and for a name that is not an exponent.
    """
    exponents = fit.design.law.exponents
    if not exponents or (name is not None and name not in exponents):
        raise FitError(
            f"{fit.law}: a profile is taken of an exponent ({', '.join(exponents) or 'it has none'}), not of {name}. "
            "Use the standard errors or the bootstrap for the others."
        )
    if fit.objective == "huber-log":
        raise FitError("huber-log: the F statistic of a profile needs a sum of squares. Use `bootstrap_models`.")
    name = exponents[0] if name is None else name
    index = exponents.index(name)
    estimate = float(fit.solution.exponents[index])
    bound = 1 + float(stats.f.ppf(level, 1, fit.degrees_of_freedom)) / fit.degrees_of_freedom
    limit = fit.solution.objective * bound

    def excess(value: float) -> float:
        found = solve(fit.design, fit.objective, fixed={name: value}, start=fit.solution.exponents)
        return found.objective - limit

    low, high = fit.design.law.exponent_range
    ends = [_crossing(excess, estimate, end, fit.stderr.get(name)) for end in (low, high)]
    if name in fit.solution.at_edge:  # the minimum lies beyond the range, so that side is open whatever the walk found
        ends[0 if estimate - low < high - estimate else 1] = None
    return Interval(name, estimate, ends[0], ends[1], level, "profile")


def _crossing(excess: Callable[[float], float], start: float, end: float, error: float | None) -> float | None:
    """The first zero of `excess` on the way from `start`, where it is negative, to `end`; None if there is none."""
    step = min(error or 0.05, abs(end - start) / 8) * (1.0 if end > start else -1.0)
    inside = start
    while inside != end:
        outside = inside + step
        if (end - outside) * step <= 0:
            outside = end
        if excess(outside) > 0:
            return float(optimize.brentq(excess, inside, outside, xtol=1e-6))
        inside, step = outside, step * 1.3
    return None


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """What refitting resampled models gives, for the shared parameters.

    `samples` maps a parameter to (draws used,) values. `unusable` counts the draws with too few different sizes to fit, which
    are left out; `at_edge` those whose exponent ran to the edge of its range, which are kept: they make an end open.
    """

    draws: int
    seed: int
    unit: str
    units: int
    strata: str | None
    level: float
    unusable: int
    at_edge: int
    estimates: dict[str, float]
    samples: dict[str, Array] = field(repr=False)
    edges: dict[str, tuple[float, float]] = field(repr=False)

    def sd(self, name: str) -> float:
        return float(np.std(self.samples[name], ddof=1))

    def interval(self, name: str) -> Interval:
        """The percentile interval; an end at the edge of the search is open."""
        tail = (1 - self.level) / 2
        ends: list[float | None] = [float(q) for q in np.quantile(self.samples[name], [tail, 1 - tail])]
        if name in self.edges:
            low, high = self.edges[name]
            ends = [e if e is not None and low < e < high else None for e in ends]
        return Interval(name, self.estimates[name], ends[0], ends[1], self.level, "bootstrap over models")

    def to_dict(self) -> dict[str, Any]:
        return {
            "draws": self.draws,
            "seed": self.seed,
            "unit": self.unit,
            "units": self.units,
            "strata": self.strata,
            "unusable": self.unusable,
            "at_edge": self.at_edge,
            "sd": {name: self.sd(name) for name in self.samples},
            "median": {name: float(np.median(values)) for name, values in self.samples.items()},
            "interval": {name: self.interval(name).to_dict() for name in self.samples},
        }


def bootstrap_models(
    fit: ScalingLawFit,
    *,
    draws: int = 1000,
    seed: int = 0,
    unit: str = "model_id",
    strata: str | None = "family",
    level: float = 0.95,
) -> Bootstrap:
    """Refit on models drawn with replacement within each family, every data set of a drawn model together.

    The model is what was sampled: its losses on several texts share the model's own deviation, so drawing points one by
    one would make the errors too small. Column `unit` names the model and `strata` the family; a table without them, or
    with no `strata`, is drawn from as a whole, row by row where there is no `unit`. The same seed gives the same draws.

    Raises `FitError` for fewer than six models, and where hardly any draw can be fitted.
    """
    design = fit.design
    rows = len(design.y)
    units = _codes(design, unit) if unit in design.frame.columns else np.arange(rows, dtype=np.intp)
    layers = _codes(design, strata) if strata in design.frame.columns else np.zeros(rows, dtype=np.intp)
    if units.max() + 1 < _FEWEST:
        raise FitError(
            f"{fit.law}: {units.max() + 1} {unit} are too few models to resample: the draws would be of {_FEWEST - 1} points or "
            "fewer, and say nothing. Use the profile interval."
        )
    counts = _counts(units, layers, draws, np.random.default_rng(seed))
    sizes = np.unique(design.x, axis=0, return_inverse=True)[1].ravel()
    member = np.zeros((len(design.y), sizes.max() + 1))
    member[np.arange(len(sizes)), sizes] = 1
    needed = len(design.law.exponents) + len(design.law.terms)
    usable = np.count_nonzero(counts[:, units] @ member, axis=1) >= needed
    if np.count_nonzero(usable) < 0.5 * draws:
        raise FitError(
            f"{fit.law}: of {draws} draws from {units.max() + 1} {unit}, {np.count_nonzero(usable)} have the {needed} different "
            "sizes that a fit needs. Use the profile interval: there are too few models to resample."
        )
    weights = counts[usable][:, units] * design.weights
    if len(design.law.exponents) == 1 and fit.objective in ("least-squares", "weighted"):
        exponents = _exponents_of_draws(design, weights)[:, None]
        linear = np.array([project(design.weighted(w), e)[0] for w, e in zip(weights, exponents, strict=True)])
    else:
        solutions = [
            solve(design.weighted(w), fit.objective, start=fit.solution.exponents, delta=fit.delta) for w in weights
        ]
        exponents = np.array([s.exponents for s in solutions]).reshape(len(solutions), -1)
        linear = np.array([s.linear for s in solutions])
    low, high = design.law.exponent_range
    margin = 1e-3 * (high - low)
    edges = {e: (low + min(margin, abs(low) * 0.02), high - margin) for e in design.law.exponents}
    values = dict(zip(design.names, np.column_stack([exponents, linear]).T, strict=True))
    inside = [(values[e] > a) & (values[e] < b) for e, (a, b) in edges.items()]
    return Bootstrap(
        draws=draws,
        seed=seed,
        unit=unit if unit in design.frame.columns else "row",
        units=int(units.max()) + 1,
        strata=strata if strata in design.frame.columns else None,
        level=level,
        unusable=int(draws - np.count_nonzero(usable)),
        at_edge=int(np.count_nonzero(~np.all(inside, axis=0))) if inside else 0,
        estimates=fit.params,
        samples={name: values[name] for name in fit.params},
        edges=edges,
    )


def _codes(design: Design, column: str | None) -> Codes:
    codes: Codes = np.unique(design.frame[column].astype(str).to_numpy(dtype=str), return_inverse=True)[1].ravel()
    return codes


def _counts(units: Codes, layers: Codes, draws: int, rng: np.random.Generator) -> Array:
    """(draws, units): how often each unit is drawn, as many within a layer as it has."""
    layer_of = np.zeros(units.max() + 1, dtype=np.intp)
    layer_of[units] = layers
    counts = np.zeros((draws, len(layer_of)))
    for layer in np.unique(layer_of):
        members = np.flatnonzero(layer_of == layer)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    return counts


def _exponents_of_draws(design: Design, weights: Array) -> Array:
    """(draws,) least-squares exponents for weights (draws, n): every draw at once, by normal equations on a grid.

    The products of the basis are formed once a trial exponent for all draws. The sum of squares is smooth between trials,
    so a cubic spline gives its minimum to about 1e-5, far below the spread of the draws.
    """
    low, high = design.law.exponent_range
    axis = np.linspace(np.log(low), np.log(high), _GRID) if low > 0 else np.linspace(low, high, _GRID)
    total = weights @ design.y**2
    rss = np.empty((_GRID, len(weights)))
    for i, at in enumerate(axis):
        basis = design.basis(np.array([np.exp(at) if low > 0 else at]))
        basis = basis / np.linalg.norm(basis, axis=0)
        n, p = basis.shape
        gram = (weights @ (basis[:, :, None] * basis[:, None, :]).reshape(n, p * p)).reshape(-1, p, p)
        gram[:, np.arange(p), np.arange(p)] += 1e-13  # keeps a group that a draw has left empty solvable
        right = weights @ (basis * design.y[:, None])
        rss[i] = total - np.einsum("bp,bp->b", right, np.linalg.solve(gram, right[:, :, None])[:, :, 0])
    fine = np.linspace(axis[0], axis[-1], 32 * (_GRID - 1) + 1)
    found = np.empty(len(weights))
    for part in np.array_split(np.arange(len(weights)), max(1, len(weights) // 250)):  # to keep the fine values small
        values = interpolate.CubicSpline(axis, rss[:, part])(fine)
        best = np.clip(values.argmin(axis=0), 1, len(fine) - 2)
        left, mid, right = (values[best + k, np.arange(len(part))] for k in (-1, 0, 1))
        curvature = left - 2 * mid + right
        shift = np.where(curvature > 0, 0.5 * (left - right) / np.where(curvature > 0, curvature, 1.0), 0.0)
        found[part] = fine[best] + np.clip(shift, -1, 1) * (fine[1] - fine[0])
    exponents: Array = np.exp(found) if low > 0 else found
    return exponents
