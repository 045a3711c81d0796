"""The operations on whatever device torch has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmsuper.kernels import NonFiniteRowError
from llmsuper.kernels.precision import PRECISIONS, half_scale, ieee_products, round_to_half_, to_half
from llmsuper.kernels.tiles import RowSums, TileSums, pairs_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmsuper.kernels.precision import Precision

SAFE_NORMS = (1e-15, 1e15)
"""Norms between these have squares that neither over- nor underflow in float32, and reciprocals that exist."""


def unit_rows(
    rows: torch.Tensor,
    *,
    precision: Precision,
    device: str,
    centre: NDArray[np.float64] | None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """One conversion, one norm, one division. See `kernels.Operations`."""
    wanted = getattr(torch, PRECISIONS[precision].dtype)
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
        unit[odd], norms[odd] = unusual_rows(rows, odd, centre, unit)
    if precision == "fast":
        round_to_half_(unit)
    return unit, norms.cpu().numpy()


def unusual_rows(
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


def gram(unit: torch.Tensor, *, precision: Precision) -> Any:
    """Ûᵀ Û. On the CPU numpy's product of a matrix with its own transpose: SYRK, half the work, the GIL released."""
    if unit.device.type == "cpu":
        x = unit.numpy()
        return np.matmul(x.T, x)
    with ieee_products():
        if precision != "fast":
            return unit.T @ unit
        half = to_half(unit)
        return torch.mm(half.T, half, out_dtype=torch.float32).div_(half_scale(unit.shape[1]) ** 2)


def overlap_sums(left: torch.Tensor, right: torch.Tensor, *, bins: int, diagonal: bool, scale: float = 1.0) -> TileSums:
    """See `kernels.tiles`."""
    if left.device.type != "cpu":
        return overlap_sums_anywhere(left, right, bins=bins, diagonal=diagonal, scale=scale)
    from llmsuper.kernels import cpu_tiles  # a compiler comes with it, which costs memory and half a second

    return cpu_tiles.overlap_sums(left, right, bins=bins, diagonal=diagonal, scale=scale)


def overlap_sums_anywhere(
    left: torch.Tensor, right: torch.Tensor, *, bins: int, diagonal: bool, scale: float
) -> TileSums:
    """By torch's operations alone, on whatever device. The whole tile is in memory, several times over."""
    overlaps = _product(left, right)
    if scale != 1.0:
        overlaps *= scale
    counted = others = torch.ones_like(overlaps, dtype=torch.bool)
    if diagonal:
        counted, others = counted.triu(1), ~torch.eye(len(left), dtype=torch.bool, device=left.device)
    pairs = overlaps[counted] if diagonal else overlaps.reshape(-1)
    clamped = overlaps.clamp(-1.0, 1.0)
    half = bins / 2
    bin_of_pair = ((pairs.clamp(-1.0, 1.0) + 1.0) * half).to(torch.int32).clamp(max=bins - 1)
    counts = torch.bincount(bin_of_pair, minlength=bins)
    return TileSums(
        pairs_in(*overlaps.shape, diagonal=diagonal),
        float(pairs.sum(dtype=torch.float64)),
        float(pairs.abs().sum(dtype=torch.float64)),
        float(pairs.square().sum(dtype=torch.float64)),
        counts.cpu().numpy(),
        _row_sums(overlaps, clamped, others),
        _row_sums(overlaps.T, clamped.T, others.T),
    )


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Products of the rows (a, b), accumulated in float32 or float64."""
    with ieee_products():
        if left.dtype != torch.float16:
            return left @ right.T
        if left.device.type == "cuda":
            return torch.mm(left, right.T, out_dtype=torch.float32)
        return left.float() @ right.float().T


def _row_sums(overlaps: torch.Tensor, clamped: torch.Tensor, others: torch.Tensor) -> RowSums:
    partner = torch.where(others, clamped.abs(), -1.0).argmax(dim=1)  # the first of equal ones
    largest = clamped.gather(1, partner[:, None])[:, 0]
    squares = torch.where(others, overlaps.square(), 0.0).sum(dim=1, dtype=torch.float64)
    return RowSums(largest.double().cpu().numpy(), partner.cpu().numpy(), squares.cpu().numpy())
