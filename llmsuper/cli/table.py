"""Prints rows as they come: an aligned table, one JSON object a line, or bare values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """A title, the width to keep for it, and the text of a row under it. Numbers stand right, names left."""

    title: str
    width: int
    text: Callable[[T], str]
    left: bool = False

    def cell(self, text: str) -> str:
        width = max(self.width, len(self.title))
        return text.ljust(width) if self.left else text.rjust(width)


class Table(Generic[T]):
    """One printer for the three output formats; a killed run keeps the lines that were printed."""

    def __init__(
        self,
        output: str,
        columns: list[Column[T]],
        as_json: Callable[[T], dict[str, Any]],
        as_value: Callable[[T], str],
    ) -> None:
        self.output, self.columns, self.as_json, self.as_value = output, columns, as_json, as_value
        self._begun = False

    def row(self, item: T) -> None:
        if self.output == "json":
            click.echo(json.dumps(self.as_json(item), allow_nan=False))
        elif self.output == "quiet":
            click.echo(self.as_value(item))
        else:
            if not self._begun:
                self._line([column.title for column in self.columns])
                self._begun = True
            self._line([column.text(item) for column in self.columns])

    def note(self, text: str) -> None:
        """A line below a table for people."""
        if self.output == "human" and self._begun:
            click.echo(text)

    def _line(self, texts: list[str]) -> None:
        cells = (column.cell(text) for column, text in zip(self.columns, texts, strict=True))
        click.echo("  ".join(cells).rstrip())


def count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def size(n: int) -> str:
    """Bytes for people: 1,234 B, 51.5 MB, 14.00 GB (powers of ten)."""
    if n < 10_000:
        return f"{n:,} B"
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if n >= scale:
            return f"{n / scale:,.{2 if unit == 'GB' else 1}f} {unit}"
    return f"{n / 1e3:,.1f} kB"
