"""Fits measured overlaps against the columns of the head, to see whether they fall as 1/m.

Straight lines of log overlap against log m (the law "power", by log-least-squares): one for all heads, one slope with a
level for each family, and each family alone; of raw overlaps and, where records have them, of centred ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmsuper.errors import FitError
from llmsuper.scaling.fit import fit_law
from llmsuper.scaling.intervals import jacobian_interval
from llmsuper.scaling.sensitivity import exponent_test, shared_test

if TYPE_CHECKING:
    import pandas as pd

    from llmsuper.scaling.fit import ScalingLawFit
    from llmsuper.scaling.intervals import Interval
    from llmsuper.scaling.sensitivity import LawTest

OVERLAPS: dict[str, str] = {"raw": "mean_squared_overlap", "centred": "centred_mean_squared_overlap"}
"""Kinds of overlap by the column that holds them."""


@dataclass(frozen=True, eq=False, slots=True)
class OverlapFit:
    """One line: overlap = A · m^−alpha."""

    kind: str
    name: str
    fit: ScalingLawFit
    interval: Interval

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name, **self.fit.to_dict(), "interval": self.interval.to_dict()}


@dataclass(frozen=True, eq=False, slots=True)
class OverlapSummary:
    """All lines; `text()` for people, `to_dict()` for JSON. `not_done` says which families were too few."""

    fits: tuple[OverlapFit, ...]
    tests: tuple[tuple[str, LawTest], ...]
    not_done: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "fits": [fit.to_dict() for fit in self.fits],
            "tests": [{"kind": kind, **test.to_dict()} for kind, test in self.tests],
            "not_done": list(self.not_done),
        }

    def text(self) -> str:
        """A readable block of lines."""
        lines = [
            "Mean squared overlap = A / m^alpha, m the columns of the head; random directions have A = 1, alpha = 1"
        ]
        for f in self.fits:
            low, high = f.interval.low, f.interval.high
            level = f"A {f.fit.params['A']:8.3g}" if "A" in f.fit.params else "A for each"
            lines.append(
                f"  {f.kind:<8} {f.name:<28} alpha {f.fit.params['alpha']:6.3f} ± {f.fit.stderr['alpha']:.3f} "
                f"[{low:.3f}, {high:.3f}]  {level}  {f.fit.n_points} heads, rms of logs {f.fit.rmse:.3f}"
            )
        for kind, test in self.tests:
            lines.append(
                f"  {kind:<8} {test.restriction}: F = {test.statistic:.2f} on ({test.restrictions}, {test.degrees_of_freedom}), "
                f"p = {test.p_value:.2g}"
            )
        return "\n".join([*lines, *(f"  not done: {line}" for line in self.not_done)])


def overlaps_of_records(records: pd.DataFrame) -> pd.DataFrame:
    """The frame of a store with the names that `overlap_summary` takes. Raises `FitError` where no overlap is recorded."""
    name = "overlap.mean_squared_overlap"
    if name not in records.columns:
        raise FitError(
            f"the {len(records)} records hold no overlaps. Measure heads with `llmsuper overlap`, or use --published."
        )
    names = {"repo": "model_id", name: OVERLAPS["raw"], "centred_overlap.mean_squared_overlap": OVERLAPS["centred"]}
    return records.rename(columns=names)


def overlap_summary(heads: pd.DataFrame) -> OverlapSummary:
    """Every line that `heads` allows: columns `model_id`, `family`, `columns` (m of the head) and those of `OVERLAPS`.

    Raises `FitError` where there are too few heads for a line through all of them.
    """
    fits, tests, not_done = [], [], []
    for kind, y in OVERLAPS.items():
        if y not in heads.columns or heads[y].isna().all():
            not_done.append(f"{kind}: these heads have no {kind} overlaps")
            continue
        rows = heads[heads[y].notna()].assign(family=heads["family"].fillna("no family"))
        pooled = _line(rows, y)
        fits.append(OverlapFit(kind, "all heads", pooled, jacobian_interval(pooled, "alpha")))
        tests.append((kind, replace(exponent_test(pooled), restriction="all heads, alpha = 1")))
        sizes = rows.groupby("family")["columns"].nunique()
        counts = rows.groupby("family").size()
        enough = [f for f in counts.index if sizes[f] >= 2 and counts[f] >= 3]
        not_done += [f"{kind}: {f}, {counts[f]} heads of {sizes[f]} widths" for f in counts.index if f not in enough]
        if len(enough) > 1:
            some = rows[rows["family"].isin(enough)]
            shared = _line(some, y, "family")
            fits.append(OverlapFit(kind, "one slope, a level a family", shared, jacobian_interval(shared, "alpha")))
            tests.append((kind, replace(exponent_test(shared), restriction="a level a family, alpha = 1")))
            tests.append((kind, shared_test(shared)))
        for family in enough:
            own = _line(rows[rows["family"] == family], y)
            fits.append(OverlapFit(kind, family, own, jacobian_interval(own, "alpha")))
    return OverlapSummary(tuple(fits), tuple(tests), tuple(not_done))


def _line(rows: pd.DataFrame, y: str, group: str | tuple[str, ...] = ()) -> ScalingLawFit:
    return fit_law("power", rows, x="columns", y=y, group=group, objective="log-least-squares")
