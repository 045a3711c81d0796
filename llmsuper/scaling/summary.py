"""All that the points of one fit can tell: the fit, its intervals, sensitivity and tests, and warnings in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from llmsuper.errors import FitError
from llmsuper.scaling.intervals import bootstrap_models, profile_interval
from llmsuper.scaling.model_means import fit_model_means
from llmsuper.scaling.sensitivity import (
    authors_slope_error,
    each_alone,
    exponent_test,
    identifiability,
    leave_one_out,
    moved_widths,
    shared_test,
    window,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from llmsuper.scaling.fit import ScalingLawFit
    from llmsuper.scaling.intervals import Bootstrap, Interval
    from llmsuper.scaling.sensitivity import Identifiability, LawTest, Variant

WINDOWS: tuple[dict[str, float], ...] = ({"at_least": 1024}, {"at_most": 2560})


@dataclass(frozen=True, slots=True)
class SlopeError:
    """The authors' error of the slope by their formula, and without the points whose loss lies below the floor."""

    formula: float
    without_points_below_floor: float
    points_below_floor: tuple[str, ...]


@dataclass(frozen=True, eq=False, slots=True)
class FitSummary:
    """Everything about one fit; `text()` for people, `to_dict()` for JSON. `not_done` says what could not be computed."""

    title: str
    fit: ScalingLawFit
    intervals: tuple[Interval, ...]
    of_model_means: tuple[Interval, ...]
    bootstrap: Bootstrap | None
    variants: tuple[Variant, ...]
    tests: tuple[LawTest, ...]
    identifiability: Identifiability
    slope_error: SlopeError | None
    published: dict[str, Any] | None
    warnings: tuple[str, ...]
    not_done: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an open end of an interval is null, with `open` true."""
        slope = self.slope_error
        return {
            "title": self.title,
            "fit": self.fit.to_dict(),
            "profile": {interval.name: interval.to_dict() for interval in self.intervals},
            "profile_of_model_means": {interval.name: interval.to_dict() for interval in self.of_model_means},
            "bootstrap": None if self.bootstrap is None else self.bootstrap.to_dict(),
            "variants": [variant.to_dict() for variant in self.variants],
            "tests": [test.to_dict() for test in self.tests],
            "identifiability": self.identifiability.to_dict(),
            "authors_slope_error": None
            if slope is None
            else {
                "formula": slope.formula,
                "without_points_below_floor": slope.without_points_below_floor,
                "points_below_floor": list(slope.points_below_floor),
            },
            "published": self.published,
            "warnings": list(self.warnings),
            "not_done": list(self.not_done),
        }

    def text(self) -> str:
        """A readable block of lines."""
        return "\n".join(_lines(self))


def summarise(
    title: str,
    fit: ScalingLawFit,
    *,
    draws: int = 1000,
    seed: int = 0,
    moved: Mapping[str, float] | None = None,
    published: dict[str, Any] | None = None,
) -> FitSummary:
    """Everything about one fit. `published` is what the authors print of it, `moved` widths of models to try instead.

    `draws` bootstrap draws, none for 0. What the points do not allow (a bootstrap of three models, a test of families
    with two points each) is left out and named in `not_done`.
    """
    not_done: list[str] = []

    def attempt(what: str, compute: Callable[[], Any]) -> Any:
        try:
            return compute()
        except FitError as error:
            not_done.append(f"{what}: {error}")
            return None

    exponents, frame = fit.design.law.exponents, fit.design.frame
    intervals = [attempt(f"profile interval of {e}", partial(profile_interval, fit, e)) for e in exponents]
    intervals = [interval for interval in intervals if interval is not None]
    bootstrap = (
        attempt("bootstrap over models", partial(bootstrap_models, fit, draws=draws, seed=seed)) if draws else None
    )
    of_means: list[Interval] = []
    if "dataset" in fit.design.group_names and fit.objective == "least-squares":
        means = attempt("fit of model means", partial(fit_model_means, fit))
        of_means = [] if means is None else [profile_interval(means, e) for e in exponents]
    tests = [attempt(f"test of {e} = 1", partial(exponent_test, fit, 1.0, e)) for e in exponents]
    variants: list[Variant] = []
    several = [c for c in ("model_id", "family", "dataset") if c in frame.columns and frame[c].nunique() > 1]
    for column in several:
        if column != "dataset":
            variants += leave_one_out(fit, column)
        if column != "model_id":
            variants += each_alone(fit, column)
    if "family" in several and exponents:
        tests.append(attempt("test of one law for every family", partial(shared_test, fit, "family")))
    if fit.design.x_names[0] == "d_model":
        cuts = [window(fit, **w) for w in WINDOWS]
        variants += [cut for cut in cuts if cut.n_points < fit.n_points]
    for model, width in (moved or {}).items():
        variants.append(moved_widths(fit, {model: width}, f"{model.rpartition('/')[2]} at width {width:g}"))
    known = identifiability(fit, intervals[0] if intervals else None)
    slope = None
    if published is not None and fit.law == "power-floor":
        slope = SlopeError(
            authors_slope_error(fit), authors_slope_error(fit, below_floor_as_one=False), known.below_floor
        )
    kept_tests = tuple(test for test in tests if test is not None)
    warnings = tuple(_warnings(fit, intervals, bootstrap, variants, kept_tests, known))
    return FitSummary(
        title, fit, tuple(intervals), tuple(of_means), bootstrap, tuple(variants), kept_tests, known, slope, published, warnings,
        tuple(not_done),
    )  # fmt: skip


def _warnings(
    fit: ScalingLawFit,
    intervals: list[Interval],
    bootstrap: Bootstrap | None,
    variants: list[Variant],
    tests: tuple[LawTest, ...],
    known: Identifiability,
) -> Iterator[str]:
    for problem in fit.problems:
        yield f"not identified: {problem}"
    for interval in intervals:
        if interval.open:
            side = "both ends" if interval.low is interval.high else "low end" if interval.low is None else "high end"
            yield f"the points do not bound {interval.name} ({side} open): do not quote it as a number"
        error = fit.stderr.get(interval.name)
        if bootstrap is not None and error and bootstrap.sd(interval.name) > 1.5 * error:
            yield (
                f"drawing models instead of points makes the error of {interval.name} "
                f"{bootstrap.sd(interval.name) / error:.1f} times that of the Jacobian: "
                + ("losses of one model err together" if bootstrap.units < fit.n_points else "a few points carry it")
            )
        for variant in variants:
            moved = variant.fit is not None and abs(variant.fit.params[interval.name] - interval.estimate)
            if moved and not _inside(interval, variant) and variant.kind in ("window", "width moved"):
                value = variant.fit.params[interval.name] if variant.fit else interval.estimate
                yield f"{interval.name} leaves its interval, to {value:.3g}, with {variant.name}"
    for test in tests:
        if test.restriction.startswith("one law") and test.p_value < 0.05:
            yield f"{test.restriction} is rejected (p = {test.p_value:.2g}): the shared exponent is an average of unlike ones"
    if known.below_floor:
        yield f"the floor lies above what was measured of {', '.join(known.below_floor)}"


def _inside(interval: Interval, variant: Variant) -> bool:
    value = variant.fit.params[interval.name] if variant.fit else interval.estimate
    return (interval.low is None or interval.low <= value) and (interval.high is None or value <= interval.high)


def _lines(summary: FitSummary) -> Iterator[str]:
    fit, exponents = summary.fit, summary.fit.design.law.exponents
    yield summary.title
    yield f"  {fit.formula}, {fit.objective}, {fit.n_points} points, {fit.n_parameters} parameters"
    if summary.published is not None:
        yield from _side_by_side(summary)
    else:
        for name, value in fit.params.items():
            yield f"  {name:<6} {value:<10.5g}" + (f" ± {fit.stderr[name]:.2g}" if name in fit.stderr else "")
        yield f"  mean squared residual {fit.mse:.4g} (root {fit.rmse:.4g})"
        for name, by_group in fit.group_params.items():
            yield f"  {name} " + "  ".join(f"{group} {value:.4g}" for group, value in by_group.items())
    yield ""
    yield "Errors"
    for name in exponents:
        if name in fit.stderr:
            yield f"  {name} ± {fit.stderr[name]:.3f}  Jacobian, all parameters free, points taken as independent"
        yield from (
            f"  {name} {interval}  95 % profile interval" for interval in summary.intervals if interval.name == name
        )
        yield from (
            f"  {name} {interval}  the same of each model's mean over data sets, which may err together"
            for interval in summary.of_model_means
            if interval.name == name
        )
        if summary.bootstrap is not None:
            b = summary.bootstrap
            within = f" within each {b.strata}" if b.strata else ""
            yield f"  {name} ± {b.sd(name):.3f} {b.interval(name)}  {b.draws} bootstrap draws of {b.unit}{within}, seed {b.seed}"
    known = summary.identifiability
    if known.dfloor_dexponent is not None:
        ends = " to ".join("open" if f is None else f"{f:.3f}" for f in (known.floors[0], known.floors[2]))
        yield (
            f"  floor and exponent trade {known.dfloor_dexponent:.2f} for 1: (mean) E {ends} over the interval; "
            f"condition number {known.condition:.0f}"
        )
    if summary.slope_error is not None:
        s = summary.slope_error
        yield (
            f"  the authors' slope error: {s.formula:.4f} by their formula, which holds A and every E fixed and counts a loss "
            f"below its floor ({', '.join(s.points_below_floor) or 'none'}) as 1 nat above it; "
            f"{s.without_points_below_floor:.4f} without that point"
        )
    shown = [v for v in summary.variants if v.kind != "without model_id"]
    alone = [v for v in summary.variants if v.kind == "without model_id" and v.fit is not None]
    if exponents and (shown or alone):
        yield ""
        yield f"What {exponents[0]} rests on"
        yield from (_variant(v, exponents[0]) for v in shown)
        if alone:
            values = {v.name: v.fit.params[exponents[0]] for v in alone if v.fit is not None}
            low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
            yield (f"  without one model: {values[low]:.3f} (without {low}) to {values[high]:.3f} (without {high})")
    if summary.tests:
        yield ""
        yield "Tests"
        for t in summary.tests:
            yield (
                f"  {t.restriction}: F = {t.statistic:.2f} on ({t.restrictions}, {t.degrees_of_freedom}), p = {t.p_value:.2g}; "
                f"likelihood ratio {t.likelihood_ratio:.2f}, p = {t.likelihood_ratio_p:.2g}"
            )
    for heading, lines in (("Take care", summary.warnings), ("Not done", summary.not_done)):
        if lines:
            yield ""
            yield heading
            yield from (f"  {line}" for line in lines)


def _variant(variant: Variant, name: str) -> str:
    label = f"  {variant.kind}: {variant.name}" if variant.kind != "window" else f"  {variant.name}"
    if variant.fit is None:
        return f"{label:<40} none: {variant.refused}"
    error = f" ± {variant.fit.stderr[name]:.2f}" if name in variant.fit.stderr else ""
    end = "" if variant.fit.identified else "  not identified"
    return f"{label:<40} {variant.fit.params[name]:.2f}{error}  {variant.interval or ''}  {variant.n_points} points{end}".rstrip()


def _side_by_side(summary: FitSummary) -> Iterator[str]:
    fit, printed = summary.fit, summary.published or {}
    yield f"  {'':<10} {'printed':>10} {'here':>10}"
    rows = [(name, printed.get(name), value) for name, value in fit.params.items()]
    rows.append(("MSE", printed.get("mean_squared_error"), fit.mse))
    if summary.slope_error is not None:
        rows.append(("error", printed.get("slope_error"), summary.slope_error.formula))
    form = {"alpha": ".4f", "A": ".2f", "MSE": ".7f", "error": ".4f"}
    for name, theirs, ours in rows:
        left = "" if theirs is None else format(theirs, form.get(name, ".5g"))
        yield f"  {name:<10} {left:>10} {format(ours, form.get(name, '.5g')):>10}"
    differences = offset_differences(fit, printed)
    for group, difference in differences.items():
        ours = fit.group_params["E"][group]
        yield f"  E {group:<18} {ours - difference:>8.4f} {ours:>10.4f}"
    if differences:
        yield f"  largest difference of the {len(differences)} floors {max(map(abs, differences.values())):.4f}"


def offset_differences(fit: ScalingLawFit, printed: Mapping[str, Any]) -> dict[str, float]:
    """Ours minus the printed floors, E[family][dataset], of the groups that both have."""
    ours = fit.group_params.get("E", {})
    theirs = {f"{family}/{d}": e for family, sets in printed.get("E", {}).items() for d, e in sets.items()}
    return {group: float(np.subtract(ours[group], theirs[group])) for group in ours if group in theirs}
