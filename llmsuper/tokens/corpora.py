"""Reads a corpus piece by piece: text and JSONL files, plain or gzipped, and data sets of the Hub.

Memory does not grow with the corpus: a text file is read in pieces of about `PIECE` characters, the others one document at a
time.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsuper.errors import BackendError, FitError, HubError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedIOBase

PIECE = 1 << 14
"""Characters of a text file that make one piece, about. It ends at the end of a line where there is one, else at a blank."""

HUB = "hub:"
"""What a data set of the Hub begins with: `hub:owner/name`."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus by name, and how to read its pieces; every `pieces()` reads from the start."""

    name: str
    pieces: Callable[[], Iterator[str]]


def open_corpus(name: str, *, field: str = "text", config: str | None = None, split: str = "train") -> Corpus:
    """The corpus that `name` means: a file, or `hub:owner/name` for a data set of the Hub, which streams.

    A file is read by its suffix: `.jsonl` and `.ndjson` hold one object a line, whose `field` is the text; anything else is
    UTF-8 text. `.gz` after either is unpacked as it is read. `config` and `split` are those of a data set.

    Raises `UnknownNameError` for a file that does not exist, `BackendError` where `datasets` is not installed, `HubError`
    for a data set that cannot be opened; while it is read, `FitError` for what is not UTF-8, not JSON, or lacks the field.
    """
    if name.startswith(HUB):
        return _hub_corpus(name, field, config, split)
    path = Path(name).expanduser()
    if path.is_dir():
        raise UnknownNameError(
            f"{name}: this is a folder. Give its files, such as {name.rstrip('/')}/*.txt --together."
        )
    if not path.exists():
        raise UnknownNameError(
            f"{name}: there is no such file. Give a path that exists, or {HUB}owner/name for a data set of the Hub."
        )
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    read = READERS.get(suffixes[-1] if suffixes else "", _text)
    return Corpus(name, lambda: _guarded(path, read, field))


def _guarded(path: Path, read: Callable[[BufferedIOBase, str, str], Iterator[str]], field: str) -> Iterator[str]:
    """The pieces of a file, with what can go wrong below the format said in one line."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield from read(file, str(path), field)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FitError(f"{path}: this is not a whole gzip file ({error}). Download or pack it again.") from error
    except OSError as error:
        raise FitError(f"{path}: cannot be read ({error.strerror or error}). Check the file and its rights.") from error


def _text(file: BufferedIOBase, name: str, field: str) -> Iterator[str]:  # noqa: ARG001
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest, lines, last = "", 1, False
    while not last:
        data = file.read(PIECE)
        last = not data
        try:
            text = decoder.decode(data, final=last)
        except UnicodeDecodeError as error:
            line = lines + rest.count("\n") + error.object[: error.start].count(b"\n")
            raise FitError(
                f"{name}, line {line}: not UTF-8 ({error.reason}). Convert it, for example with "
                "`iconv -t UTF-8`, or name another file."
            ) from error
        rest += text
        while len(rest) >= PIECE or (last and rest):
            cut = len(rest) if last and len(rest) <= PIECE else _seam(rest)
            piece, rest = rest[:cut], rest[cut:]
            lines += piece.count("\n")
            yield piece


def _seam(text: str) -> int:
    """Where to cut: after the last line end before `PIECE`, else before the last blank, else at `PIECE`."""
    return text.rfind("\n", 0, PIECE) + 1 or max(text.rfind(" ", 0, PIECE), 0) or PIECE


def _json_lines(file: BufferedIOBase, name: str, field: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise FitError(f"{where}: not UTF-8 ({error.reason}). Convert the file, or name another.") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise FitError(f"{where}: not JSON ({error}). Correct the line, or remove it.") from error
        yield _field(row, field, where)


def _field(row: Any, field: str, where: str) -> str:
    if not isinstance(row, dict):
        raise FitError(f"{where}: {type(row).__name__}, not an object with a field {field!r}. Correct the line.")
    if field not in row:
        there = ", ".join(map(repr, row)) or "none"
        raise FitError(f"{where}: no field {field!r}; there are: {there}. Name one of them with --field.")
    text = row[field]
    if not isinstance(text, str):
        raise FitError(f"{where}: {field!r} is {type(text).__name__}, not text. Name another with --field.")
    return text


READERS: dict[str, Callable[[BufferedIOBase, str, str], Iterator[str]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
}
"""What reads a file, by its suffix before any `.gz`; every other suffix is text."""


def _hub_corpus(name: str, field: str, config: str | None, split: str) -> Corpus:
    try:
        datasets: Any = import_module("datasets")
    except ImportError as error:
        raise BackendError(
            f"{name}: reading a data set of the Hub needs the package `datasets`, which is not installed. "
            "Install it with `pip install datasets`, or give a text or JSONL file."
        ) from error
    repo = name.removeprefix(HUB)

    def pieces() -> Iterator[str]:
        try:
            rows = datasets.load_dataset(repo, config, split=split, streaming=True)
            for number, row in enumerate(rows, 1):
                yield _field(row, field, f"{name}, row {number} of {split}")
        except (
            OSError,
            ValueError,
            datasets.exceptions.DatasetsError,
        ) as error:  # name, config, split, connection, file
            raise HubError(
                f"{name}: the data set cannot be read ({str(error).splitlines()[0]}). Check its name, --config and --split."
            ) from error

    return Corpus(name, pieces)
