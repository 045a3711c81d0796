"""Averages toy records over seeds, and puts the published numbers beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FULL = {
    "n": 1000,
    "steps": 20_000,
    "batch": 2_048,
    "lr": 0.01,
    "lr_bias": 0.01,
    "lr_regulariser": 0.01,
    "loss_scale": 1.0,
}
"""What the paper's small models have."""

PAPER_START = "normal"
"""Their biases at the start, by the authors' code."""

SETTING = ("n", "steps", "batch", "warmup", "final_lr", "initialisation", "loss_scale")
"""Runs that differ in one of these are not averaged with each other."""
RATES = ("lr", "lr_bias", "lr_regulariser")
"""Nor runs of small models that differ in these. Those of the large model depend on m."""

PLACE = ("m", "gamma", "distribution", "alpha", "scale", "activation_density")
"""Runs of one setting that agree in these are seeds of one cell."""

EXPERIMENTS = ("weight_decay", "activation_density", "large")
"""The paper's, by the names of their sweeps."""

ROUNDING = 1e-4
"""Published parameters are rounded to four decimals."""

LARGE_ALPHA = 1.2
"""α of the paper's large model, which is on no grid of its small ones."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """The runs of one of the paper's experiments that were trained alike.

    runs      rows of `ToyStore.frame()`
    setting   the values of SETTING, and of RATES but for the large model, that they share
    """

    runs: pd.DataFrame
    setting: Mapping[str, Any]


def large_rows(frame: pd.DataFrame) -> pd.Series:
    """Which rows are of the large model's experiment: frequencies that no small model of the paper has."""
    return (frame["distribution"] != "power") | np.isclose(frame["alpha"].astype(float), LARGE_ALPHA)


def experiment(frame: pd.DataFrame, name: str, widest: str | None = None) -> Experiment | None:
    """`weight_decay`, `activation_density` or `large`: the runs that belong to it, or None where there is none.

    Of several settings the one with the most cells, whatever the number of their seeds, or with the most values of the
    parameter `widest`; then the one with the most steps, then the largest batch.
    """
    if frame.empty:
        return None
    large = large_rows(frame)
    one = np.isclose(frame["activation_density"], 1.0)
    at_one = ~large & np.isclose(frame["alpha"].astype(float), 1.0)
    chosen = {"large": large, "weight_decay": ~large & one, "activation_density": at_one}[name]
    runs = frame[chosen]
    if name == "activation_density" and runs["activation_density"].round(6).nunique() < 2:
        return None
    if runs.empty:
        return None
    shared = SETTING if name == "large" else (*SETTING, *RATES)
    settings = runs.drop_duplicates([*shared, *PLACE]).groupby(list(shared))
    sizes = settings[widest].nunique() if widest else settings.size()
    setting = dict(zip(shared, max(sizes.index, key=lambda key: (sizes[key], key[1], key[2], key)), strict=True))
    alike = np.logical_and.reduce([runs[column] == value for column, value in setting.items()])
    return Experiment(runs[alike].reset_index(drop=True), setting)


def cells(runs: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """One row a cell of `by`: the mean over seeds, the standard deviation (missing for one seed), low, high and seeds."""
    there = runs[runs[value].notna()].astype({value: "float64"})
    grouped = there.groupby(list(by), sort=True)[value]
    return grouped.agg(mean="mean", sd="std", low="min", high="max", seeds="count").reset_index()


def exponents(runs: pd.DataFrame, by: Sequence[str], smallest_m: int = 0) -> pd.DataFrame:
    """α_m by cell of `by`: minus the slope of ln(test loss) against ln m, for cells of at least three m.

    exponent, stderr   of the line through the means over seeds of ln(loss): one standard error of a line, as published
    r_squared          of the same line
    sd, low, high      over the exponents of single seeds; sd is missing for one seed
    points, seeds      m in the line, seeds that have them all
    """
    from scipy.stats import linregress

    runs = runs[runs["m"] >= smallest_m].assign(log_loss=np.log(runs["test_loss"].astype(float)))
    rows = []
    for key, of in runs.groupby(list(by), sort=True):
        by_seed = of.pivot_table(index="m", columns="seed", values="log_loss", aggfunc="mean").dropna(axis="columns")
        if len(by_seed) < 3 or by_seed.empty:
            continue
        log_m = np.log(by_seed.index.to_numpy(dtype=float))
        line = linregress(log_m, by_seed.mean(axis="columns").to_numpy())
        single = [-float(linregress(log_m, by_seed[seed].to_numpy()).slope) for seed in by_seed]
        rows.append(
            {
                **dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True)),
                "exponent": -float(line.slope),
                "stderr": float(line.stderr),
                "r_squared": float(line.rvalue) ** 2,
                "sd": float(np.std(single, ddof=1)) if len(single) > 1 else None,
                "low": min(single),
                "high": max(single),
                "points": len(log_m),
                "seeds": len(single),
            }
        )
    columns = [*by, "exponent", "stderr", "r_squared", "sd", "low", "high", "points", "seeds"]
    return pd.DataFrame(rows, columns=columns).astype({"sd": "float64"})


def beside(ours: pd.DataFrame, published: pd.DataFrame, on: Mapping[str, str], value: str, theirs: str) -> pd.DataFrame:
    """Our cells with the published number of the same cell: columns of `ours`, then `published` and `difference`.

    `on` maps our columns to theirs. Cells are the same where these agree to `ROUNDING`, for the published γ and E are rounded
    to four decimals. Cells that only one side has are left out.
    """
    right = pd.DataFrame({f"_{mine}": published[their].astype(float) for mine, their in on.items()})
    snapped = {column: _nearest(ours[column.removeprefix("_")], right[column]) for column in right}
    right["published"] = published[theirs].astype(float)
    both = ours.assign(**snapped).merge(right, on=list(snapped), validate="many_to_one")
    both["difference"] = both[value] - both["published"]
    return both.drop(columns=list(snapped))


def _nearest(values: pd.Series, known: pd.Series) -> Any:
    """Each value's nearest known one, where that is as near as rounding leaves it; else the value itself, which matches none."""
    found, grid = values.to_numpy(dtype=float), np.unique(known.to_numpy(dtype=float))
    near = grid[np.abs(found[:, None] - grid).argmin(axis=1)] if len(grid) else found
    return np.where(np.abs(near - found) <= ROUNDING, near, found)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a quantity of ours compares with the published one, over all cells that both have.

    bias, typical, largest   median of ours − published, median and maximum of its absolute value; relative to the published value
                             where `relative`
    inside, expected         cells whose published value lies within the range of our seeds, and how many would if it were
                             one more seed: (k − 1)/(k + 1) of those with k seeds; None where no cell has two seeds
    """

    quantity: str
    figure: str
    cells: int
    relative: bool
    bias: float
    typical: float
    largest: float
    inside: int | None
    expected: float | None


def agreement(both: pd.DataFrame, quantity: str, figure: str, *, relative: bool) -> Agreement | None:
    """The summary of what `beside` gave; None where no cell is on both sides."""
    if both.empty:
        return None
    difference = both["difference"] / both["published"] if relative else both["difference"]
    several = both[both["seeds"] > 1]
    held = (several["low"] <= several["published"]) & (several["published"] <= several["high"])
    return Agreement(
        quantity,
        figure,
        len(both),
        relative,
        float(difference.median()),
        float(difference.abs().median()),
        float(difference.abs().max()),
        int(held.sum()) if len(several) else None,
        float(((several["seeds"] - 1) / (several["seeds"] + 1)).sum()) if len(several) else None,
    )
