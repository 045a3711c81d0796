"""`llmsuper overlap`: the main job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmsuper.cli.options import RESULTS, Failures, head_options, output_options, pattern_options, select, warn
from llmsuper.cli.table import Column, Table, count, size

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmsuper.measure import Outcome
    from llmsuper.types import HeadLocation, HeadRecord, RowRule


@click.command(
    epilog="Example: llmsuper overlap 'EleutherAI/pythia-*' --exclude '*deduped*'\n\n"
    "Quote globs: zsh refuses those that match no local file."
)
@pattern_options(required=True)
@head_options
@click.option(
    "--stat",
    "statistics",
    metavar="NAMES",
    help="Comma-separated statistics. Default: all there are (norms,overlap,centred_overlap).",
)
@click.option(
    "--rows",
    "row_rule",
    type=click.Choice(["tokens", "all"]),
    default="tokens",
    show_default=True,
    help="Rows that the tokenizer can emit, or every stored row, padding included.",
)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    show_default=True,
    help="Folder of records; heads that have one are not measured again.",
)
@click.option("--force", is_flag=True, help="Measure again what is stored.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first model that fails.")
@click.option("--max-bytes", type=click.IntRange(min=0), help="Refuse a head with more bytes than this to move.")
@click.option("--cache/--no-cache", "keep_heads", default=True, help="Keep fetched heads on this machine; see `cache`.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--backend", default="auto", show_default=True, help="auto, torch or reference.")
@output_options
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr what each head cost: bytes, requests, seconds.")
def overlap(
    patterns: tuple[str, ...],
    exclude: tuple[str, ...],
    lists: Path | None,
    lm_head: str | None,
    file: str | None,
    allow_pr: bool,
    statistics: str | None,
    row_rule: RowRule,
    results: Path,
    force: bool,
    fail_fast: bool,
    max_bytes: int | None,
    keep_heads: bool,
    device: str,
    backend: str,
    output: str,
    verbose: bool,
) -> None:
    """Measure row norms and overlaps of LM heads, store one record each, and print one line each.

    Only the bytes of the head are read. "overlap" is the mean squared overlap of the normalised rows, "x m" is how many
    times 1/m that is, "floor" how many times the Welch floor, "centred" the same after the mean row is taken away.
    """
    from llmsuper.measure import Settings, measure_heads
    from llmsuper.store import ResultStore, to_json

    chosen = {"statistics": tuple(s.strip() for s in statistics.split(","))} if statistics else {}
    settings = Settings(
        **chosen,
        row_rule=row_rule,
        lm_head=lm_head,
        file=file,
        backend=backend,
        device=device,
        max_bytes=max_bytes,
        keep_heads=keep_heads,
        allow_pr=allow_pr,
    )
    selection = select(patterns, exclude, lists)
    store = ResultStore(results)
    failures = Failures(len(selection.entries), fail_fast)
    width = max(5, *(len(entry.name) for entry in selection.entries))
    table = Table(output, _columns(width), lambda r: json.loads(to_json(r)), _as_value)
    bars = _Bars()
    for outcome in measure_heads(selection.entries, store, settings, force=force, watch=bars.watch):
        bars.close()
        if outcome.record is not None:
            table.row(outcome.record)
            _tell(outcome, verbose)
        if outcome.error is not None:
            failures.add(outcome.entry.name, outcome.error)
    failures.close()


def _tell(outcome: Outcome, verbose: bool) -> None:
    record = outcome.record
    assert record is not None
    for note in record.notes:
        warn(f"{outcome.entry.name}: {note}")
    if record.row_class != record.row_rule:
        warn(f"{outcome.entry.name}: statistics are over {record.row_source}")
    if verbose:
        made = record.made_by
        cost = (
            "in the store already"
            if outcome.stored
            else (
                f"{size(made['bytes_moved'])} moved in {made['requests']} requests, {made['seconds']:.1f} s, "
                f"{made['backend']} on {made['device']} in {made['precision']}"
            )
        )
        click.echo(f"{outcome.entry.name}@{record.commit[:13]} {record.file} {record.tensor}: {cost}", err=True)


class _Bars:
    """A bar of bytes per model, the Hub client's own, so that its switches work; none where stderr is not a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def watch(self, location: HeadLocation) -> Callable[[int], None]:
        from huggingface_hub.utils import tqdm

        self.close()
        self._bar = tqdm(  # type: ignore[no-untyped-call]
            desc=location.entry.name, total=location.nbytes, unit="B", unit_scale=True, leave=False, disable=None
        )
        return self._advance

    def _advance(self, n: int) -> None:
        if self._bar.n >= self._bar.total:  # the second pass, for centred statistics
            self._bar.reset()
            self._bar.set_description(f"{self._bar.desc.split(' (')[0]} (centred)")
        self._bar.update(n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _value(record: HeadRecord, statistic: str, field: str, form: str) -> str:
    """A number of a statistic; empty where the statistic was not asked for, a dash where the number does not exist."""
    found = record.statistics[record.row_class].get(statistic)
    if found is None:
        return ""
    return "–" if found[field] is None else format(found[field], form)


def _name(record: HeadRecord) -> str:
    return record.repo if record.revision == "main" else f"{record.repo}@{record.revision}"


def _columns(width: int) -> list[Column[HeadRecord]]:
    return [
        Column("model", width, _name, left=True),
        Column("rows", 7, lambda r: count(r.rows - (r.padding_rows if r.row_class == "tokens" else 0))),
        Column("padding", 7, lambda r: count(r.padding_rows)),
        Column("m", 6, lambda r: count(r.columns)),
        Column("norm", 8, lambda r: _value(r, "norms", "mean", ".4g")),
        Column("overlap", 10, lambda r: _value(r, "overlap", "mean_squared_overlap", ".4e")),
        Column("x m", 8, lambda r: _value(r, "overlap", "ratio_to_isotropic", ".2f")),
        Column("floor", 8, lambda r: _value(r, "overlap", "welch_ratio", ".2f")),
        Column("centred", 10, lambda r: _value(r, "centred_overlap", "mean_squared_overlap", ".4e")),
        Column("x m", 8, lambda r: _value(r, "centred_overlap", "ratio_to_isotropic", ".2f")),
    ]


def _as_value(record: HeadRecord) -> str:
    return f"{_name(record)}\t{_value(record, 'overlap', 'mean_squared_overlap', '.17g')}"
