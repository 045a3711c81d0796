"""The section on how the overlap scales with the head's columns: exponents with intervals, per family and pooled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsuper.errors import FitError
from llmsuper.report.markdown import Column, bullets, count, fixed, join, span, table
from llmsuper.report.sources import SINGLE, heads_frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd

    from llmsuper.report.heads import Family
    from llmsuper.report.pages import Drawing
    from llmsuper.report.sources import Sources
    from llmsuper.scaling.overlap_fits import OverlapFit, OverlapSummary
    from llmsuper.scaling.sensitivity import LawTest
    from llmsuper.types import HeadRecord

WORDS = {"raw": "measured", "centred": "measured, mean row removed", "published": "published"}


@dataclass(frozen=True, eq=False, slots=True)
class FamilyScaling:
    """Lines through the overlaps: of the family, pooled over all families, tests of 1/m, and what could not be fitted."""

    of_family: tuple[OverlapFit, ...]
    pooled: tuple[OverlapFit, ...]
    tests: tuple[tuple[str, LawTest], ...]
    not_done: tuple[str, ...]


def summary_of(heads: pd.DataFrame) -> OverlapSummary | None:
    """Every line that these heads allow; None where a line through all of them cannot be drawn."""
    from llmsuper.scaling.overlap_fits import overlap_summary

    try:
        return overlap_summary(heads)
    except FitError:
        return None


def family_scaling(family: Family, sources: Sources) -> FamilyScaling:
    """The lines of one family, and those over all families beside them."""
    of_family: list[OverlapFit] = []
    pooled: list[OverlapFit] = []
    tests: list[tuple[str, LawTest]] = []
    not_done: list[str] = []
    own = {"measured": heads_frame({family.name: family.records}), "published": family.overlaps}
    every = {"measured": heads_frame(comparable(sources.records)), "published": sources.overlaps}
    for origin, heads in own.items():
        if not len(heads):
            continue
        sizes = heads["columns"].nunique()
        if len(heads) < 3 or sizes < 2:
            not_done.append(
                f"{origin}: {len(heads)} head{'s' * (len(heads) > 1)} of {sizes} width{'s' * (sizes > 1)}; a line "
                "needs three heads."
            )
        elif family.comparable and (summary := summary_of(heads)) is not None:
            chosen = [fit for fit in summary.fits if fit.name == "all heads"]
            of_family += [_named(fit, origin) for fit in chosen]
            tests += [
                (_kind(kind, origin), test) for kind, test in summary.tests if test.restriction.startswith("all heads")
            ]
        if (summary := summary_of(every[origin])) is not None and heads_of_several(every[origin]):
            pooled += [_named(fit, origin) for fit in summary.fits if fit.name.startswith("one slope")]
    return FamilyScaling(tuple(of_family), tuple(pooled), tuple(tests), tuple(not_done))


def comparable(records: Mapping[str, tuple[HeadRecord, ...]]) -> dict[str, tuple[HeadRecord, ...]]:
    """The records that belong to a family."""
    return {name: heads for name, heads in records.items() if name != SINGLE}


def heads_of_several(heads: pd.DataFrame) -> bool:
    """Whether there is more than one family to pool."""
    return bool(heads["family"].nunique() > 1)


def _kind(kind: str, origin: str) -> str:
    return "published" if origin == "published" else WORDS[kind]


def _named(fit: OverlapFit, origin: str) -> OverlapFit:
    from dataclasses import replace

    return replace(fit, kind=_kind(fit.kind, origin))


def family_lines(family: Family, scaling: FamilyScaling) -> pd.DataFrame:
    """The fitted lines as the figure takes them, with the digits that are printed."""
    import pandas as pd

    rows = []
    for fit in scaling.of_family:
        if fit.kind not in ("measured", "published"):
            continue  # the centred points are in the figure; a third line would hide them
        low, high = fit.fit.ranges["columns"]
        ends = span(fit.interval.low, fit.interval.high)
        alpha = round(fit.fit.params["alpha"], 3)
        rows.append(
            (
                f"{fit.kind}: α = {fixed(fit.fit.params['alpha'])} {ends}",
                family.name,
                float(f"{fit.fit.params['A']:.3g}"),
                alpha,
                low,
                high,
            )
        )
    return pd.DataFrame(rows, columns=["label", "family", "A", "alpha", "low", "high"])


def exponent_rows(fits: Iterable[OverlapFit], whose: str | None = None) -> list[list[str]]:
    """Rows of a table of exponents."""
    return [
        [whose or fit.name, fit.kind, fixed(fit.fit.params["alpha"]), span(fit.interval.low, fit.interval.high),
         count(fit.fit.n_points), fixed(fit.fit.rmse)]
        for fit in fits
    ]  # fmt: skip


EXPONENT_COLUMNS = (
    Column("line through", left=True), Column("overlaps", left=True), Column("exponent $\\alpha$"), Column("95 % interval"),
    Column("heads"), Column("scatter (rms of $\\ln$)"),
)  # fmt: skip


def test_sentence(kind: str, test: LawTest) -> str:
    """A test of α = 1 in words."""
    verdict = "is rejected" if test.p_value < 0.05 else "is not rejected"
    return f"$\\alpha = 1$ {verdict} by the {kind} overlaps (F test, p = {test.p_value:.2g})."


def overlaps_scaling_section(family: Family, scaling: FamilyScaling) -> tuple[str, tuple[Drawing, ...]]:
    """Exponents of the family and pooled."""
    title = "## How the overlap scales with width"
    rows = exponent_rows(scaling.of_family, "this family") + exponent_rows(scaling.pooled, "all families, one slope")
    if not rows:
        return join(title, "*No line can be drawn:*", bullets(scaling.not_done or [family.note])).rstrip(), ()
    text = (
        "Straight lines through $\\ln(\\text{overlap})$ against $\\ln m$: overlap $= A m^{-\\alpha}$, by least "
        "squares; random directions "
        "have $A = 1$, $\\alpha = 1$. Intervals are of Student's $t$. *One slope* has a level for every family."
    )
    tests = [test_sentence(kind, test) for kind, test in scaling.tests]
    return join(title, text, table(EXPONENT_COLUMNS, rows), bullets([*tests, *scaling.not_done])).rstrip(), ()
