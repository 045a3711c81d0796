"""FIGURES: one function per figure, records in, Figure out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

Measured: TypeAlias = "Mapping[str, Mapping[str, Mapping[str, Any]]]"
"""Statistics by the name of a matrix, then by the statistic's name: the inside of `HeadRecord.statistics`."""

STYLE: Any = {
    **sns.axes_style("whitegrid"),
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "svg.hashsalt": "llmsuper",  # the same figure gives the same file
}


def one_head(measured: Measured) -> Figure:
    """How long the rows of a few matrices of one shape are, and how much they overlap against 1/m and the Welch floor.

    measured: for each matrix the statistics `norms`, `overlap` and `centred_overlap`; all have the same n and m.
    """
    names = list(measured)
    colours = dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name in names:
            norms = measured[name]["norms"]
            share = [c / norms["rows"] for c in norms["histogram_counts"]]
            left.stairs(
                share, [e / norms["rms"] for e in norms["histogram_edges"]], label=name, color=colours[name], lw=1.5
            )
        left.set(
            title="How long the rows are", xlabel="row norm ÷ root-mean-square norm", ylabel="share of rows per bin"
        )
        left.set_xlim(left=0)
        left.legend(frameon=False)

        overlaps = pd.DataFrame(
            {
                "matrix": f"{name}, {form}",
                "value": measured[name][statistic]["mean_squared_overlap"],
                "of": name,
            }
            for name in names
            for form, statistic in (("as it is", "overlap"), ("mean row removed", "centred_overlap"))
        )
        # points, not bars: a logarithmic axis has no zero for a bar to start from
        sns.stripplot(
            overlaps, x="value", y="matrix", hue="of", palette=colours, legend=False, jitter=False, size=9, ax=right
        )
        first = measured[names[0]]["overlap"]
        for name, value, dash in (("1/m", first["isotropic"], "--"), ("Welch floor", first["welch_floor"], ":")):
            right.axvline(value, color="0.15", lw=1.2, ls=dash, label=f"{name} = {value:.3g}", zorder=1)
        right.set_xscale("log")
        right.set_xlim(first["welch_floor"] / 1.6, max(overlaps["value"]) * 8)
        for row, value in enumerate(overlaps["value"]):
            text = f"{value * first['columns']:.1f} × 1/m"
            right.annotate(text, (value, row), (8, 0), textcoords="offset points", va="center")
        right.set(title=f"How much they overlap (n = {first['rows']:,}, m = {first['columns']:,})", ylabel="")
        right.set_xlabel("mean squared overlap")
        right.legend(frameon=False, loc="lower right", fontsize=8, handlelength=1.6)
        right.grid(axis="y", visible=False)
    return figure


FIGURES: dict[str, Callable[..., Figure]] = {"one_head": one_head}


DATES: dict[str, dict[str, str | None]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""What leaves the date out of a figure, by the suffix of its file."""


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format of the file's suffix, without a date, so that a re-run gives the same bytes."""
    with mpl.rc_context(STYLE):
        figure.savefig(path, metadata=DATES.get(path.suffix.lower(), {}), facecolor="white")
