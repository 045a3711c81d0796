"""FIGURES: one function per figure, frames in, Figure out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsuper.report.cause_figures import removals, spectrum
from llmsuper.report.head_figures import norms, one_head, overlap_scaling
from llmsuper.report.loss_figures import exponents, losses, shapes
from llmsuper.report.style import STYLE as STYLE
from llmsuper.report.style import styled
from llmsuper.report.toy_figures import TOY_FIGURES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.figure import Figure

FIGURES: dict[str, Callable[..., Figure]] = {
    "one_head": one_head,
    "norms": norms,
    "overlap_scaling": overlap_scaling,
    "spectrum": spectrum,
    "removals": removals,
    "losses": losses,
    "exponents": exponents,
    "shapes": shapes,
    **TOY_FIGURES,
}


DATES: dict[str, dict[str, str | None]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""What leaves the date out of a figure, by the suffix of its file."""

ABOUT: dict[str, str] = {".svg": "Description", ".png": "Description", ".pdf": "Subject"}
"""Where a file of that suffix keeps a sentence about itself."""


def save(figure: Figure, path: Path, about: str | None = None) -> None:
    """Write the figure in the format of the file's suffix, without a date, so that a re-run gives the same bytes."""
    suffix = path.suffix.lower()
    metadata = {**DATES.get(suffix, {}), **({ABOUT[suffix]: about} if about else {})}
    with styled():
        figure.savefig(path, metadata=metadata, facecolor="white")
