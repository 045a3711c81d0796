"""What there is of one family's heads, and the words that every section about them uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmsuper.report.markdown import figure, listed
from llmsuper.report.pages import FIGURE_FOLDER
from llmsuper.report.sources import SINGLE
from llmsuper.report.sources import head_label as head_label

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from llmsuper.report.pages import Drawing
    from llmsuper.report.sources import Sources
    from llmsuper.types import HeadRecord


@dataclass(frozen=True, eq=False, slots=True)
class Family:
    """What there is of one family: its records, its rows of the published tables, and what is said of it."""

    name: str
    title: str
    note: str
    pattern: str
    """What `llmsuper overlap` takes to measure these heads again."""
    records: tuple[HeadRecord, ...]
    overlaps: pd.DataFrame
    losses: pd.DataFrame
    stored_rows: Mapping[str, int]
    """Stored rows that the model list claims, by the model's name without owner."""
    figure_format: str = "svg"

    @property
    def comparable(self) -> bool:
        """Whether a line through these heads means anything."""
        return self.name != SINGLE


def family_of(name: str, sources: Sources, figure_format: str = "svg") -> Family:
    """Everything about one family. Raises `UnknownNameError` for a name of which nothing is published or stored."""
    sources.check_name(name)
    local = sources.local_families.get(name)
    records = sources.records.get(name, ())
    group = sources.catalog.families.get(name)
    claimed = {e.repo.rpartition("/")[2]: e.rows for e in group.entries if e.rows} if group else {}
    title, note = (local.title, local.note) if local else (f"The {name} family", "")
    if name == SINGLE:
        title = "Single heads"
        note = (
            "Heads that belong to no family here: each stands for itself, and a line through them would compare models that "
            "differ in everything, not only in width."
        )
    return Family(
        name=name,
        title=title,
        note=note,
        pattern=name if group else " ".join(f"./{record.repo}" for record in records),
        records=records,
        overlaps=sources.overlaps[sources.overlaps["family"] == name].sort_values("columns"),
        losses=sources.losses[sources.losses["family"] == name],
        stored_rows=claimed,
        figure_format=figure_format,
    )


def found(record: HeadRecord, name: str) -> dict[str, Any] | None:
    """A statistic of the rows that were asked for; None where the record lacks it."""
    return record.statistics[record.row_class].get(name)


def lacking(family: Family, *names: str) -> str:
    """The sentence for records without one of these statistics; empty where all have them."""
    without = [head_label(r) for r in family.records if any(found(r, name) is None for name in names)]
    if not without:
        return ""
    which = "" if len(without) == len(family.records) else f" for {listed(without)}"
    return f"*Not measured{which}: {listed(names)}. Run `llmsuper overlap {family.pattern} --stat {','.join(names)}`.*"


def rows_used(record: HeadRecord) -> int:
    """n of the statistics: stored rows, without padding where tokens are told from it."""
    return record.rows - (record.padding_rows if record.row_class == "tokens" else 0)


def short(commit: str) -> str:
    """Twelve digits of a commit, or of the digest that stands for one."""
    prefix = "local-" if commit.startswith("local-") else ""
    return prefix + commit.removeprefix("local-")[:12]


def short_name(repo: str) -> str:
    """The name without its owner."""
    return repo.rpartition("/")[2]


def drawing_line(family: Family, drawing: Drawing) -> str:
    """The figure as the page shows it."""
    return figure(f"{FIGURE_FOLDER}/{drawing.stem}.{family.figure_format}", drawing.alt)
