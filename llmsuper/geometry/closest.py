"""Which rows crowd around one direction, and which pairs of all the others overlap most, from each row's largest overlap."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmsuper.geometry.subsets import COSINE
from llmsuper.kernels.precision import ieee_products

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmsuper.geometry.pair_sums import PairSums
    from llmsuper.geometry.resident import UnitRows

COUNT = 10
"""Of pairs and of crowds."""
FIRST = 5
"""Rows of a crowd that are named."""
DIGITS = 6
"""Decimals to which overlaps are compared: float32's promise. What is equal to these is ordered by the rows' numbers."""
OF_TILES = 2.0**-10
"""How far the largest overlaps, as tiles have them, may be below those here, which are of rows of length 1: float16 rows are
not."""
TOGETHER = 32
"""Rows whose overlaps with all others are one product."""


@dataclass(frozen=True, slots=True)
class ClosePair:
    """Two rows, by their numbers in the matrix, and their overlap with its sign."""

    row: int
    other: int
    overlap: float


@dataclass(frozen=True, slots=True)
class Crowd:
    """Three rows or more that lie in nearly one direction, or its opposite."""

    size: int
    rows: list[int]
    """The first five, by their numbers in the matrix, and before all the one that the others are near to."""


@dataclass(frozen=True, slots=True)
class Closest:
    """What `find_closest` found."""

    crowds: list[Crowd]
    """Largest first, and of one size in the order of their first rows."""
    pairs: list[ClosePair]
    """Most overlapping first."""


def find_closest(rows: UnitRows, sums: PairSums, count: int = COUNT) -> Closest:
    """The crowds, and the `count` pairs of rows outside them with the largest |overlap|, among the tiles in `sums`.

    Tokens that were never trained share a direction, more or less, and a hundred of them have 4,950 pairs that overlap more
    than any pair of trained ones. So in the order of the rows each takes those around it, with |overlap| above COSINE, into a
    crowd where they are two at least, and no row of a crowd is in `pairs`. Fewer pairs where there are fewer.
    """
    overlaps = _Overlaps(rows, sums)
    crowds, outside, bound = _crowds(overlaps)
    numbers = rows.numbers
    pairs = [
        ClosePair(int(numbers[i]), int(numbers[j]), _overlap(rows, i, j))
        for i, j in _closest_pairs(overlaps, outside, bound, count)
    ]
    crowds.sort(key=lambda crowd: (-len(crowd), crowd[0]))
    return Closest([Crowd(len(crowd), numbers[crowd[:FIRST]].tolist()) for crowd in crowds], pairs)


class _Overlaps:
    """Overlaps of single rows with all that they share a tile with: of the n rows as they were multiplied, at length 1."""

    def __init__(self, rows: UnitRows, sums: PairSums) -> None:
        self.rows, self.sums = rows, sums
        self.lengths = {k: rows.block(k).norm(dim=1) for k in rows.blocks}

    def of(self, some: NDArray[np.int64]) -> NDArray[np.float64]:
        """(k, n) |overlap| to DIGITS decimals of each of `some`; only where `partners` says so it means something."""
        import torch

        size = self.rows.block_rows
        left = torch.stack([self.rows.row(i) / self.lengths[i // size][i % size] for i in some.tolist()])
        found = np.zeros((len(some), len(self.rows)))
        with ieee_products():
            for k, lengths in self.lengths.items():
                overlaps = (left @ self.rows.block(k).T / lengths).abs().clamp(max=1.0)
                found[:, k * size : k * size + len(lengths)] = overlaps.double().cpu().numpy()
        return np.round(found, DIGITS, out=found)

    def partners(self, i: int) -> NDArray[np.bool_]:
        """(n,) True for the other rows that row i shares a tile with."""
        size, own = self.rows.block_rows, i // self.rows.block_rows
        found = np.zeros(len(self.rows), bool)
        for k in self.lengths:
            found[k * size : (k + 1) * size] = (min(k, own), max(k, own)) in self.sums.tiles
        found[i] = False
        return found


def _crowds(overlaps: _Overlaps) -> tuple[list[list[int]], NDArray[np.bool_], NDArray[np.float64]]:
    """The crowds; (n,) True for rows that are in none; (n,) what no |overlap| of two of those exceeds.

    Only rows that overlap some other above COSINE are looked at: one product of TOGETHER rows where they are one crowd, and as
    many operations again as the tiles took where they are all rows, two by two.
    """
    bound = np.abs(overlaps.sums.largest).round(DIGITS)
    outside = overlaps.sums.met > 0
    waiting = outside & (bound > COSINE - OF_TILES)
    crowds = []
    while len(some := np.flatnonzero(waiting)[:TOGETHER]):
        for i, found in zip(some.tolist(), overlaps.of(some), strict=True):
            if not waiting[i]:  # it is in the crowd of one before it
                continue
            waiting[i] = False
            partners = outside & overlaps.partners(i)
            near = np.flatnonzero(partners & (found > COSINE))
            bound[i] = found[partners].max(initial=0.0)
            if len(near) > 1:
                crowd = [i, *near.tolist()]
                waiting[crowd] = outside[crowd] = False
                crowds.append(crowd)
    return crowds, outside, bound


def _closest_pairs(
    overlaps: _Overlaps, outside: NDArray[np.bool_], bound: NDArray[np.float64], count: int
) -> list[tuple[int, int]]:
    """The pairs (i, j), i < j, of rows outside the crowds.

    No pair overlaps more than the largest of its first row does, or of its second. So rows are taken in the order of
    their largest overlap, each against all others, until none that is left can hold a better pair: a few dozen of them.
    """
    best: list[tuple[float, int, int]] = []  # a heap, worst first: (|overlap|, −i, −j)
    left = outside.copy()
    rows = np.flatnonzero(outside)
    rows = rows[np.lexsort((rows, -bound[rows]))]
    for start in range(0, len(rows), TOGETHER):
        some = rows[start : start + TOGETHER]
        if len(best) == count and (best[0][0], best[0][1]) > (bound[some[0]], -some[0]):
            break
        for i, found in zip(some.tolist(), overlaps.of(some), strict=True):
            others = np.flatnonzero(left & overlaps.partners(i))
            left[i] = False  # its pairs are seen once: from the other side rounding may make them a little different
            for k in others[np.lexsort((others, -found[others]))[:count]].tolist():
                heapq.heappush(best, (float(found[k]), -min(i, k), -max(i, k)))
                if len(best) > count:
                    heapq.heappop(best)
    return [(-i, -j) for _, i, j in sorted(best, reverse=True)]


def _overlap(rows: UnitRows, i: int, j: int) -> float:
    """In float64, of the rows as they were multiplied."""
    a, b = rows.row(i).double(), rows.row(j).double()
    return float((a @ b / (a.norm() * b.norm())).clamp(-1.0, 1.0))
