"""Overlap sums of a tile on the CPU: one BLAS product, then one walk over its rows, compiled by numba.

A row of overlaps is read a few times while it is in the first-level cache: by loops simple enough to become vector
instructions, one for each thing that is asked of it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba
import numpy as np
import torch

from llmsuper.kernels.tiles import RowSums, TileSums, pairs_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Compiled = TypeVar("Compiled", bound=Callable[..., Any])

MAGNITUDES: dict[Any, Any] = {np.dtype(np.float32): np.int32, np.dtype(np.float64): np.int64}
"""Without their sign, floats are in the order of their bits read as integers, whose largest is a vector instruction."""
LANES = 4
"""Histograms that neighbours are counted in: one would wait for its last count to be written."""
CHUNK = 64
"""Overlaps that are compared with a row's largest before it is asked whether one was equal."""
FLUSH_ROWS = 64
"""Rows whose squares are added up, column by column, in the dtype of the overlaps before they go into a float64 sum."""


def _compiled(function: Compiled) -> Compiled:
    """Compiled at the first call, and kept on the disk for other processes where numba finds a folder it may write to."""
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz", "nnan"}}
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no such folder: every process compiles its own
        compiled = numba.njit(**options)(function)
    return cast("Compiled", compiled)


def _inlined(function: Compiled) -> Compiled:
    """Compiled as a part of its caller. As a function of its own it would be one thing in the process that compiles it, and
    another, which sums in another order, in those that read it from the disk.
    """
    return cast("Compiled", numba.njit(inline="always")(function))


class _Workspace(threading.local):
    """A thread's own memory for overlaps, used again for every tile: fresh pages would cost as much as the walk."""

    def __init__(self) -> None:
        self._held: NDArray[Any] = np.empty(0, np.float32)

    def array(self, shape: tuple[int, int], dtype: Any) -> NDArray[Any]:
        size = shape[0] * shape[1]
        if self._held.size < size or self._held.dtype != dtype:
            self._held = np.empty(size, dtype)
        return self._held[:size].reshape(shape)


_workspace = _Workspace()


def overlap_sums(left: torch.Tensor, right: torch.Tensor, *, bins: int, diagonal: bool, scale: float) -> TileSums:
    """See `kernels.tiles`. Single-threaded where its caller made BLAS so; the interpreter lock is free all the time."""
    x = left.numpy() if left.dtype != torch.float16 else left.float().numpy()
    y = x if diagonal else right.numpy() if right.dtype != torch.float16 else right.float().numpy()
    a, b = len(x), len(y)
    c = _workspace.array((a, b), x.dtype)
    if diagonal:
        np.matmul(x, x.T, out=c)  # SYRK: half the work, and symmetric
    else:
        # faster than numpy's where it is MKL's (benchmarks/bench_pairs.py prints both rates)
        torch.mm(torch.from_numpy(x), torch.from_numpy(y).T, out=torch.from_numpy(c))
    if scale != 1.0:
        c *= c.dtype.type(scale)
    magnitude = MAGNITUDES[c.dtype]
    rows = (np.empty(a, magnitude), np.empty(a, magnitude), np.empty(a))
    columns = (np.full(b, -1, magnitude), np.zeros(b, magnitude), np.zeros(b))
    counts = np.zeros((LANES, bins), np.int64)
    one = np.ones(1, c.dtype).view(magnitude)[0]
    total, absolute, squares = _walk(c, c.view(magnitude), one, diagonal, counts, rows, columns)
    sums = (pairs_in(a, b, diagonal=diagonal), total, absolute, squares, counts.sum(axis=0))
    if diagonal:
        # what a row met to its right and, as a column, above it: of equals the partner above has the smaller index
        both = _row_sums(c, np.where(columns[0] >= rows[0], columns[1], rows[1]), rows[2] + columns[2])
        return TileSums(*sums, both, both)
    return TileSums(*sums, _row_sums(c, *rows[1:]), _row_sums(c.T, *columns[1:]))


def _row_sums(c: NDArray[Any], partner: NDArray[Any], squares: NDArray[np.float64]) -> RowSums:
    largest = c[np.arange(len(c)), partner].astype(np.float64).clip(-1.0, 1.0)
    return RowSums(largest, partner.astype(np.int64), squares)


@_compiled
def _walk(
    c: Any, bits: Any, one: Any, diagonal: bool, counts: Any, rows: Any, columns: Any
) -> tuple[float, float, float]:
    """Σ c, Σ |c|, Σ c² of c (a, b), on the diagonal of what is right of it; fills counts (LANES, bins), and of rows and columns
    the largest |c| as bits (−1: none), its partner, and Σ c².
    """
    a, b = c.shape
    sizes, row_partners, row_squares = rows
    column_sizes, column_partners, column_squares = columns
    unflushed, present, places = np.zeros(b, c.dtype), np.empty(b, bits.dtype), np.empty(b, np.uint32)
    total = absolute = squares = 0.0
    for i in range(a):
        first = i + 1 if diagonal else 0
        x, size = c[i, first:], present[first:]
        row_total, row_absolute, row_square = _add(x, unflushed[first:])
        total += row_total
        absolute += row_absolute
        squares += row_square
        row_squares[i] = row_square
        sizes[i] = _largest(bits[i, first:], one, size)
        row_partners[i] = first + _first_equal(size, sizes[i])
        _raise(size, i, column_sizes[first:], column_partners[first:])
        _count(x, places[first:], counts)
        if (i + 1) % FLUSH_ROWS == 0 or i + 1 == a:
            for j in range(b):
                column_squares[j] += unflushed[j]
                unflushed[j] = 0
    return total, absolute, squares


@_inlined
def _add(x: Any, squares: Any) -> Any:
    """Σ x, Σ |x| and Σ x²; adds x² to squares."""
    total = absolute = square = x.dtype.type(0)
    for j in range(len(x)):
        total += x[j]
        absolute += abs(x[j])
        square += x[j] * x[j]
        squares[j] += x[j] * x[j]
    return total, absolute, square


@_inlined
def _largest(bits: Any, one: Any, size: Any) -> Any:
    """The largest |x| as bits, at most `one`, −1 of nothing; and all of them, into size."""
    largest = size.dtype.type(-1)
    for j in range(len(bits)):
        size[j] = min(bits[j] & np.iinfo(bits.dtype).max, one)
        largest = max(largest, size[j])
    return largest


@_inlined
def _first_equal(size: Any, wanted: Any) -> Any:
    """The first index of `wanted` in size: CHUNK of them at a time, by an instruction for many, then one by one."""
    start = 0
    while start + CHUNK <= len(size):
        present = False
        for j in range(start, start + CHUNK):
            present |= size[j] == wanted
        if present:
            break
        start += CHUNK
    while start < len(size) and size[start] != wanted:
        start += 1
    return start


@_inlined
def _raise(size: Any, i: Any, largest: Any, partners: Any) -> None:
    """Where size is above largest, put it there and row i for its partner."""
    row = partners.dtype.type(i)
    for j in range(len(size)):
        partners[j] = row if size[j] > largest[j] else partners[j]
        largest[j] = max(size[j], largest[j])


@_inlined
def _count(x: Any, places: Any, counts: Any) -> None:
    """Count x in bins of [−1, 1], one lane after the other."""
    half, last = x.dtype.type(counts.shape[1] // 2), np.int32(counts.shape[1] - 1)
    for j in range(len(x)):
        places[j] = max(min(np.int32(x[j] * half + half), last), np.int32(0))
    whole = len(x) // LANES * LANES
    for j in range(0, whole, LANES):
        for lane in range(LANES):
            counts[lane, places[j + lane]] += 1
    for j in range(whole, len(x)):
        counts[0, places[j]] += 1
