"""Triton's device code: the row kernel and the tile kernel.

Every program writes its results to a place of its own, and the host adds them up in a fixed order, so that the same input
gives the same bits. No program loops over more than its own tile: Triton's interpreter cannot.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def unit_rows_kernel(
    rows, centre, unit, norms, usual, n, m, row_stride, unit_stride, least, most, floor, scale,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, CENTRED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """ROWS rows of `rows` (n, m) into `unit`, `norms` and `usual` (1 where the result stands); COLUMNS ≥ m, a power of two."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < n)[:, None] & (column < m)[None, :]
    at = row.to(tl.int64)[:, None]
    x = tl.load(rows + at * row_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    norm = tl.sqrt_rn(tl.sum(x * x, axis=1))
    good = (norm > least) & (norm < most)  # false for NaN
    if CENTRED:
        middle = tl.load(centre + column, mask=column < m, other=0.0)
        x = tl.where(inside, x - middle[None, :], 0.0)
        norm = tl.sqrt_rn(tl.sum(x * x, axis=1))
        good = good & (norm > floor)  # a row this close to the centre has lost its direction to rounding
    y = x * tl.div_rn(1.0, tl.where(good, norm, 1.0))[:, None]
    if HALF:
        y = (y * scale).to(tl.float16).to(tl.float32) / scale
    tl.store(unit + at * unit_stride + column[None, :], y, mask=inside)
    tl.store(norms + row, norm, mask=row < n)
    tl.store(usual + row, good.to(tl.int8), mask=row < n)


@triton.jit
def _row_best(size, code, AXIS: tl.constexpr):
    """The largest of `size` along an axis, and the smallest `code` of those that are as large."""
    largest = tl.max(size, axis=AXIS)
    return largest, tl.min(tl.where(size == tl.expand_dims(largest, AXIS), code, 0x7FFFFFFF), axis=AXIS)


@triton.jit
def overlap_sums_kernel(
    left, right, tiles, sums, counts, left_size, left_code, left_squares, right_size, right_code, right_squares,
    a, b, m, left_stride, right_stride, scale, half_bins, shift, bins,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, DEPTH: tl.constexpr, BINS: tl.constexpr,
    DIAGONAL: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile of overlaps (DOWN, ACROSS) of `left` (a, m) with `right` (b, m), reduced. BINS ≥ `bins`, a power of two.

    sums (tiles, 3): Σ c, Σ |c|, Σ c². counts (tiles, BINS). For each left row, at (tile of partners, row), its largest |c|
    (−1 where no pair counts), 2 × that partner + 1 if c < 0, and Σ c²; and the same for each right row.
    """
    program = tl.program_id(0)
    tile = tl.load(tiles + program)
    tile_i = tile >> 16
    tile_j = tile & 0xFFFF
    i = tile_i * DOWN + tl.arange(0, DOWN)
    j = tile_j * ACROSS + tl.arange(0, ACROSS)
    k = tl.arange(0, DEPTH)
    left_at = left + i.to(tl.int64)[:, None] * left_stride + k[None, :]
    right_at = right + j.to(tl.int64)[None, :] * right_stride + k[:, None]
    c = tl.zeros([DOWN, ACROSS], tl.float32)
    for start in range(0, m, DEPTH):
        x = tl.load(left_at + start, mask=(i < a)[:, None] & (k < m - start)[None, :], other=0.0)
        y = tl.load(right_at + start, mask=(j < b)[None, :] & (k < m - start)[:, None], other=0.0)
        if WIDEN:  # the interpreter's product is numpy's, which would add up in float16
            x = x.to(tl.float32)
            y = y.to(tl.float32)
        c = tl.dot(x, y, c, input_precision="ieee")

    counted = (i < a)[:, None] & (j < b)[None, :]
    if DIAGONAL:
        counted = counted & (i[:, None] < j[None, :])
    c = tl.where(counted, c * scale, 0.0)
    of_left = tile_j.to(tl.int64) * a + i
    of_right = tile_i.to(tl.int64) * b + j
    tl.store(left_squares + of_left, tl.sum(c * c, axis=1), mask=i < a)
    column_squares = tl.sum(c * c, axis=0)
    tl.store(right_squares + of_right, column_squares, mask=j < b)
    tl.store(sums + program * 3, tl.sum(tl.sum(c, axis=0), axis=0))
    tl.store(sums + program * 3 + 1, tl.sum(tl.sum(tl.abs(c), axis=0), axis=0))
    tl.store(sums + program * 3 + 2, tl.sum(column_squares, axis=0))

    c = tl.minimum(tl.maximum(c, -1.0), 1.0)  # rounding puts near-duplicates above 1
    size = tl.where(counted, tl.abs(c), -1.0)
    negative = (c < 0).to(tl.int32)
    largest, code = _row_best(size, 2 * j[None, :] + negative, 1)
    tl.store(left_size + of_left, largest, mask=i < a)
    tl.store(left_code + of_left, code, mask=i < a)
    largest, code = _row_best(size, 2 * i[:, None] + negative, 0)
    tl.store(right_size + of_right, largest, mask=j < b)
    tl.store(right_code + of_right, code, mask=j < b)

    # where `bins` is even the edge at 0 is a whole number here, so that no rounding moves a small overlap across it;
    # what does not count is 0 and lands in the bin of 0, which the host knows
    place = tl.minimum(tl.floor(c * half_bins + shift).to(tl.int32) + bins // 2, bins - 1)
    tl.store(counts + program * BINS + tl.arange(0, BINS), tl.histogram(tl.reshape(place, [DOWN * ACROSS]), BINS))
