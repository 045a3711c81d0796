"""Draws token frequencies against their rank, with both power laws that were fitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmsuper.report.palette import BLUE, GREY, VERMILION
from llmsuper.report.style import new_figure, styled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from llmsuper.tokens import RankFit, TokenCounts

LOOKS = {"least-squares": (VERMILION, "--", "line"), "maximum-likelihood": (BLUE, "-", "maximum likelihood")}
"""Colour, dash and words for each way to an exponent."""
POINTS = 400
ACROSS = 3


def rank_frequency(counted: Sequence[tuple[TokenCounts, Sequence[RankFit]]]) -> Figure:
    """One panel for each corpus and tokenizer: the share of all tokens by rank, both axes logarithmic, and its fits.

    A straight line is a power law; how far the points bend away from it is what an exponent does not say.
    """
    across = min(ACROSS, len(counted))
    down = -(-len(counted) // across)
    with styled():
        figure = new_figure(0.4 + 3.0 * down, max(4.6, 3.2 * across))
        panels = np.atleast_1d(figure.subplots(down, across, sharey=True)).ravel()
        for axes, (counts, fits) in zip(panels, counted, strict=False):
            frequencies = counts.frequencies
            # as many points as can be told apart on a logarithmic axis: all 50,000 would only make the file large
            ranks = np.unique(np.rint(np.geomspace(1, len(frequencies), POINTS)).astype(int))
            axes.plot(ranks, frequencies[ranks - 1] / counts.tokens, ".", color=GREY, ms=4, alpha=0.6)
            for fit in fits:
                colour, dash, words = LOOKS[fit.method]
                ends = np.array([fit.first, fit.last], dtype=float)
                law = fit.scale * ends**-fit.exponent / counts.tokens
                error = "" if fit.jackknife is None else f" ± {fit.jackknife:.2g}"
                axes.plot(ends, law, dash, color=colour, lw=1.5, label=f"{words}: α = {fit.exponent:.3f}{error}")
            axes.set(xscale="log", yscale="log", xlabel="rank of the token")
            axes.set_title(f"{counts.corpus}\n{counts.tokens:,} tokens of {counts.tokenizer.name}", fontsize=9)
            axes.set_ylim(0.3 / max(c.tokens for c, _ in counted), 3)
            axes.legend(loc="lower left", fontsize=7, handlelength=1.8)
        for axes in panels[::across]:
            axes.set_ylabel("share of all tokens")
        for axes in panels[len(counted) :]:
            axes.set_visible(False)
    return figure
