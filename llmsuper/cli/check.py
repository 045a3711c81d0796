"""`llmsuper check`: the gate for CI, whether the overlap of these heads scales as 1/m."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

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
from llmsuper.cli.table import size
from llmsuper.cli.verdict import as_markdown, print_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmsuper.check import MeasuredHead, Verdict
    from llmsuper.measure import Settings
    from llmsuper.types import HeadLocation, RowRule


READING = ("lm_head", "file", "allow_pr", "max_bytes", "keep_heads", "device", "backend")
"""Options that say how to read a head: they mean nothing where no head is read."""


@click.command(epilog="Example: llmsuper check --published --tolerance 0.7")
@pattern_options(required=False)
@head_options
@click.option("--published", is_flag=True, help="Judge the 25 overlaps that arXiv:2505.10465 plots.")
@click.option(
    "--form",
    type=click.Choice(["overlap", "centred_overlap"]),  # as in llmsuper.check, without importing scipy
    default="overlap",
    show_default=True,
    help="Overlaps of the rows, or of the rows minus their mean row.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    default=0.25,
    show_default=True,
    help="How far from -1 the 95 % interval of the exponent may reach.",
)
@click.option(
    "--upper",
    metavar="FACTOR",
    type=click.FloatRange(min=0, min_open=True),
    help="The most that m x mean squared overlap of any head may be. Default: no such bound.",
)
@click.option("--by-family", is_flag=True, help="Judge one slope with a level for each family, not one line for all.")
@click.option(
    "--undecided",
    type=click.Choice(["fail", "pass"]),
    default="fail",
    show_default=True,
    help="What it counts as when the interval is neither inside nor outside what is allowed.",
)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    show_default=True,
    help="Folder of records: all of them are judged where no PATTERN is given, and heads that have one are not read again.",
)
@measuring_options
@click.option(
    "--summary",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append the result as markdown to this file, such as $GITHUB_STEP_SUMMARY.",
)
@output_options
def check(
    patterns: tuple[str, ...],
    exclude: tuple[str, ...],
    lists: Path | None,
    lm_head: str | None,
    file: str | None,
    allow_pr: bool,
    published: bool,
    form: str,
    tolerance: float,
    upper: float | None,
    by_family: bool,
    undecided: Verdict,
    row_rule: RowRule,
    results: Path,
    max_bytes: int | None,
    keep_heads: bool,
    device: str,
    backend: str,
    summary: Path | None,
    output: str,
) -> None:
    """Exit 0 when the mean squared overlap of these heads scales as 1/m, and 1 when it does not.

    A line of log overlap against log m, at least three widths; the 95 % interval of its slope has to lie within --tolerance
    of -1. Without PATTERN, all records in --results are judged; with it, heads that have no record are measured first. It
    also says what random heads of the same shapes would have given: a slope of -1 alone is what they have.
    """
    from llmsuper.check import check_heads

    _refuse_what_would_be_ignored(published, patterns)
    if published:
        heads, notes = _published(form, exclude, lists)
    else:
        from llmsuper.measure import Settings  # imports torch, which a table does not need

        settings = Settings(
            statistics=("norms", "overlap") if form == "overlap" else ("norms", "overlap", form),
            row_rule=row_rule,
            lm_head=lm_head,
            file=file,
            backend=backend,
            device=device,
            max_bytes=max_bytes,
            keep_heads=keep_heads,
            allow_pr=allow_pr,
        )
        heads, notes = _measured(patterns, exclude, lists, results, settings, form)
    result = check_heads(heads, form=form, tolerance=tolerance, upper=upper, by_family=by_family, notes=notes)
    passed = result.passed(undecided)
    if output == "json":
        click.echo(json.dumps({**result.to_dict(), "undecided": undecided, "passed": passed}, allow_nan=False))
    elif output == "quiet":
        click.echo(f"{result.verdict}\t{result.exponent:.17g}")
    else:
        print_result(result, passed)
    if summary is not None:
        _append(summary, as_markdown(result, passed))
    if not passed:
        click.get_current_context().exit(1)


def _refuse_what_would_be_ignored(published: bool, patterns: tuple[str, ...]) -> None:
    if published and patterns:
        raise click.UsageError("--published and PATTERN exclude each other: those overlaps are read from a table.")
    context = click.get_current_context()
    means_nothing = () if patterns else (*READING, "results", "row_rule") if published else (*READING, "lists")
    for option in context.command.params:
        if option.name in means_nothing and context.get_parameter_source(option.name).name == "COMMANDLINE":  # type: ignore[union-attr]
            where = "with --published" if published else "without PATTERN, when stored records are judged"
            raise click.UsageError(f"{option.opts[0]} means nothing {where}.")


def _published(form: str, exclude: tuple[str, ...], lists: Path | None) -> tuple[list[MeasuredHead], list[str]]:
    """The published overlaps; n is what the catalog claims, since the table does not say."""
    from llmsuper.check import MeasuredHead
    from llmsuper.errors import FitError
    from llmsuper.hub.catalog import load_catalog
    from llmsuper.scaling.losses import load_overlaps

    if form != "overlap":
        raise FitError(f"the published overlaps have no {form}: only raw ones are plotted. Leave out --form.")
    rows = {entry.repo.lower(): entry.rows for entry in load_catalog(lists).entries}
    table = load_overlaps("liu2025", lists).to_dict("records")
    heads = [
        MeasuredHead(
            r["model_id"], r["family"], rows.get(r["model_id"].lower()), r["columns"], r["mean_squared_overlap"]
        )
        for r in table
        if not _excluded(r["model_id"], exclude)
    ]
    return heads, ["overlaps are read from a figure of arXiv:2505.10465; rows are what the model lists claim"]


def _measured(
    patterns: tuple[str, ...],
    exclude: tuple[str, ...],
    lists: Path | None,
    results: Path,
    settings: Settings,
    form: str,
) -> tuple[list[MeasuredHead], list[str]]:
    """The heads of the records there are, or of the patterns, and what was left out."""
    from llmsuper.check import heads_of_records
    from llmsuper.errors import FitError
    from llmsuper.measure import measure_heads
    from llmsuper.store import ResultStore

    store = ResultStore(results)
    if not patterns:
        stored = [record for record in store.records() if not _excluded(record.repo, exclude)]
        if not stored:
            raise FitError(f"{results}: no record to judge. Name heads by PATTERN, or another folder by --results.")
        return heads_of_records(stored, form, settings.row_rule)
    selection = select(patterns, exclude, lists)
    failures = Failures(len(selection.entries))
    records = []
    for outcome in measure_heads(selection.entries, store, settings, watch=_say):
        if outcome.record is not None:
            records.append(outcome.record)
            for note in outcome.record.notes:
                warn(f"{outcome.entry.name}: {note}")
        if outcome.error is not None:
            failures.add(outcome.entry.name, outcome.error)
    failures.close()  # a gate over fewer heads than were named would be another gate
    return heads_of_records(records, form, settings.row_rule)


def _say(location: HeadLocation) -> Callable[[int], None]:
    """A line a head on stderr, where CI logs keep it; a bar would be redrawn there line by line."""
    click.echo(f"reading {location.entry.name}: {size(location.nbytes)}", err=True)
    return lambda _: None


def _excluded(name: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatch(text.lower(), glob.lower()) for glob in globs for text in (name, name.rpartition("/")[2]))


def _append(path: Path, text: str) -> None:
    from llmsuper.errors import LlmsuperError

    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise LlmsuperError(f"{path}: cannot be written ({error.strerror}). Name another file by --summary.") from error
