"""`llmsuper overlap`: the main job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from llmsuper.cli.options import (
    RESULTS,
    Failures,
    head_options,
    measuring_options,
    output_options,
    pattern_options,
    select,
    warn,
)
from llmsuper.cli.table import Column, Table, count, size

if TYPE_CHECKING:
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
    help="Comma-separated statistics: norms, overlap, centred_overlap (the default, all three), spectrum, groups, anisotropy, "
    "controls, pairs; or all. `pairs` looks at n²/2 pairs, which takes minutes on a CPU; the others take seconds.",
)
@click.option(
    "--sample",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SHARE|TILES",
    help="Of `pairs` look at a random share (0.01), or number (200), of the tiles of 256 x 256 overlaps: estimates with an "
    "interval, in a record of their own. A head whose pairs are all in the store is not measured again.",
)
@click.option(
    "--compat",
    type=click.Choice(["liu2025"]),
    help="The numbers as the authors of arXiv:2505.10465 compute them too, beside ours. All pairs: minutes on a CPU.",
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
@measuring_options
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    help="exact (float64), float32, or fast (float16 products); auto: float32, exact where that is needed.",
)
@click.option(
    "--shard",
    type=click.Choice(["auto", "rows", "models"]),
    default="auto",
    show_default=True,
    help="What several processes (torchrun, accelerate launch) share: the rows of each head, or the models.",
)
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
    sample: float | None,
    compat: str | None,
    row_rule: RowRule,
    results: Path,
    force: bool,
    fail_fast: bool,
    max_bytes: int | None,
    keep_heads: bool,
    device: str,
    backend: str,
    precision: str,
    shard: Literal["auto", "rows", "models"],
    output: str,
    verbose: bool,
) -> None:
    """Measure row norms and overlaps of LM heads, store one record each, and print one line each.

    Only the bytes of the head are read. "overlap" is the mean squared overlap of the normalised rows, "x m" is how many
    times 1/m that is, "floor" how many times the Welch floor, "centred" the same after the mean row is taken away. What
    --stat asks for besides stands below the head's line.
    """
    from llmsuper.cli.blocks import block
    from llmsuper.measure import Settings, measure_heads
    from llmsuper.processes import join_processes
    from llmsuper.store import ResultStore, to_json

    chosen = _statistics(statistics, compat)
    if sample is not None and "pairs" not in chosen:
        raise click.UsageError(
            f"--sample {sample:g} is a sample of pairs, and --stat asks for {', '.join(chosen)}. "
            "Add pairs to --stat, or leave --sample out."
        )
    settings = Settings(
        chosen,
        row_rule=row_rule,
        lm_head=lm_head,
        file=file,
        backend=backend,
        device=device,
        max_bytes=max_bytes,
        keep_heads=keep_heads,
        allow_pr=allow_pr,
        precision=precision,
        shard=shard,
        sample=sample,
    )
    processes = join_processes()
    selection = processes.from_first(lambda: select(patterns, exclude, lists))
    store = ResultStore(results)
    failures = Failures(len(selection.entries), fail_fast)
    width = max(5, *(len(entry.name) for entry in selection.entries))
    table = Table(output, _columns(width), lambda r: json.loads(to_json(r)), _as_value)
    bars = _Bars()
    for outcome in measure_heads(
        selection.entries, store, settings, force=force, watch=bars.watch, processes=processes
    ):
        bars.close()
        if outcome.record is not None:
            table.row(outcome.record)
            for text in filter(None, (block(outcome.record, name) for name in chosen)):
                table.note(text)
            _tell(outcome, verbose)
        if outcome.error is not None:
            failures.add(outcome.entry.name, outcome.error)
    failures.close()


def _statistics(names: str | None, compat: str | None) -> tuple[str, ...]:
    """What --stat and --compat ask for, in the order of STATISTICS; `all` is all but what --compat is for."""
    from llmsuper.geometry import DEFAULT_STATISTICS, STATISTICS

    asked = [name.strip() for name in names.split(",")] if names else list(DEFAULT_STATISTICS)
    if "all" in asked:
        asked.remove("all")
        asked += [name for name, row in STATISTICS.items() if not row.every_row]
    if compat:
        asked += ["overlap", compat]  # ours, to stand beside theirs
    unknown = [name for name in asked if name not in STATISTICS]  # `Settings` says what there is
    return (*unknown, *(name for name in STATISTICS if name in asked))


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
    """Bars of one model at a time, the Hub client's own, so that its switches work; none where stderr is not a terminal.

    One of bytes for each pass over its rows, and one for what takes n² m operations.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._location: HeadLocation | None = None
        self._passes = 0
        self._step = ""

    def watch(self, location: HeadLocation) -> _Bars:
        self.close()
        self._location, self._passes = location, 0
        return self

    def __call__(self, n: int) -> None:
        """So many more bytes of the rows have been read."""
        assert self._location is not None
        if self._bar is None or self._step or self._bar.n >= self._bar.total:
            self._passes += 1
            self._open(f"(pass {self._passes})" if self._passes > 1 else "", self._location.nbytes, unit="B")
        self._bar.update(n)

    def step(self, name: str, done: int, total: int) -> None:
        """So much of a long computation is done."""
        if self._step != name:
            self._open(f"({name})", total, unit="it")
            self._step = name
        self._bar.update(done - self._bar.n)

    def _open(self, what: str, total: int, unit: str) -> None:
        from huggingface_hub.utils import tqdm

        assert self._location is not None
        self.close()
        name = f"{self._location.entry.name} {what}".rstrip()
        self._bar = tqdm(  # type: ignore[no-untyped-call]
            desc=name, total=total, unit=unit, unit_scale=unit == "B", leave=False, disable=None
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar, self._step = None, ""


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
