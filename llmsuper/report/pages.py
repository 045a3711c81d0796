"""A page and its figures before they are written: how they get to disk, and whether what is there is still what they say."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from llmsuper.errors import LlmsuperError, lookup

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import pandas as pd

FIGURE_FOLDER = "figures"
FORMATS = ("svg", "png")
DIGEST = "data sha256:"


@dataclass(frozen=True, eq=False, slots=True)
class Drawing:
    """A figure before it is drawn: a row of FIGURES and the frames it takes.

    Frames hold what the page prints: measured and published numbers as they are stored, fitted ones rounded as they are
    shown. So `digest` is the same wherever the page is.
    """

    stem: str
    """The name of its file, without suffix."""
    figure: str
    frames: Mapping[str, pd.DataFrame]
    alt: str

    @property
    def digest(self) -> str:
        """SHA-256 of the figure's name and frames, floats to eight significant digits."""
        parts = [self.figure]
        for name, frame in self.frames.items():
            parts += [name, frame.to_csv(index=False, float_format="%.8g", lineterminator="\n")]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def draw(self, path: Path) -> None:
        """Draw into a file of the suffix's format; the digest stands in its metadata."""
        from llmsuper.report.figures import FIGURES, save

        save(lookup(FIGURES, self.figure, "figure")(**self.frames), path, about=f"{self.alt} {DIGEST}{self.digest}")


@dataclass(frozen=True, eq=False, slots=True)
class Page:
    """One markdown file and the figures it shows. `figure_format` is the suffix that its text names."""

    name: str
    text: str
    drawings: tuple[Drawing, ...] = ()
    figure_format: str = "svg"

    def write(self, folder: Path) -> Iterator[Path]:
        """Write figures, then the page, each path as it is done. Raises `LlmsuperError` where a file cannot be written."""
        try:
            (folder / FIGURE_FOLDER).mkdir(parents=True, exist_ok=True)
            for drawing in self.drawings:
                path = self._figure(folder, drawing)
                drawing.draw(path)
                yield path
            path = folder / f"{self.name}.md"
            path.write_text(self.text, encoding="utf-8", newline="\n")
            yield path
        except OSError as error:
            raise LlmsuperError(
                f"{folder}: the report cannot be written ({error.strerror or error}). "
                "Free it, or name another folder with --reports DIR."
            ) from error

    def stale(self, folder: Path) -> Iterator[str]:
        """What of this page on disk is not what it would be now: one sentence a file, none where all is well."""
        path = folder / f"{self.name}.md"
        if not path.is_file():
            yield f"{path}: there is no such page"
        else:
            difference = first_difference(path.read_text(encoding="utf-8"), self.text)
            if difference is not None:
                yield f"{path}, {difference}"
        for drawing in self.drawings:
            path = self._figure(folder, drawing)
            if not path.is_file():
                yield f"{path}: there is no such figure"
            elif f"{DIGEST}{drawing.digest}".encode() not in path.read_bytes():
                yield f"{path}: was drawn from other data, or changed by hand"

    def _figure(self, folder: Path, drawing: Drawing) -> Path:
        return folder / FIGURE_FOLDER / f"{drawing.stem}.{self.figure_format}"


def first_difference(found: str, expected: str) -> str | None:
    """Where two texts part: the line's number and both readings; None where they are the same."""
    if found == expected:
        return None
    lines = zip_longest(found.split("\n"), expected.split("\n"))
    at, (here, there) = next((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1])
    return f"line {at}: {_quoted(here)} is there, {_quoted(there)} is what the records and tables give"


def _quoted(line: str | None) -> str:
    if line is None:
        return "nothing"
    return f"{line[:120]!r}{'…' if len(line) > 120 else ''}"


def stale_pages(pages: Iterable[Page], folder: Path) -> list[str]:
    """Every file of these pages that is stale; one sentence each."""
    return [sentence for page in pages for sentence in page.stale(folder)]
