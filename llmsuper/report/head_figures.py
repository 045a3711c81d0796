"""Figures of heads: how long the rows are, and how much they overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.patheffects import withStroke

from llmsuper.report.palette import look
from llmsuper.report.style import FAINT, INK, new_figure, styled, widths_axis

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Measured: TypeAlias = "Mapping[str, Mapping[str, Mapping[str, Any]]]"
"""Statistics by the name of a matrix, then by the statistic's name: the inside of `HeadRecord.statistics`."""

KINDS: dict[str, dict[str, Any]] = {
    "measured": {"alpha": 1.0, "filled": True, "size": 7.5},
    "measured, mean row removed": {"alpha": 0.5, "filled": True, "size": 6.0},
    "published, not measured": {"alpha": 1.0, "filled": False, "size": 7.5},
}
"""How the kinds of overlap are drawn; a family keeps its colour and marker in each."""

CONTROLS: dict[str, str] = {"random": "+", "shuffled": "x"}
"""Markers of the controls, in grey, by the control's name."""


def one_head(measured: Measured) -> Figure:
    """How long the rows of a few matrices of one shape are, and how much they overlap against 1/m and the Welch floor.

    measured: for each matrix the statistics `norms`, `overlap` and `centred_overlap`; all have the same n and m.
    """
    names = list(measured)
    colours = dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))
    with styled():
        figure = new_figure(3.4, 9.0)
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
        left.legend()

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
            right.axvline(value, color=INK, lw=1.2, ls=dash, label=f"{name} = {value:.3g}", zorder=1)
        right.set_xscale("log")
        right.set_xlim(first["welch_floor"] / 1.6, max(overlaps["value"]) * 8)
        for row, value in enumerate(overlaps["value"]):
            text = f"{value * first['columns']:.1f} × 1/m"
            right.annotate(text, (value, row), (8, 0), textcoords="offset points", va="center")
        right.set(title=f"How much they overlap (n = {first['rows']:,}, m = {first['columns']:,})", ylabel="")
        right.set_xlabel("mean squared overlap")
        right.legend(loc="lower right", handlelength=1.6)
        right.grid(axis="y", visible=False)
    return figure


def norms(bins: pd.DataFrame, heads: pd.DataFrame) -> Figure:
    """Norm distributions, one panel per head, narrowest first.

    bins: label, left, right, share (of the head's rows). heads: label, family, columns, rows, mean, low, high (1 % and 99 %
    quantiles), one row a panel.
    """
    across = min(3, len(heads))
    down = -(-len(heads) // across)
    with styled():
        figure = new_figure(0.5 + 1.75 * down)
        panels = np.atleast_1d(figure.subplots(down, across)).ravel()
        for axes, head in zip(panels, heads.itertuples(), strict=False):
            of = bins[bins["label"] == head.label]
            colour = look(head.family).colour
            edges = [*of["left"], of["right"].iloc[-1]]
            axes.stairs(100 * of["share"], edges, fill=True, color=colour, alpha=0.35)
            axes.stairs(100 * of["share"], edges, color=colour, lw=1.1)
            axes.axvline(head.mean, color=INK, lw=1.1, ls="--")
            axes.axvspan(head.low, head.high, ymax=0.035, color=FAINT, alpha=0.6, lw=0)
            axes.set_title(_wrapped(head.label), fontsize=8.5)
            axes.text(0.98, 0.95, f"m = {head.columns:,}\nn = {head.rows:,}", transform=axes.transAxes, ha="right",
                      va="top", fontsize=8, color=FAINT)  # fmt: skip
            axes.set_xlim(left=0)
            axes.margins(y=0.25)
            axes.grid(axis="x", visible=False)
        for axes in panels[len(heads) :]:
            axes.set_visible(False)
        figure.supxlabel(
            "row norm ‖wᵢ‖, in the checkpoint's own unit  (dashed: mean; grey bar: 1 % to 99 % of rows)", fontsize=9
        )
        figure.supylabel("rows per bin, %", fontsize=9)
    return figure


def _wrapped(label: str, most: int = 30) -> str:
    """A long label in two lines, broken at a hyphen where there is one near the middle."""
    if len(label) <= most:
        return label
    hyphens = [at for at, letter in enumerate(label) if letter == "-"]
    at = min(hyphens, key=lambda h: abs(h - len(label) // 2), default=len(label) // 2)
    return f"{label[: at + 1]}\n{label[at + 1 :]}"


def overlap_scaling(heads: pd.DataFrame, lines: pd.DataFrame) -> Figure:
    """Mean squared overlap against the columns m of the head, on logarithmic axes.

    heads: label, family, kind (of KINDS or CONTROLS), columns, value, floor (Welch; missing where n is not known).
    lines: label, family, A, alpha, low, high (the widths to draw A/m^alpha between).
    """
    with styled():
        figure = new_figure(4.4)
        axes = figure.subplots()
        m = np.geomspace(heads["columns"].min() / 1.2, heads["columns"].max() * 1.2, 50)
        axes.plot(m, 1 / m, color=INK, lw=1.3, ls="--", label="1/m: random directions")
        floors = heads.dropna(subset=["floor"]).drop_duplicates(["columns", "floor"])
        if len(floors):
            axes.plot(
                floors["columns"], floors["floor"], ls="", marker="_", ms=11, mew=1.6, color=INK, label="Welch floor"
            )
        for kind, marker in CONTROLS.items():
            of = heads[heads["kind"] == kind]
            if len(of):
                axes.plot(
                    of["columns"],
                    of["value"],
                    ls="",
                    marker=marker,
                    ms=7,
                    mew=1.4,
                    color=FAINT,
                    label=f"{kind} control",
                )
        several = heads["family"].nunique() > 1
        for kind, form in KINDS.items():
            for family, of in heads[heads["kind"] == kind].groupby("family", sort=False):
                style = look(str(family))
                axes.plot(
                    of["columns"], of["value"], ls="", marker=style.marker, ms=form["size"], mew=1.4,
                    color=style.colour, mec="none" if form["filled"] else style.colour,
                    mfc=style.colour if form["filled"] else "white",
                    alpha=form["alpha"], label=f"{family}, {kind}" if several else kind,
                )  # fmt: skip
        for line in lines.itertuples():
            x = np.array([line.low, line.high])
            axes.plot(x, line.A * x**-line.alpha, color=look(line.family).colour, lw=1.4, label=line.label)
        _name_points(axes, heads)
        axes.set_yscale("log")
        axes.margins(y=0.09)
        widths_axis(axes, [float(c) for c in heads["columns"]], "columns of the head, m")
        axes.set_ylabel("mean squared overlap of the normalised rows")
        _legend_below(axes)
    return figure


def _name_points(axes: Axes, heads: pd.DataFrame) -> None:
    """The models' names at their topmost points, where there are few enough to be read."""
    own = heads[~heads["kind"].isin(CONTROLS)]
    tops = own.loc[own.groupby("label")["value"].idxmax()].sort_values(["columns", "value"], ascending=[True, False])
    if len(tops) > 9:
        return
    last = len(tops) - 1
    for at, top in enumerate(tops.itertuples()):
        # alternating, so that neighbours do not meet; inwards at both ends, so that long names stay inside
        side = "center" if len(top.label) < 14 else {0: "left", last: "right"}.get(at, "center")
        axes.annotate(
            top.label, (top.columns, top.value), (0, 8 if at % 2 == 0 else -13), textcoords="offset points", ha=side,
            fontsize=7.5, color=FAINT,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip


def _legend_below(axes: Axes) -> None:
    """The legend under the axes: points and lines fill all of the inside."""
    handles, labels = axes.get_legend_handles_labels()
    across = 2 if max(map(len, labels)) > 34 else 3
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=across, handlelength=1.8, columnspacing=1.4)
