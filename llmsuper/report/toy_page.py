"""Builds the page of the toy models: our runs beside the published curves, what was reduced, and the differences."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pandas as pd

from llmsuper.report.markdown import NONE, Column, bullets, command, count, fixed, join, number, table
from llmsuper.report.pages import Page
from llmsuper.report.toy_bench import Bench
from llmsuper.report.toy_cells import EXPERIMENTS, SETTING
from llmsuper.report.toy_large import large_section
from llmsuper.report.toy_reduction import reduced_section
from llmsuper.report.toy_regimes import strong_section, weak_section
from llmsuper.report.toy_sections import density_section, exponent_section, represented_section
from llmsuper.report.toy_variations import epsilon_section, start_section
from llmsuper.toy.sweep import load_sweep
from llmsuper.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from llmsuper.report.sources import Sources
    from llmsuper.report.toy_bench import Section
    from llmsuper.report.toy_cells import Agreement

NAME = "toy"

SECTIONS: tuple[Callable[[Bench], Section], ...] = (
    large_section, represented_section, exponent_section, weak_section, strong_section, density_section,
    start_section, epsilon_section,
)  # fmt: skip
"""The figures of the paper in the order of its repository, whose figure 2 is an illustration without data; then our own."""


def toy_page(sources: Sources, figure_format: str = "svg") -> Page:
    """The page of the toy records that lie beside those of heads, in `toy`. Raises `LlmsuperError` for a record that is none."""
    from llmsuper.toy.record import ToyStore

    return page_of(ToyStore(sources.results.parent / "toy").frame(), sources.lists, figure_format)


def page_of(frame: pd.DataFrame, lists: Path | None = None, figure_format: str = "svg") -> Page:
    """The page of the records of `ToyStore.frame()`, with its figures; `lists` is a folder of model lists "
    "with published curves."""
    if frame.empty:
        text = join(
            "# Toy models",
            "*There are no toy records. `llmsuper toy weight_decay --reduced` trains some; then run this again.*",
        )
        return Page(NAME, text, (), figure_format)
    bench = Bench(frame, lists, figure_format)
    sections = [build(bench) for build in SECTIONS]
    text = join(
        "# Toy models: superposition with a knob",
        "[← all families](README.md)",
        "A toy model reconstructs sparse features, $y = \\mathrm{ReLU}(W W^\\top x + b)$ with $W$ of n rows "
        "and $m \\ll n$ columns. Feature $i$ "
        "is active with probability $p_i$ and then uniform on [0, 2]; $E = \\sum p_i$. The loss is a sum over "
        "features, a mean over samples. "
        "One knob, γ, pulls the rows of $W$ to unit norm (γ < 0) or shrinks them (γ > 0). Figures are numbered "
        "as in the authors' "
        "repository; rings are points read off their figures (Liu, Liu and Gore 2025, arXiv:2505.10465), "
        "everything else was trained here.",
        _trained(frame),
        _agreement_section([one for section in sections for one in section.agreements]),
        reduced_section(bench),
        *(section.text for section in sections),
        _limits(frame),
        _made(frame),
    )
    return Page(NAME, text, tuple(d for section in sections for d in section.drawings), figure_format)


def _trained(frame: pd.DataFrame) -> str:
    """What was trained, one line a setting, beside the paper's."""
    names = ("n", "m", "γ", "frequencies", "E", "seeds", "steps", "batch", "learning rate")
    columns = [Column("runs"), *(Column(name, left=name == "frequencies") for name in names)]
    rows = []
    for _, of in frame.groupby(list(SETTING), sort=True):
        rows.append([count(len(of)), *_grid(of)])
    for name in EXPERIMENTS:
        theirs = pd.DataFrame([{**asdict(run), "gamma": run.gamma} for run in load_sweep(name).versions["full"]])
        rows.append([f"*paper, {count(len(theirs))}*", *(f"*{cell}*" for cell in _grid(theirs))])
    return join("## What was trained", table(columns, rows)).rstrip()


def _grid(runs: pd.DataFrame) -> list[str]:
    """The cells of `_trained` of runs that share a setting."""
    laws = sorted({_law(row) for row in runs[["distribution", "alpha", "scale"]].to_dict("records")})
    return [
        count(int(runs["n"].iloc[0])), _several(runs["m"]), _several(runs["gamma"]),
        laws[0] if len(laws) == 1 else f"{len(laws)} laws", _several(runs["activation_density"]),
        count(runs["seed"].nunique()), count(int(runs["steps"].iloc[0])), count(int(runs["batch"].iloc[0])),
        _several(runs["lr"]),
    ]  # fmt: skip


def _law(row: dict[str, Any]) -> str:
    parameter = {"power": row["alpha"], "exponential": row["scale"]}.get(row["distribution"])
    return str(row["distribution"]) + ("" if parameter is None else f" {parameter:g}")


def _several(values: pd.Series) -> str:
    """39, or 6: 10 to 100."""
    found = sorted(set(values.round(5)))
    low, high = (f"{v:,.4g}".replace("-", "−") for v in (found[0], found[-1]))
    return low if len(found) == 1 else f"{len(found)}: {low} to {high}"


def _agreement_section(agreements: Sequence[Agreement]) -> str:
    """The table of differences: one line a quantity, over all cells that both sides have."""
    if not agreements:
        return join(
            "## Ours and the published numbers", "*No run here has the parameters of a published point.*"
        ).rstrip()
    columns = [Column("quantity", left=True)]
    columns += map(Column, ("figure", "cells", "median difference", "median size of it", "largest", "inside our seeds"))
    rows = []
    for one in agreements:
        numbers = (one.bias, one.typical, one.largest)
        shown = [f"{fixed(100 * v, 1)} %" if one.relative else fixed(v, 3) for v in numbers]
        inside = NONE if one.inside is None or one.expected is None else f"{one.inside} (expected {one.expected:.0f})"
        rows.append([one.quantity, one.figure, count(one.cells), *shown, inside])
    return join(
        "## Ours and the published numbers",
        "Ours minus published, over every cell with the parameters of a published point; losses relative to the published one. "
        "*Inside our seeds*: published values within the range of our seeds, and how many would be if the "
        "authors' run were one more seed of "
        "ours, (k − 1)/(k + 1) of those with k seeds. Every cell is in the folded tables below. Our losses are "
        "on fresh samples after training; "
        "theirs are means over the last 100 training steps.",
        table(columns, rows),
    ).rstrip()


def _limits(frame: pd.DataFrame) -> str:
    """What the page says and does not say."""
    ratio = (frame["training_loss"] / frame["test_loss"]).median()
    several = int(frame["seed"].nunique())
    return join(
        "## What this says, and what it does not",
        bullets(
            [
                "**The published points are single runs** without a stated seed, read off figures. How far "
                "they would scatter is not known; "
                + (
                    f"our {several} seeds are the only measure of it."
                    if several > 1
                    else "with one seed here nor is ours."
                ),
                (
                    "**Training loss and test loss are not one thing.** The mean of our last 100 training losses "
                    f"is {number(float(ratio))} times our "
                    "test loss in the median of all runs."
                ),
                (
                    "**A line through a few widths** has an exponent even where the points bend; the standard errors "
                    "are those of the line."
                ),
                "**A toy is not a language model.** Its features are independent; tokens are not.",
            ]
        ),
    ).rstrip()


def _made(frame: pd.DataFrame) -> str:
    """How the page was made, from the records alone: a re-run changes nothing."""
    seconds = float(frame["made_by.seconds"].sum())
    by = frame.groupby(["made_by.version", "made_by.device"]).size()
    lines = [
        (
            f"llmsuper {__version__}. Nothing on this page is typed in by hand: `llmsuper report --check` makes it "
            "again and compares."
        ),
        "Published points: `model_lists/toy/*.csv`; its README says how each was read.",
        f"{count(len(frame))} records of `llmsuper toy`, {count(round(seconds))} s of training in all: "
        + ", ".join(f"{count(int(runs))} by llmsuper {version} on {device}" for (version, device), runs in by.items())
        + f"; {str(frame['made_by.date'].min())[:10]} to {str(frame['made_by.date'].max())[:10]}.",
        "Exponents: least squares on logarithms, one point for each m, the mean over seeds of the logarithm of the loss.",
    ]
    steps = "llmsuper toy weight_decay --list   # what a sweep trains\nllmsuper report toy"
    return join("## How this was made", command(steps), bullets(lines)).rstrip()
