"""TileSums: what a backend says of all overlaps of one block of rows with another.

The contract of `overlap_sums(left, right, *, bins, diagonal, scale)`, the operation of every backend in BACKENDS:

    left (a, m), right (b, m)   unit rows times a constant, in the backend's own dtype and on its device
    scale                       what a product of two rows is multiplied by to be an overlap: 1 for unit rows, 4⁻ᵏ for rows
                                that are stored times 2ᵏ
    overlap of i and j          c = scale × left[i]·right[j], accumulated in at least float32

    diagonal = False            every one of the a × b pairs counts; neither block is empty
    diagonal = True             `right` is `left`, of two rows or more: the pairs i < j count in the sums and the histogram;
                                in the rows every j ≠ i counts, and `right` of the result is its `left`

Rounding pushes c of equal rows a little above 1. For the histogram and the largest overlap it is clamped to [−1, 1] before it
is binned or compared: what is beyond 1 ties at 1.

A row of zeros is a row like any other here, whose overlaps are 0. Whoever has rows without a direction leaves them out
before (as `geometry.pairs` does), so that no kernel needs a mask: neither in its sums, nor for partners.

The same tile gives the same result every time, bit for bit. Sums over a tile are good to 1e-6 of Σc² or Σ|c| in float32 and
to 1e-13 in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class RowSums:
    """Of each row of one block, over its partners in the other block."""

    overlap: NDArray[np.float64]
    """(a,) the overlap that is largest in absolute value, with its sign, clamped to [−1, 1]."""
    partner: NDArray[np.int64]
    """(a,) index in the other block of the partner it is with; of equal absolute values the smallest index."""
    squares: NDArray[np.float64]
    """(a,) Σ c² over the partners."""


@dataclass(frozen=True, slots=True)
class TileSums:
    """Of the unordered pairs of one tile."""

    pairs: int
    """How many there are: a × b, or a (a − 1) / 2 on the diagonal."""
    total: float
    """Σ c."""
    absolute: float
    """Σ |c|."""
    squares: float
    """Σ c²."""
    histogram: NDArray[np.int64]
    """(bins,) counts of c in equal bins on [−1, 1]: c is in bin ⌊(c + 1) bins / 2⌋, c = 1 in the last. `bins` is even."""
    left: RowSums
    right: RowSums


def pairs_in(rows: int, columns: int, *, diagonal: bool) -> int:
    """The pairs of a tile of (rows × columns) overlaps."""
    return rows * (rows - 1) // 2 if diagonal else rows * columns


def bin_edges(bins: int) -> NDArray[np.float64]:
    """(bins + 1,) the edges of equal bins on [−1, 1]."""
    edges: NDArray[np.float64] = np.linspace(-1.0, 1.0, bins + 1)
    return edges
