"""NormAccumulator → NormStatistics: how long the rows are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from llmsuper.errors import CheckpointError
from llmsuper.geometry.blocks import Request

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmsuper.geometry.blocks import Rows, Steps, UnitBlock

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BINS = 64


@dataclass(frozen=True, slots=True)
class NormStatistics:
    """Norms ‖wᵢ‖ of the rows that are not zero, in the checkpoint's own unit.

    φ_½ and φ_1 of arXiv:2505.10465 (equations 3 and 9) are the shares above ½ and above 1. They presume that training pulls
    norms to 1, as in the toy models. A language model's head has a scale of its own, so the same shares are given relative
    to its root-mean-square norm as well.
    """

    rows: int
    """Rows counted: those of non-zero norm."""
    zero_rows: int
    mean: float
    std: float
    """Population standard deviation."""
    rms: float
    min: float
    max: float
    quantiles: dict[str, float]
    """Norm at each of QUANTILES, linear between order statistics."""
    histogram_edges: list[float]
    """BINS + 1 edges, evenly spaced from min to max."""
    histogram_counts: list[int]
    share_above_half: float
    share_above_one: float
    share_above_half_rms: float
    share_above_rms: float


class NormAccumulator:
    """Keeps every norm (8 bytes a row), so that quantiles are exact."""

    products: ClassVar[int] = 0

    def __init__(self) -> None:
        self._parts: list[NDArray[np.float64]] = []

    @property
    def norms(self) -> NDArray[np.float64]:
        """(n,) every norm so far, ascending, zeros left out."""
        every = np.concatenate(self._parts) if self._parts else np.empty(0)
        return np.sort(every[every > 0])  # sorted: sums over them do not depend on the order of the rows

    def summarize(self, block: UnitBlock) -> NDArray[np.float64]:
        return block.norms

    def add(self, partial: NDArray[np.float64]) -> None:
        self._parts.append(partial)

    def update(self, block: UnitBlock) -> None:
        self.add(self.summarize(block))

    def merge(self, other: NormAccumulator) -> None:
        self._parts.extend(other._parts)

    def compute(self) -> NormStatistics:
        """Raises `CheckpointError` when no row has a non-zero norm."""
        norms, seen = self.norms, sum(len(part) for part in self._parts)
        if norms.size == 0:
            raise CheckpointError(f"none of {seen} rows has a non-zero norm. Is this the right tensor? See --lm-head.")
        counts, edges = np.histogram(norms, bins=BINS, range=_histogram_range(norms))
        rms = float(np.sqrt(np.mean(np.square(norms))))
        return NormStatistics(
            rows=int(norms.size),
            zero_rows=int(seen - norms.size),
            mean=float(norms.mean()),
            std=float(norms.std()),
            rms=rms,
            min=float(norms[0]),
            max=float(norms[-1]),
            quantiles={f"{q:g}": float(v) for q, v in zip(QUANTILES, np.quantile(norms, QUANTILES), strict=True)},
            histogram_edges=[float(e) for e in edges],
            histogram_counts=[int(c) for c in counts],
            share_above_half=float(np.mean(norms > 0.5)),
            share_above_one=float(np.mean(norms > 1.0)),
            share_above_half_rms=float(np.mean(norms > 0.5 * rms)),
            share_above_rms=float(np.mean(norms > rms)),
        )


NORMS = Request("norms", NormAccumulator)


def norms(_: Rows) -> Steps:
    """The statistic `norms`: one pass."""
    (found,) = yield (NORMS,)
    return found.compute()


def _histogram_range(norms: NDArray[np.float64]) -> tuple[float, float]:
    """[min, max], widened by one part in 10⁶ where all norms are equal but for rounding: bins need a width."""
    low, high = float(norms[0]), float(norms[-1])
    return (low, high) if high - low > 1e-6 * high else (low * (1 - 1e-6), high * (1 + 1e-6))
