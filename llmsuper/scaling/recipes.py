"""RECIPES: the fits of published losses that have a name, each a table, its rows, and a law."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmsuper.errors import FitError, lookup
from llmsuper.scaling.losses import TABLES, load_losses

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which rows of which table are fitted by which law. `moved` are widths to try instead, by model."""

    name: str
    table: str
    about: str
    where: Mapping[str, str] = field(default_factory=dict)
    law: str = "power-floor"
    x: tuple[str, ...] = ("d_model",)
    group: tuple[str, ...] = ()
    moved: Mapping[str, float] = field(default_factory=dict)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "liu2025",
            "liu2025",
            "the fit behind α = 0.91 ± 0.04 of arXiv:2505.10465: A and α shared, E per family and data set",
            group=("family", "dataset"),
            moved={"facebook/opt-350m": 512},  # its head has 512 columns
        ),
        Recipe(
            "opt-wikitext2",
            "fp16_perplexities",
            "nine sizes of OPT on WikiText2: the best single published series",
            where={"family": "opt", "dataset": "wikitext2"},
        ),
        Recipe(
            "bloom-wikitext2",
            "fp16_perplexities",
            "six sizes of BLOOM on WikiText2",
            where={"family": "bloom", "dataset": "wikitext2"},
        ),
        Recipe(
            "pythia-pile",
            "pile_families",
            "six sizes of Pythia on the Pile: too short a series to tell α from E",
            where={"family": "pythia", "dataset": "pile"},
        ),
        Recipe(
            "gpt2-openwebtext",
            "gpt2_gpt3",
            "four sizes of GPT-2 on OpenWebText: one degree of freedom",
            where={"family": "gpt2", "dataset": "openwebtext", "split": "val"},
        ),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of that name; the name of a table is a recipe for all its rows, with E per family and data set.

    Raises `UnknownNameError`.
    """
    if name in RECIPES:
        return RECIPES[name]
    tables = {
        table: Recipe(table, table, f"all rows of the table {table}", group=("family", "dataset")) for table in TABLES
    }
    return lookup(RECIPES | tables, name, "fit or table of losses")


def rows_of(chosen: Recipe, lists: Path | None = None) -> pd.DataFrame:
    """The rows that the recipe selects, from the tables in `lists` or those that come with llmsuper."""
    return select(load_losses(chosen.table, lists), chosen.where)


def select(frame: pd.DataFrame, where: Mapping[str, str]) -> pd.DataFrame:
    """The rows where every column has the value. Raises `FitError` for a column or a value that is not there."""
    for column, value in where.items():
        if column not in frame.columns:
            raise FitError(f"{column}: no such column to select by; there are {', '.join(map(str, frame.columns))}.")
        kept = frame[frame[column].astype(str) == value]
        if kept.empty:
            there = ", ".join(sorted(set(frame[column].astype(str)))[:20])
            raise FitError(f"{column}={value}: no row has it; among the values are {there}. Name one of those.")
        frame = kept
    return frame.reset_index(drop=True)
