"""`llmsuper cache`: the heads that are kept on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from llmsuper.cli.options import output_options
from llmsuper.cli.table import Column, Table, size

if TYPE_CHECKING:
    from llmsuper.hub.rowcache import KeptHead, RowCache


@click.command(epilog="Example: llmsuper cache")
@click.option("--clear", is_flag=True, help="Remove every kept head.")
@output_options
def cache(clear: bool, output: str) -> None:
    """Show the heads that are kept on this machine, or clear them.

    Only heads are kept, never whole checkpoints, in the assets folder of the Hub's client (HF_ASSETS_CACHE). A complete one is
    an ordinary safetensors file with one tensor.
    """
    from llmsuper.hub.rowcache import RowCache

    kept = RowCache()
    if clear:
        _clear(kept, output)
        return
    heads = kept.kept()
    table: Table[KeptHead] = Table(output, _columns(heads), _as_json, lambda head: str(head.path))
    for head in heads:
        table.row(head)
    if output == "human":
        total = size(sum(head.nbytes for head in heads))
        click.echo(f"{len(heads)} head{'' if len(heads) == 1 else 's'}, {total}, in {kept.folder}")


def _clear(kept: RowCache, output: str) -> None:
    freed = kept.clear()
    said = {
        "human": f"{size(freed)} freed in {kept.folder}",
        "json": json.dumps({"folder": str(kept.folder), "freed_bytes": freed}),
        "quiet": str(freed),
    }
    click.echo(said[output])


def _columns(heads: list[KeptHead]) -> list[Column[KeptHead]]:
    width = max((len(_source(head)) for head in heads), default=0)
    return [
        Column("head", width, _source, left=True),
        Column("tensor", max((len(head.tensor) for head in heads), default=0), lambda head: head.tensor, left=True),
        Column("bytes", 13, lambda head: f"{head.nbytes:,}"),
    ]


def _source(head: KeptHead) -> str:
    return head.source or "(not complete)"


def _as_json(head: KeptHead) -> dict[str, Any]:
    return {
        "path": str(head.path),
        "source": head.source,
        "tensor": head.tensor,
        "bytes": head.nbytes,
        "complete": head.complete,
    }
