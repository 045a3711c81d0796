"""Reads a sweep, a TOML file of grids, into the list of its runs.

    [common]                       keys of every version
    n = 1000
    m = [10, 15]                   a list varies, anything else is fixed
    [full]                         one section a version; its keys replace those of [common]
    gamma = [-1.0, 0.5]            the paper's signed γ, or `regulariser` and `strength`
    [reduced]
    seed = [0, 1]
    [[reduced.together.shape]]     parameters that vary together under a name of their own: each table is one choice,
    m = 8                          and a list in it varies within that choice
    lr = 0.02

The runs of a version are the product of all lists and of all that varies together. A key is the name of a field of
`ToyRun`, or `gamma`.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsuper.errors import CatalogError, LlmsuperError, lookup
from llmsuper.toy.run import ToyRun, read_gamma

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.resources.abc import Traversable

KEYS: tuple[str, ...] = (*(field.name for field in fields(ToyRun)), "gamma")
VERSIONS: tuple[str, ...] = ("full", "reduced")


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep's name, what it is for, and the runs of each of its versions."""

    name: str
    title: str
    versions: dict[str, tuple[ToyRun, ...]]


def sweep_files() -> dict[str, Traversable]:
    """The sweeps that come with llmsuper, by name."""
    folder = files("llmsuper.toy").joinpath("sweeps")
    return {
        entry.name.removesuffix(".toml"): entry
        for entry in sorted(folder.iterdir(), key=lambda e: e.name)
        if entry.name.endswith(".toml")
    }


def load_sweep(name: str) -> Sweep:
    """The sweep of that name, or in the file at that path if it ends in `.toml`.

    Raises `UnknownNameError` for a name that is in no table, `CatalogError` for a file that is no sweep, with the key.
    """
    place = Path(name) if name.endswith(".toml") else lookup(sweep_files(), name, "sweep")
    try:
        text = place.read_text(encoding="utf-8")
        loaded = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CatalogError(f"sweep {name}: cannot be read ({error}). Correct the file, or name another.") from error
    unknown = [key for key in loaded if key not in ("title", "common", *VERSIONS)]
    if unknown or not any(version in loaded for version in VERSIONS):
        raise CatalogError(
            f"sweep {name}: {f'has a section {unknown[0]!r}' if unknown else 'has no runs'}. "
            f"The sections are title, common, {', '.join(VERSIONS)}, of which one of the last two must be there."
        )
    versions = {}
    for version in [version for version in VERSIONS if version in loaded]:
        where = f"sweep {name}, [{version}]"
        try:
            section = _replaced(loaded.get("common", {}), loaded[version])
        except (ValueError, AttributeError, TypeError) as error:
            raise CatalogError(
                f"{where}: is not made of tables ({error}). What varies together is [[{version}.together.NAME]]."
            ) from None
        versions[version] = _runs(where, section)
    return Sweep(Path(name).stem, str(loaded.get("title", "")), versions)


def choose(runs: Iterable[ToyRun], only: Sequence[str]) -> tuple[ToyRun, ...]:
    """The runs whose parameters equal every `KEY=VALUE` of `only`; several values of one key, with commas, are any of them.

    Numbers are compared to a relative 1e-3, so that γ may be given as it is printed. Raises `UnknownNameError` for an unknown
    key, `LlmsuperError` for what is no KEY=VALUE and for a value that no run has.
    """
    chosen = tuple(runs)
    for text in only:
        key, equals, wanted = text.partition("=")
        if not equals:
            raise LlmsuperError(f"--only {text}: is not KEY=VALUE. Write for example --only m=10,15.")
        lookup(dict.fromkeys(KEYS), key, "parameter of a toy run")
        left = tuple(run for run in chosen if any(_same(getattr(run, key), value) for value in wanted.split(",")))
        if not left:
            there = sorted({str(_short(getattr(run, key))) for run in chosen})
            raise LlmsuperError(f"--only {text}: no run has it; {key} is {', '.join(there)}. Choose among these.")
        chosen = left
    return chosen


def _replaced(common: dict[str, Any], section: dict[str, Any]) -> dict[str, Any]:
    """`common` without what `section` sets, alone or together with others, and `section`."""
    together = {key for tables in _axes(section).values() for table in tables for key in table}
    return {key: value for key, value in common.items() if key not in together} | section


def _axes(section: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What varies together, by the name it was given. Raises `ValueError` where that is not written as tables."""
    axes: dict[str, list[dict[str, Any]]] = section.get("together", {})
    if not isinstance(axes, dict) or not all(
        isinstance(tables, list) and tables and all(isinstance(table, dict) for table in tables)
        for tables in axes.values()
    ):
        raise ValueError(f"together = {axes!r}")
    return axes


def _runs(place: str, section: dict[str, Any]) -> tuple[ToyRun, ...]:
    section = dict(section)
    axes = _axes(section)
    section.pop("together", None)
    for key in {key for tables in ([section], *axes.values()) for table in tables for key in table}:
        if key not in KEYS:
            try:
                lookup(dict.fromkeys(KEYS), key, "parameter of a toy run")
            except LlmsuperError as error:
                raise CatalogError(f"{place}: {error}") from None
    found: list[ToyRun] = []
    for tables in itertools.product(*axes.values()):
        merged = section | {key: value for table in tables for key, value in table.items()}
        lists = [value if isinstance(value, list) else [value] for value in merged.values()]
        found += [_run(place, dict(zip(merged, values, strict=True))) for values in itertools.product(*lists)]
    if len(set(found)) < len(found):
        raise CatalogError(
            f"{place}: {len(found) - len(set(found))} runs are there twice. Take the repeated values out."
        )
    return tuple(found)


def _run(place: str, given: dict[str, Any]) -> ToyRun:
    if "gamma" in given:
        if {"regulariser", "strength"} & set(given):
            raise CatalogError(f"{place}: gamma and a named regulariser are two names of one knob. Give one of them.")
        given["regulariser"], given["strength"] = read_gamma(_number(place, "gamma", given.pop("gamma")))
    for field in fields(ToyRun):
        if field.name in given:
            given[field.name] = _typed(place, field.name, str(field.type), given[field.name])
    missing = [name for name in ("m", "regulariser", "strength") if name not in given]
    if missing:
        raise CatalogError(f"{place}: no {missing[0]!r}. Give m, and gamma or both regulariser and strength.")
    try:
        return ToyRun(**given)
    except LlmsuperError as error:
        raise type(error)(f"{place}: {error}") from None


def _typed(place: str, key: str, kind: str, value: Any) -> Any:
    """`value` as the field's type; an int may stand for a float, nothing else for anything."""
    if kind.startswith("float"):
        return _number(place, key, value)
    if type(value).__name__ != kind:
        raise CatalogError(f"{place}: {key} = {value!r} is not of type {kind}. Correct it.")
    return value


def _number(place: str, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise CatalogError(f"{place}: {key} = {value!r} is not a finite number. Correct it.")
    return float(value)


def _same(value: Any, wanted: str) -> bool:
    if isinstance(value, str) or value is None:
        return wanted == str(value)
    try:
        return math.isclose(value, float(wanted), rel_tol=1e-3)
    except ValueError:
        return False


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
