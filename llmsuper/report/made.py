"""The section on how a page was made: command, versions, commits, bytes, time, and what a reader of fits should be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmsuper.report.markdown import NONE, Column, bullets, command, count, fold, join, table
from llmsuper.report.sources import CHINCHILLA_DRAWS, DRAWS, SEED
from llmsuper.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmsuper.report.sources import Sources
    from llmsuper.types import HeadRecord

LIU2025 = (("overlaps", "liu2025"), ("losses", "liu2025"))

CHECKLIST: Mapping[str, str] = {
    "What is fitted": "$L = E + A/m^{\\alpha}$: $A$ and $\\alpha$ shared, $E$ per group; overlaps by "
    "$\\ln(\\text{overlap}) = \\ln A - \\alpha \\ln m$",
    "Variable": "$m$: width of the model for losses, columns of the head for overlaps (they differ for opt-350m)",
    "Points": "every row of the table that the section names; none is left out as an outlier",
    "How the points were got": "published figures and tables; the models differ in depth, data and training, not only in width",
    "Tokens seen": "alike within a family, not between families; not a variable of the law",
    "Objective": "least squares on nats (losses), on logarithms (overlaps)",
    "Optimiser": "variable projection: given $\\alpha$ the rest is linear and solved exactly; $\\alpha$ scanned "
    "over its whole range, then refined",
    "Start values": "none to choose: the scan covers the range",
    "Weights": "none",
    "Error bars": "95 %: profile of the sum of squares (F), Student's $t$ for straight lines, percentiles of a "
    "bootstrap over models within families",
    "Seed": f"{SEED}, of {count(DRAWS)} draws; {count(CHINCHILLA_DRAWS)} for Chinchilla",
    "Checked against": "NIST's certified DanWood fit, and the authors' own printed fit (`llmsuper fit liu2025`)",
    "Code and data": "this repository: `llmsuper/scaling`, `model_lists/losses`, `model_lists/overlaps`",
}
"""What the survey (Mis)Fitting (arXiv:2502.18969) found that papers on scaling laws leave unsaid."""


def made_section(
    said: str,
    records: Sequence[HeadRecord],
    sources: Sources,
    *,
    fits: bool,
    tables: Sequence[tuple[str, str]] = LIU2025,
) -> str:
    """How a page was made. Dates and seconds are those of the records: a re-run of the report changes nothing."""
    named = [f"`model_lists/{kind}/{name}.csv`, SHA-256 `{sources.table_digest(kind, name)}…`" for kind, name in tables]
    lines = [
        (
            f"llmsuper {__version__}. Nothing on this page is typed in by hand: `llmsuper report --check` makes it again "
            "and compares."
        ),
        *(f"Published numbers: {line}." for line in named),
    ]
    if records:
        moved, seconds = (sum(r.made_by.get(key, 0) for r in records) for key in ("bytes_moved", "seconds"))
        lines.append(
            f"{len(records)} record{'s' * (len(records) > 1)} of `llmsuper overlap`: {count(moved)} bytes moved over "
            "the network, "
            f"{seconds:.1f} s in all."
        )
    body = [command(said), bullets(lines)]
    if records:
        body.append(fold("The records", table(RECORD_COLUMNS, [_record_row(r) for r in records])))
    body.append(
        fold(
            "Disclosure checklist for the fits (arXiv:2502.18969)",
            table((Column("", left=True), Column("", left=True)), [[k, v] for k, v in CHECKLIST.items()]),
        )
        if fits or records
        else ""
    )
    return join("## How this was made", *body).rstrip()


RECORD_COLUMNS = (
    Column("repo", left=True), Column("commit", left=True), Column("file", left=True), Column("measured", left=True),
    Column("by", left=True), Column("bytes moved"), Column("seconds"),
)  # fmt: skip


def _record_row(record: HeadRecord) -> list[str]:
    made: Mapping[str, Any] = record.made_by
    by = (
        f"llmsuper {made.get('version', NONE)}, {made.get('backend', NONE)} on {made.get('device', NONE)}, "
        f"{made.get('precision', NONE)}"
    )
    return [
        record.repo, f"`{record.commit}`", f"`{record.file}`", str(made.get("date", NONE))[:10], by,
        count(made["bytes_moved"]) if "bytes_moved" in made else NONE,
        f"{made['seconds']:.1f}" if "seconds" in made else NONE,
    ]  # fmt: skip
