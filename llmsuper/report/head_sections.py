"""Sections about heads: what was measured, how long the rows are, how much they overlap, and what makes that exceed 1/m."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmsuper.geometry.bounds import isotropic, welch_floor
from llmsuper.report.head_figures import CONTROLS, KINDS
from llmsuper.report.heads import drawing_line, found, head_label, lacking, rows_used, short, short_name
from llmsuper.report.markdown import NONE, Column, count, fold, join, listed, number, table
from llmsuper.report.pages import Drawing

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from llmsuper.report.heads import Family
    from llmsuper.types import HeadRecord

RAW, CENTRED, PUBLISHED = KINDS
"""The kinds of overlap that figures tell apart."""


def measured_section(family: Family) -> tuple[str, tuple[Drawing, ...]]:
    """Which bytes of which checkpoint the numbers below are about."""
    if not family.records:
        text = (
            f"No head of this family has a record here: **every number on this page is published, not measured.** "
            f"`llmsuper overlap {family.name} && llmsuper report {family.name}` measures the heads "
            "and puts their numbers beside these."
        )
        return join("## What was measured", text).rstrip(), ()
    columns = [
        Column("head", left=True), Column("commit", left=True), Column("tensor", left=True), Column("dtype", left=True),
        Column("rows $n$ used"), Column("stored"), Column("columns $m$"),
    ]  # fmt: skip
    rows = [
        [
            head_label(r), f"`{short(r.commit)}`", f"`{r.tensor}`" + (" (tied)" if r.tied else ""), r.dtype,
            count(rows_used(r)), count(r.rows), count(r.columns),
        ]
        for r in family.records
    ]  # fmt: skip
    sources = dict.fromkeys((r.row_class, r.row_source) for r in family.records)
    about_rows = [
        f"Rows counted: {source}." if kind == "all" else f"Rows counted: those that are tokens, by {source}."
        for kind, source in sources
    ]
    notes = [f"{head_label(r)}: {note}" for r in family.records for note in r.notes]
    return (
        join(
            "## What was measured",
            family.note,
            table(columns, rows),
            " ".join(about_rows) + " *Tied*: the head is the input embedding.",
            fold("Notes of the records", "\n".join(f"- {note}" for note in notes)) if notes else "",
        ).rstrip(),
        (),
    )


def norms_section(family: Family) -> tuple[str, tuple[Drawing, ...]]:
    """Norm distributions, one panel a head, and their numbers."""
    title = "## How long the rows are"
    having = [r for r in family.records if found(r, "norms") is not None]
    if not having:
        return join(title, lacking(family, "norms") or "*No head is measured.*").rstrip(), ()
    columns = [Column("head", left=True), Column("mean"), Column("standard deviation"), Column("least"), Column("1 %"),
               Column("99 %"), Column("most"), Column("longer than ½ rms")]  # fmt: skip
    rows = []
    for record in having:
        s = record.statistic("norms")
        rows.append([head_label(record), *(number(s[f]) for f in ("mean", "std", "min")), number(s["quantiles"]["0.01"]),
                     number(s["quantiles"]["0.99"]), number(s["max"]), f"{100 * s['share_above_half_rms']:.1f} %"])  # fmt: skip
    least = min(record.statistic("norms")["share_above_half_rms"] for record in having)
    drawing = Drawing(
        f"{family.name}-norms",
        "norms",
        {"bins": _bins(having), "heads": _norm_heads(having, family.name)},
        f"Histograms of row norms of {listed([head_label(r) for r in having])}, one panel each.",
    )
    zero = sum(record.statistic("norms")["zero_rows"] for record in having)
    text = (
        "In the paper's toy model a feature that is represented has a row of norm near 1, and one that is ignored has a norm "
        "near 0; *strong superposition* means that nearly all $n$ rows are represented though $n \\gg m$. A head has a scale of "
        "its own, so the last column counts rows longer than half the root-mean-square norm of their head: "
        + ("practically all of them." if least > 0.99 else f"{100 * least:.0f} % or more of each head.")
    )
    return (
        join(
            title,
            text,
            drawing_line(family, drawing),
            table(columns, rows),
            f"{count(zero)} rows of norm zero are left out of every mean." if zero else "",
            lacking(family, "norms"),
        ).rstrip(),
        (drawing,),
    )


def _bins(records: list[HeadRecord]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for record in records:
        s = record.statistic("norms")
        edges, counts = s["histogram_edges"], s["histogram_counts"]
        rows += [
            (head_label(record), left, right, n / s["rows"])
            for left, right, n in zip(edges[:-1], edges[1:], counts, strict=True)
        ]
    return pd.DataFrame(rows, columns=["label", "left", "right", "share"])


def _norm_heads(records: list[HeadRecord], family: str) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for record in records:
        s = record.statistic("norms")
        q = s["quantiles"]
        rows.append((head_label(record), family, record.columns, s["rows"], s["mean"], q["0.01"], q["0.99"]))
    return pd.DataFrame(rows, columns=["label", "family", "columns", "rows", "mean", "low", "high"])


def overlap_section(family: Family, lines: pd.DataFrame) -> tuple[str, tuple[Drawing, ...]]:
    """Mean squared overlap against 1/m, the Welch floor, the controls and what is published."""
    frame = overlap_points(family)
    drawing = Drawing(
        f"{family.name}-overlap",
        "overlap_scaling",
        {"heads": frame, "lines": lines},
        f"Mean squared overlap of the heads of {family.name} against their columns m on logarithmic axes, with the line 1/m"
        + (", all of them published values" if not family.records else "")
        + ".",
    )
    columns = [Column("head", left=True), Column("$m$"), Column("$1/m$"), Column("Welch floor")]
    if family.records:
        columns += [Column("**mean squared overlap**"), Column("× $m$"), Column("centred"), Column("× $m$")]
    if len(family.overlaps):
        columns += [Column("published"), Column("× $m$")]
    if family.records and len(family.overlaps):
        columns.append(Column("ours ÷ published"))
    text = (
        "For $n$ rows $\\hat{u}_i = w_i / \\lVert w_i \\rVert$ the mean of $(\\hat{u}_i \\cdot \\hat{u}_j)^2$ over all pairs "
        "$i \\neq j$. Random directions give $1/m$; no $n$ directions can go below the Welch floor "
        "$(n-m)/(m(n-1))$, which is nearly the same for $n \\gg m$. *× m* is how many times $1/m$ it is. "
        "*Centred*: the mean row is subtracted first, which takes away a direction that all rows share."
    )
    return (
        join(
            "## How much the rows overlap",
            text,
            drawing_line(family, drawing),
            table(columns, list(_overlap_rows(family))),
            _published_note(family),
            controls_text(family),
            pairs_text(family),
            lacking(family, "overlap"),
        ).rstrip(),
        (drawing,),
    )


def overlap_points(family: Family) -> pd.DataFrame:
    """What the figure shows of one family: a row per head and kind of overlap."""
    import pandas as pd

    rows: list[tuple[Any, ...]] = []
    for record in family.records:
        at = (head_label(record), family.name)
        floor = welch_floor(rows_used(record), record.columns) or None
        for kind, name in ((RAW, "overlap"), (CENTRED, "centred_overlap")):
            if (s := found(record, name)) is not None:
                rows.append((*at, kind, record.columns, s["mean_squared_overlap"], floor))
        rows += [(*at, name, record.columns, value, floor) for name, value in control_values(record).items()]
    for row in family.overlaps.itertuples():
        name, m = short_name(row.model_id), int(row.columns)
        n = family.stored_rows.get(name)
        rows.append((name, family.name, PUBLISHED, m, row.mean_squared_overlap, welch_floor(n, m) if n else None))
    frame = pd.DataFrame(rows, columns=["label", "family", "kind", "columns", "value", "floor"])
    return frame.astype({"floor": "float64"})


def control_values(record: HeadRecord) -> dict[str, float]:
    """Mean squared overlap of each control of this head, by the names of CONTROLS; empty where none was measured."""
    s = found(record, "controls")
    return {} if s is None else {name: s[name]["mean_squared_overlap"] for name in CONTROLS if name in s}


def _overlap_rows(family: Family) -> Iterator[list[str]]:
    published = {short_name(row.model_id): row for row in family.overlaps.itertuples()}
    measured = {head_label(record): record for record in family.records}
    names = sorted(
        {*measured, *published}, key=lambda n: (measured[n].columns if n in measured else published[n].columns, n)
    )
    for name in names:
        record, row = measured.get(name), published.get(name)
        m = record.columns if record else int(published[name].columns)
        rows = rows_used(record) if record else family.stored_rows.get(name)
        cells = [name, count(m), number(isotropic(m)), NONE if rows is None else number(welch_floor(rows, m))]
        ours = None
        if family.records:
            for statistic in ("overlap", "centred_overlap"):
                s = found(record, statistic) if record else None
                value = None if s is None else s["mean_squared_overlap"]
                ours = value if statistic == "overlap" else ours
                text = number(value)
                cells += [
                    f"**{text}**" if statistic == "overlap" and value else text,
                    NONE if value is None else number(value * m),
                ]
        if len(published):
            cells += (
                [NONE, NONE]
                if row is None
                else [number(row.mean_squared_overlap), number(row.mean_squared_overlap * m)]
            )
        if family.records and len(published):
            cells.append(NONE if row is None or ours is None else f"{ours / row.mean_squared_overlap:.3f}")
        yield cells


def _published_note(family: Family) -> str:
    if not len(family.overlaps):
        return ""
    first = family.overlaps.iloc[0]
    return (
        f"*Published*: {first['source']}, {first['source_detail']}; not printed there as numbers. They are over "
        "every stored row, "
        "padding included, and overlaps were squared in the checkpoint's own dtype. Their Welch floor here is that of the row "
        "counts in the model list."
    )


def controls_text(family: Family) -> str:
    """What the same measurement says of the head's numbers without their order, or that it was not made."""
    having = [(r, s) for r in family.records if (s := found(r, "controls")) is not None]
    if not having:
        return lacking(family, "controls") if family.records else ""
    columns = [Column("× $m$", left=True), Column("head"), Column("random"), Column("shuffled"), Column("head, centred"),
               Column("shuffled, centred")]  # fmt: skip
    rows = []
    for record, s in having:
        raw, centred = found(record, "overlap"), found(record, "centred_overlap")
        rows.append([
            head_label(record), number(raw["ratio_to_isotropic"] if raw else None),
            number(s["random"]["ratio_to_isotropic"]), number(s["shuffled"]["ratio_to_isotropic"]),
            number(centred["ratio_to_isotropic"] if centred else None),
            number(s["shuffled"]["centred_ratio_to_isotropic"]),
        ])  # fmt: skip
    text = (
        "**Controls**, measured by the same code. *Random*: rows of the same norms in random directions, which give $1/m$ "
        "whatever the model is. *Shuffled*: each column of the head in an order of its own, which keeps the mean row and the "
        "scale of every column and destroys what ties columns into rows. What the head has beyond *shuffled* is what "
        "tokens share with each other."
    )
    return join(text, table(columns, rows), lacking(family, "controls")).rstrip()


def pairs_text(family: Family) -> str:
    """The distribution of overlaps over pairs, where it was measured."""
    having = [(r, s) for r in family.records if (s := found(r, "pairs")) is not None]
    if not having:
        return ""
    columns = [Column("head", left=True), Column("mean of absolute overlap"), Column("its deviation"), Column("largest"),
               Column("÷ Welch bound"), Column("pairs")]  # fmt: skip
    rows = [
        [
            head_label(r), number(s["mean_absolute_overlap"]) + _interval(s), number(s["std_absolute_overlap"]),
            number(s["maximum_overlap"]), number(s["maximum_to_welch"]),
            f"{count(s['sampled']['pairs'])} sampled" if s["sampled"] else count(s["pairs"]),
        ]
        for r, s in having
    ]  # fmt: skip
    text = (
        "**Over all pairs.** The Welch bound on the largest absolute overlap is $\\sqrt{(n-m)/(m(n-1))}$; a largest overlap of 1 "
        "is two rows that are one direction."
    )
    crowded = [
        f"{head_label(r)} has {count(s['crowded_rows'])} in {count(s['crowds'])}"
        for r, s in having
        if s.get("crowds")  # older records and samples do not say
    ]
    crowds = f"Rows in crowds, three or more that overlap one of them above 0.95: {listed(crowded)}." if crowded else ""
    sampled = "Of a sample of pairs, mean (± half its 95 % interval) and deviation are estimates; the largest is the sample's."
    return join(text, table(columns, rows), sampled * any(s["sampled"] for _, s in having), crowds).rstrip()


def _interval(pairs: dict[str, Any]) -> str:
    """Half the interval that all pairs have their mean in; empty where it is known."""
    if pairs["sampled"] is None:
        return ""
    low, high = pairs["sampled"]["mean_absolute_overlap_interval"]
    return f" ± {number((high - low) / 2, 2)}"
