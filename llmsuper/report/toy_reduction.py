"""Says what was reduced of the paper's small models, what that costs, and how cells that were trained in full compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from llmsuper.report.markdown import NONE, Column, count, fixed, fold, join, number, table
from llmsuper.report.toy_bench import several
from llmsuper.report.toy_cells import FULL, beside, cells, exponents
from llmsuper.toy.sweep import load_sweep

if TYPE_CHECKING:
    from llmsuper.report.toy_bench import Bench
    from llmsuper.report.toy_cells import Experiment

QUANTITIES = {
    "test_loss": "loss",
    "phi_half": "$\\varphi_{1/2}$",
    "phi_one": "$\\varphi_1$",
    "overlap.mean_squared_overlap": "mean squared overlap of all rows",
}
"""What is compared between a reduced run and a full one."""
CELL = ["m", "alpha", "gamma"]
WORDS = {
    "n": "n", "steps": "steps", "batch": "batch", "lr": "learning rate of W", "lr_bias": "learning rate of b",
    "lr_regulariser": "learning rate of the regulariser", "loss_scale": "factor of the loss",
}  # fmt: skip


def reduced_section(bench: Bench) -> str:
    """What was reduced, and cells that were also trained with everything as in the paper, beside their published values."""
    small = bench.small()
    if small is None:
        return ""
    title, changes = "## What was reduced", changed(small)
    if not changes:
        return join(title, "Nothing: n, steps, batch and learning rates are the paper's.").rstrip()
    found = reduction(bench, small)
    said = f"Against the paper's small models: {'; '.join(changes)}."
    if found.empty:
        return join(
            title,
            f"{said} No cell was also trained in full, so these records cannot tell what that costs; the "
            "differences above hold it.",
        ).rstrip()
    columns = [Column("m"), Column("α"), Column("γ"), Column("quantity", left=True)]
    columns += map(Column, ("reduced", "in full", "change", "published", "full − published"))
    rows = [
        [
            f"{row['m']:.0f}",
            f"{row['alpha']:g}",
            fixed(row["gamma"], 3),
            QUANTITIES[row["quantity"]],
            _with_seeds(row["reduced"], row["seeds_reduced"]),
            _with_seeds(row["full"], row["seeds_full"]),
            _relative(row["reduced"], row["full"]),
            NONE if np.isnan(row["published"]) else number(row["published"]),
            _relative(row["full"], row["published"]),
        ]
        for row in found.to_dict("records")
    ]
    return join(
        f"{title}, and what that costs",
        f"{said} {len(found[CELL].drop_duplicates())} cells were also trained with everything as in the paper. What differs "
        "between the two, relative to the full run, and between the full run and the published value, relative to that:",
        _summary(found),
        fold(
            f"Every one of them: {several(len(rows), 'line')}. Means, with the number of seeds in brackets",
            table(columns, rows),
        ),
    ).rstrip()


def _summary(found: pd.DataFrame) -> str:
    """One line a quantity: the median and the range of both differences over all cells."""
    columns = [Column("quantity", left=True)]
    columns += map(
        Column,
        (
            "cells",
            "reduced − full, median",
            "lowest to highest",
            "cells",
            "full − published, median",
            "lowest to highest",
        ),
    )
    rows = []
    for quantity, words in QUANTITIES.items():
        of = found[found["quantity"] == quantity]
        row = [words]
        for value, against in (("reduced", "full"), ("full", "published")):
            known = of[of[value].notna() & of[against].notna() & (of[against] != 0)]
            change = 100 * (known[value] / known[against] - 1)
            row += [count(len(known))]
            row += (
                [NONE, NONE]
                if known.empty
                else [f"{fixed(change.median(), 1)} %", f"{fixed(change.min(), 1)} to {fixed(change.max(), 1)} %"]
            )
        rows.append(row)
    return table(columns, rows)


def changed(small: Experiment, *, widths: bool = True) -> list[str]:
    """What is not as in the paper, one phrase each; empty where nothing is. Without `widths` only how runs were trained."""
    changes = [
        f"{WORDS[key]} {small.setting[key]:,.6g} instead of {value:,.6g}"
        for key, value in FULL.items()
        if not np.isclose(small.setting[key], value)
    ]
    there = sorted(set(small.runs["m"]))
    papers = sorted({run.m for run in load_sweep("weight_decay").versions["full"]})
    if widths and not set(papers) <= set(there):
        kept = ", ".join(str(m) for m in there)
        changes.append(
            f"m = {kept} instead of {count(len(papers))} from {papers[0]} to {papers[-1]}, so exponents are of other widths"
        )
    return changes


def reduction(bench: Bench, small: Experiment) -> pd.DataFrame:
    """Cells at E = 1 with everything as in the paper: their means, those under the setting of `small`, and the published values.

    Columns m, alpha, gamma, quantity, reduced, seeds_reduced, full, seeds_full, published; missing where there is none. Empty
    where nothing was trained in full.
    """
    in_full = bench.in_full()
    full = small.runs[:0] if in_full is None else in_full.runs
    known = known_points(bench)
    parts = []
    for quantity in QUANTITIES:
        here, there = cells(small.runs, CELL, quantity), cells(full, CELL, quantity)
        both = here.merge(there, on=CELL, how="right", suffixes=("_reduced", "_full")).assign(quantity=quantity)
        both = both.rename(columns={"mean_reduced": "reduced", "mean_full": "full"})
        points = known[known["quantity"] == quantity]
        compared = beside(both, points, {name: name for name in CELL}, "full", "published")
        parts.append(both.merge(compared[[*CELL, "published"]], on=CELL, how="left"))
    columns = [*CELL, "quantity", "reduced", "seeds_reduced", "full", "seeds_full", "published"]
    return pd.concat(parts, ignore_index=True)[columns].sort_values([*CELL], kind="stable")


def known_points(bench: Bench) -> pd.DataFrame:
    """Every published value of a single run at E = 1: alpha, gamma, m, quantity, published."""
    density = bench.published("activation_density")
    parts = [
        _tidy(bench.published("uniform_loss"), "test_loss", "loss"),
        _tidy(density[np.isclose(density["activation_density"], 1.0)].assign(data_exponent=1.0), "test_loss", "loss"),
        _tidy(bench.published("represented_fraction"), "phi_half", "represented_fraction"),
        _tidy(bench.published("represented_fraction_map").assign(m=39.0), "phi_half", "represented_fraction"),
        _tidy(bench.published("strong_fraction").assign(weight_decay=-1.0), "phi_one", "strongly_represented_fraction"),
    ]
    return pd.concat(parts, ignore_index=True).drop_duplicates(
        ["quantity", *CELL]
    )  # the map repeats figure 3a at α = 1


def published_lines(bench: Bench, small: Experiment) -> pd.DataFrame:
    """Exponents of the published losses over the same m as ours, where these losses are known: alpha, gamma, published."""
    losses = known_points(bench)
    losses = losses[(losses["quantity"] == "test_loss") & losses["m"].isin(small.runs["m"])]
    lines = exponents(losses.assign(test_loss=losses["published"], seed=0), ["alpha", "gamma"])
    same = lines[lines["points"] == small.runs["m"].nunique()]
    return same[["alpha", "gamma", "exponent"]].rename(columns={"exponent": "published"})


def _tidy(curve: pd.DataFrame, quantity: str, value: str) -> pd.DataFrame:
    names = {"data_exponent": "alpha", "weight_decay": "gamma", value: "published"}
    return curve.rename(columns=names)[[*CELL, "published"]].assign(quantity=quantity)


def _with_seeds(value: float, seeds: float) -> str:
    return NONE if np.isnan(value) else f"{number(value)} ({seeds:.0f})"


def _relative(value: float, against: float) -> str:
    if np.isnan(value) or np.isnan(against) or against == 0:
        return NONE
    return f"{fixed(100 * (value / against - 1), 1)} %"
