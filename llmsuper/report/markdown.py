"""The pieces of markdown that GitHub renders: tables, figures with alt text, folds, and numbers of few digits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NONE = "–"
"""What a cell shows where there is no number."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading; numbers stand right, names left."""

    title: str
    left: bool = False


def number(value: float | None, digits: int = 3) -> str:
    """`value` to so many significant digits: 0.0952, 23.4, 1,860, 1.2e+09; a dash for None.

    Digits are few on purpose: what is printed has to be the same on every machine, whatever its BLAS rounds.
    """
    if value is None:
        return NONE
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size > 6:
        return f"{value:.{digits - 1}e}"
    rounded = round(value, digits - 1 - size)
    return f"{rounded:,.{max(0, digits - 1 - size)}f}"


def fixed(value: float | None, places: int = 2) -> str:
    """`value` to so many decimal places, for exponents and other numbers of one scale; a dash for None."""
    if value is None:
        return NONE
    text = f"{value:.{places}f}".replace("-", "−")
    return text.lstrip("−") if float(f"{value:.{places}f}") == 0 else text


def with_error(value: float, error: float | None, places: int = 2) -> str:
    """0.91 ± 0.06."""
    return fixed(value, places) + ("" if error is None else f" ± {fixed(error, places)}")


def span(low: float | None, high: float | None, places: int = 2) -> str:
    """[0.79, 1.04]; an end that the points do not determine is said to be open."""
    return f"[{'open' if low is None else fixed(low, places)}, {'open' if high is None else fixed(high, places)}]"


def count(value: int) -> str:
    """50,257."""
    return f"{value:,}"


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    """A table, as narrow as its texts: GitHub gives a wide one a scroll bar of its own."""
    lines = [[column.title for column in columns], ["---" if column.left else "---:" for column in columns]]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"{len(row)} cells in a table of {len(columns)} columns: {row}")
        lines.append([cell.replace("|", "\\|") for cell in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(path: str, alt: str) -> str:
    """A figure by its path relative to the page, with what it shows in words."""
    return f"![{alt.replace('[', '(').replace(']', ')')}]({path})"


def fold(title: str, body: str) -> str:
    """What most readers pass over, behind a line to click on."""
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def navigation(links: Iterable[tuple[str, str]]) -> str:
    """Links in one line."""
    return " · ".join(f"[{title}]({address})" for title, address in links)


def command(text: str) -> str:
    """Something to type."""
    return f"```sh\n{text}\n```"


def join(*parts: str) -> str:
    """Parts of a page with an empty line between them; what is empty leaves no gap."""
    return "\n\n".join(part for part in parts if part) + "\n"


def listed(names: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
