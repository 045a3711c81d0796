"""Figures of what makes the overlap exceed 1/m: leading components, and what is left when something is taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.ticker import FuncFormatter

from llmsuper.report.palette import look
from llmsuper.report.style import FAINT, INK, new_figure, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DASHES = ("-", "--", "-.", ":")


def shades(family: str, count: int) -> list[tuple[float, float, float]]:
    """A family's colour from pale (the narrowest head) to itself and on towards black (the widest)."""
    colour = np.array(to_rgb(look(family).colour))
    if count == 1:
        return [tuple(colour)]
    steps = np.linspace(-0.55, 0.35, count)
    return [tuple(colour + (1 - colour) * -step) if step < 0 else tuple(colour * (1 - step)) for step in steps]


def _plain(value: float, _: int) -> str:
    """0.1, 1, 10, 100."""
    return f"{value:g}"


def spectrum(shares: pd.DataFrame) -> Figure:
    """Share of the rows' squared length along each leading direction, and in all of them together.

    shares: label, family, columns, k (from 1), share, one row a head and direction, narrowest head first.
    """
    labels = list(dict.fromkeys(shares["label"]))
    with styled():
        figure = new_figure(3.1)
        left, right = figure.subplots(1, 2)
        colours = shades(str(shares["family"].iloc[0]), len(labels))
        for at, (label, colour) in enumerate(zip(labels, colours, strict=True)):
            of = shares[shares["label"] == label]
            m = int(of["columns"].iloc[0])
            dash = DASHES[at % len(DASHES)]
            left.plot(of["k"], 100 * of["share"], color=colour, lw=1.5, ls=dash, label=f"{label} (m = {m:,})")
            right.plot(of["k"], 100 * of["share"].cumsum(), color=colour, lw=1.5, ls=dash)
            left.plot(of["k"].iloc[-1], 100 / m, marker="_", ms=10, mew=1.6, color=colour, clip_on=False)
        left.set(xscale="log", yscale="log", xlabel="direction k, largest first", ylabel="share of squared length, %")
        left.yaxis.set_major_formatter(FuncFormatter(_plain))
        left.set_title("each direction  (tick: 1/m)")
        right.set(xscale="log", xlabel="leading directions, k", ylim=(0, None))
        right.set_title("all of the leading k together")
        for axes in (left, right):
            axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
            axes.minorticks_off()
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=1 if len(labels) < 3 else 2)
    return figure


def removals(left_over: pd.DataFrame) -> Figure:
    """How many times 1/m the overlap is when one thing is taken away from the rows.

    left_over: label, family, removal, times; removals in the order of their first row, narrowest head first.
    """
    labels, names = list(dict.fromkeys(left_over["label"])), list(dict.fromkeys(left_over["removal"]))
    with styled():
        figure = new_figure(0.9 + 0.26 * len(names) + 0.2 * len(labels))
        axes = figure.subplots()
        axes.axvline(1, color=INK, lw=1.2, ls="--", zorder=1)
        axes.annotate(
            "1/m",
            (1, 1.0),
            (0, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
        for label, colour in zip(labels, shades(str(left_over["family"].iloc[0]), len(labels)), strict=True):
            of = left_over[left_over["label"] == label]
            rows = [names.index(name) for name in of["removal"]]
            axes.plot(
                of["times"], rows, ls="", marker=look(str(of["family"].iloc[0])).marker, ms=7, color=colour, label=label
            )
        axes.set_yticks(range(len(names)), names, fontsize=8.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.set_xlabel("mean squared overlap of what is left, as a multiple of 1/m")
        axes.set_ylabel("taken away")
        axes.tick_params(axis="x", colors=FAINT, labelcolor=INK)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=1 if len(labels) < 3 else 2)
    return figure
