"""`llmsuper models`: what a pattern means."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from llmsuper.cli.options import output_options, pattern_options, select
from llmsuper.cli.table import Column, Table, count

if TYPE_CHECKING:
    from pathlib import Path

    from llmsuper.types import ModelEntry


@click.command(epilog="Example: llmsuper models 'EleutherAI/pythia-*' --exclude '*deduped*'")
@pattern_options(required=False)
@output_options
def models(patterns: tuple[str, ...], exclude: tuple[str, ...], lists: Path | None, output: str) -> None:
    """List what patterns mean: catalog entries first, else what the Hub lists.

    Numbers are the catalog's claims, made before looking; `llmsuper plan` reads the checkpoints' headers.
    """
    selection = select(patterns, exclude, lists)
    width = max(len(entry.name) for entry in selection.entries)
    columns: list[Column[ModelEntry]] = [
        Column("model", width, lambda e: e.name, left=True),
        Column("family", 15, lambda e: e.family or ("local" if e.local else "not in the catalog"), left=True),
        Column("width", 6, lambda e: count(e.width)),
        Column("columns", 7, lambda e: count(e.columns)),
        Column("rows", 8, lambda e: count(e.rows)),
        Column("tokens", 8, lambda e: count(e.vocabulary)),
        Column("parameters", 15, lambda e: count(e.params)),
        Column("lists", 8, lambda e: " ".join(e.lists), left=True),
    ]
    table = Table(output, columns, asdict, lambda e: e.name)
    for entry in selection.entries:
        table.row(entry)
