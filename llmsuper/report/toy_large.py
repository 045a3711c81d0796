"""The section of the toy page on the large model: loss against width for three laws of feature frequency."""

from __future__ import annotations

import numpy as np
import pandas as pd

from llmsuper.report.markdown import NONE, Column, fixed, join, table, with_error
from llmsuper.report.pages import Drawing
from llmsuper.report.toy_bench import Bench, Section, difference_table, missing, named, there
from llmsuper.report.toy_cells import agreement, cells, experiment, exponents

LARGE_N = 10_240
CURVE = ["regime", "distribution"]


def large_section(bench: Bench) -> Section:
    """Figure 1: the loss of the large model against m, strong and weak. Losses compare at the paper's n alone."""
    title = "Figure 1: loss against width, weak and strong"
    found = experiment(bench.frame, "large")
    if found is None:
        return missing(title, "large")
    n = int(found.setting["n"])
    runs = found.runs.assign(regime=np.where(found.runs["gamma"] < 0, "strong", "weak"))
    ours = cells(runs, [*CURVE, "m"], "test_loss")
    law = cells(runs[runs["regime"] == "weak"], [*CURVE, "m"], "theory.weak_loss_m")
    theirs = named(bench.published("loss_n10240"), feature_distribution="distribution", loss="published")
    windows = named(
        bench.published("r_squared"), feature_distribution="distribution", model_exponent_recomputed="published"
    )
    lines = _lines(runs, windows, n == LARGE_N)
    theirs, compared = (theirs, windows) if n == LARGE_N else (theirs[:0], windows[:0])
    both = ours.merge(theirs[[*CURVE, "m", "published"]], on=[*CURVE, "m"])
    both_lines = lines.merge(compared[[*CURVE, "published"]], on=CURVE)
    both["difference"] = both["mean"] - both["published"]
    both_lines["difference"] = both_lines["exponent"] - both_lines["published"]
    drawing = Drawing(
        "toy-1-loss",
        "toy_large",
        {
            "ours": ours,
            "theirs": theirs[[*CURVE, "m", "published"]],
            "theory": law.rename(columns={"mean": "loss"}),
        },
        "Loss against m for exponential, power and linear feature frequencies, in strong and in weak superposition.",
    )
    other_n = f" The published curves have n = {LARGE_N:,}: losses at n = {n:,} are others, and only slopes stand beside them."
    text = join(
        f"## {title}",
        f"n = {n:,} features with frequencies that fall exponentially, as a power (α = 1.2), or linearly."
        + (other_n if n != LARGE_N else ""),
        bench.show(drawing),
        _line_table(lines, windows),
        difference_table(
            "Loss", both.assign(distribution=both["regime"] + " " + both["distribution"]), "frequencies m"
        ),
    )
    return Section(
        text.rstrip(),
        (drawing,),
        there(
            agreement(both, "loss of the large model", "1", relative=True),
            agreement(both_lines, "exponent of the large model", "1", relative=False),
        ),
    )


def _lines(runs: pd.DataFrame, windows: pd.DataFrame, full: bool) -> pd.DataFrame:
    """The exponent of each curve: with the paper's n over the m that the authors fit, else over all m."""
    fits = [
        exponents(
            runs[(runs["regime"] == row.regime) & (runs["distribution"] == row.distribution)],
            CURVE,
            int(row.smallest_m_in_fit) if full else 0,
        )
        for row in windows.itertuples()
    ]
    return pd.concat([fit for fit in fits if len(fit)] or fits[:1], ignore_index=True)


def _line_table(lines: pd.DataFrame, windows: pd.DataFrame) -> str:
    """Exponent and R² of each curve beside the published ones, which leave out the smallest m of some."""
    theirs = windows.set_index(CURVE)
    columns = [Column("superposition", left=True), Column("frequencies", left=True)]
    columns += map(Column, ("exponent ± line", "spread", "seeds", "m", "R²", "published exponent", "R²", "from m"))
    rows = []
    for row in lines.itertuples():
        other = theirs.loc[(row.regime, row.distribution)]
        rows.append(
            [
                row.regime,
                row.distribution,
                with_error(row.exponent, row.stderr),
                NONE if np.isnan(row.sd) else fixed(row.sd),
                str(row.seeds),
                str(row.points),
                fixed(row.r_squared, 3),
                with_error(other["published"], other["standard_error"]),
                fixed(other["r_squared_bar"], 3),
                f"{other['smallest_m_in_fit']:.0f}",
            ]
        )
    return table(columns, rows) if rows else ""
