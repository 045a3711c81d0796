"""`llmsuper tokens`: how often the tokens of a corpus occur, and the exponent of their ranks."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmsuper.cli.options import output_options, warn
from llmsuper.cli.table import Column, Table, count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmsuper.tokens import RankFit, TokenCounts

    Counted = tuple[TokenCounts, list[RankFit]]

METHODS = ("least-squares", "maximum-likelihood")  # as in tokens.power_law, without importing numpy


def _ranks(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int | None]:  # noqa: ARG001
    if value is None:
        return 1, None
    first, colon, last = value.partition(":")
    try:
        window = int(first or 1), int(last) if last else None
    except ValueError:
        window = 0, None
    if not colon or window[0] < 1 or (window[1] is not None and window[1] <= window[0]):
        raise click.BadParameter(f"{value!r} is not FIRST:LAST, two ranks with 1 <= FIRST < LAST")
    return window


@click.command(epilog="Example: llmsuper tokens README.md --tokenizer words")
@click.argument("corpora", nargs=-1, required=True, metavar="CORPUS...")
@click.option(
    "--tokenizer",
    "tokenizers",
    multiple=True,
    required=True,
    metavar="NAME",
    help="words, bytes, a tokenizer.json or its folder, or owner/name of the Hub; repeatable.",
)
@click.option("--together", is_flag=True, help="Count all corpora as one.")
@click.option("--field", default="text", show_default=True, help="Field of a JSONL line or of a data set.")
@click.option("--config", help="Configuration of a data set, such as en of allenai/c4.")
@click.option("--split", default="train", show_default=True, help="Split of a data set.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Stop there; the paper takes 1000000.")
@click.option("--ranks", callback=_ranks, metavar="FIRST:LAST", help="Ranks to fit. Default: all that occur.")
@click.option("--counts", type=click.Path(dir_okay=False, path_type=Path), help="Write the counts to this CSV file.")
@click.option("--figure", type=click.Path(dir_okay=False, path_type=Path), help="Draw: a .svg, .png or .pdf file.")
@output_options
def tokens(
    corpora: tuple[str, ...],
    tokenizers: tuple[str, ...],
    together: bool,
    field: str,
    config: str | None,
    split: str,
    max_tokens: int | None,
    ranks: tuple[int, int | None],
    counts: Path | None,
    figure: Path | None,
    output: str,
) -> None:
    """Count the tokens of texts, and fit frequency ∝ rank^-α.

    CORPUS is a UTF-8 text file, a .jsonl file, either of them gzipped, or hub:owner/name for a data set of the Hub, which
    streams and needs --max-tokens and the package datasets.

    α is found twice: by the paper's line through points that are uniform in log rank, and by maximum likelihood, where every
    token weighs the same. Where the two differ, the frequencies are no power law over these ranks. ± is one standard
    error over texts.
    """
    from llmsuper.tokens import count_tokens, fit_ranks, open_corpus, open_tokenizer

    if max_tokens is None and any(name.startswith("hub:") for name in corpora):
        raise click.UsageError("A data set of the Hub needs --max-tokens; the paper takes 1000000.")
    opened = [open_corpus(name, field=field, config=config, split=split) for name in corpora]
    named = [(corpus.name, [corpus]) for corpus in opened]
    if together:
        named = [(" + ".join(corpora), opened)]
    for name in tokenizers:
        open_tokenizer(name)  # a wrong name is said before an hour of counting
    table: Table[Counted] = Table(output, _columns(max(len(name) for name, _ in named)), _as_json, _as_value)
    done: list[Counted] = []
    bars = _Bars()
    for name, parts in named:
        for tokenizer in tokenizers:
            pieces = (piece for part in parts for piece in part.pieces())
            watch = bars.watch(f"{name} {tokenizer}", max_tokens)
            try:
                found = count_tokens(name, pieces, open_tokenizer(tokenizer), max_tokens=max_tokens, watch=watch)
            finally:
                bars.close()
            first, last = ranks
            fits = [fit_ranks(found, method, first=first, last=last) for method in METHODS]
            done.append((found, fits))
            table.row(done[-1])
            if not found.complete:
                warn(f"{name}: counting stopped at {max_tokens:,} tokens, before the corpus ended")
            if fits[0].jackknife is None:
                warn(f"{name}: one text only, so there is no error over texts")
    if counts is not None:
        _write_counts(counts, done)
    if figure is not None:
        _draw(figure, done)


class _Bars:
    """A bar of tokens for each count, the Hub client's own; none where stderr is not a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def watch(self, name: str, total: int | None) -> Any:
        from huggingface_hub.utils import tqdm

        self._bar = tqdm(desc=name, total=total, unit="token", unit_scale=True, leave=False, disable=None)  # type: ignore[no-untyped-call]
        return self._bar.update

    def close(self) -> None:
        self._bar.close()


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _columns(width: int) -> list[Column[Counted]]:
    return [
        Column("corpus", width, lambda r: r[0].corpus, left=True),
        Column("tokenizer", 9, lambda r: r[0].tokenizer.name, left=True),
        Column("tokens", 10, lambda r: count(r[0].tokens)),
        Column("types", 7, lambda r: count(r[0].types)),
        Column("ranks", 10, lambda r: f"{r[1][0].first}:{r[1][0].last}"),
        Column("α line", 7, lambda r: f"{r[1][0].exponent:.3f}"),
        Column("±", 7, lambda r: _error(r[1][0].jackknife)),
        Column("α likely", 8, lambda r: f"{r[1][1].exponent:.3f}"),
        Column("±", 7, lambda r: _error(r[1][1].jackknife)),
        Column("misfit", 6, lambda r: f"{r[1][1].misfit:.3f}"),
    ]


def _as_json(row: Counted) -> dict[str, Any]:
    counts, fits = row
    return {
        "corpus": counts.corpus,
        "tokenizer": counts.tokenizer.name,
        "vocabulary": counts.tokenizer.vocabulary,
        "tokens": counts.tokens,
        "types": counts.types,
        "texts": counts.texts,
        "complete": counts.complete,
        "fits": [fit.to_dict() for fit in fits],
    }


def _as_value(row: Counted) -> str:
    return "\t".join((row[0].corpus, row[0].tokenizer.name, *(format(fit.exponent, ".17g") for fit in row[1])))


def _rows(done: list[Counted]) -> Iterator[dict[str, Any]]:
    for counts, _ in done:
        for row in counts.rows():
            yield {"corpus": counts.corpus, "tokenizer": counts.tokenizer.name, **row}


def _write_counts(path: Path, done: list[Counted]) -> None:
    from llmsuper.errors import LlmsuperError

    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ("corpus", "tokenizer", "rank", "id", "token", "count"))
            writer.writeheader()
            writer.writerows(_rows(done))
    except OSError as error:
        raise LlmsuperError(
            f"{path}: the counts cannot be written ({error}). Name another file with --counts."
        ) from error
    click.echo(f"counts: {path}", err=True)


def _draw(path: Path, done: list[Counted]) -> None:
    from llmsuper.errors import LlmsuperError
    from llmsuper.report.figures import save
    from llmsuper.report.token_figures import rank_frequency

    try:
        save(rank_frequency(done), path)
    except (OSError, ValueError) as error:
        raise LlmsuperError(
            f"{path}: the figure cannot be written ({error}). Name another file with --figure."
        ) from error
    click.echo(f"figure: {path}", err=True)
