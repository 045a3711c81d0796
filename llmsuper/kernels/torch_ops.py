"""The operations on whatever device torch has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmsuper.kernels import NonFiniteRowError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAFE_NORMS = (1e-15, 1e15)
"""Norms between these have squares that neither over- nor underflow in float32, and reciprocals that exist."""


def unit_rows(
    rows: torch.Tensor,
    *,
    dtype: str,
    device: str,
    centre: NDArray[np.float64] | None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """One conversion, one norm, one division. See `kernels.Operations`."""
    wanted = getattr(torch, dtype)
    if out is None:
        out = torch.empty(rows.shape, dtype=wanted, device=device)
    # (b, m): the stored rows themselves where they have the right type, else a copy in the place of the result
    x = rows if rows.dtype == wanted and rows.device == out.device else out.copy_(rows)
    norms = torch.linalg.vector_norm(x, dim=1)
    least, most = SAFE_NORMS
    usual = (norms > least) & (norms < most)
    if centre is not None:
        middle = torch.from_numpy(centre).to(x)
        x = torch.sub(x, middle, out=out)
        norms = torch.linalg.vector_norm(x, dim=1)
        # a row this close to the centre has lost its direction to rounding
        usual &= norms > max(least, 16 * torch.finfo(x.dtype).eps * float(np.linalg.norm(centre)))
    unit = torch.mul(x, norms.reciprocal()[:, None], out=out)
    norms = norms.double()
    odd = torch.nonzero(~usual)[:, 0]
    if len(odd):
        unit[odd], norms[odd] = _unusual_rows(rows, odd, centre, unit)
    return unit, norms.cpu().numpy()


def _unusual_rows(
    rows: torch.Tensor, odd: torch.Tensor, centre: NDArray[np.float64] | None, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero, tiny, huge or non-finite rows, `odd` of the block, in float64 and scaled by each row's largest entry."""
    wide = rows[odd.to(rows.device)].to(device=like.device, dtype=torch.float64)
    finite = torch.isfinite(wide).all(dim=1)
    if not bool(finite.all()):
        raise NonFiniteRowError(int(odd[~finite][0]))
    present = wide.abs().amax(dim=1) > 0
    if centre is not None:
        middle = torch.from_numpy(centre).to(wide)
        wide = wide - middle
        floor = 16 * torch.finfo(like.dtype).eps * torch.linalg.vector_norm(middle)
        present &= torch.linalg.vector_norm(wide, dim=1) > floor
    scale = torch.where(present, wide.abs().amax(dim=1), 1.0)[:, None]
    scaled = torch.where(present[:, None], wide / scale, 0.0)
    lengths = torch.linalg.vector_norm(scaled, dim=1)
    unit = torch.where(present[:, None], scaled / lengths[:, None], 0.0)
    return unit.to(like.dtype), lengths * scale[:, 0]


def gram(unit: torch.Tensor) -> Any:
    """Ûᵀ Û. On the CPU numpy's product of a matrix with its own transpose: SYRK, half the work, the GIL released."""
    if unit.device.type == "cpu":
        x = unit.numpy()
        return np.matmul(x.T, x)
    # IEEE float32 on a GPU too: tensor cores would truncate the inputs to TF32, 1.4e-3 off
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return unit.T @ unit
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
