"""The pairs of rows that overlap most, found from each row's largest overlap."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmsuper.geometry.pair_sums import PairSums
    from llmsuper.geometry.resident import UnitRows

COUNT = 10
DIGITS = 6
"""Decimals to which overlaps are compared: float32's promise. What is equal to these is ordered by the rows' numbers."""


@dataclass(frozen=True, slots=True)
class ClosePair:
    """Two rows, by their numbers in the matrix, and their overlap with its sign."""

    row: int
    other: int
    overlap: float


def closest_pairs(rows: UnitRows, sums: PairSums, count: int = COUNT) -> list[ClosePair]:
    """The `count` pairs with the largest |overlap| among the tiles in `sums`; fewer where there are fewer pairs.

    No pair overlaps more than the largest of its first row does, or of its second. So rows are taken in the order of
    their largest overlap, each against all others, until none that is left can hold a better pair: a few dozen of them,
    however many rows are equal to each other.
    """
    bound = np.round(np.abs(sums.largest), DIGITS)
    met = np.flatnonzero(sums.met)
    best: list[tuple[float, int, int]] = []  # a heap, worst first: (|overlap|, −i, −j)
    for i in met[np.lexsort((met, -bound[met]))]:
        if len(best) == count and (best[0][0] > bound[i] or (best[0][0] == bound[i] and -best[0][1] < i)):
            break
        others, overlaps = _overlaps_of(rows, int(i), sums)
        rounded = np.round(np.abs(overlaps), DIGITS)
        for k in np.lexsort((others, -rounded))[: count + 1]:
            first, second = sorted((int(i), int(others[k])))
            pair = (float(rounded[k]), -first, -second)
            if pair not in best:
                heapq.heappush(best, pair)
                if len(best) > count:
                    heapq.heappop(best)
    numbers = rows.numbers
    return [
        ClosePair(int(numbers[-i]), int(numbers[-j]), _overlap(rows, -i, -j)) for _, i, j in sorted(best, reverse=True)
    ]


def _overlaps_of(rows: UnitRows, i: int, sums: PairSums) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The other rows that row i shares a tile with, and its overlaps with them, clamped to [−1, 1]."""
    own = i // rows.block_rows
    row = rows.row(i)
    others, overlaps = [], []
    for k in rows.blocks:
        if (min(k, own), max(k, own)) in sums.tiles:
            block = rows.block(k)
            others.append(np.arange(len(block)) + k * rows.block_rows)
            overlaps.append((block @ row).double().cpu().numpy().clip(-1.0, 1.0))
    every, found = np.concatenate(others), np.concatenate(overlaps)
    return every[every != i], found[every != i]


def _overlap(rows: UnitRows, i: int, j: int) -> float:
    """In float64, of the rows as they were multiplied."""
    a, b = rows.row(i).double(), rows.row(j).double()
    return float((a @ b / (a.norm() * b.norm())).clamp(-1.0, 1.0))
