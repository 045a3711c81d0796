"""The operations in float64, written to be obviously right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from llmsuper.kernels import NonFiniteRowError
from llmsuper.kernels.tiles import RowSums, TileSums, bin_edges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmsuper.kernels.precision import Precision


def unit_rows(
    rows: torch.Tensor,
    *,
    precision: Precision,  # noqa: ARG001  the reference has one
    device: str,  # noqa: ARG001  and one device
    centre: NDArray[np.float64] | None,
    out: torch.Tensor | None = None,  # noqa: ARG001  and takes memory as it needs it
) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """Each row divided by its norm, one row at a time. See `kernels.Operations`."""
    unit = np.zeros(tuple(rows.shape))
    norms = np.zeros(rows.shape[0])
    for i, row in enumerate(rows.double().numpy()):
        if not np.isfinite(row).all():
            raise NonFiniteRowError(i)
        largest = np.abs(row).max(initial=0.0)
        shifted = row if centre is None else row - centre
        if largest == 0.0 or (centre is not None and np.linalg.norm(shifted) <= 1e-14 * np.linalg.norm(centre)):
            continue  # no direction: the row stays zero
        scale = np.abs(shifted).max()  # so that no square over- or underflows
        norms[i] = scale * np.linalg.norm(shifted / scale)
        unit[i] = (shifted / scale) / np.linalg.norm(shifted / scale)
    return torch.from_numpy(unit), norms


def gram(unit: torch.Tensor, *, precision: Precision = "exact") -> NDArray[np.float64]:  # noqa: ARG001
    """Σᵢ ûᵢ ûᵢᵀ, summed one row at a time. See `kernels.Operations`."""
    total = np.zeros((unit.shape[1], unit.shape[1]))
    for row in unit.numpy():
        total += np.outer(row, row)
    return total


def overlap_sums(left: torch.Tensor, right: torch.Tensor, *, bins: int, diagonal: bool, scale: float = 1.0) -> TileSums:
    """Every overlap of the tile at once, and each statistic as it is defined. See `kernels.tiles`."""
    overlaps = scale * (left.double().numpy() @ right.double().numpy().T)  # (a, b)
    clamped = overlaps.clip(-1.0, 1.0)
    ones = np.ones(overlaps.shape, bool)
    counted = np.triu(ones, 1) if diagonal else ones  # pairs, each once
    others = ~np.eye(len(overlaps), dtype=bool) if diagonal else ones  # i and j are two rows
    counts, _ = np.histogram(clamped[counted], bin_edges(bins))
    return TileSums(
        pairs=int(counted.sum()),
        total=float(overlaps[counted].sum()),
        absolute=float(np.abs(overlaps[counted]).sum()),
        squares=float(np.square(overlaps[counted]).sum()),
        histogram=counts.astype(np.int64),
        left=_row_sums(overlaps, clamped, others),
        right=_row_sums(overlaps.T, clamped.T, others.T),
    )


def _row_sums(overlaps: NDArray[np.float64], clamped: NDArray[np.float64], others: NDArray[np.bool_]) -> RowSums:
    partner = np.where(others, np.abs(clamped), -1.0).argmax(axis=1)  # the first of equal ones
    largest = clamped[np.arange(len(clamped)), partner]
    return RowSums(largest, partner.astype(np.int64), np.square(np.where(others, overlaps, 0.0)).sum(axis=1))
