"""Reads model_lists into the catalog, and says which models a pattern means.

A model list is one TOML file of a family: what stands above `models` holds for every row that does not set it itself.

    family = "opt"                                          # the file is opt.toml
    rows = 50272
    models = [{ repo = "facebook/opt-350m", width = 1024, columns = 512, lists = ["liu2025"] }]
    [sources]
    width = "config.json"

`lists.toml` says what each named list is. The Hub's client is imported when a pattern needs the Hub, and torch never.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsuper.errors import CatalogError, UnknownNameError, near_matches
from llmsuper.hub.listing import at_revisions, is_glob, list_models, variant_warning
from llmsuper.types import ModelEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

PACKAGE = Path(__file__).parents[1]

CLAIMS = ("width", "columns", "rows", "vocabulary", "params")
"""What a row says before anyone has looked; `sources` says where each was read."""

REPO = re.compile(r"[\w.-]+/[\w.-]+")
OWNER_GLOB = re.compile(r"([\w.-]+)/([^/]+)")

KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("some text", lambda v: type(v) is str and v.strip() != ""),
    "repo": ("owner/name", lambda v: type(v) is str and REPO.fullmatch(v) is not None),
    "count": ("a whole number of at least 1", lambda v: type(v) is int and v >= 1),
    "names": ("a list of names", lambda v: type(v) is list and {*map(type, v)} == {str} and len({*v}) == len(v)),
    "table": ("a table", lambda v: type(v) is dict),
    "rows": ("a list of tables, one a model", lambda v: type(v) is list and all(type(row) is dict for row in v)),
}
"""What a value may be: in words, and as a test."""

SHARED_KEYS = dict.fromkeys(CLAIMS, "count") | {"revision": "text", "lm_head": "names", "note": "text"}
MODEL_KEYS = SHARED_KEYS | {"repo": "repo", "lists": "names", "unverified": "names"}
FAMILY_KEYS = SHARED_KEYS | {"family": "text", "models": "rows", "sources": "table"}
SOURCE_KEYS = dict.fromkeys((*CLAIMS, "lm_head"), "text")
LIST_KEYS = {"about": "text", "source": "text"}

LOCAL_PREFIXES = ("/", "./", "../", "~")
LOCAL_SUFFIXES = (".safetensors", ".bin", ".gguf")


@dataclass(frozen=True)
class ModelGroup:
    """A family, or a named list: its models, and where what is said of them was read."""

    name: str
    entries: tuple[ModelEntry, ...]
    sources: Mapping[str, str]
    """For a family by claim (`width`, `rows`, …); for a named list `about` and `source`."""


@dataclass(frozen=True)
class Catalog:
    """Every model list: `families` and named `lists`, each a `ModelGroup` by name."""

    families: Mapping[str, ModelGroup]
    lists: Mapping[str, ModelGroup]

    @property
    def groups(self) -> Mapping[str, ModelGroup]:
        """Families and named lists in one; no name is in both."""
        return {**self.families, **self.lists}

    @property
    def entries(self) -> tuple[ModelEntry, ...]:
        """Every model once, family by family."""
        return tuple(entry for family in self.families.values() for entry in family.entries)

    def matching(self, glob: str) -> list[ModelEntry]:
        """The entries whose `owner/name` (or name, where the glob has no slash) matches without regard to case."""
        return [entry for entry in self.entries if _matches(entry.repo, glob)]

    def find(self, repo: str) -> ModelEntry:
        """The entry of this repository, by `owner/name` or by its name alone; raises `UnknownNameError`."""
        if found := self.matching(escape(repo)):
            return found[0]
        raise self.unknown(repo)

    def unknown(self, pattern: str) -> UnknownNameError:
        """The error to raise for a pattern that matches nothing; it names what is most like it."""
        repos = [entry.repo for entry in self.entries]
        names = [*self.groups, *repos, *(repo.rpartition("/")[2] for repo in repos)]
        near = near_matches(pattern.partition("@")[0].rpartition("/")[2], names) or list(self.groups)
        then = (
            "Give one of these, owner/name of a model on the Hub, or a local path; `llmsuper models` lists the catalog"
        )
        return UnknownNameError(f"{pattern!r}: no model matches. Near to it: {', '.join(near)}. {then}.")


@dataclass(frozen=True)
class Selection:
    """What the patterns of a command mean: the models in order, none twice, and what the user should be told."""

    entries: tuple[ModelEntry, ...]
    warnings: tuple[str, ...] = ()


def model_lists_folder() -> Path:
    """The folder of model lists: inside the installed package, or beside it in a checkout."""
    for folder in (PACKAGE / "model_lists", PACKAGE.parent / "model_lists"):
        if folder.is_dir():
            return folder
    raise CatalogError(f"{PACKAGE / 'model_lists'}: there is no such folder. Install llmsuper again, or give --lists.")


def load_catalog(folder: Path | None = None) -> Catalog:
    """The catalog in this folder of TOML files; None: the one that comes with llmsuper.

    Raises `CatalogError`, which names the file, the model, what was found and what to do.
    """
    folder = folder or model_lists_folder()
    tables = {path.stem: _read_toml(path) for path in sorted(folder.glob("*.toml"), key=lambda path: path.stem)}
    about = tables.pop("lists", {})
    if not tables:
        raise CatalogError(f"{folder}: there is no model list in it. Give a folder of FAMILY.toml files.")
    families = {stem: _family(folder / f"{stem}.toml", table) for stem, table in tables.items()}
    members: dict[str, ModelEntry] = {}
    for entry in (entry for family in families.values() for entry in family.entries):
        where = f"{folder / f'{entry.family}.toml'}, {entry.repo}"
        if first := members.get(entry.name.lower()):
            raise CatalogError(f"{where}: this model is in {first.family}.toml already. Keep one row.")
        if unknown := sorted(set(entry.lists) - set(about)):
            raise CatalogError(f"{where}: `lists` names {unknown}, which lists.toml lacks. Describe it there.")
        members[entry.name.lower()] = entry
    lists = {}
    for name, told in about.items():
        where = f"{folder / 'lists.toml'}, {name}"
        _check(where, {name: told}, {name: "table"})
        _check(where, told, LIST_KEYS, LIST_KEYS)
        if name in families:
            raise CatalogError(f"{where}: this is the name of a family too. Give the list another name.")
        lists[name] = ModelGroup(name, tuple(entry for entry in members.values() if name in entry.lists), told)
        if not lists[name].entries:
            raise CatalogError(f'{where}: no model is in this list. Put lists = ["{name}"] on a row of a model.')
    return Catalog(families, lists)


def resolve_patterns(patterns: Sequence[str], catalog: Catalog, *, exclude: Sequence[str] = ()) -> Selection:
    """The models that `patterns` mean, in order and none twice, without those that an `exclude` glob matches.

    A pattern is a local path, a family, a named list, `owner/name`, or a name of the catalog alone; `*`, `?` and `[…]`
    match among those, and for `owner/glob` that the catalog lacks, among what the Hub lists. Each may end in
    `@revision`, and a glob there means each branch and tag of each model that matches, as the Hub lists them; pull
    requests only where it begins with `refs/pr`.
    Raises `UnknownNameError` for what matches nothing, `HubError` when the Hub cannot be asked.
    """
    found: dict[tuple[str, str], ModelEntry] = {}
    warnings: list[str] = []
    for pattern in patterns:
        entries, told = _resolve(pattern, catalog, exclude)
        warnings += told
        for entry in entries:
            found.setdefault((entry.repo if entry.local else entry.repo.lower(), entry.revision), entry)
    kept = tuple(entry for entry in found.values() if not _excluded(entry.repo, exclude))
    idle = [glob for glob in exclude if not any(_excluded(entry.repo, [glob]) for entry in found.values())]
    warnings += [f"--exclude {glob!r} matches none of the {len(found)} models. Check its spelling." for glob in idle]
    if found and not kept:
        raise UnknownNameError(f"{' '.join(patterns)}: --exclude leaves none of {len(found)} models. Exclude less.")
    return Selection(kept, tuple(warnings))


def _resolve(pattern: str, catalog: Catalog, exclude: Sequence[str]) -> tuple[list[ModelEntry], list[str]]:
    """The entries of one pattern, and what to warn of."""
    name, at, revision = pattern.partition("@")
    groups = [group for key, group in catalog.groups.items() if fnmatchcase(key.lower(), name.lower())]
    path = Path(pattern).expanduser() if pattern.startswith("~/") else Path(pattern)
    here = pattern != "" and path.exists()
    if here and not groups:
        return [ModelEntry(str(path), local=True)], []
    if pattern.startswith(LOCAL_PREFIXES) or pattern.endswith(LOCAL_SUFFIXES):
        raise UnknownNameError(f"{pattern}: there is no such file or folder. Check the path and the working directory.")
    if at:
        _check_revision(pattern, revision)
    warnings = [f"{pattern} is taken from the catalog; the path of that name is ./{pattern}"] if here else []
    entries = [entry for group in groups for entry in group.entries] + catalog.matching(name)
    if not entries and REPO.fullmatch(name):
        entries = [ModelEntry(name)]
    elif not entries and (asked := OWNER_GLOB.fullmatch(name)):
        repos = list_models(asked[1], asked[2])
        entries = [ModelEntry(repo) for repo in repos]
        warnings = variant_warning(pattern, [repo for repo in repos if not _excluded(repo, exclude)])
    if not entries:
        raise catalog.unknown(pattern)
    if not at:
        return entries, warnings
    wanted = [entry for entry in dict.fromkeys(entries) if not _excluded(entry.repo, exclude)]
    if not wanted or not is_glob(revision):
        return [replace(entry, revision=revision) for entry in entries], warnings
    expanded, told = at_revisions(pattern, wanted, revision)  # the Hub is not asked about what is excluded
    return expanded + [entry for entry in entries if entry not in wanted], warnings + told


def _check_revision(pattern: str, revision: str) -> None:
    if not revision or "@" in revision:
        found = f"{revision!r} is not a revision"
        raise UnknownNameError(f"{pattern!r}: {found}. Give a branch, a tag, a commit or a glob after the one @.")


def _matches(repo: str, glob: str) -> bool:
    """Whether the glob matches without regard to case: the whole id, or the name alone where the glob has no slash."""
    return fnmatchcase((repo if "/" in glob else repo.rpartition("/")[2]).lower(), glob.lower())


def _excluded(repo: str, exclude: Sequence[str]) -> bool:
    return any(_matches(repo, glob) or fnmatchcase(repo.lower(), glob.lower()) for glob in exclude)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: this is not TOML: {error}. Correct the file.") from error


def _check(where: str, table: Mapping[str, Any], keys: Mapping[str, str], required: Iterable[str] = ()) -> None:
    """Every key is known, every value of its kind, nothing required is missing; `where` begins the error."""
    for key, value in table.items():
        if key not in keys:
            raise CatalogError(f"{where}: the key {key!r} is unknown. Use one of: {', '.join(sorted(keys))}.")
        words, accepts = KINDS[keys[key]]
        if not accepts(value):
            raise CatalogError(f"{where}: {key} is {value!r}. Write {words}.")
    if missing := [key for key in required if key not in table]:
        raise CatalogError(f"{where}: {', '.join(missing)} is missing. Add it.")


def _family(path: Path, table: dict[str, Any]) -> ModelGroup:
    _check(str(path), table, FAMILY_KEYS, ("family", "models", "sources"))
    _check(f"{path}, sources", table["sources"], SOURCE_KEYS)
    if table["family"] != path.stem:
        raise CatalogError(f"{path}: family is {table['family']!r}. Name the family and the file alike.")
    shared = {key: value for key, value in table.items() if key in SHARED_KEYS}
    entries = tuple(_entry(path, f"model {at}", shared, row) for at, row in enumerate(table["models"], start=1))
    return ModelGroup(path.stem, entries, table["sources"])


def _entry(path: Path, nth: str, shared: Mapping[str, Any], row: Mapping[str, Any]) -> ModelEntry:
    where = f"{path}, {row.get('repo', nth)}"
    facts: dict[str, Any] = {**shared, **row}
    _check(where, facts, MODEL_KEYS, ("repo", "width"))
    facts.setdefault("columns", facts["width"])  # a head is as wide as its model unless the row says otherwise
    unverified = facts.pop("unverified", [])
    for part, whole in (("columns", "width"), ("vocabulary", "rows")):
        if facts.get(part, 0) > facts.get(whole, float("inf")):
            raise CatalogError(f"{where}: {part} {facts[part]} exceeds {whole} {facts[whole]}. Correct the row.")
    if strange := sorted(set(unverified) - set(facts)):
        raise CatalogError(f"{where}: `unverified` names {strange}, which the row lacks. Name claims of the row.")
    if unverified:
        facts["note"] = "; ".join([*filter(None, [facts.get("note")]), f"not verified: {', '.join(unverified)}"])
    facts |= {key: tuple(facts.get(key, ())) for key in ("lm_head", "lists")}
    return ModelEntry(family=path.stem, **facts)
