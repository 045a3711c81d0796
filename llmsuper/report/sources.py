"""Gathers what pages are made from: stored records by family, and the published overlaps and losses of model_lists."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from llmsuper.errors import CatalogError, UnknownNameError, near_matches
from llmsuper.hub.catalog import load_catalog, model_lists_folder
from llmsuper.store import ResultStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from llmsuper.hub.catalog import Catalog
    from llmsuper.scaling.chinchilla import ChinchillaSummary
    from llmsuper.scaling.summary import FitSummary
    from llmsuper.types import HeadRecord

SINGLE = "single-heads"
"""The page of records that belong to no family."""

DRAWS, CHINCHILLA_DRAWS, SEED = 1000, 500, 0
"""Of every bootstrap on a page."""

GROUPS_FILE = "families.toml"
"""Beside the records: which local heads make a family, and what to know of it."""


@dataclass(frozen=True, slots=True)
class LocalFamily:
    """Heads from local folders that are compared with each other: a table of `families.toml`."""

    title: str
    heads: tuple[str, ...]
    note: str


@dataclass(frozen=True, eq=False)
class Sources:
    """Everything a report is made from. `results` is the folder of records, `lists` that of model lists.

    `links` are the titles and addresses at the top of each page; an address is relative to the page.
    """

    results: Path
    lists: Path
    links: tuple[tuple[str, str], ...] = ()

    @cached_property
    def catalog(self) -> Catalog:
        return load_catalog(self.lists)

    @cached_property
    def overlaps(self) -> pd.DataFrame:
        """The published overlaps."""
        from llmsuper.scaling.losses import load_overlaps

        return load_overlaps("liu2025", self.lists)

    @cached_property
    def losses(self) -> pd.DataFrame:
        """The losses that were published with those overlaps."""
        from llmsuper.scaling.losses import load_losses

        return load_losses("liu2025", self.lists)

    @cached_property
    def chinchilla(self) -> ChinchillaSummary:
        """The Chinchilla cross-check, which takes some seconds and which two pages show."""
        from llmsuper.scaling.chinchilla import chinchilla_summary

        return chinchilla_summary(bootstrap=CHINCHILLA_DRAWS, seed=SEED)

    @cached_property
    def joint(self) -> FitSummary:
        """The paper's fit of its 108 losses with all that `llmsuper fit liu2025` says of it."""
        from llmsuper.scaling.fit import fit_law
        from llmsuper.scaling.losses import load_published_fits
        from llmsuper.scaling.recipes import RECIPES
        from llmsuper.scaling.summary import summarise

        recipe, printed = RECIPES["liu2025"], load_published_fits("liu2025", self.lists)["printed"]
        fit = fit_law(recipe.law, self.losses, x=recipe.x, group=recipe.group)
        return summarise(recipe.about, fit, draws=DRAWS, seed=SEED, moved=recipe.moved, published=printed)

    @cached_property
    def local_families(self) -> Mapping[str, LocalFamily]:
        return read_local_families(self.results / GROUPS_FILE)

    @cached_property
    def records(self) -> Mapping[str, tuple[HeadRecord, ...]]:
        """The records to show by family, narrowest head first; of several records of one head, the one that `_better` says."""
        member = {head: name for name, family in self.local_families.items() for head in family.heads}
        shown: dict[tuple[str, str, str, str], HeadRecord] = {}
        for record in ResultStore(self.results).records():
            key = (record.repo, record.revision, record.tensor, record.file if record.file.endswith(".gguf") else "")
            shown[key] = _better(shown[key], record) if key in shown else record
        families: dict[str, list[HeadRecord]] = {}
        for record in shown.values():
            families.setdefault(member.get(record.repo) or record.family or SINGLE, []).append(record)
        return {
            name: tuple(sorted(records, key=lambda r: (r.columns, r.rows, head_label(r))))
            for name, records in sorted(families.items())
        }

    @cached_property
    def passed_over(self) -> int:
        """Stored records that are not shown, because a newer one of the same head is."""
        return sum(1 for _ in ResultStore(self.results).records()) - sum(map(len, self.records.values()))

    @property
    def families(self) -> tuple[str, ...]:
        """The families that have a page: those with published overlaps, then those with records; single heads last."""
        names = dict.fromkeys([*self.overlaps["family"], *self.records])
        return tuple(sorted(names, key=lambda name: name == SINGLE))

    def check_name(self, name: str) -> None:
        """Raises `UnknownNameError` for a family of which nothing is published or stored."""
        if name not in self.families:
            near = near_matches(name, self.families) or self.families
            raise UnknownNameError(
                f"{name!r}: no overlaps of this family are published or stored in {self.results}. There are: "
                f"{', '.join(near)}. Measure it with `llmsuper overlap {name}`."
            )

    def table_digest(self, kind: str, name: str) -> str:
        """The first twelve digits of the SHA-256 of a table of model_lists: which state of it a page was made from."""
        return hashlib.sha256((self.lists / kind / f"{name}.csv").read_bytes()).hexdigest()[:12]


GUIDE = ("how to read this", "../docs/reading-a-report.md")
INDEX = ("← all pages", "README.md")


def gather(results: Path, lists: Path | None = None, reports: Path | None = None) -> Sources:
    """The sources in a folder of records and one of model lists (None: the one that comes with llmsuper).

    `reports` is where pages with an index will be: they link to it, and to the guide where that stands beside the folder.
    """
    there = reports is not None and (reports / GUIDE[1]).resolve().is_file()
    return Sources(results, lists or model_lists_folder(), (INDEX,) * (reports is not None) + (GUIDE,) * there)


def has_toys(sources: Sources) -> bool:
    """Whether there are records of toy models beside those of heads."""
    return any((sources.results.parent / "toy").glob("*.json"))


def read_local_families(path: Path) -> dict[str, LocalFamily]:
    """The tables of a `families.toml`; empty where there is no such file.

        ["qwen2.5-derived"]
        title = "Three models trained from Qwen2.5"
        heads = ["qwen2.5-coder-0.5b-instruct-rows8", …]     # `repo` of their records
        note = "What a reader has to know."

    Raises `CatalogError` for a file that is malformed.
    """
    if not path.is_file():
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        found = {
            name: LocalFamily(str(table["title"]), tuple(map(str, table["heads"])), str(table["note"]))
            for name, table in tables.items()
        }
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CatalogError(
            f"{path}: is not a list of local families ({type(error).__name__}: {error}). "
            "Give each table a title, heads (a list) and a note."
        ) from error
    heads = [head for family in found.values() for head in family.heads]
    if len(set(heads)) < len(heads):
        twice = sorted({head for head in heads if heads.count(head) > 1})
        raise CatalogError(f"{path}: {', '.join(twice)} is in two families. Leave it in one.")
    return found


def _better(one: HeadRecord, other: HeadRecord) -> HeadRecord:
    """Of two records of one head the one over tokens, then the one that is of no sample; of two alike the newer."""
    return max(
        one, other, key=lambda r: (r.row_rule == "tokens", "sample" not in r.made_by, str(r.made_by.get("date", "")))
    )


def head_label(record: HeadRecord) -> str:
    """The head's name as figures and tables show it: without the owner, with a revision that is not main."""
    name = record.repo.rstrip("/").rpartition("/")[2]
    return name if record.revision == "main" else f"{name}@{record.revision}"


def heads_frame(records: Mapping[str, Sequence[HeadRecord]]) -> pd.DataFrame:
    """The measured heads with the columns that `scaling.overlap_fits.overlap_summary` takes, family by family."""
    import pandas as pd

    rows = []
    for family, heads in records.items():
        for record in heads:
            found = record.statistics[record.row_class]
            rows.append(
                {
                    "model_id": head_label(record),
                    "family": family,
                    "columns": record.columns,
                    "mean_squared_overlap": found["overlap"]["mean_squared_overlap"] if "overlap" in found else None,
                    "centred_mean_squared_overlap": (
                        found["centred_overlap"]["mean_squared_overlap"] if "centred_overlap" in found else None
                    ),
                }
            )
    frame = pd.DataFrame(
        rows, columns=["model_id", "family", "columns", "mean_squared_overlap", "centred_mean_squared_overlap"]
    )
    return frame.astype({"mean_squared_overlap": "float64", "centred_mean_squared_overlap": "float64"})
