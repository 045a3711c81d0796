"""The index over all pages: one figure, one table, the joint fit, the cross-check, and where our numbers and the paper's part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmsuper.report.chinchilla import as_printed
from llmsuper.report.differences import differences, printed_alpha
from llmsuper.report.head_sections import overlap_points
from llmsuper.report.heads import family_of
from llmsuper.report.loss_sections import (
    ERROR_COLUMNS,
    error_rows,
    estimates_frame,
    expected_frame,
    single_series,
    take_care,
    variants_table,
)
from llmsuper.report.made import made_section
from llmsuper.report.markdown import (
    NONE,
    Column,
    bullets,
    count,
    figure,
    fixed,
    join,
    navigation,
    number,
    span,
    table,
    with_error,
)
from llmsuper.report.pages import FIGURE_FOLDER, Drawing, Page
from llmsuper.report.scaling_sections import EXPONENT_COLUMNS, comparable, exponent_rows, summary_of, test_sentence
from llmsuper.report.sources import INDEX, SINGLE, has_toys, heads_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmsuper.report.sources import Sources
    from llmsuper.scaling.overlap_fits import OverlapSummary
    from llmsuper.scaling.summary import FitSummary

NAME = "README"
TOYS = "## Toy models\n\nSuperposition with a knob, in models small enough to train: [the page](toy.md)."


def index_page(sources: Sources, figure_format: str = "svg") -> Page:
    """The index, with its two figures."""
    published, measured = summary_of(sources.overlaps), summary_of(heads_frame(comparable(sources.records)))
    joint, series = sources.joint, list(single_series(sources))
    heads = Drawing(
        "all-overlap",
        "overlap_scaling",
        {"heads": _points(sources), "lines": _lines(published)},
        "Mean squared overlap against the head's columns m for every family, on logarithmic axes, with the line 1/m.",
    )
    forest = Drawing(
        "all-alpha",
        "exponents",
        {"estimates": estimates_frame(_estimates(sources, joint, series)), "expected": expected_frame()},
        "Estimates of the exponent of loss in width with 95 % intervals: of each family, shared, of single "
        "published series, and implied by Chinchilla.",
    )
    text = join(
        "# Superposition in language-model heads",
        _opening(sources),
        _figure(heads, figure_format),
        "Filled: measured here, raw and (pale) with the mean row removed. **Open: published by Liu, Liu and Gore, "
        "not measured here.**",
        "## Families",
        table(LEVEL_COLUMNS, list(_level_rows(sources))),
        "Number of heads, and their mean squared overlap as a multiple of $1/m$: median, and range.",
        table(FAMILY_COLUMNS, list(_exponent_rows(sources, published, measured, joint))),
        "Exponents $\\alpha$ of each family alone, with 95 % intervals: overlap falls as $m^{-\\alpha}$, loss above "
        "its floor too.",
        "## How overlaps fall with width, over all families",
        _overlap_exponents(published, measured),
        "## How losses fall with width: the joint fit",
        f"$L = E + A/m^{{\\alpha}}$ on the {count(len(sources.losses))} published losses of "
        f"{sources.losses['model_id'].nunique()} models on {sources.losses['dataset'].nunique()} data sets: one $A$ "
        "and one $\\alpha$ for all, one $E$ for each "
        f"family and data set. This is the fit behind the paper's $\\alpha$ = {printed_alpha(sources)}.",
        _side_by_side(joint),
        table(ERROR_COLUMNS, list(error_rows(joint))),
        _figure(forest, figure_format),
        variants_table(joint, series),
        take_care(joint),
        "## The Chinchilla cross-check",
        _chinchilla(sources),
        TOYS if has_toys(sources) else "",
        "## Where our numbers differ from the paper's, and why",
        bullets(differences(sources, joint, published)),
        made_section("llmsuper report", [r for heads in sources.records.values() for r in heads], sources, fits=True),
    )  # fmt: skip
    return Page(NAME, text, (heads, forest), figure_format)


def _figure(drawing: Drawing, figure_format: str) -> str:
    return figure(f"{FIGURE_FOLDER}/{drawing.stem}.{figure_format}", drawing.alt)


def _opening(sources: Sources) -> str:
    measured = sum(map(len, sources.records.values()))
    over = sources.passed_over
    return (
        "A language model's LM head $W$ has one row for each of its $n$ tokens and far fewer columns $m$ than that, "
        "so the rows must overlap. "
        "*Superposition Yields Robust Neural Scaling* ([arXiv:2505.10465](https://arxiv.org/abs/2505.10465)) says "
        "that their mean squared "
        "overlap is about $1/m$, and that loss falls with width for that reason. These pages hold what was measured "
        f"({measured} heads), what is published ({len(sources.overlaps)} overlaps, {len(sources.losses)} losses), "
        "and how far either goes. "
        + (f"{count(over)} older records of the same heads are stored and not shown. " if over else "")
        + navigation(link for link in sources.links if link != INDEX)
    )


def _points(sources: Sources) -> Any:
    import pandas as pd

    frames = [overlap_points(family_of(name, sources)) for name in sources.families]
    return pd.concat([frame for frame in frames if len(frame)], ignore_index=True).assign(floor=float("nan"))


def _lines(published: OverlapSummary | None) -> Any:
    import pandas as pd

    rows = []
    for fit in (f for f in (published.fits if published else ()) if f.name == "all heads"):
        alpha = round(fit.fit.params["alpha"], 3)
        label = f"published, all: α = {fixed(fit.fit.params['alpha'])} {span(fit.interval.low, fit.interval.high)}"
        rows.append((label, "", float(f"{fit.fit.params['A']:.3g}"), alpha, *fit.fit.ranges["columns"]))
    return pd.DataFrame(rows, columns=["label", "family", "A", "alpha", "low", "high"])


LEVEL_COLUMNS = (
    Column("family", left=True), Column("columns $m$"), Column("measured"), Column("× $m$"), Column("× $m$, centred"),
    Column("published"), Column("× $m$"),
)  # fmt: skip


def _level_rows(sources: Sources) -> Iterator[list[str]]:
    """How many heads of each family there are, and their overlaps as multiples of 1/m."""
    for name in sources.families:
        family = family_of(name, sources)
        ours = heads_frame({name: family.records})
        m = [*(r.columns for r in family.records), *map(int, family.overlaps["columns"])]
        yield [
            f"[{name}]({name}.md)",
            _range(m),
            count(len(ours)) if len(ours) else NONE,
            _times(ours["mean_squared_overlap"] * ours["columns"]),
            _times(ours["centred_mean_squared_overlap"] * ours["columns"]),
            count(len(family.overlaps)) if len(family.overlaps) else NONE,
            _times(family.overlaps["mean_squared_overlap"] * family.overlaps["columns"].astype(float)),
        ]


FAMILY_COLUMNS = (
    Column("family", left=True), Column("overlap, measured"), Column("overlap, published"), Column("loss, published"),
)  # fmt: skip


def _exponent_rows(
    sources: Sources, published: OverlapSummary | None, measured: OverlapSummary | None, joint: FitSummary
) -> Iterator[list[str]]:
    """The exponents of each family alone."""
    for name in sources.families:
        alone = next((v for v in joint.variants if v.kind == "one family" and v.name == name), None)
        loss = NONE
        if alone is not None and alone.fit is not None and alone.interval is not None:
            loss = f"{fixed(alone.fit.params['alpha'])} {span(alone.interval.low, alone.interval.high)}"
        yield [f"[{name}]({name}.md)", _exponent(measured, name), _exponent(published, name), loss]


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return count(low) if low == high else f"{count(low)} to {count(high)}"


def _times(values: Any) -> str:
    """Median and range."""
    values = values.dropna()
    if not len(values):
        return NONE
    low, high = values.min(), values.max()
    return number(low) if len(values) == 1 else f"{number(values.median())} ({number(low)} to {number(high)})"


def _exponent(summary: OverlapSummary | None, family: str) -> str:
    if family == SINGLE or summary is None:
        return NONE
    fits = [f for f in summary.fits if f.kind == "raw"]
    chosen = [f for f in fits if f.name == family]
    if not chosen and len({*summary_families(summary)}) == 1 and family in summary_families(summary):
        chosen = [f for f in fits if f.name == "all heads"]
    return (
        f"{fixed(chosen[0].fit.params['alpha'])} {span(chosen[0].interval.low, chosen[0].interval.high)}"
        if chosen
        else NONE
    )


def summary_families(summary: OverlapSummary) -> set[str]:
    """The families whose heads the lines go through."""
    return {str(name) for fit in summary.fits for name in fit.fit.design.frame["family"]}


def _overlap_exponents(published: OverlapSummary | None, measured: OverlapSummary | None) -> str:
    from dataclasses import replace

    rows, tests = [], []
    for origin, summary in (("measured", measured), ("published", published)):
        if summary is None:
            continue
        words = {"raw": origin, "centred": f"{origin}, mean row removed"}
        chosen = [f for f in summary.fits if f.name == "all heads" or f.name.startswith("one slope")]
        rows += exponent_rows([replace(f, kind=words[f.kind]) for f in chosen])
        tests += [
            test_sentence(words[kind], test) for kind, test in summary.tests if test.restriction.startswith("all heads")
        ]
    return join(table(EXPONENT_COLUMNS, rows), bullets(tests)).rstrip()


def _side_by_side(joint: FitSummary) -> str:
    """The authors' numbers and ours."""
    from llmsuper.scaling.summary import offset_differences

    printed, slope = joint.published or {}, joint.slope_error
    rows = [
        ["$\\alpha$", f"{printed['alpha']:.4f}", f"{joint.fit.params['alpha']:.4f}"],
        ["$A$", number(printed["A"], 4), number(joint.fit.params["A"], 4)],
        ["mean squared residual, nats²", f"{printed['mean_squared_error']:.5f}", f"{joint.fit.mse:.5f}"],
    ]
    if slope is not None:
        rows.append(["error of $\\alpha$ by their formula", f"{printed['slope_error']:.3f}", f"{slope.formula:.3f}"])
    worst = max(map(abs, offset_differences(joint.fit, printed).values()))
    rows.append([f"{len(joint.fit.groups)} floors $E$", "", f"within {number(worst, 1)} of theirs"])
    return table((Column("", left=True), Column("authors' notebook"), Column("here")), rows)


def _estimates(sources: Sources, joint: FitSummary, series: list[tuple[str, FitSummary]]) -> list[tuple[Any, ...]]:
    i = joint.intervals[0]
    rows: list[tuple[Any, ...]] = [("four families, shared α: profile", "", i.estimate, i.low, i.high)]
    if joint.bootstrap is not None:
        drawn = joint.bootstrap.interval("alpha")
        rows.append(("the same: bootstrap over models", "", drawn.estimate, drawn.low, drawn.high))
    for v in joint.variants:
        if v.fit is not None and v.interval is not None and v.kind in ("one family", "window", "width moved"):
            name = f"{v.name} alone" if v.kind == "one family" else v.name.replace("d_model", "width")
            rows.append(
                (name, v.name if v.kind == "one family" else "", v.fit.params["alpha"], v.interval.low, v.interval.high)
            )
    for name, summary in series:
        if summary.intervals:
            j = summary.intervals[0]
            family = str(summary.fit.design.frame["family"].iloc[0])
            rows.append((f"series {name}", family, j.estimate, j.low, j.high))
    implied = sources.chinchilla.implied
    return [*rows, ("Chinchilla, k · α_N", "", implied.value, *(implied.interval or (None, None)))]


def _chinchilla(sources: Sources) -> str:
    implied, direct = sources.chinchilla.implied, sources.chinchilla.direct
    errors = direct.stderr() or {}
    return (
        f"From Hoffmann et al.'s runs, without any head: $k \\alpha_N$ = **{with_error(implied.value, implied.quadrature)}**"
        + (f" {span(*implied.interval)}" if implied.interval else "")
        + f"; fitted directly in $m$ and $D$, {with_error(direct['alpha_m'], errors.get('alpha_m'))}. The paper "
        f"prints {as_printed(sources.chinchilla, 'alpha_m')}. "
        "[The page](chinchilla.md)."
    )
