"""What an exponent rests on: leave-outs, windows, single groups, identifiability, and tests of one law against another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from llmsuper.errors import FitError
from llmsuper.scaling.design import make_design
from llmsuper.scaling.fit import fit_design
from llmsuper.scaling.intervals import profile_interval
from llmsuper.scaling.laws import LAWS
from llmsuper.scaling.solve import solve

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from llmsuper.scaling.fit import ScalingLawFit
    from llmsuper.scaling.intervals import Interval


@dataclass(frozen=True, slots=True)
class Variant:
    """The same fit on other rows; `refused` says why there is none, and then `fit` and `interval` are None."""

    kind: str
    name: str
    n_points: int
    fit: ScalingLawFit | None = None
    interval: Interval | None = None
    refused: str | None = None

    def to_dict(self) -> dict[str, Any]:
        fit = self.fit
        return {
            "kind": self.kind,
            "name": self.name,
            "n_points": self.n_points,
            "params": None if fit is None else fit.params,
            "stderr": None if fit is None else {k: v for k, v in fit.stderr.items() if k in fit.params},
            "rmse": None if fit is None else fit.rmse,
            "identified": fit is not None and fit.identified,
            "interval": None if self.interval is None else self.interval.to_dict(),
            "refused": self.refused,
        }


@dataclass(frozen=True, slots=True)
class LawTest:
    """An F test of a law against a more general one. `p_value` is small where the restriction costs more than chance."""

    restriction: str
    statistic: float
    restrictions: int
    degrees_of_freedom: int
    p_value: float
    likelihood_ratio: float
    likelihood_ratio_p: float

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Identifiability:
    """How firmly the points hold exponent and floor apart.

    dfloor_dexponent   change of the (mean) floor per unit of the exponent along the profile; None in a law without floor
    condition          condition number of the Jacobian, its columns scaled to length 1
    floors             (mean) floor at the low end, the estimate and the high end of the interval; None at an open end
    below_floor        the rows whose loss lies below their fitted floor
    """

    dfloor_dexponent: float | None
    condition: float
    floors: tuple[float | None, float | None, float | None]
    below_floor: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "dfloor_dexponent": self.dfloor_dexponent,
            "condition": self.condition if np.isfinite(self.condition) else None,
            "floor_at_low": self.floors[0],
            "floor": self.floors[1],
            "floor_at_high": self.floors[2],
            "below_floor": list(self.below_floor),
        }


def refit(fit: ScalingLawFit, frame: pd.DataFrame, kind: str, name: str, *, interval: bool = False) -> Variant:
    """The same law, groups and objective on other rows; what cannot be fitted is a `Variant` that says why."""
    try:
        again = _refit(fit, frame)
    except FitError as error:
        return Variant(kind, name, len(frame), refused=str(error))
    exponents = LAWS[fit.law].exponents
    profiled = interval and bool(exponents) and fit.objective != "huber-log"
    return Variant(kind, name, len(frame), again, profile_interval(again) if profiled else None)


def _refit(fit: ScalingLawFit, frame: pd.DataFrame, law: str | None = None) -> ScalingLawFit:
    design = fit.design
    weights = None
    if fit.objective == "weighted":
        frame, weights = frame.assign(**{"fit weight": design.weights[frame.index]}), "fit weight"
    again = make_design(
        LAWS[law or fit.law],
        frame,
        x=design.x_names,
        y=design.y_name,
        group=design.group_names,
        per_group=design.per_group,
        weights=weights,
    )
    return fit_design(again, fit.objective, delta=fit.delta)


def leave_one_out(fit: ScalingLawFit, column: str) -> list[Variant]:
    """The fit without each value of `column` in turn: "model_id", "family"."""
    frame = fit.design.frame
    values = dict.fromkeys(frame[column]) if column in frame.columns else {}
    return [refit(fit, frame[frame[column] != value], f"without {column}", str(value)) for value in values]


def each_alone(fit: ScalingLawFit, column: str) -> list[Variant]:
    """The fit on each value of `column` alone, with profile intervals: "family", "dataset"."""
    frame = fit.design.frame
    values = dict.fromkeys(frame[column]) if column in frame.columns else {}
    return [refit(fit, frame[frame[column] == v], f"one {column}", str(v), interval=True) for v in values]


def window(fit: ScalingLawFit, *, at_least: float | None = None, at_most: float | None = None) -> Variant:
    """The fit on a window of the law's first variable, both ends included."""
    column, frame = fit.design.x_names[0], fit.design.frame
    low, high = (-np.inf if at_least is None else at_least), (np.inf if at_most is None else at_most)
    parts = [f"{column} ≥ {low:g}"] * (at_least is not None) + [f"{column} ≤ {high:g}"] * (at_most is not None)
    chosen = frame[(frame[column] >= low) & (frame[column] <= high)]
    return refit(fit, chosen, "window", " and ".join(parts) or "all", interval=True)


def moved_widths(fit: ScalingLawFit, widths: Mapping[str, float], name: str) -> Variant:
    """The fit with other values of the first variable for some models: what if opt-350m's width is 512, that of its head?"""
    column, frame = fit.design.x_names[0], fit.design.frame.copy()
    missing = [model for model in widths if model not in set(frame["model_id"])]
    if missing:
        raise FitError(f"{missing[0]}: not among the models that were fitted. Name one that is.")
    frame[column] = [float(widths.get(m, w)) for m, w in zip(frame["model_id"], frame[column], strict=True)]
    return refit(fit, frame, "width moved", name, interval=True)


def identifiability(fit: ScalingLawFit, interval: Interval | None) -> Identifiability:
    """How the floor moves with the first exponent, the others and the coefficients following."""
    floor = LAWS[fit.law].floor
    exponents = fit.solution.exponents
    mean_floor = _mean_floor(fit, exponents) if floor else None
    slope: float | None = None
    ends: tuple[float | None, float | None] = (None, None)
    if floor and len(exponents):
        h = 1e-3 * max(abs(exponents[0]), 0.1)
        up, down = (_mean_floor(fit, _along(fit, exponents[0] + s * h)) for s in (1, -1))
        slope = (up - down) / (2 * h)
        if interval is not None:
            low, high = interval.low, interval.high
            ends = (
                None if low is None else _mean_floor(fit, _along(fit, low)),
                None if high is None else _mean_floor(fit, _along(fit, high)),
            )
    return Identifiability(slope, fit.condition, (ends[0], mean_floor, ends[1]), _below_floor(fit))


def _along(fit: ScalingLawFit, value: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """All exponents where the first is held at `value`."""
    name = fit.design.law.exponents[0]
    return solve(
        fit.design, fit.objective, fixed={name: value}, start=fit.solution.exponents, delta=fit.delta
    ).exponents


def _mean_floor(fit: ScalingLawFit, exponents: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    fixed = dict(zip(fit.design.law.exponents, exponents.tolist(), strict=True))
    linear = solve(fit.design, fit.objective, fixed=fixed, start=exponents, delta=fit.delta).linear
    where = fit.design.law.coefficients.index(fit.design.law.floor or "")
    return float(np.mean([c for c, (term, _) in zip(linear, fit.design.columns, strict=True) if term == where]))


def _below_floor(fit: ScalingLawFit) -> tuple[str, ...]:
    design = fit.design
    floor = design.law.floor
    if floor is None:
        return ()
    if floor in design.per_group:
        floors = np.array([fit.group_params[floor][g] for g in design.groups])[design.codes]
    else:
        floors = np.full(len(design.y), fit.params[floor])
    rows = design.frame[design.y <= floors]
    columns = [c for c in ("model_id", "dataset") if c in rows.columns]
    return tuple(" on ".join(map(str, row)) for row in rows[columns].itertuples(index=False))


def exponent_test(fit: ScalingLawFit, value: float = 1.0, name: str | None = None) -> LawTest:
    """F test of one exponent at `value` against it free."""
    _need_squares(fit)
    name = name or fit.design.law.exponents[0]
    held = solve(fit.design, fit.objective, fixed={name: value}, start=fit.solution.exponents)
    return _f_test(
        f"{name} = {value:g}", held.objective, fit.solution.objective, 1, fit.degrees_of_freedom, fit.n_points
    )


def shared_test(fit: ScalingLawFit, column: str = "family") -> LawTest:
    """F test of the shared exponents and coefficients against separate ones for each value of `column`.

    The general law fits each value alone, so parameters that are per group stay as they are where the groups lie within one
    value. Raises `FitError` where a value has too few points for a fit of its own.
    """
    _need_squares(fit)
    parts = [_refit(fit, part) for _, part in fit.design.frame.groupby(column, sort=False)]
    return compare(f"one law for every {column}", fit, parts)


def compare(restriction: str, fit: ScalingLawFit, parts: list[ScalingLawFit]) -> LawTest:
    """F test of `fit` against `parts`, fits that together cover its points with more parameters."""
    parameters, points = sum(p.n_parameters for p in parts), sum(p.n_points for p in parts)
    if points != fit.n_points or parameters <= fit.n_parameters:
        raise FitError(
            f"{restriction}: {parameters} parameters on {points} points against {fit.n_parameters} on {fit.n_points}; "
            "the general law must have more parameters, and both the same points."
        )
    general = sum(p.solution.objective for p in parts)
    return _f_test(
        restriction, fit.solution.objective, general, parameters - fit.n_parameters, points - parameters, points
    )


def _need_squares(fit: ScalingLawFit) -> None:
    if fit.objective == "huber-log":
        raise FitError("huber-log: an F test needs a sum of squares. Fit with least-squares or log-least-squares.")


def _f_test(restriction: str, held: float, free: float, q: int, df: int, n: int) -> LawTest:
    if not free > 0:
        raise FitError(f"{restriction}: the points lie on the law exactly, so there is no scatter to test against.")
    statistic = max(held - free, 0.0) / q / (free / df)
    ratio = n * float(np.log(max(held / free, 1.0)))
    return LawTest(
        restriction, statistic, q, df, float(stats.f.sf(statistic, q, df)), ratio, float(stats.chi2.sf(ratio, q))
    )


def authors_slope_error(fit: ScalingLawFit, *, below_floor_as_one: bool = True) -> float:
    """The ± 0.04 of arXiv:2505.10465, by the formula in cell 11 of the authors' notebook; for "power-floor" of one width.

    √( Σ (ln(L − E) − ln(A/m^α))² / Σ (ln m − mean ln m)² / (n − 3) ), with A and every E held as fitted: the error of a
    line through points from which their floors have been taken already. Where L < E the logarithm does not exist, and the
    notebook counts it as 0, that is L − E = 1; with `below_floor_as_one` False these points are left out instead.
    """
    design = fit.design
    if fit.law != "power-floor":
        raise FitError(f"{fit.law}: the authors' slope error is a formula for power-floor. Fit that law.")
    basis = design.basis(fit.solution.exponents)
    linear = np.where([design.law.coefficients[j] == "E" for j, _ in design.columns], fit.solution.linear, 0.0)
    above = design.y - basis @ linear
    power = design.y - fit.residuals() - basis @ linear
    kept = np.ones(len(above), dtype=bool) if below_floor_as_one else above > 0
    logs = np.log(np.where(above > 0, above, 1.0))
    log_m = np.log(design.x[:, 0])
    deviation, spread = (logs - np.log(power))[kept], (log_m - log_m[kept].mean())[kept]
    return float(np.sqrt(deviation @ deviation / (spread @ spread) / (np.count_nonzero(kept) - 3)))
