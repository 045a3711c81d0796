"""Which rows crowd around one direction, and which pairs of all the others overlap most, from each row's largest overlap."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from llmsuper.geometry.subsets import COSINE
from llmsuper.kernels import usable_cores, worker_threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    import torch
    from numpy.typing import NDArray

    from llmsuper.geometry.pair_sums import PairSums
    from llmsuper.geometry.resident import UnitRows

Found = TypeVar("Found")

COUNT = 10
"""Of pairs and of crowds."""
FIRST = 5
"""Rows of a crowd that are named."""
DIGITS = 6
"""Decimals to which overlaps are compared: float32's promise. What is equal to these is ordered by the rows' numbers."""
OF_TILES = 2.0**-10
"""How far the largest overlaps, as tiles have them, may be below those here, which are of rows of length 1: float16 rows are
not."""
TOGETHER, CLOSEST_TOGETHER = 256, 32
"""Rows whose overlaps with all others are one product: where crowds are looked for, and where a few dozen rows are enough."""


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


def find_closest(
    rows: UnitRows,
    sums: PairSums,
    count: int = COUNT,
    progress: Callable[[str, int, int], None] | None = None,
) -> Closest:
    """The crowds, and the `count` pairs of rows outside them with the largest |overlap|, among the tiles in `sums`.

    Tokens that were never trained share a direction, more or less, and a hundred of them have 4,950 pairs that overlap more
    than any pair of trained ones. So in the order of the rows each takes those around it, with |overlap| above COSINE, into a
    crowd where they are two at least, and no row of a crowd is in `pairs`. Fewer pairs where there are fewer.

    progress: called with a name, the rows that were looked at for crowds, and those there are to look at.
    """
    on_cpu = all(block.device.type == "cpu" for block in rows.blocks.values())
    with worker_threads(usable_cores() if on_cpu else 1, "closest") as pool:
        overlaps = _Overlaps(rows, sums, pool)
        crowds, outside, bound = _crowds(overlaps, progress)
        closest = _closest_pairs(overlaps, outside, bound, count)
    numbers = rows.numbers
    pairs = [ClosePair(int(numbers[i]), int(numbers[j]), _overlap(rows, i, j)) for i, j in closest]
    crowds.sort(key=lambda crowd: (-len(crowd), crowd[0]))
    return Closest([Crowd(len(crowd), numbers[crowd[:FIRST]].tolist()) for crowd in crowds], pairs)


class _Overlaps:
    """|overlap| of some rows with all that they share a tile with: of the n rows as they were multiplied, at length 1."""

    def __init__(self, rows: UnitRows, sums: PairSums, pool: Executor) -> None:
        self.rows, self.sums, self.pool = rows, sums, pool
        self.lengths = {k: rows.block(k).norm(dim=1) for k in rows.blocks}

    def of(self, some: NDArray[np.int64]) -> NDArray[np.float64]:
        """(k, n) to DIGITS decimals; 0 where two rows share no tile."""
        found = np.zeros((len(some), len(self.rows)))

        def fill(start: int, overlaps: torch.Tensor) -> None:
            found[:, start : start + overlaps.shape[1]] = overlaps.double().cpu().numpy()

        self._each_block(some, fill)
        return np.round(found, DIGITS, out=found)

    def near(
        self, some: NDArray[np.int64], outside: NDArray[np.bool_]
    ) -> tuple[list[NDArray[np.int64]], NDArray[np.float64]]:
        """Of each of k rows those `outside` that overlap it above COSINE; (k,) the largest it has with any `outside`."""
        import torch

        there = torch.from_numpy(outside)

        def look(start: int, overlaps: torch.Tensor) -> tuple[Any, ...]:
            overlaps *= there[start : start + overlaps.shape[1]].to(overlaps)
            places = (overlaps > COSINE - 10.0**-DIGITS).nonzero()
            values = overlaps[places[:, 0], places[:, 1]]
            return *(found.cpu().numpy() for found in (places, values.double(), overlaps.amax(dim=1).double())), start

        which, others, values, largest = [], [], [], np.zeros(len(some))
        for places, found, most, start in self._each_block(some, look):
            which.append(places[:, 0])
            others.append(places[:, 1] + start)
            values.append(found)
            largest = np.maximum(largest, most)
        near = np.round(np.concatenate(values), DIGITS) > COSINE
        row, other = np.concatenate(which)[near], np.concatenate(others)[near]
        order = np.argsort(row, kind="stable")
        ends = np.searchsorted(row[order], np.arange(1, len(some)))
        return np.split(other[order], ends), np.round(largest, DIGITS)

    def partners(self, i: int) -> NDArray[np.bool_]:
        """(n,) True for the other rows that row i shares a tile with."""
        size, own = self.rows.block_rows, i // self.rows.block_rows
        found = np.zeros(len(self.rows), bool)
        for k in self.lengths:
            found[k * size : (k + 1) * size] = self._share(own, k)
        found[i] = False
        return found

    def _share(self, own: int, k: int) -> bool:
        return (min(k, own), max(k, own)) in self.sums.tiles

    def _each_block(self, some: NDArray[np.int64], use: Callable[[int, torch.Tensor], Found]) -> list[Found]:
        """What `use` makes of the first row of each block and of the overlaps (k, b) with it; several blocks at once."""
        import torch

        size = self.rows.block_rows
        own, place = np.divmod(some, size)
        left = torch.stack([self.rows.row(i) / self.lengths[i // size][i % size] for i in some.tolist()])

        def work(k: int) -> Found:
            overlaps = (left @ self.rows.block(k).T).div_(self.lengths[k]).abs_().clamp_(max=1.0)
            for block in np.unique(own):
                if not self._share(block, k):
                    overlaps[own == block] = 0.0
            itself = np.flatnonzero(own == k)
            overlaps[itself, place[itself]] = 0.0
            return use(k * size, overlaps)

        return list(self.pool.map(work, self.lengths))


def _crowds(
    overlaps: _Overlaps, progress: Callable[[str, int, int], None] | None
) -> tuple[list[list[int]], NDArray[np.bool_], NDArray[np.float64]]:
    """The crowds; (n,) True for rows that are in none; (n,) what no |overlap| of two of those exceeds.

    Only rows that overlap some other above COSINE are looked at: one product of TOGETHER rows where they are one crowd, and
    twice as many operations as the tiles took where they are all rows, two by two.
    """
    bound = np.abs(overlaps.sums.largest).round(DIGITS)
    outside = overlaps.sums.met > 0
    waiting = outside & (bound > COSINE - OF_TILES)
    there = int(waiting.sum())
    crowds = []
    while len(some := np.flatnonzero(waiting)[:TOGETHER]):
        near, bound[some] = overlaps.near(some, outside)
        for i, found in zip(some.tolist(), near, strict=True):
            if not waiting[i]:  # it is in the crowd of one before it
                continue
            waiting[i] = False
            around = found[outside[found]]
            if len(around) > 1:
                crowd = [i, *around.tolist()]
                waiting[crowd] = outside[crowd] = False
                crowds.append(crowd)
        if progress is not None:
            progress("rows close to others", there - int(waiting.sum()), there)
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
    for start in range(0, len(rows), CLOSEST_TOGETHER):
        some = rows[start : start + CLOSEST_TOGETHER]
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
