"""SpectrumStatistics: along how many directions the rows lie, from the eigenvalues of their Gram matrix.

G = Σᵢ ûᵢ ûᵢᵀ (m × m) has eigenvalues λ₁ ≥ λ₂ ≥ … ≥ 0 with Σ λₖ = tr G = n. λₖ/Σλ is the share of the rows' squared length
along the k-th direction. The mean squared overlap is their second moment: ‖G‖²_F = Σ λₖ², so the participation ratio
(Σλ)² / Σλ² needs no eigenvalues, and the mean squared overlap is (n/PR − 1) / (n − 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmsuper.geometry.overlap import GRAM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmsuper.geometry.blocks import Rows, Steps
    from llmsuper.geometry.overlap import GramAccumulator

LEADING = 32
"""Shares that are kept, of the largest eigenvalues."""


@dataclass(frozen=True, slots=True)
class SpectrumStatistics:
    """Eigenvalues λₖ of G over the rows that are not zero, none of it centred."""

    rows: int
    zero_rows: int
    columns: int
    participation_ratio: float
    """(Σλ)² ÷ Σλ²: how many directions the rows fill evenly, between 1 and m."""
    leading_share: float
    """λ₁ ÷ Σλ."""
    leading_shares: list[float]
    """λₖ ÷ Σλ of the LEADING largest, or of all m."""
    directions_for_half: int
    """Leading directions that hold half of Σλ."""
    directions_for_90_percent: int


def spectrum(_: Rows) -> Steps:
    """The statistic `spectrum`: one pass, and the eigenvalues of an m × m matrix: some m³ operations."""
    (found,) = yield (GRAM,)
    return spectrum_of(found)


def spectrum_of(found: GramAccumulator) -> SpectrumStatistics:
    """Raises `CheckpointError` when fewer than two rows have a direction."""
    import torch

    gram = found.gram
    trace = float(np.trace(gram))
    eigenvalues = torch.linalg.eigvalsh(torch.from_numpy(gram)).numpy()  # torch's: by MKL, where it has that
    # rounding leaves eigenvalues a hair below zero where there are fewer directions than columns
    shares = np.maximum(eigenvalues[::-1], 0) / trace
    return SpectrumStatistics(
        rows=found.rows,
        zero_rows=found.zero_rows,
        columns=len(gram),
        participation_ratio=trace * trace / float(np.vdot(gram, gram)),
        leading_share=float(shares[0]),
        leading_shares=[float(share) for share in shares[:LEADING]],
        directions_for_half=_directions_for(0.5, shares),
        directions_for_90_percent=_directions_for(0.9, shares),
    )


def _directions_for(part: float, shares: NDArray[np.float64]) -> int:
    """The least k with λ₁ + … + λₖ ≥ part × Σλ, where equality is allowed the rounding of a sum."""
    return min(int(np.count_nonzero(np.cumsum(shares) < part - 1e-9)) + 1, len(shares))
