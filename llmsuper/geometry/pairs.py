"""All pairs of rows → PairStatistics: the distribution of overlaps, the largest of each row, the closest pairs.

Of n rows there are n (n − 1) / 2 pairs and they cost n² m operations: minutes on a CPU where `overlap`, which needs none of
them, takes a second. They are worked on tile by tile over an explicit list (`tile_list.every_tile`), and that list is all
there is to order, to sharing out (`tiles[rank::world]`), to going on with a run that was stopped, and to sampling.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmsuper import kernels
from llmsuper.errors import CheckpointError, LlmsuperError
from llmsuper.geometry.bounds import welch_floor
from llmsuper.geometry.closest import COUNT, ClosePair, Crowd, find_closest
from llmsuper.geometry.overlap import GramAccumulator
from llmsuper.geometry.pair_sums import BINS, PairSums
from llmsuper.geometry.passes import one_pass
from llmsuper.geometry.resident import ResidentRows, UnitRows
from llmsuper.geometry.tile_list import CONFIDENCE, SEED, Tiles, estimate_mean, every_tile, sample_tiles
from llmsuper.kernels import choose_backend, worker_threads
from llmsuper.kernels.tiles import bin_edges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

    from llmsuper.geometry.blocks import Share
    from llmsuper.geometry.overlap import OverlapStatistics
    from llmsuper.kernels import Backend
    from llmsuper.kernels.tiles import TileSums
    from llmsuper.types import RowBlock

TILE_ROWS = {"cpu": 1_024, "cuda": 4_096}
"""Rows of a block of a tile. On a CPU its overlaps stay in the last-level cache; on a GPU there is enough to do in one."""
SAMPLE_TILE_ROWS = 256
"""The same in a sample: many small tiles say more than a few large ones."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SAVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class PairSample:
    """What a sample of the tiles saw, and how far it is to be trusted."""

    tiles: int
    tiles_in_all: int
    tile_rows: int
    pairs: int
    """Pairs in the sampled tiles."""
    confidence: float
    mean_absolute_overlap_interval: list[float]
    """Ends of an interval from the spread between tiles, with the exact mean square as control variate."""
    seed: int | None
    """Of numpy's default generator, which chose the tiles; null where the caller brought one."""


@dataclass(frozen=True, slots=True)
class PairStatistics:
    """Overlaps c = ûᵢ·ûⱼ over the pairs i < j of the rows that are not zero.

    Of a sample (`sampled` is not null) the mean and the mean square are still over all pairs, by way of the Gram matrix;
    mean and standard deviation of |c| are estimates; the histogram counts the sampled pairs; the maximum, the crowds and
    the closest pairs are those among them; quantiles over rows and counts of crowds are null.
    """

    rows: int
    """n: rows counted, those of non-zero norm."""
    zero_rows: int
    columns: int
    """m."""
    pairs: int
    """n (n − 1) / 2."""
    mean_overlap: float
    mean_absolute_overlap: float
    std_absolute_overlap: float
    """√(mean of c² − (mean of |c|)²)."""
    mean_squared_overlap: float
    histogram_edges: list[float]
    """Of equal bins on [−1, 1]."""
    histogram_counts: list[int]
    maximum_overlap: float
    """Largest |c|."""
    welch_bound: float
    """κ = √((n − m) / (m (n − 1))): the largest |c| of n unit vectors is no less (Welch 1974; arXiv:2505.10465, eq. 5); 0 for
    n ≤ m."""
    maximum_to_welch: float | None
    """maximum_overlap ÷ κ; null where κ is 0."""
    row_maximum_quantiles: dict[str, float] | None
    """Of each row's largest |c|."""
    row_mean_square_quantiles: dict[str, float] | None
    """Of each row's mean of c² over its n − 1 partners."""
    crowds: int | None
    """Sets of three rows or more, of which one overlaps all others by |c| > 0.95: tokens that were never trained make such."""
    crowded_rows: int | None
    """Rows in them."""
    largest_crowds: list[Crowd]
    """Ten at most, largest first."""
    closest_pairs: list[ClosePair]
    """The ten pairs with the largest |c| among rows in no crowd, most overlapping first."""
    sampled: PairSample | None
    """Null where every pair was looked at."""


def all_pairs(
    blocks: Iterable[RowBlock],
    backend: Backend | None = None,
    *,
    mask: NDArray[np.bool_] | None = None,
    centre: NDArray[np.float64] | None = None,
    sample: float | None = None,
    generator: np.random.Generator | None = None,
    tile_rows: int | None = None,
    memory: int | None = None,
    partial: Path | None = None,
    label: str = "",
    share: Share | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> PairStatistics:
    """The statistics of all pairs of rows, or of a sample of their tiles.

    blocks: consecutive rows (b, m) in storage dtype, read once, or twice for a sample.
    mask: (n,) True for the rows that count; centre: (m,) subtracted from each row before it is normalised.
    sample: a share (below 1) or a number of tiles, chosen by `generator`; without one, by the seed `tile_list.SEED`.
    tile_rows: rows of a tile's blocks; memory: bytes that unit rows may take. Both are chosen for the machine.
    partial: a file that is brought up to date every minute, and gone on with where it is there; `label` names the rows.
        Each process of a share has its own, with `-rank-of-count` in its name.
    share: the processes that call this together, each with all rows, to sum up a share of the tiles; all get the same.
    progress: called with "pairs", the tiles done and the tiles there are; then as `find_closest` says.

    Raises `CheckpointError` for a NaN or infinite row and for fewer than two rows with a direction, `BackendError` where
    the unit rows do not fit into memory, `LlmsuperError` for a sample too small or a partial file of something else.
    """
    backend = backend or choose_backend()
    if tile_rows is None:
        tile_rows = TILE_ROWS[backend.device] if sample is None else SAMPLE_TILE_ROWS
    overlap: OverlapStatistics | None = None
    tiles, wanted = None, None
    if sample is not None:
        (overlap,) = one_pass(blocks, [GramAccumulator()], backend=backend, centre=centre, mask=mask)
        assert overlap is not None
        every = every_tile(overlap.rows, tile_rows)
        tiles = sample_tiles(every, sample, generator or np.random.default_rng(SEED))
        wanted = {int(k) for k in tiles.flat}
    (rows,) = one_pass(blocks, [ResidentRows(tile_rows, wanted, memory)], backend=backend, centre=centre, mask=mask)
    if len(rows) < 2:
        raise CheckpointError(
            f"pairs need two rows that are not zero; {len(rows)} of {len(rows) + rows.zero_rows} are. "
            "Is this the right tensor? See --lm-head."
        )
    if tiles is None:
        tiles = every_tile(len(rows), tile_rows)
    mine = tiles if share is None else tiles[share.rank :: share.count]
    if share is not None and partial is not None:
        partial = partial.with_name(f"{partial.stem}-{share.rank}-of-{share.count}{partial.suffix}")
    sums = sum_tiles(rows, mine, backend, label=label, partial=partial, progress=progress)
    total = sums if share is None else share.total(sums)
    return pair_statistics(rows, total, overlap, SEED if generator is None else None, progress)


def sum_tiles(
    rows: UnitRows,
    tiles: Tiles,
    backend: Backend,
    *,
    label: str = "",
    partial: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> PairSums:
    """The sums of those tiles. See `all_pairs` for what is optional.

    Processes that share out the list call this with `tiles[rank::world]` each, and one of them merges the sums.
    """
    sums = PairSums.none(len(rows), rows.block_rows, label)
    if partial is not None and partial.exists():
        sums = _stored(partial, sums, tiles)
    left = [tile for i, j in tiles.tolist() if (tile := (i, j)) not in sums.tiles]
    saved = time.monotonic()
    try:
        for tile, found in _tile_sums(rows, left, backend):
            sums.add(tile, found)
            if progress is not None:
                progress("pairs", len(sums.tiles), len(tiles))
            if partial is not None and time.monotonic() - saved > SAVE_SECONDS:
                sums.save(partial)
                saved = time.monotonic()
    finally:
        if partial is not None:
            sums.save(partial)
    return sums


def _stored(partial: Path, empty: PairSums, tiles: Tiles) -> PairSums:
    """The sums in the file, if they are of these rows and tiles."""
    found = PairSums.load(partial)
    if found.identity != empty.identity or not found.tiles.keys() <= {(i, j) for i, j in tiles.tolist()}:
        raise LlmsuperError(
            f"{partial}: holds sums over other rows or tiles (label, rows of a block, rows: {found.identity}) than are asked "
            f"for ({empty.identity}). Name another file, or delete it to begin again."
        )
    return found


def _tile_sums(
    rows: UnitRows, tiles: list[tuple[int, int]], backend: Backend
) -> Iterable[tuple[tuple[int, int], TileSums]]:
    """Each tile's sums, in order; on a CPU one tile a core at a time, each with single-threaded BLAS."""

    def work(tile: tuple[int, int]) -> TileSums:
        i, j = tile
        left = rows.block(i)
        right = left if i == j else rows.block(j)
        return backend.overlap_sums(left, right, bins=BINS, diagonal=i == j)

    threads = kernels.usable_cores() if backend.device == "cpu" else 1
    waiting: deque[tuple[tuple[int, int], Future[TileSums]]] = deque()
    with worker_threads(threads, "tiles") as pool:
        try:
            for tile in tiles:
                waiting.append((tile, pool.submit(work, tile)))
                if len(waiting) > threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def pair_statistics(
    rows: UnitRows,
    sums: PairSums,
    overlap: OverlapStatistics | None = None,
    seed: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> PairStatistics:
    """What the sums say. Where they hold a sample of the tiles, `overlap` has the exact mean and mean square."""
    n, m = len(rows), rows.columns
    tiles, pairs = len(every_tile(n, rows.block_rows)), n * (n - 1) // 2
    sampled: PairSample | None = None
    in_tiles, totals, absolutes, squares = sums.per_tile()
    if len(sums.tiles) < tiles:
        if overlap is None:
            raise ValueError(
                f"{len(sums.tiles)} of {tiles} tiles are a sample: their mean square is needed from elsewhere"
            )
        mean, mean_square = overlap.mean_overlap, overlap.mean_squared_overlap
        estimate = estimate_mean(in_tiles, absolutes, squares, mean_square, tiles)
        absolute = estimate.value
        seen = int(in_tiles.sum())
        sampled = PairSample(len(sums.tiles), tiles, rows.block_rows, seen, CONFIDENCE, list(estimate.interval), seed)
    else:
        mean, absolute, mean_square = (math.fsum(s) / pairs for s in (totals, absolutes, squares))
    met = sums.met > 0
    largest = np.abs(sums.largest[met])
    kappa = math.sqrt(welch_floor(n, m))
    closest = find_closest(rows, sums, progress=progress)
    return PairStatistics(
        rows=n,
        zero_rows=rows.zero_rows,
        columns=m,
        pairs=pairs,
        mean_overlap=mean,
        mean_absolute_overlap=absolute,
        std_absolute_overlap=math.sqrt(max(0.0, mean_square - absolute**2)),
        mean_squared_overlap=mean_square,
        histogram_edges=[float(e) for e in bin_edges(BINS)],
        histogram_counts=[int(c) for c in sums.histogram],
        maximum_overlap=float(largest.max()),
        welch_bound=kappa,
        maximum_to_welch=float(largest.max()) / kappa if kappa > 0 else None,
        row_maximum_quantiles=_quantiles(largest) if sampled is None else None,
        row_mean_square_quantiles=_quantiles(sums.row_squares / (n - 1)) if sampled is None else None,
        crowds=len(closest.crowds) if sampled is None else None,
        crowded_rows=sum(crowd.size for crowd in closest.crowds) if sampled is None else None,
        largest_crowds=closest.crowds[:COUNT],
        closest_pairs=closest.pairs,
        sampled=sampled,
    )


def _quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    return {f"{q:g}": float(v) for q, v in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}
