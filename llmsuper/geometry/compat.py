"""The overlaps of arXiv:2505.10465 as its authors compute them, beside ours of the same rows.

Their code (SuperpositionScaling, `overlap-0.py`) takes all stored rows, padding among them, and computes in the dtype of the
checkpoint: norms, quotients, products and squares are each rounded to it; sums alone are float64. It divides by the norm
without the 10⁻⁹ of the paper, so one row of zeros makes every mean NaN: here that is null, and `unusable_rows` says why. Of
the pairs i < j it keeps mean |cos| and its standard deviation √(mean cos² − mean² |cos|); figure 6a draws the sum of their
squares, mean cos².

Products of two rows are summed in float32 and rounded once, as a GPU does it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

from llmsuper import kernels
from llmsuper.geometry.controls import in_memory
from llmsuper.geometry.overlap import GRAM
from llmsuper.kernels import worker_threads
from llmsuper.kernels.precision import ieee_products

if TYPE_CHECKING:
    import torch

    from llmsuper.geometry.blocks import Rows, Steps

TILE_ROWS = 2_048
"""Rows on a side of what is multiplied at once. Theirs is 8,192; sums are float64, so it makes no difference but to memory."""


@dataclass(frozen=True, slots=True)
class Liu2025Statistics:
    """Over the pairs i < j of every stored row; null where the authors' code gives NaN."""

    rows: int
    zero_rows: int
    columns: int
    dtype: str
    """What norms, quotients, products and squares are rounded to."""
    mean_absolute_overlap: float | None
    """Their `mean_over`."""
    std_absolute_overlap: float | None
    """Their `std_over`."""
    mean_squared_overlap: float | None
    """mean_over² + std_over²: what figure 6a draws."""
    ratio_to_isotropic: float | None
    unusable_rows: int
    """Stored rows that are zero, or leave the range of their dtype when divided by their norm. With one, theirs are NaN."""
    ours_same_rows: float
    """Our mean squared overlap of every stored row but zero ones, without rounding to the storage dtype."""
    rounding: float | None
    """mean_squared_overlap ÷ ours_same_rows − 1: what rounding to the storage dtype does."""


def liu2025(rows: Rows) -> Steps:
    """The statistic `liu2025`: a pass, one more that reads every row into memory, and n² m operations.

    Raises `CheckpointError` where the rows take more than `controls.MEMORY`.
    """
    (found,) = yield (GRAM,)
    ours = found.compute()
    del found
    matrix = in_memory(rows, ours.rows + ours.zero_rows)
    unit = _unit(matrix)
    absolute = deviation = square = None
    unusable = int((~unit.isfinite().all(dim=1)).sum())
    if not unusable:
        absolute, square = _sums(unit, rows)
        deviation = math.sqrt(max(0.0, square - absolute**2))
    return Liu2025Statistics(
        rows=len(unit),
        zero_rows=ours.zero_rows,
        columns=ours.columns,
        dtype=str(unit.dtype).removeprefix("torch."),
        mean_absolute_overlap=absolute,
        std_absolute_overlap=deviation,
        mean_squared_overlap=square,
        ratio_to_isotropic=None if square is None else ours.columns * square,
        unusable_rows=unusable,
        ours_same_rows=ours.mean_squared_overlap,
        rounding=None if square is None else square / ours.mean_squared_overlap - 1,
    )


def _unit(matrix: torch.Tensor) -> torch.Tensor:
    """(n, m) rows ÷ norms in place, both rounded to the dtype of `matrix`."""
    import torch

    for rows in torch.split(matrix, TILE_ROWS):
        wide = rows.double() if rows.dtype == torch.float64 else rows.float()
        norms = torch.linalg.vector_norm(wide, dim=1, keepdim=True).to(matrix.dtype)
        rows.copy_(wide / norms.to(wide))
    return matrix


def _sums(unit: torch.Tensor, rows: Rows) -> tuple[float, float]:
    """The means of |c| and c² over the pairs i < j, tile by tile on every core."""
    import torch

    n = len(unit)
    place = rows.backend.device
    tiles = list(combinations_with_replacement(range(0, n, TILE_ROWS), 2))

    def work(tile: tuple[int, int]) -> tuple[float, float]:
        left, right = (unit[k : k + TILE_ROWS].to(place) for k in tile)
        if unit.dtype != torch.float64:
            left, right = left.float(), right.float()
        with ieee_products():
            overlaps = (left @ right.T).to(unit.dtype).abs_()
        if tile[0] == tile[1]:
            overlaps = overlaps.triu_(diagonal=1)
        absolute = float(overlaps.sum(dtype=torch.float64))
        return absolute, float(overlaps.square_().sum(dtype=torch.float64))

    threads = kernels.usable_cores() if place == "cpu" else 1
    absolutes, squares = [], []
    with worker_threads(threads, "compat") as pool:
        for done, (absolute, square) in enumerate(pool.map(work, tiles), 1):
            absolutes.append(absolute)
            squares.append(square)
            if rows.progress is not None:
                rows.progress("as liu2025", done, len(tiles))
    pairs = n * (n - 1) // 2
    return math.fsum(absolutes) / pairs, math.fsum(squares) / pairs
