"""The operations in float64, written to be obviously right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from llmsuper.kernels import NonFiniteRowError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def unit_rows(
    rows: torch.Tensor,
    *,
    dtype: str,  # noqa: ARG001  the reference has one precision
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


def gram(unit: torch.Tensor) -> NDArray[np.float64]:
    """Σᵢ ûᵢ ûᵢᵀ, summed one row at a time. See `kernels.Operations`."""
    total = np.zeros((unit.shape[1], unit.shape[1]))
    for row in unit.numpy():
        total += np.outer(row, row)
    return total
