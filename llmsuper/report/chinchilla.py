"""The page of the Chinchilla cross-check: what L(N, D) and N(m) imply for the exponent in width, without any LM head."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from llmsuper.report.loss_sections import estimates_frame, expected_frame
from llmsuper.report.made import made_section
from llmsuper.report.markdown import (
    Column,
    bullets,
    figure,
    fixed,
    fold,
    join,
    navigation,
    number,
    span,
    table,
    with_error,
)
from llmsuper.report.pages import FIGURE_FOLDER, Drawing, Page

if TYPE_CHECKING:
    from llmsuper.report.sources import Sources
    from llmsuper.scaling.additive import AdditiveFit
    from llmsuper.scaling.chinchilla import ChinchillaSummary

NAME = "chinchilla"
TABLES = (("losses", "chinchilla"), ("shapes", "chinchilla"))


def chinchilla_page(sources: Sources, figure_format: str = "svg") -> Page:
    """The page, with its two figures."""
    from llmsuper.scaling.losses import load_shapes

    summary = sources.chinchilla
    models = load_shapes("chinchilla", sources.lists)
    width = summary.width
    shapes = Drawing(
        "chinchilla-shapes",
        "shapes",
        {"models": _models(models), "line": _line(summary)},
        f"Parameters against width of the {width.n_models} models of table A9 of Hoffmann et al., with the line N "
        f"proportional to m to the {fixed(width.k)}.",
    )
    forest = Drawing(
        "chinchilla-alpha",
        "exponents",
        {"estimates": estimates_frame(estimates(summary)), "expected": expected_frame()},
        "Exponents in width that Chinchilla's runs imply, with 95 % intervals, by four routes.",
    )
    i, paper = summary.implied, summary.paper
    text = join(
        "# The Chinchilla cross-check",
        navigation(sources.links),
        f"No LM head is needed here. If loss falls as $N^{{-\\alpha_N}}$ and models are built with $N \\propto m^k$, "
        "then it falls as "
        f"$m^{{-k\\alpha_N}}$. From Hoffmann et al.'s own runs that is **{with_error(i.value, i.quadrature)}**"
        + (f", 95 % interval {span(*i.interval)}" if i.interval else "")
        + "; strong superposition expects 1. **All data are published, none was measured here.**",
        "## Parameters against width",
        _figure(shapes, figure_format),
        f"$N \\propto m^k$ with $k = {fixed(width.k, 3)} \\pm {fixed(width.stderr, 3)}$ over the {width.n_models} "
        "models of table A9 (total "
        "parameters, least squares of $\\ln N$ on $\\ln m$).",
        "## Loss against parameters and tokens",
        "$L(N, D) = E + A/N^{\\alpha} + B/D^{\\beta}$ by Huber's loss on $\\ln L$ ($\\delta = 10^{-3}$), as "
        "Hoffmann et al. and Besiroglu et al. do.",
        table(PARAMETER_COLUMNS, parameter_rows(summary)),
        "## The exponent in width",
        _figure(forest, figure_format),
        bullets([
            (f"**Implied**: $k \\alpha_N = {fixed(i.value, 3)} \\pm {fixed(i.quadrature, 3)}$, the errors of $k$ "
            "and $\\alpha_N$ taken as independent."),
            (f"**The paper** prints {as_printed(summary, 'alpha_m')} from {as_printed(summary, 'k')} and "
            f"{as_printed(summary, 'alpha_N')}. Independent errors make ± {fixed(paper.quadrature, 3)}; "
            f"± {fixed(paper.linear, 3)} is their plain sum."),
            ("**Direct**: the same runs fitted in $m$ and $D$ give $\\alpha_m = "
            f"{_named(summary.direct, 'alpha_m')}$. Huber's objective is "
            f"{number(summary.direct.objective)} against {number(summary.fit.objective)} in $N$: parameters explain "
            "these losses better than width alone."),
            (f"**With depth**, $L(m, \\ell, D)$: $\\alpha_m = {_named(summary.shape, 'alpha_m')}$, "
            f"$\\alpha_\\ell = {_named(summary.shape, 'alpha_l')}$."),
        ]),
        "## What this says, and what it does not",
        bullets([
            ("**It is the same statement twice.** Width and parameters grow together in these models, so an exponent "
            "in $m$ is one in $N$ times $k$; "
            "it does not show that width is the cause."),
            _verdict(summary),
        ]),
        fold("Also with the depth of the models, least squares, without the highest "
            "losses", table(SHAPE_COLUMNS, shape_rows(summary))),
        made_section("llmsuper report chinchilla", (), sources, fits=True, tables=TABLES),
    )  # fmt: skip
    return Page(NAME, text, (shapes, forest), figure_format)


def _verdict(summary: ChinchillaSummary) -> str:
    """Whether the implied interval holds 1."""
    interval = summary.implied.interval
    if interval is None:
        return "**No interval**: it was made without a bootstrap."
    inside = interval[0] <= 1 <= interval[1]
    return (
        f"**Near 1, and the interval {'holds it' if inside else 'leaves it out'}.** It is of other runs and other models; "
        "that $N \\propto m^k$ and the law hold exactly is taken for granted, so it is too narrow rather than too wide."
    )


def _figure(drawing: Drawing, figure_format: str) -> str:
    return figure(f"{FIGURE_FOLDER}/{drawing.stem}.{figure_format}", drawing.alt)


def _named(fit: AdditiveFit, name: str) -> str:
    """A parameter with its bootstrap error."""
    errors = fit.stderr() or {}
    error = errors.get(name)
    return fixed(fit[name]) + ("" if error is None else f" \\pm {fixed(error)}")


PARAMETER_COLUMNS = (
    Column("fit", left=True), Column("$E$"), Column("$A$"), Column("$B$"), Column("$\\alpha$"), Column("$\\beta$"),
)  # fmt: skip


def parameter_rows(summary: ChinchillaSummary) -> list[list[str]]:
    """Published parameters of L(N, D) and ours, each with its error where it has one."""
    rows = [
        [
            re.sub(r" \(arXiv [\d.]+\)", "", row["source"]),
            *(_pair(row[n], row.get(f"{n}_error")) for n in ("E", "A", "B", "alpha", "beta")),
        ]
        for row in summary.published.values()
    ]
    for title, fit in (
        (f"**here**, {summary.fit.n_points} runs", summary.fit),
        (f"here, all {summary.fit_all.n_points}", summary.fit_all),
    ):
        errors = fit.stderr() or {}
        rows.append([title, *(_pair(fit[n], errors.get(n)) for n in ("E", "A", "B", "alpha", "beta"))])
    return rows


def _pair(value: float, error: float | None) -> str:
    """Three digits of the value, one of the error: a flat valley is not worth more, and its last digits are a machine's."""
    text = number(value, 4) if value >= 1 else number(value, 3)
    return text if error is None else f"{text} ± {number(error, 2 if error < 1 else 1)}"


SHAPE_COLUMNS = (
    Column("fit", left=True),
    Column("$E$"),
    Column("$\\alpha_m$"),
    Column("$\\alpha_\\ell$"),
    Column("$\\alpha_D$"),
)


def shape_rows(summary: ChinchillaSummary) -> list[list[str]]:
    """L(m, ℓ, D): ours and what the paper on depth prints."""
    from llmsuper.scaling.chinchilla import DEPTH_NAMES

    rows = []
    for title, fit in (
        (f"here, {summary.shape.n_points} runs", summary.shape),
        (f"here, {summary.shape_low.n_points} runs, least squares", summary.shape_low),
    ):
        errors = fit.stderr() or {}
        rows.append([title, *(with_error(fit[n], errors.get(n)) for n in DEPTH_NAMES)])
    return [*rows, ["arXiv:2602.05970, as printed", *(fixed(summary.depth_printed[n]) for n in DEPTH_NAMES)]]


def as_printed(summary: ChinchillaSummary, name: str) -> str:
    """k, alpha_N or alpha_m of the paper, with the error that it prints."""
    from llmsuper.scaling.chinchilla import printed_pair

    return with_error(*printed_pair(summary.paper_printed, name))


def estimates(summary: ChinchillaSummary) -> list[tuple[Any, ...]]:
    """The exponent in width by every route: label, family, estimate, low, high."""
    i, paper = summary.implied, summary.paper
    half = 1.96 * paper.quadrature
    rows: list[tuple[Any, ...]] = [("k · α_N, these runs", "", i.value, *(i.interval or (None, None)))]
    for title, fit in (("L(m, D)", summary.direct), ("L(m, ℓ, D)", summary.shape)):
        found = (fit.interval() or {}).get("alpha_m", (None, None))
        rows.append((f"{title}, these runs", "", fit["alpha_m"], *found))
    rows.append(("k · α_N, the paper's numbers", "", paper.value, paper.value - half, paper.value + half))
    return rows


def _models(models: Any) -> Any:
    return models[["d_model", "n_params"]].rename(columns={"d_model": "width", "n_params": "params"}).astype("float64")


def _line(summary: ChinchillaSummary) -> Any:
    import pandas as pd

    width = summary.width
    return pd.DataFrame(
        [(f"N ∝ m^{fixed(width.k)}", round(width.k, 3), round(width.intercept, 3))], columns=["label", "k", "intercept"]
    )
