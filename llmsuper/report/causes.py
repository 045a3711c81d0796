"""The section on what makes the overlap exceed 1/m: a shared direction, a few leading components, rare tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmsuper.report.heads import drawing_line, found, head_label, lacking
from llmsuper.report.markdown import NONE, Column, count, fixed, join, listed, number, table
from llmsuper.report.pages import Drawing

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from llmsuper.report.heads import Family
    from llmsuper.types import HeadRecord

TITLE = "## What makes it exceed $1/m$"

REMOVALS: Mapping[str, str] = {
    "as_it_is": "nothing",
    "mean_row": "the mean row",
    "mean_direction": "the mean direction",
    "leading_1": "the leading component",
    "leading_4": "4 leading components",
    "leading_16": "16 leading components",
    "late": "the later half of the ids",
    "early": "the earlier half of the ids",
    "without_crowd": "the crowd",
}
"""What is taken away, by its name in `AnisotropyStatistics.table`; `late` is what is left without the early half."""

LEFT = {"late": "early", "early": "late"}
"""Where a name of REMOVALS says what is taken away and the record says what is left."""


def causes_section(family: Family) -> tuple[str, tuple[Drawing, ...]]:
    """Mean direction, leading components, rare tokens: what each record can say."""
    if not family.records:
        text = "*Not measured: a published overlap is one number a head, which does not say what it is made of.*"
        return join(TITLE, text).rstrip(), ()
    parts = [_mean_direction(family), _spectrum(family), _anisotropy(family), _groups(family)]
    missing = listed_lacking(family, ("spectrum", "anisotropy", "groups"))
    return join(TITLE, *(text for text, _ in parts), missing).rstrip(), tuple(d for _, ds in parts for d in ds)


def listed_lacking(family: Family, names: tuple[str, ...]) -> str:
    """One sentence for all the statistics that no record has; one each for those that some have."""
    nobody = [n for n in names if all(found(r, n) is None for r in family.records)]
    some = [lacking(family, n) for n in names if n not in nobody]
    return join(lacking(family, *nobody) if nobody else "", *some).rstrip()


def having(family: Family, name: str) -> list[tuple[HeadRecord, dict[str, Any]]]:
    """The records with this statistic, and the statistic."""
    return [(r, s) for r in family.records if (s := found(r, name)) is not None]


def _mean_direction(family: Family) -> tuple[str, tuple[Drawing, ...]]:
    """How much of the overlap one common direction makes."""
    columns = [Column("head", left=True), Column("mean overlap"), Column("its square, share"), Column("× $m$"),
               Column("× $m$, centred"), Column("directions filled"), Column("of $m$")]  # fmt: skip
    rows = []
    for record in family.records:
        raw, centred = found(record, "overlap"), found(record, "centred_overlap")
        if raw is None:
            continue
        rows.append([
            head_label(record), fixed(raw["mean_overlap"], 3),
            f"{100 * raw['mean_overlap'] ** 2 / raw['mean_squared_overlap']:.0f} %",
            number(raw["ratio_to_isotropic"]), number(centred["ratio_to_isotropic"] if centred else None),
            number(raw["participation_ratio"]), count(record.columns),
        ])  # fmt: skip
    if not rows:
        return "", ()
    text = (
        "**A direction that all rows share.** If overlaps have a mean $\\bar{c}$, their mean square is at least "
        "$\\bar{c}^2$ at any "
        "width: the third column says how much of it that alone is. *Directions filled* is the participation ratio, $m$ for rows "
        "that fill all directions evenly."
    )
    return join(text, table(columns, rows)).rstrip(), ()


def _spectrum(family: Family) -> tuple[str, tuple[Drawing, ...]]:
    heads = having(family, "spectrum")
    if not heads:
        return "", ()
    drawing = Drawing(
        f"{family.name}-spectrum",
        "spectrum",
        {"shares": _shares(family, heads)},
        f"Share of the rows' squared length along the 32 leading directions of {listed([head_label(r) for r, _ in heads])}.",
    )
    columns = [
        Column("head", left=True),
        Column("leading direction"),
        Column("half of the length in"),
        Column("90 % in"),
        Column("of $m$"),
    ]
    rows = [
        [
            head_label(r),
            f"{100 * s['leading_share']:.1f} %",
            f"{s['directions_for_half']}",
            f"{s['directions_for_90_percent']}",
            count(r.columns),
        ]
        for r, s in heads
    ]
    text = (
        "**Leading components.** Eigenvalues of $G = \\sum_i \\hat{u}_i \\hat{u}_i^\\top$, not centred: rows "
        "that fill all directions evenly would have $1/m$ in each."
    )
    return join(text, drawing_line(family, drawing), table(columns, rows)).rstrip(), (drawing,)


def _shares(family: Family, heads: list[tuple[HeadRecord, dict[str, Any]]]) -> pd.DataFrame:
    import pandas as pd

    rows = [
        (head_label(r), family.name, r.columns, k, share)
        for r, s in heads
        for k, share in enumerate(s["leading_shares"], 1)
    ]
    return pd.DataFrame(rows, columns=["label", "family", "columns", "k", "share"])


def _anisotropy(family: Family) -> tuple[str, tuple[Drawing, ...]]:
    heads = having(family, "anisotropy")
    if not heads:
        return "", ()
    parts = {head_label(r): {name: s["table"].get(LEFT.get(name, name)) for name in REMOVALS} for r, s in heads}
    drawing = Drawing(
        f"{family.name}-removals",
        "removals",
        {"left_over": _left_over(family.name, parts)},
        f"Mean squared overlap of {listed([head_label(r) for r, _ in heads])} as a multiple of 1/m when one thing is "
        "taken away from the rows.",
    )
    columns = [Column("taken away", left=True), *(Column(head_label(r)) for r, _ in heads)]
    rows = [
        [
            words,
            *(
                number(found_part["ratio_to_isotropic"]) if (found_part := part[name]) else NONE
                for part in parts.values()
            ),
        ]
        for name, words in REMOVALS.items()
    ]
    crowds = [f"{head_label(r)} {count(s['table']['crowd']['rows'])}" for r, s in heads if s["table"]["crowd"]["rows"]]
    text = (
        "**Take one thing away and look at what is left**, as a multiple of $1/m$. Early ids are frequent tokens. "
        "*The crowd* is the rows "
        "that share one direction once the mean direction is gone, as rows do that training hardly touched ([arXiv:2405.05417]"
        "(https://arxiv.org/abs/2405.05417))" + (f": {listed(crowds)} rows." if crowds else ".")
    )
    return join(text, drawing_line(family, drawing), table(columns, rows)).rstrip(), (drawing,)


def _left_over(family: str, parts: dict[str, dict[str, dict[str, float] | None]]) -> pd.DataFrame:
    import pandas as pd

    rows = [
        (label, family, words, part["ratio_to_isotropic"])
        for name, words in REMOVALS.items()
        for label, of_head in parts.items()
        if (part := of_head[name]) is not None and part["ratio_to_isotropic"] is not None
    ]
    return pd.DataFrame(rows, columns=["label", "family", "removal", "times"])


def _groups(family: Family) -> tuple[str, tuple[Drawing, ...]]:
    heads = having(family, "groups")
    if not heads:
        return "", ()
    columns = [Column("head", left=True), Column("shortest tenth"), Column("middle"), Column("longest tenth"),
               Column("shortest with longest"), Column("weak rows")]  # fmt: skip
    rows = []
    for record, s in heads:
        square: list[list[float | None]] = s["decile_mean_squared_overlap"]
        cells = [square[0][0], square[4][4], square[-1][-1], square[0][-1]]
        times = [None if value is None else value * record.columns for value in cells]
        rows.append([head_label(record), *map(number, times), count(s["weak_rows"])])
    text = (
        "**Short rows and long ones.** Mean squared overlap, × $m$, within a tenth of the rows by norm and between "
        "the ends. *Weak*: not "
        "longer than half the root-mean-square norm."
    )
    return join(text, table(columns, rows)).rstrip(), ()
