"""`llmsuper plan`: where each head is, and the exact bytes that measuring it would move."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from llmsuper.cli.options import Failures, head_options, output_options, pattern_options, select, warn
from llmsuper.cli.table import Column, Table, count, size
from llmsuper.errors import LlmsuperError

if TYPE_CHECKING:
    from pathlib import Path

    from llmsuper.measure import HeadPlan


@click.command(epilog="Example: llmsuper plan 'EleutherAI/pythia-*' --exclude '*deduped*'")
@pattern_options(required=True)
@head_options
@output_options
def plan(
    patterns: tuple[str, ...],
    exclude: tuple[str, ...],
    lists: Path | None,
    lm_head: str | None,
    file: str | None,
    allow_pr: bool,
    output: str,
) -> None:
    """Say where each LM head is and the exact bytes that `overlap` would move for it.

    Reads headers only. "to move" is the head, plus the header, index, config and tokenizer files, as far as they are not on
    this machine yet; "checkpoint" is what downloading all its weight files would move.
    """
    from llmsuper.measure import plan_head

    selection = select(patterns, exclude, lists)
    failures = Failures(len(selection.entries))
    table = Table(output, _columns(max(5, *(len(e.name) for e in selection.entries))), _as_json, _as_value)
    plans: list[HeadPlan] = []
    for entry in selection.entries:
        try:
            found = plan_head(entry, lm_head, file, allow_pr=allow_pr)
        except LlmsuperError as error:
            failures.add(entry.name, error)
            continue
        plans.append(found)
        for note in found.location.notes:
            warn(f"{entry.name}: {note}")
        table.row(found)
    if len(plans) > 1:
        heads = sum(p.location.nbytes for p in plans)
        total = sum(p.total_bytes for p in plans)
        whole = sum(p.location.checkpoint_bytes for p in plans)
        table.note(
            f"{len(plans)} heads, {size(heads)}; to move: {total:,} bytes ({size(total)}); "
            f"their checkpoints: {size(whole)}" + (f", {whole / total:.1f} times as much" if total else "")
        )
    failures.close()


def _place(found: HeadPlan) -> str:
    location = found.location
    return f"{location.tensor.name}{' (tied)' if location.tied else ''} in {location.file}"


def _columns(width: int) -> list[Column[HeadPlan]]:
    return [
        Column("model", width, lambda p: p.location.entry.name, left=True),
        Column("commit", 7, lambda p: p.location.commit.removeprefix("local-")[:7], left=True),
        Column("dtype", 5, lambda p: p.location.tensor.dtype, left=True),
        Column("rows", 7, lambda p: count(p.location.rows)),
        Column("columns", 7, lambda p: count(p.location.columns)),
        Column("head", 13, lambda p: count(p.location.nbytes)),
        Column("to move", 13, lambda p: count(p.total_bytes)),
        Column("checkpoint", 15, lambda p: count(p.location.checkpoint_bytes)),
        Column("tensor", 0, _place, left=True),  # last, for its length is anybody's guess
    ]


def _as_json(found: HeadPlan) -> dict[str, Any]:
    location = found.location
    return {
        "repo": location.entry.repo,
        "revision": location.entry.revision,
        "commit": location.commit,
        "origin": found.origin,
        "file": location.file,
        "tensor": asdict(location.tensor),
        "tied": location.tied,
        "head_bytes": location.nbytes,
        "head_bytes_to_move": found.head_bytes,
        "other_bytes_to_move": found.other_bytes,
        "bytes_to_move": found.total_bytes,
        "checkpoint_bytes": location.checkpoint_bytes,
        "notes": list(location.notes),
    }


def _as_value(found: HeadPlan) -> str:
    return f"{found.location.entry.name}\t{found.total_bytes}"
