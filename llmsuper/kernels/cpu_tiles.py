"""Overlap sums of a tile on the CPU: one BLAS product, then a few numpy passes over strips that stay in the cache."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmsuper.kernels.tiles import RowSums, TileSums, pairs_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRIP_BYTES = 256 << 10
"""Of overlaps in one strip: smaller ones stay nearer in the cache, larger ones need fewer calls; the best of 64 KiB to 1 MiB."""
GROUP = 16
"""Rows whose largest overlap with each column is kept: what is left to search for the column's largest of all."""


class _Workspace(threading.local):
    """A thread's own memory, used again for every tile: fresh pages would cost as much as some of the passes."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, int], dtype: Any) -> NDArray[Any]:
        size = shape[0] * shape[1]
        held = self._held.get(name)
        if held is None or held.size < size or held.dtype != dtype:
            held = self._held[name] = np.empty(size, dtype)
        return held[:size].reshape(shape)


_workspace = _Workspace()


def overlap_sums(left: torch.Tensor, right: torch.Tensor, *, bins: int, diagonal: bool, scale: float) -> TileSums:
    """See `kernels.tiles`. Single-threaded where its caller made BLAS so; the interpreter lock is free in every pass."""
    x = left.numpy() if left.dtype != torch.float16 else left.float().numpy()
    y = x if diagonal else right.numpy() if right.dtype != torch.float16 else right.float().numpy()
    a, b = len(x), len(y)
    c = _workspace.array("overlaps", (a, b), x.dtype)
    if diagonal:
        np.matmul(x, x.T, out=c)  # SYRK: half the work, and symmetric
    else:
        # faster than numpy's where it is MKL's (benchmarks/bench_pairs.py prints both rates)
        torch.mm(torch.from_numpy(x), torch.from_numpy(y).T, out=torch.from_numpy(c))
    if scale != 1.0:
        c *= c.dtype.type(scale)
    if diagonal:
        np.fill_diagonal(c, 0.0)  # adds nothing to the sums; its counts in the histogram are known
    index = _workspace.array("bins", (a, b), np.int16 if bins < 1 << 14 else np.int32)
    half = torch.tensor(bins / 2, dtype=torch.float64)
    totals, absolutes, squares = np.empty((3, a), c.dtype)
    column_squares, group_largest = np.zeros(b), np.empty((-(-a // GROUP), b), c.dtype)
    partner, ones = np.empty(a, np.int64), np.ones(max(a, b), c.dtype)
    step = _strip_rows(c)
    for strip in (slice(start, min(a, start + step)) for start in range(0, a, step)):
        part = c[strip]
        work = _workspace.array("strip", part.shape, c.dtype)
        np.matmul(part, ones[:b], out=totals[strip])
        torch.add(half, torch.from_numpy(part), alpha=bins / 2, out=torch.from_numpy(work))
        np.copyto(index[strip], work, casting="unsafe")  # towards zero: −10⁻⁷ too becomes bin 0
        np.multiply(part, part, out=work)
        np.matmul(work, ones[:b], out=squares[strip])
        column_squares += ones[: len(part)] @ work
        np.abs(part, out=work)
        np.matmul(work, ones[:b], out=absolutes[strip])
        if diagonal:
            work[np.arange(len(part)), np.arange(strip.start, strip.stop)] = -1.0  # nobody is his own partner
        np.argmax(work, axis=1, out=partner[strip])
        _largest_of_groups(work, group_largest[strip.start // GROUP : -(-strip.stop // GROUP)])

    counts = torch.bincount(torch.from_numpy(index).view(-1), minlength=bins + 1).numpy()
    counts[bins - 1] += counts[bins:].sum()  # c = 1, or above it by rounding
    counts = counts[:bins]
    total, absolute, square = (float(sums.sum(dtype=np.float64)) for sums in (totals, absolutes, squares))
    beyond = np.flatnonzero(np.abs(c[np.arange(a), partner]) > 1.0)
    partner[beyond] = np.minimum(np.abs(c[beyond]), 1.0).argmax(axis=1)
    rows = RowSums(_clamped(c[np.arange(a), partner]), partner, squares.astype(np.float64))
    if diagonal:  # every pair was seen twice, and every row with itself, as an overlap of 0
        counts[bins // 2] -= a
        return TileSums(pairs_in(a, a, diagonal=True), total / 2, absolute / 2, square / 2, counts // 2, rows, rows)
    partner = _first_in_columns(c, np.minimum(group_largest, 1.0, out=group_largest))
    columns = RowSums(_clamped(c[partner, np.arange(b)]), partner, column_squares)
    return TileSums(pairs_in(a, b, diagonal=False), total, absolute, square, counts, rows, columns)


def _strip_rows(c: NDArray[Any]) -> int:
    return GROUP * int(max(1, STRIP_BYTES // (GROUP * c.itemsize * c.shape[1])))


def _largest_of_groups(work: NDArray[Any], out: NDArray[Any]) -> None:
    """Into `out` (groups, b), of each column the largest entry in every GROUP rows."""
    whole = len(work) // GROUP
    np.maximum.reduce(work[: whole * GROUP].reshape(whole, GROUP, work.shape[1]), axis=1, out=out[:whole])
    if whole < len(out):
        np.maximum.reduce(work[whole * GROUP :], axis=0, out=out[whole])


def _first_in_columns(c: NDArray[Any], largest: NDArray[Any]) -> NDArray[np.int64]:
    """(b,) of each column the first index of its largest |c|, given the `largest` in each group (groups, b).

    One group a column is searched, not all of it.
    """
    rows = np.minimum(_first_largest(largest) * GROUP + np.arange(GROUP)[:, None], len(c) - 1)
    overlaps = np.abs(c.ravel().take(rows * c.shape[1] + np.arange(c.shape[1])))
    found: NDArray[np.int64] = rows[0] + _first_largest(np.minimum(overlaps, 1.0, out=overlaps))
    return found


def _first_largest(x: NDArray[Any]) -> NDArray[np.int64]:
    """(b,) of each column of x (r, b) the first index of its largest entry: what argmax(axis=0) takes four times as long for."""
    row, column = np.nonzero(x == x.max(axis=0))
    first = np.empty(x.shape[1], np.int64)
    first[column[::-1]] = row[::-1]  # of several in a column the last one written stays
    return first


def _clamped(c: NDArray[Any]) -> NDArray[np.float64]:
    return c.astype(np.float64).clip(-1.0, 1.0)
