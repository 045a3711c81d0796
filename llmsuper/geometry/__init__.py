"""What the rows of a matrix look like; knows nothing of where they came from. ACCUMULATORS: the statistics by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsuper.geometry.norms import NormAccumulator
from llmsuper.geometry.overlap import CentredGramAccumulator, GramAccumulator

if TYPE_CHECKING:
    from llmsuper.geometry.blocks import Accumulator

ACCUMULATORS: dict[str, type[Accumulator]] = {
    "norms": NormAccumulator,
    "overlap": GramAccumulator,
    "centred_overlap": CentredGramAccumulator,
}
