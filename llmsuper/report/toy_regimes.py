"""The sections of the toy page on the two regimes: weak superposition and strong superposition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from llmsuper.geometry.bounds import isotropic, welch_floor
from llmsuper.report.markdown import NONE, Column, fixed, fold, join, number, table
from llmsuper.report.pages import Drawing
from llmsuper.report.toy_bench import (
    Bench,
    Section,
    difference_table,
    exponent_table,
    for_points,
    missing,
    named,
    there,
)
from llmsuper.report.toy_cells import agreement, beside, cells, exponents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmsuper.report.toy_cells import Experiment

WEAK_CELLS = 9
"""As many weak cells as the authors draw in figure 5b: those of the least ambiguity."""


def weak_section(bench: Bench) -> Section:
    """Figure 5: weak superposition. The loss is what the features without a row carry, and α_m = α − 1."""
    title = "Figure 5: weak superposition"
    small = bench.small()
    weak = small.runs[small.runs["gamma"] > 0] if small is not None else pd.DataFrame()
    if weak.empty:
        return missing(title, "weight_decay")
    losses = weak[["alpha", "gamma", "m", "theory.weak_loss", "test_loss"]].set_axis(
        ["alpha", "gamma", "m", "predicted", "loss"], axis="columns"
    )
    ratio = (losses["loss"] / losses["predicted"])[losses["predicted"] > 0]
    ours = exponents(weak, ["alpha", "gamma"])
    worst = weak.groupby(["alpha", "gamma"])["ambiguity"].max().rename("ambiguity").reset_index()
    clear = ours.merge(worst, on=["alpha", "gamma"]).nsmallest(WEAK_CELLS, "ambiguity")
    published, uniform = bench.published("exponents"), bench.published("uniform_loss")
    published, uniform = (f[f["weight_decay"] > 0] for f in (published, uniform))
    both = beside(ours, published, {"alpha": "data_exponent", "gamma": "weight_decay"}, "exponent", "model_exponent")
    shown = ours.merge(pd.concat([clear, both])[["alpha", "gamma"]].drop_duplicates(), on=["alpha", "gamma"])
    at_zero = _losses_at_zero(weak, uniform)
    drawing = Drawing(
        "toy-5-weak",
        "toy_weak",
        {
            "losses": losses,
            "unlearned": uniform[["loss_by_unlearned", "loss"]].rename(columns={"loss_by_unlearned": "predicted"}),
            "ours": for_points(shown),
            "theirs": named(published, data_exponent="alpha", weight_decay="gamma", model_exponent="published"),
        },
        "Left: loss against the prediction of equation 4 for every run with weight decay. Right: exponent of "
        "the loss against α with the line α − 1.",
    )
    said = "no cell has three widths."
    if len(clear):
        gap = fixed(float((clear["exponent"] - clear["alpha"] + 1).median()))
        said = (
            f"over the {len(clear)} cells of least ambiguity (most like $m$ features with a direction each) "
            f"$\\alpha_m - (\\alpha - 1)$ is {gap} in the median here."
        )
    text = join(
        f"## {title}",
        "Equation 4: features with a row cost nothing, the others their variance, "
        "$L = \\sum_{i > \\varphi n} (\\tfrac43 p_i - p_i^2)$, with φ = $\\varphi_{1/2}$ as measured. "
        + _ratio_said(ratio, len(losses))
        + f" For $m \\ll n$ and α > 1 it gives $\\alpha_m = \\alpha - 1$; {said}",
        bench.show(drawing),
        exponent_table("αₘ with weight decay", shown, both, "α γ", {a: a - 1 for a in shown["alpha"] if a > 1}),
        difference_table("Loss at α = 0", at_zero, "γ m"),
    )
    return Section(
        text.rstrip(),
        (drawing,),
        there(
            agreement(both, "exponent, weak", "5b", relative=False),
            agreement(at_zero, "loss, weak, α = 0", "5a", relative=True),
        ),
    )


def strong_section(bench: Bench) -> Section:
    """Figure 6: strong superposition. How many rows are strong, how much they overlap, and the exponent."""
    title = "Figure 6: strong superposition"
    small = bench.small()
    strong = small.runs[small.runs["gamma"] < 0] if small is not None else pd.DataFrame()
    if small is None or strong.empty:
        return missing(title, "weight_decay")
    hardest = float(strong["gamma"].min())
    pulled = strong[np.isclose(strong["gamma"], hardest)]
    share = cells(pulled, ["alpha", "m"], "phi_one")
    shares = bench.published("strong_fraction")
    # the published curve is of γ = −1, by the text of arXiv v4
    comparable = share if np.isclose(hardest, -1.0) else share[:0]
    both_shares = beside(
        comparable, shares, {"alpha": "data_exponent", "m": "m"}, "mean", "strongly_represented_fraction"
    )
    few = _few(sorted(share["alpha"].unique()))
    overlap = _overlaps(bench, pulled, small)
    ours = exponents(strong, ["alpha", "gamma"])
    published, uniform = bench.published("exponents"), bench.published("uniform_loss")
    published, uniform = (f[f["weight_decay"] < 0] for f in (published, uniform))
    both = beside(ours, published, {"alpha": "data_exponent", "gamma": "weight_decay"}, "exponent", "model_exponent")
    at_zero = _losses_at_zero(strong, uniform)
    theirs = named(shares, data_exponent="alpha", strongly_represented_fraction="published")
    drawing = Drawing(
        "toy-6-strong",
        "toy_strong",
        {
            "fraction": share[share["alpha"].isin(few)],
            "fraction_published": theirs[theirs["alpha"].isin(few)],
            "overlap": overlap,
            "ours": for_points(ours.merge(both[["alpha", "gamma"]], on=["alpha", "gamma"]) if len(both) else ours),
            "theirs": named(published, data_exponent="alpha", weight_decay="gamma", model_exponent="published"),
        },
        "Share of rows with norm above 1 against m, mean squared overlap of these rows against m with 1/m and "
        "κ², and exponent of the loss against α.",
    )
    even = ours[ours["alpha"] <= 1.0]["exponent"]
    said = (
        f"Here, over {len(even)} cells with α ≤ 1 and γ < 0, it is {fixed(float(even.median()))} in the median, "
        f"{fixed(float(even.min()))} to {fixed(float(even.max()))}."
    )
    text = join(
        f"## {title}",
        f"Left and middle: γ = {fixed(hardest, 3)}. With every feature represented the loss comes from "
        "overlap, about $1/m$, so the paper expects "
        "$\\alpha_m$ near 1 while frequencies are even, and near $2(\\alpha - 1)$ where they are very skewed. "
        f"{said if len(even) else ''}",
        bench.show(drawing),
        _overlap_table(overlap),
        exponent_table("αₘ with a pull to unit norm", ours, both, "α γ"),
        difference_table("Share of rows with norm above 1", both_shares, "α m", places=3),
        difference_table("Loss at α = 0", at_zero, "γ m"),
    )
    return Section(
        text.rstrip(),
        (drawing,),
        there(
            agreement(both, "exponent, strong", "6e", relative=False),
            agreement(both_shares, "share with norm above 1", "6c", relative=False),
            agreement(at_zero, "loss, strong, α = 0", "5a", relative=True),
        ),
    )


def _ratio_said(ratio: pd.Series, runs: int) -> str:
    """How the losses compare with equation 4; it is 0 where every feature has a row."""
    none = f" In {runs - len(ratio)} runs every feature has a row, and equation 4 is 0." if len(ratio) < runs else ""
    if ratio.empty:
        return none
    low, middle, high = (number(float(ratio.quantile(q))) for q in (0.05, 0.5, 0.95))
    return (
        f"Loss over prediction is {middle} in the median of {len(ratio)} runs, and {low} to {high} between the 5 % and "
        f"95 % quantiles.{none}"
    )


def _losses_at_zero(runs: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    ours = cells(runs[np.isclose(runs["alpha"], 0.0)], ["gamma", "m"], "test_loss")
    return beside(ours, published, {"gamma": "weight_decay", "m": "m"}, "mean", "loss")


def _few(values: Sequence[float], most: int = 5) -> list[float]:
    """At most so many of the values, the ends among them: more curves than that cannot be told apart."""
    return [values[i] for i in sorted({round(i) for i in np.linspace(0, len(values) - 1, min(most, len(values)))})]


def _overlaps(bench: Bench, pulled: pd.DataFrame, small: Experiment) -> pd.DataFrame:
    """By m: the range over α of the strong rows' mean squared overlap, and what to compare it with; the frame "
    "of the middle panel."""
    n = int(small.setting["n"])
    by_alpha = cells(pulled, ["alpha", "m"], "strong_overlap.mean_squared_overlap")
    ours = by_alpha.groupby("m")["mean"].agg(low="min", high="max", alphas="count").reset_index()
    published = named(
        bench.published("overlap_range"),
        mean_square_overlap_min="published_low",
        mean_square_overlap_max="published_high",
    )
    ours = ours.merge(published[["m", "published_low", "published_high"]], on="m", how="outer")
    ours["m"] = ours["m"].astype(int)
    strong = [min(n, max(m + 1, m * m // 2)) for m in ours["m"]]
    return ours.assign(
        isotropic=[isotropic(m) for m in ours["m"]],
        welch=[welch_floor(rows, m) for rows, m in zip(strong, ours["m"], strict=True)],
        phi_one=[min(1.0, m * m / (2 * n)) for m in ours["m"]],
    )


def _overlap_table(overlap: pd.DataFrame) -> str:
    columns = [Column("m"), *map(Column, ("here, over α", "published, over α", "1/m", "κ²"))]
    rows = [
        [
            str(row.m),
            *(
                NONE if np.isnan(low) else f"{number(low)} to {number(high)}"
                for low, high in ((row.low, row.high), (row.published_low, row.published_high))
            ),
            number(row.isotropic),
            number(row.welch),
        ]
        for row in overlap.itertuples()
    ]
    return fold("Mean squared overlap of the rows with norm above 1", table(columns, rows)) if rows else ""
