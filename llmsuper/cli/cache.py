"""`llmsuper cache`: the heads that are kept on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llmsuper.cli.options import output_options
from llmsuper.cli.table import Column, Table, size

if TYPE_CHECKING:
    from llmsuper.hub.rowcache import KeptHead


@click.command(epilog="Example: llmsuper cache")
@click.option("--clear", is_flag=True, help="Remove every kept head.")
@output_options
def cache(clear: bool, output: str) -> None:
    """Show the heads that are kept on this machine, or clear them.

    Only heads are kept, never whole checkpoints, in the assets folder of the Hub's client (HF_ASSETS_CACHE). A complete one is
    an ordinary safetensors file with one tensor.
    """
    from llmsuper.hub.rowcache import RowCache

    kept_heads = RowCache()
    heads = kept_heads.kept()
    if clear:
        click.echo(f"{size(kept_heads.clear())} freed from {kept_heads.folder}", err=True)
        return
    table: Table[KeptHead] = Table(output, _columns(heads), _as_json, lambda head: str(head.path))
    for head in heads:
        table.row(head)
    click.echo(f"{len(heads)} heads, {size(sum(head.nbytes for head in heads))}, in {kept_heads.folder}", err=True)


def _columns(heads: list[KeptHead]) -> list[Column[KeptHead]]:
    width = max((len(_source(head)) for head in heads), default=6)
    return [
        Column("head", width, _source, left=True),
        Column("tensor", 24, lambda head: head.path.stem, left=True),
        Column("bytes", 13, lambda head: f"{head.nbytes:,}"),
    ]


def _source(head: KeptHead) -> str:
    return head.source if head.complete else "(not complete)"


def _as_json(head: KeptHead) -> dict[str, Any]:
    return {"path": str(head.path), "source": head.source, "bytes": head.nbytes, "complete": head.complete}
