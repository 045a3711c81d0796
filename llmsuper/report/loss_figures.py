"""Figures of fits: losses against width, exponents with their intervals, and the shapes of Chinchilla's models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from llmsuper.report.palette import ACCENT, look
from llmsuper.report.style import FAINT, INK, new_figure, styled, widths_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = {"family": "-", "all": "--"}
"""Lines of a fit to the family alone, and of one shared by all families."""


def losses(points: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Losses against the model's width with fitted laws, one panel per data set.

    points: dataset, family, width, loss (nats per token). curves: dataset, scope (of CURVES), label, A, alpha, E: loss =
    E + A/width^alpha.
    """
    names = list(dict.fromkeys(points["dataset"]))
    across = min(2, len(names))
    down = -(-len(names) // across)
    with styled():
        figure = new_figure(0.7 + 2.05 * down)
        panels = np.atleast_1d(figure.subplots(down, across, sharex=True)).ravel()
        for axes, name in zip(panels, names, strict=False):
            of = points[points["dataset"] == name]
            m = np.geomspace(points["width"].min() / 1.05, points["width"].max() * 1.05, 100)
            for curve in curves[curves["dataset"] == name].itertuples():
                colour = look(str(of["family"].iloc[0])).colour if curve.scope == "family" else INK
                axes.plot(
                    m,
                    curve.E + curve.A * m**-curve.alpha,
                    color=colour,
                    lw=1.3,
                    ls=CURVES[curve.scope],
                    label=curve.label,
                )
                axes.axhline(curve.E, color=colour, lw=0.9, ls=":", zorder=1)
            for family, part in of.groupby("family", sort=False):
                style = look(str(family))
                axes.plot(
                    part["width"],
                    part["loss"],
                    ls="",
                    marker=style.marker,
                    ms=6,
                    color=style.colour,
                    label=f"{family}, published",
                )
            axes.set_title(name)
            widths_axis(axes, [float(w) for w in points["width"]], "")
        for axes in panels[len(names) - across : len(names)]:
            axes.set_xlabel("width of the model, m  (dotted: floor E)")
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        figure.supylabel("loss, nats per token", fontsize=9)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    return figure


def exponents(estimates: pd.DataFrame, expected: pd.DataFrame) -> Figure:
    """Estimates of one exponent with their 95 % intervals, one line each, and the values that theories expect.

    estimates: label, family (blank: none), estimate, low, high (missing: open). expected: label, value. The axis shows −1 to
    3.5 at most; an arrow stands where an interval goes on.
    """
    ends = pd.concat([estimates["low"], estimates["high"], estimates["estimate"], expected["value"]]).dropna()
    low, high = max(min(0.0, ends.min() - 0.1), -1.0), min(max(ends.max() + 0.1, 1.4), 3.5)
    with styled():
        figure = new_figure(0.75 + 0.27 * len(estimates))
        axes = figure.subplots()
        for value in expected.itertuples():
            axes.axvline(value.value, color=INK, lw=1.2, ls="--", zorder=1)
            axes.annotate(value.label, (value.value, 1.0), (0, 3), xycoords=("data", "axes fraction"), ha="center",
                          textcoords="offset points", fontsize=8, color=INK)  # fmt: skip
        for row, e in enumerate(estimates.itertuples()):
            style = look(e.family) if e.family else None
            colour, marker = (style.colour, style.marker) if style else (INK, "o")
            ends_of = [low if pd.isna(e.low) else e.low, high if pd.isna(e.high) else e.high]
            axes.plot(np.clip(ends_of, low, high), [row, row], color=colour, lw=1.6, solid_capstyle="butt")
            if pd.isna(e.low) or e.low < low:
                axes.plot(low, row, marker="<", color=colour, ms=6, clip_on=False)
            if pd.isna(e.high) or e.high > high:
                axes.plot(high, row, marker=">", color=colour, ms=6, clip_on=False)
            if low <= e.estimate <= high:
                axes.plot(e.estimate, row, marker=marker, color=colour, ms=6.5)
        axes.set_yticks(range(len(estimates)), list(estimates["label"]), fontsize=8)
        axes.set_ylim(len(estimates) - 0.4, -0.6)
        axes.set_xlim(low, high)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("exponent α with 95 % interval  (arrow: goes on, or is open)")
    return figure


def shapes(models: pd.DataFrame, line: pd.DataFrame) -> Figure:
    """Parameters against width of the models behind Chinchilla, with N ∝ m^k.

    models: width, params. line: label, k, intercept (of ln N on ln m).
    """
    with styled():
        figure = new_figure(3.1, 5.4)
        axes = figure.subplots()
        axes.plot(
            models["width"],
            models["params"],
            ls="",
            marker="o",
            ms=4.5,
            color=ACCENT,
            alpha=0.7,
            label="a row of table A9",
        )
        m = np.array([models["width"].min(), models["width"].max()])
        for fit in line.itertuples():
            axes.plot(m, np.exp(fit.intercept) * m**fit.k, color=INK, lw=1.3, ls="--", label=fit.label)
        axes.set_yscale("log")
        widths_axis(axes, [float(w) for w in models["width"]], "width of the model, m")
        axes.set_ylabel("parameters, N")
        axes.legend(loc="upper left")
        axes.tick_params(colors=FAINT, labelcolor=INK)
    return figure
