"""What the rows of a matrix look like; knows nothing of where they came from. STATISTICS: the statistics by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsuper.geometry import anisotropy, compat, controls, groups, norms, overlap, spectrum
from llmsuper.geometry.blocks import Statistic

if TYPE_CHECKING:
    from llmsuper.geometry.blocks import Rows, Steps


def _pairs(rows: Rows) -> Steps:
    from llmsuper.geometry.pairs import all_pairs

    return all_pairs(
        rows.blocks, rows.backend, mask=rows.mask, sample=rows.sample, share=rows.share, progress=rows.progress
    )
    yield  # it reads the rows itself, and asks for nothing


STATISTICS: dict[str, Statistic] = {
    "norms": Statistic(norms.norms, passes=1, default=True),
    "overlap": Statistic(overlap.overlap, passes=1, default=True),
    "centred_overlap": Statistic(overlap.centred_overlap, passes=2, default=True),
    "spectrum": Statistic(spectrum.spectrum, passes=1),
    "groups": Statistic(groups.groups, passes=2),
    "anisotropy": Statistic(anisotropy.anisotropy, passes=3),
    "controls": Statistic(controls.controls, passes=1, reads=1),
    "pairs": Statistic(_pairs, reads=1, shared=True),
    "liu2025": Statistic(compat.liu2025, passes=1, reads=1, every_row=True),
}
"""What `llmsuper overlap --stat` can ask for, and `--compat` (the last)."""

DEFAULT_STATISTICS = tuple(name for name, row in STATISTICS.items() if row.default)
