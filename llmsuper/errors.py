"""The one base error, its six kinds with exit statuses, and `lookup(table, name)`.

    LlmsuperError                exit_code = 1
    ├─ UnknownNameError     3    ├─ CheckpointError  5
    ├─ CatalogError         3    ├─ BackendError     6
    ├─ HubError             4    └─ FitError         7

A message names the thing, what was found, and the next step. A bug inside the house stays `ValueError` or
`AssertionError` and shows its traceback.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

T = TypeVar("T")


class LlmsuperError(Exception):
    """Anything a user can put right; the command line prints it as one `error:` and leaves with `exit_code`."""

    exit_code = 1


class UnknownNameError(LlmsuperError):
    """A name or pattern that is in no table and matches nothing."""

    exit_code = 3


class CatalogError(LlmsuperError):
    """A model list that is malformed, or whose claim the checkpoint contradicts."""

    exit_code = 3


class HubError(LlmsuperError):
    """The Hub is not reachable, refuses, or served something other than what was asked for."""

    exit_code = 4


class CheckpointError(LlmsuperError):
    """A checkpoint that is malformed, unsupported, or holds a non-finite row."""

    exit_code = 5


class BackendError(LlmsuperError):
    """A backend or device that cannot run here."""

    exit_code = 6


class FitError(LlmsuperError):
    """Too few points for a fit, or no convergence."""

    exit_code = 7


def near_matches(name: str, known: Iterable[str], count: int = 5) -> list[str]:
    """The `count` known names most like `name`, best first, compared without regard to case."""
    by_lower = {k.lower(): k for k in known}
    return [by_lower[k] for k in get_close_matches(name.lower(), by_lower, n=count, cutoff=0.5)]


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """`table[name]`, or an `UnknownNameError` that lists the names there are."""
    try:
        return table[name]
    except KeyError:
        near = near_matches(name, table)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownNameError(f"no {what} is named {name!r}; there are: {', '.join(sorted(table))}.{hint}") from None
