"""Finds the parameters of a design that minimise an objective.

Least squares goes by variable projection (Golub and Pereyra, Inverse Problems 19, R1, 2003): the coefficients are solved
for at each trial of the exponents, so the search has one dimension an exponent and needs no first guess of A or E.
Objectives on log losses are minimised over every parameter, from the best of those trials.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import least_squares, minimize

from llmsuper.errors import FitError

if TYPE_CHECKING:
    from llmsuper.scaling.design import Design
    from llmsuper.scaling.laws import Array

OBJECTIVES: dict[str, str] = {
    "least-squares": "sum of squared residuals",
    "weighted": "sum of weight × squared residual",
    "log-least-squares": "sum of squared residuals of the logarithms",
    "huber-log": "sum of Huber's loss of the residuals of the logarithms",
}
HUBER_DELTA = 1e-3  # Hoffmann et al., arXiv:2203.15556, appendix D.3

_SCAN = {0: 1, 1: 49, 2: 15, 3: 8}  # trials an exponent, by the number of exponents
_STARTS = 4


@dataclass(frozen=True, eq=False)
class Solution:
    """`objective` at (`exponents`, `linear`); `at_edge` names the exponents that ended at the edge of their range."""

    exponents: Array
    linear: Array
    objective: float
    at_edge: tuple[str, ...]


def solve(
    design: Design,
    objective: str,
    *,
    delta: float = HUBER_DELTA,
    start: Array | None = None,
    fixed: dict[str, float] | None = None,
) -> Solution:
    """The minimum. With `start` (exponents) the scan is left out; `fixed` holds exponents at given values.

    Raises `FitError` where a logarithm of a value at or below 0 would be needed, or nothing converges.
    """
    logarithmic = objective in ("log-least-squares", "huber-log")
    if logarithmic and design.y.min() <= 0:
        raise FitError(f"{design.y_name}: found {design.y.min():g}; {objective} needs values above 0.")
    search = _Search(design, fixed or {})
    starts = [search.free_part(start)] if start is not None else search.scan()
    best = min((search.minimise(s) for s in starts), key=lambda found: found[1])[0]
    if logarithmic:
        found = [_log_fit(search, s, objective, delta) for s in [best, *(starts if objective == "huber-log" else [])]]
        exponents, linear, value = min(found, key=lambda f: f[2])
    else:
        exponents = search.full(best)
        linear, residual = project(design, exponents)
        value = float(residual @ residual)
    return Solution(exponents, linear, value, search.at_edge(exponents))


def project(design: Design, exponents: Array, basis: Array | None = None) -> tuple[Array, Array]:
    """(p,) coefficients and (n,) weighted residuals of the linear least squares at these exponents."""
    root = np.sqrt(design.weights)
    basis = (design.basis(exponents) if basis is None else basis) * root[:, None]
    scale = np.linalg.norm(basis, axis=0)
    scale[scale == 0] = 1.0
    coefficients = np.linalg.lstsq(basis / scale, design.y * root, rcond=None)[0] / scale
    return coefficients, design.y * root - basis @ coefficients


class _Search:
    """The search over those exponents that are free, within the law's range."""

    def __init__(self, design: Design, fixed: dict[str, float]) -> None:
        self.design, self.fixed = design, fixed
        self.free = [i for i, name in enumerate(design.law.exponents) if name not in fixed]
        self.low, self.high = design.law.exponent_range

    def full(self, free: Array) -> Array:
        out = np.array([self.fixed.get(name, np.nan) for name in self.design.law.exponents])
        out[self.free] = free
        return out

    def free_part(self, exponents: Array) -> Array:
        inside: Array = np.clip(np.asarray(exponents)[self.free], self.low * (1 + 1e-9), self.high * (1 - 1e-9))
        return inside

    def scan(self) -> list[Array]:
        """The lowest local minima of the projected sum of squares on a grid of exponents."""
        k = len(self.free)
        if k == 0:
            return [np.empty(0)]
        count = _SCAN[k]
        axis = np.geomspace(self.low, self.high, count) if self.low > 0 else np.linspace(self.low, self.high, count)
        values = np.empty((count,) * k)
        for at in product(range(count), repeat=k):
            residual = project(self.design, self.full(axis[list(at)]))[1]
            values[at] = residual @ residual
        local = np.ones_like(values, dtype=bool)
        for d in range(k):
            padded = np.pad(values, [(1, 1) if e == d else (0, 0) for e in range(k)], constant_values=np.inf)
            local &= (values <= np.take(padded, range(count), d)) & (values <= np.take(padded, range(2, count + 2), d))
        ranked = sorted(map(tuple, np.argwhere(local)), key=lambda at: values[at])
        return [np.clip(axis[list(at)], self.low + 1e-6, self.high - 1e-6) for at in ranked[:_STARTS]]

    def minimise(self, start: Array) -> tuple[Array, float]:
        """Least squares of the projected residuals, with Kaufman's Jacobian, finished by plain Gauss-Newton steps."""
        if not len(start):
            residual = project(self.design, self.full(start))[1]
            return start, float(residual @ residual)
        found = least_squares(
            self._residual, start, self._slope, bounds=(self.low, self.high), xtol=1e-7, ftol=1e-10, gtol=1e-10
        )
        best, value = found.x, 2 * found.cost
        for _ in range(20):  # the last digits, which the trust region would be slow to find
            step = np.linalg.lstsq(self._slope(best), -self._residual(best), rcond=None)[0]
            trial = best + step
            if np.any(trial <= self.low) or np.any(trial >= self.high):
                break
            residual = self._residual(trial)
            if residual @ residual > value * (1 + 1e-12):
                break
            best, value = trial, float(residual @ residual)
            if np.all(np.abs(step) < 1e-11 * np.abs(best)):
                break
        return best, value

    def _residual(self, free: Array) -> Array:
        return project(self.design, self.full(free))[1]

    def _slope(self, free: Array) -> Array:
        design, exponents = self.design, self.full(free)
        root = np.sqrt(design.weights)[:, None]
        linear = project(design, exponents)[0]
        slopes = -root * design.jacobian(exponents, linear)[:, self.free]
        basis = design.basis(exponents) * root
        q = np.linalg.qr(basis)[0]
        slope: Array = slopes - q @ (q.T @ slopes)
        return slope

    def at_edge(self, exponents: Array) -> tuple[str, ...]:
        margin = 1e-3 * (self.high - self.low)
        names = self.design.law.exponents
        low, high = self.low + min(margin, abs(self.low) * 0.02), self.high - margin
        return tuple(names[i] for i in self.free if not low < exponents[i] < high)


def _log_fit(search: _Search, start: Array, objective: str, delta: float) -> tuple[Array, Array, float]:
    """Minimises over the free exponents and the logarithms of all coefficients, which keeps every term above 0.

    The Huber objective is summed and enlarged, with its gradient: as a mean it is so flat that a quasi-Newton method stops
    too early, which is what Besiroglu et al. (arXiv:2404.10102) found of the first Chinchilla fit.
    """
    design = search.design
    k, target, root = len(search.free), np.log(design.y), np.sqrt(design.weights)
    linear = project(design, search.full(start))[0]
    floor = 1e-3 * np.abs(design.y).min() / np.abs(design.basis(search.full(start))).max(axis=0)
    guess = np.concatenate([start, np.log(np.maximum(linear, floor))])
    bounds = [(search.low, search.high)] * k + [(None, None)] * len(linear)

    def residual_and_slope(parameters: Array) -> tuple[Array, Array]:
        exponents, coefficients = search.full(parameters[:k]), np.exp(parameters[k:])
        value = design.basis(exponents) @ coefficients
        slope = design.jacobian(exponents, coefficients)
        free = [*search.free, *range(len(design.law.exponents), slope.shape[1])]
        slope = slope[:, free] / value[:, None]
        slope[:, k:] *= coefficients
        return np.log(value) - target, slope

    if objective == "log-least-squares":
        low, high = (
            np.array([b[i] if b[i] is not None else s for b in bounds]) for i, s in ((0, -np.inf), (1, np.inf))
        )
        found = least_squares(
            lambda p: root * residual_and_slope(p)[0],
            guess,
            lambda p: root[:, None] * residual_and_slope(p)[1],
            bounds=(low, high),
            x_scale="jac",
            xtol=1e-14,
            ftol=1e-14,
            gtol=1e-14,
        )
        parameters, value = found.x, 2 * float(found.cost)
    else:
        scale = 1.0 / (delta * len(target) * 1e-4)

        def huber(parameters: Array) -> tuple[float, Array]:
            residual, slope = residual_and_slope(parameters)
            size = np.abs(residual)
            each = np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))
            gradient = (design.weights * np.clip(residual, -delta, delta)) @ slope
            return scale * float(design.weights @ each), scale * gradient

        parameters = guess
        for _ in range(3):  # a restart forgets a curvature that was learned far away
            found = minimize(
                huber,
                parameters,
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"maxiter": 5000, "maxfun": 20000, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-10},
            )
            parameters = found.x
        value = huber(parameters)[0] / scale
    if not np.all(np.isfinite(parameters)) or not np.isfinite(value):
        raise FitError(
            f"{design.law.name}: the fit by {objective} did not converge. Check the points, or use least-squares."
        )
    return search.full(parameters[:k]), np.exp(parameters[k:]), value
