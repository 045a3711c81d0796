"""The section on how the family's published losses scale with width, and what that rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmsuper.report.heads import drawing_line
from llmsuper.report.markdown import Column, bullets, count, fixed, fold, join, number, span, table, with_error
from llmsuper.report.pages import Drawing
from llmsuper.report.sources import DRAWS, SEED

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from llmsuper.report.heads import Family
    from llmsuper.report.sources import Sources
    from llmsuper.scaling.fit import ScalingLawFit
    from llmsuper.scaling.sensitivity import Variant
    from llmsuper.scaling.summary import FitSummary


def family_summary(family: Family) -> FitSummary:
    """All about the fit of one family's losses alone: A and α shared by its data sets, a floor E for each."""
    from llmsuper.scaling.fit import fit_law
    from llmsuper.scaling.recipes import RECIPES
    from llmsuper.scaling.summary import summarise

    fit = fit_law("power-floor", family.losses, x="d_model", group=("dataset",))
    moved = {m: w for m, w in RECIPES["liu2025"].moved.items() if m in set(family.losses["model_id"])}
    return summarise(family.name, fit, draws=DRAWS, seed=SEED, moved=moved)


def losses_section(family: Family, sources: Sources) -> tuple[str, tuple[Drawing, ...]]:
    """The family's own fit, the shared one beside it, single published series, and what the exponent rests on."""
    from llmsuper.scaling.fit import fit_law

    title = "## How its published losses scale"
    if not len(family.losses):
        return join(title, "*No losses of these models are in the published tables.*").rstrip(), ()
    summary = family_summary(family)
    shared = fit_law("power-floor", sources.losses, x="d_model", group=("family", "dataset"))
    series = list(single_series(sources, family.name))
    curves = Drawing(
        f"{family.name}-losses",
        "losses",
        {"points": _points(family.losses), "curves": _curves(family, summary.fit, shared)},
        f"Published losses of {family.name} on four data sets against width, with the law of this family alone and "
        "the law shared by all four families.",
    )
    rests = Drawing(
        f"{family.name}-alpha",
        "exponents",
        {"estimates": _estimates(family, summary, shared, series), "expected": expected_frame()},
        f"Estimates of the exponent α of {family.name} with 95 % intervals: from all its losses, subsets of them, "
        "and other published series.",
    )
    text = (
        "$L = E + A / m^{\\alpha}$, with $m$ the width of the model, $A$ and $\\alpha$ shared by this family's data "
        "sets and a floor $E$ "
        f"for each. The {len(family.losses)} losses were **read from the figures of arXiv:2505.10465, not evaluated here**. "
        "The paper fits one $A$ and one $\\alpha$ to four families; the dashed line is that fit."
    )
    return (
        join(
            title,
            text,
            drawing_line(family, curves),
            table(ERROR_COLUMNS, list(error_rows(summary))),
            "The intervals differ because they count different things as drawn at random: single losses, or models.",
            "### What the exponent rests on",
            drawing_line(family, rests),
            variants_table(summary, series),
            take_care(summary),
        ).rstrip(),
        (curves, rests),
    )


def single_series(sources: Sources, family: str | None = None) -> Iterator[tuple[str, FitSummary]]:
    """The named fits of single published series, of one family or of all, without a bootstrap."""
    from llmsuper.scaling.fit import fit_law
    from llmsuper.scaling.recipes import RECIPES, rows_of
    from llmsuper.scaling.summary import summarise

    for recipe in RECIPES.values():
        if recipe.where and family in (None, recipe.where.get("family")):
            fit = fit_law(recipe.law, rows_of(recipe, sources.lists), x=recipe.x, group=recipe.group)
            yield recipe.name, summarise(recipe.about, fit, draws=0)


ERROR_COLUMNS = (Column("error of $\\alpha$", left=True), Column("$\\alpha$"), Column("95 % interval"))


def error_rows(summary: FitSummary) -> Iterator[list[str]]:
    """The estimate with each of its errors."""
    fit = summary.fit
    alpha = fit.params["alpha"]
    yield ["standard error, losses independent", with_error(alpha, fit.stderr.get("alpha")), ""]
    for interval in summary.intervals:
        yield ["profile, losses independent", "", span(interval.low, interval.high)]
    for interval in summary.of_model_means:
        yield ["profile, of each model's mean loss", "", span(interval.low, interval.high)]
    if summary.bootstrap is not None:
        drawn = summary.bootstrap.interval("alpha")
        yield [
            f"bootstrap over {summary.bootstrap.units} models ({DRAWS} draws)",
            with_error(alpha, summary.bootstrap.sd("alpha")),
            span(drawn.low, drawn.high),
        ]


VARIANT_COLUMNS = (
    Column("fit", left=True), Column("$\\alpha$"), Column("95 % interval"), Column("points"), Column("", left=True),
)  # fmt: skip


def variants_table(summary: FitSummary, series: list[tuple[str, FitSummary]]) -> str:
    """The same law on other rows, in full; leaving out one model at a time behind a fold."""
    rows = [_variant_row(v) for v in summary.variants if v.kind != "without model_id"]
    rows += [
        [other.title, with_error(other.fit.params["alpha"], other.fit.stderr.get("alpha")), _profile(other),
         count(other.fit.n_points), "" if other.fit.identified else "not identified"]
        for _, other in series
    ]  # fmt: skip
    alone = [_variant_row(v) for v in summary.variants if v.kind == "without model_id"]
    return join(
        fold("The same in numbers", table(VARIANT_COLUMNS, rows)) if rows else "",
        fold("Without one model at a time", table(VARIANT_COLUMNS, alone)) if alone else "",
    ).rstrip()


def _profile(summary: FitSummary) -> str:
    return span(summary.intervals[0].low, summary.intervals[0].high) if summary.intervals else ""


def variant_name(variant: Variant) -> str:
    """A variant in words: `only c4`, `without opt`, `d_model ≥ 1024`."""
    if variant.kind.startswith("without"):
        return f"without {variant.name}"
    return f"only {variant.name}" if variant.kind.startswith("one ") else variant.name.replace("d_model", "width")


def _variant_row(variant: Variant) -> list[str]:
    if variant.fit is None:
        return [
            variant_name(variant),
            "",
            "",
            count(variant.n_points),
            f"not fitted: {(variant.refused or '').partition('. ')[0]}",
        ]
    interval = span(variant.interval.low, variant.interval.high) if variant.interval else ""
    end = "" if variant.fit.identified else "not identified"
    return [
        variant_name(variant),
        with_error(variant.fit.params["alpha"], variant.fit.stderr.get("alpha")),
        interval,
        count(variant.n_points),
        end,
    ]


def take_care(summary: FitSummary) -> str:
    """Warnings, tests, and what the points did not allow."""
    tests = [f"{test.restriction}: p = {test.p_value:.2g} (F test)." for test in summary.tests]
    known = summary.identifiability
    trade = []
    if known.dfloor_dexponent is not None:
        ends = " to ".join("open" if f is None else fixed(f) for f in (known.floors[0], known.floors[2]))
        trade = [
            (
                f"Floor and exponent trade: {number(known.dfloor_dexponent, 2)} nats of mean floor for 1 of exponent; "
                f"over the interval the mean floor is {ends} nats."
            )
        ]
    return join(
        bullets(_sentence(w) for w in summary.warnings),
        fold(
            "Tests, and what the points do not allow",
            bullets([*trade, *tests, *(f"Not done: {line}" for line in summary.not_done)]),
        ),
    ).rstrip()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." * (not text.endswith("."))


def _points(losses: pd.DataFrame) -> pd.DataFrame:
    frame = losses[["dataset", "family", "d_model", "loss_nats"]].rename(
        columns={"d_model": "width", "loss_nats": "loss"}
    )
    return frame.astype({"width": "float64"}).reset_index(drop=True)


def _curves(family: Family, own: ScalingLawFit, shared: ScalingLawFit) -> pd.DataFrame:
    import pandas as pd

    rows: list[tuple[Any, ...]] = []
    for dataset in dict.fromkeys(family.losses["dataset"]):
        for scope, fit, group in (("family", own, dataset), ("all", shared, f"{family.name}/{dataset}")):
            whose = "this family alone" if scope == "family" else "all four families"
            rows.append((dataset, scope, f"{whose}, α = {fixed(fit.params['alpha'])}", *(
                float(f"{v:.4g}") for v in (fit.params["A"], fit.params["alpha"], fit.group_params["E"][group])
            )))  # fmt: skip
    return pd.DataFrame(rows, columns=["dataset", "scope", "label", "A", "alpha", "E"])


def expected_frame() -> pd.DataFrame:
    """The exponent that strong superposition expects."""
    import pandas as pd

    return pd.DataFrame([("1: strong superposition", 1.0)], columns=["label", "value"])


def _estimates(
    family: Family, summary: FitSummary, shared: ScalingLawFit, series: list[tuple[str, FitSummary]]
) -> pd.DataFrame:
    """What the figure of exponents shows, with the digits that are printed."""
    from llmsuper.scaling.intervals import profile_interval

    rows: list[tuple[Any, ...]] = []
    if summary.intervals:
        i = summary.intervals[0]
        rows.append((f"{family.name}, all its losses", family.name, i.estimate, i.low, i.high))
    rows += [
        (variant_name(v), family.name, v.fit.params["alpha"], v.interval.low, v.interval.high)
        for v in summary.variants
        if v.fit is not None and v.interval is not None
    ]
    rows += [
        (name, family.name, s.intervals[0].estimate, s.intervals[0].low, s.intervals[0].high)
        for name, s in series
        if s.intervals
    ]
    i = profile_interval(shared)
    rows.append(("all four families, shared A and α", "", i.estimate, i.low, i.high))
    return estimates_frame(rows)


def estimates_frame(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    """label, family, estimate, low, high as the figure of exponents takes them, to three decimals."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=["label", "family", "estimate", "low", "high"])
    return frame.astype({"estimate": "float64", "low": "float64", "high": "float64"}).round(3)
