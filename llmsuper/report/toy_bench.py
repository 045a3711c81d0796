"""What sections of the toy page are made from and what they give, and their tables of differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from llmsuper.report.markdown import NONE, Column, figure, fixed, fold, number, table, with_error
from llmsuper.report.pages import FIGURE_FOLDER
from llmsuper.report.toy_cells import FULL, PAPER_START, Experiment, experiment, large_rows
from llmsuper.scaling.toy_curves import load_toy_curve

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llmsuper.report.pages import Drawing
    from llmsuper.report.toy_cells import Agreement


@dataclass(frozen=True, eq=False, slots=True)
class Section:
    """A part of the page: its markdown, the figures in it, and how its numbers compare with the published ones."""

    text: str
    drawings: tuple[Drawing, ...] = ()
    agreements: tuple[Agreement, ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Bench:
    """What a section is made from: every record as a row of `ToyStore.frame()`, the model lists, the format of the figures."""

    frame: pd.DataFrame
    lists: Path | None
    figure_format: str

    def published(self, name: str) -> pd.DataFrame:
        """A published curve by name."""
        return load_toy_curve(name, self.lists)

    def small(self, name: str = "weight_decay", widest: str | None = None) -> Experiment | None:
        """An experiment at the paper's n of small models: its published curves are of no other. See `experiment`."""
        return experiment(self._at_papers_n(), name, widest)

    def in_full(self) -> Experiment | None:
        """The runs that were trained as the paper's small models were; None where there is none."""
        runs = self.runs_like_the_papers()
        alike = np.logical_and.reduce([np.isclose(runs[key].astype(float), value) for key, value in FULL.items()])
        runs = runs[alike & (runs["initialisation"] == PAPER_START)]
        return Experiment(runs.reset_index(drop=True), FULL) if len(runs) else None

    def runs_like_the_papers(self) -> pd.DataFrame:
        """Every run at the paper's n of small models, with frequencies of theirs, at E = 1."""
        frame = self._at_papers_n()
        return frame[~large_rows(frame) & np.isclose(frame["activation_density"].astype(float), 1.0)]

    def _at_papers_n(self) -> pd.DataFrame:
        return self.frame[self.frame["n"] == FULL["n"]]

    def show(self, drawing: Drawing) -> str:
        """The figure as the page shows it."""
        return figure(f"{FIGURE_FOLDER}/{drawing.stem}.{self.figure_format}", drawing.alt)


def missing(title: str, sweep: str) -> Section:
    """A section of which nothing was trained: said, not left out."""
    return Section(f"## {title}\n\n*No run of it is in the records. `llmsuper toy {sweep}` trains it.*")


def there(*agreements: Agreement | None) -> tuple[Agreement, ...]:
    """Those that have a cell."""
    return tuple(one for one in agreements if one is not None)


def named(frame: pd.DataFrame, **names: str) -> pd.DataFrame:
    """A published curve with our names for its columns."""
    return frame.rename(columns=names)


def for_points(fits: pd.DataFrame) -> pd.DataFrame:
    """Exponents as a figure takes them, to the digits that are shown; their reach is that of the seeds."""
    columns = {"exponent": "mean", "low": "low", "high": "high"}
    return fits[["alpha", "gamma", *columns]].rename(columns=columns).round({"mean": 3, "low": 3, "high": 3})


def map_cells(ours: pd.DataFrame, value: str, published: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """The frame of `toy_map`: ours and the published field one below the other, γ to four decimals in both."""
    columns = ["alpha", "gamma", "value"]
    parts = [
        ours.rename(columns={value: "value"})[columns].assign(source="here"),
        published[columns].assign(source="published"),
    ]
    return pd.concat(parts, ignore_index=True).round({"gamma": 4, "alpha": 4}).assign(quantity=quantity)


KEYS = {"α": "alpha", "γ": "gamma", "m": "m", "E": "activation_density", "frequencies": "distribution"}
"""Columns that tell cells apart, by their heading."""


def difference_table(title: str, both: pd.DataFrame, keys: str, places: int | None = None) -> str:
    """Every cell of `beside`, folded: ours, the spread and the range of seeds, published, and the difference.

    `keys` are headings of KEYS. With `places` the numbers are of one scale and so is their difference; without, numbers are
    losses and the difference is relative.
    """
    if both.empty:
        return ""
    headings = keys.split()

    def show(value: float | None) -> str:
        return number(value) if places is None else fixed(value, places)

    rows = []
    for row in both.sort_values([KEYS[key] for key in headings]).to_dict("records"):
        change = row["difference"] if places is not None else 100 * row["difference"] / row["published"]
        rows.append(
            [
                *(_key(row[KEYS[key]]) for key in headings),
                show(row["mean"]),
                NONE if np.isnan(row["sd"]) else show(row["sd"]),
                NONE if np.isnan(row["sd"]) else f"{show(row['low'])} to {show(row['high'])}",
                str(row["seeds"]),
                show(row["published"]),
                fixed(change, places) if places is not None else f"{fixed(change, 1)} %",
            ]
        )
    columns = [*(Column(key) for key in headings), *map(Column, ("here", "spread", "lowest to highest"))]
    columns += map(Column, ("seeds", "published", "difference"))
    return fold(f"{title}: {several(len(rows), 'cell')}. Spread: standard deviation over seeds", table(columns, rows))


def exponent_table(
    title: str, fits: pd.DataFrame, both: pd.DataFrame, keys: str, expected: Mapping[float, float] | None = None
) -> str:
    """Every fitted exponent, folded, with the published one where there is one.

    `expected` maps α to what a theory says; None leaves the column out.
    """
    if fits.empty:
        return ""
    headings = keys.split()
    on = [KEYS[key] for key in headings]
    joined = fits.merge(both[[*on, "published", "difference"]], on=on, how="left").sort_values(on)
    rows = [
        [
            *(_key(row[KEYS[key]]) for key in headings),
            with_error(row["exponent"], row["stderr"]),
            _fixed(row["sd"]),
            str(row["points"]),
            str(row["seeds"]),
            *([] if expected is None else [fixed(expected.get(row["alpha"]))]),
            _fixed(row["published"]),
            _fixed(row["difference"]),
        ]
        for row in joined.to_dict("records")
    ]
    columns = [
        *(Column(key) for key in headings),
        *map(Column, ("here ± line", "spread", "m", "seeds")),
        *([] if expected is None else [Column("theory")]),
        *map(Column, ("published", "difference")),
    ]
    return fold(
        f"{title}: {several(len(rows), 'line')}. ±: one standard error of the line; spread: standard deviation over seeds",
        table(columns, rows),
    )


def several(number: int, thing: str) -> str:
    """1 cell, 2 cells."""
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _fixed(value: float) -> str:
    return NONE if np.isnan(value) else fixed(value)


def _key(value: object) -> str:
    return value if isinstance(value, str) else f"{value:.4g}".replace("-", "−")
