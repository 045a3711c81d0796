"""The sections of the toy page on runs that differ in one parameter alone, of which the paper says nothing."""

from __future__ import annotations

import numpy as np

from llmsuper.report.markdown import NONE, Column, count, fixed, join, number, table
from llmsuper.report.toy_bench import Bench, Section, missing
from llmsuper.report.toy_cells import RATES, SETTING, beside, cells
from llmsuper.report.toy_reduction import QUANTITIES, known_points


def start_section(bench: Bench) -> Section:
    """The loss by the biases at the start."""
    return _section(
        bench,
        "initialisation",
        "initialisation",
        "test_loss",
        "What the start does",
        "biases at the start",
        "The paper does not say from where the biases $b$ start; its code draws them from $N(0, 1)$ (*normal*). A feature whose "
        "bias starts far below zero has an output that is never positive, so no gradient, and stays lost. Starting "
        "from $b = 0$ (*zero-bias*) loses none that way.",
    )


def epsilon_section(bench: Bench) -> Section:
    """φ_½ by the factor of the loss, which Adam's ε does not cancel."""
    return _section(
        bench,
        "epsilon",
        "loss_scale",
        "phi_half",
        "What Adam's ε does",
        "factor of the loss",
        "The authors' loss is a mean over features too, so that the gradients of rare ones are not far above Adam's "
        "$\\varepsilon = 10^{-8}$, which shortens their steps. A factor before the loss, with which the authors train "
        "their large model and not the small ones, makes ε nothing: then interference shrinks rows further against the "
        "pull to unit norm.",
    )


def _section(bench: Bench, sweep: str, parameter: str, quantity: str, title: str, heading: str, said: str) -> Section:
    """The `quantity` by this parameter, over the seeds that two values of it or more have, beside the published value."""
    alike = ["alpha", "gamma", "m", *(name for name in (*SETTING, *RATES) if name != parameter)]
    runs = bench.runs_like_the_papers()
    runs = runs[runs.groupby([*alike, "seed"])[parameter].transform("nunique") > 1]
    if runs.empty:
        return missing(title, sweep)
    ours = cells(runs, [*alike, parameter], quantity)
    points = known_points(bench)
    points = points[points["quantity"] == quantity]
    both = beside(ours, points, {name: name for name in ("alpha", "gamma", "m")}, "mean", "published")
    known = both.set_index([*alike, parameter])["published"]
    columns = [*map(Column, ("m", "α", "γ", "batch")), Column(heading, left=True)]
    columns += map(Column, (QUANTITIES[quantity], "lowest and highest", "seeds", "published"))
    rows = []
    for row in ours.sort_values([*alike, parameter]).to_dict("records"):
        published = known.get(tuple(row[name] for name in (*alike, parameter)))
        value = row[parameter]
        rows.append(
            [
                count(int(row["m"])), f"{row['alpha']:g}", fixed(row["gamma"], 3), count(int(row["batch"])),
                value if isinstance(value, str) else f"{value:g}",
                number(row["mean"]), f"{number(row['low'])} to {number(row['high'])}", count(int(row["seeds"])),
                NONE if published is None or np.isnan(published) else number(published),
            ]
        )  # fmt: skip
    return Section(join(f"## {title}", said, table(columns, rows)).rstrip())
