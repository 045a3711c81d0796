"""How every figure looks: one style, an opaque light panel that is legible on dark pages too, and shared axes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

WIDTH = 7.2
"""Inches; a page on GitHub is as wide, and on a telephone half of it is still readable."""

INK, FAINT = "0.15", "0.45"

STYLE: Any = {
    **sns.axes_style("whitegrid"),
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": "0.7",
    "axes.labelcolor": INK,
    "text.color": INK,
    "grid.color": "0.9",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "svg.hashsalt": "llmsuper",  # the same figure gives the same file
}


@contextmanager
def styled() -> Iterator[None]:
    """The house's style for what is drawn inside, whatever the user's own settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, inches."""
    return Figure(figsize=(width, height), layout="constrained")


def widths_axis(axes: Axes, widths: list[float], label: str) -> None:
    """A logarithmic x axis of widths with the widths themselves as ticks, so that nobody has to count decades."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    axes.set_xscale("log")
    low, high = min(widths), max(widths)
    margin = max((high / low) ** 0.06, 1.08)
    axes.set_xlim(low / margin, high * margin)
    powers = [2.0**k for k in range(4, 16)]
    near = [p for p in powers if low / margin <= p <= high * margin]
    # a few widths are their own ticks; among many, powers of two
    axes.xaxis.set_major_locator(FixedLocator(near if len(set(widths)) > 4 else sorted(set(widths))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
