"""The section of the toy page on what the loss owes to the biases that training starts from."""

from __future__ import annotations

import numpy as np

from llmsuper.report.markdown import NONE, Column, count, fixed, join, number, table
from llmsuper.report.toy_bench import Bench, Section, missing
from llmsuper.report.toy_cells import RATES, SETTING, beside, cells
from llmsuper.report.toy_reduction import known_points

START = "initialisation"
ALIKE = ("alpha", "gamma", "m", *(name for name in (*SETTING, *RATES) if name != START))
"""Parameters that runs must share to be compared."""


def start_section(bench: Bench) -> Section:
    """The loss of runs that differ in their biases at the start alone."""
    title = "What the start does"
    ours = cells(bench.runs_like_the_papers(), [*ALIKE, START], "test_loss")
    ours = ours[ours.groupby(list(ALIKE))[START].transform("nunique") > 1]
    if ours.empty:
        return missing(title, "initialisation")
    points = known_points(bench)
    points = points[points["quantity"] == "test_loss"]
    both = beside(ours, points, {name: name for name in ("alpha", "gamma", "m")}, "mean", "published")
    known = both.set_index([*ALIKE, START])["published"]
    columns = [*map(Column, ("m", "α", "γ", "batch")), Column("biases at the start", left=True)]
    columns += map(Column, ("loss", "lowest and highest", "seeds", "published"))
    rows = []
    for row in ours.sort_values([*ALIKE, START]).to_dict("records"):
        published = known.get(tuple(row[name] for name in (*ALIKE, START)))
        rows.append(
            [
                count(int(row["m"])), f"{row['alpha']:g}", fixed(row["gamma"], 3), count(int(row["batch"])), row[START],
                number(row["mean"]), f"{number(row['low'])} to {number(row['high'])}", count(int(row["seeds"])),
                NONE if published is None or np.isnan(published) else number(published),
            ]
        )  # fmt: skip
    text = join(
        f"## {title}",
        "The paper does not say from where the biases $b$ start; its code draws them from $N(0, 1)$ (*normal*). A feature whose "
        "bias starts far below zero has an output that is never positive, so no gradient, and stays lost. Starting "
        "from $b = 0$ (*zero-bias*) loses none that way.",
        table(columns, rows),
    )
    return Section(text.rstrip())
