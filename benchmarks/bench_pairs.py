"""Times llmsuper's statistics of all pairs beside the authors' algorithm and beside this machine's own matrix product.

    python benchmarks/bench_pairs.py                                      # 50,257 × 768 float32; minutes
    python benchmarks/bench_pairs.py --tiles-fraction 0.1 --pairs-fraction 0.1 --per-row-fraction 0.1   # a tenth of each

Both look at every pair of rows. The authors' algorithm sums |c| and c²; ours has a histogram, each row's largest overlap
with its partner and each row's mean square besides. So theirs is timed twice: as it is, and with the same statistics
added to each of its blocks by the functions of torch that are made for them. Everything is measured in one run, in rounds
that take each thing in turn, half of them before the authors' part and half after it; the best of all rounds counts, and
every one is printed. Reading the head from a disk or a network is not in these times. Exits with status 1 where results
disagree.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import TYPE_CHECKING

import machine
import numpy as np
import torch
from bench_overlap import (
    AGREEMENT,
    AUTHORS_BLOCK,
    PRODUCT_SIZE,
    authors,
    authors_blocks,
    evenly,
    lines_of,
    products,
    rounds,
)

from llmsuper.geometry.controls import MatrixBlocks, random_head
from llmsuper.geometry.pair_sums import BINS
from llmsuper.geometry.pairs import TILE_ROWS, all_pairs, sum_tiles
from llmsuper.geometry.passes import one_pass
from llmsuper.geometry.resident import ResidentRows, UnitRows
from llmsuper.geometry.tile_list import every_tile
from llmsuper.hub.stream import default_block_rows
from llmsuper.kernels import choose_backend, usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmsuper.geometry.pair_sums import PairSums
    from llmsuper.geometry.tile_list import Tiles

MOVED = 1e-3
"""Share of the pairs whose overlap is so near the edge of a bin that two ways of rounding it differ."""


class PerRow:
    """What `authors_per_row` finds besides: a histogram, and of each row its largest |c|, its partner and Σc²."""

    def __init__(self, rows: int) -> None:
        self.histogram = torch.zeros(BINS, dtype=torch.float64)
        self.largest, self.partner = torch.zeros(rows), torch.zeros(rows, dtype=torch.int64)
        self.squares = torch.zeros(rows, dtype=torch.float64)

    def add(self, rows: slice, largest: torch.Tensor, partner: torch.Tensor, squares: torch.Tensor) -> None:
        better = largest > self.largest[rows]
        self.partner[rows] = torch.where(better, partner, self.partner[rows])
        self.largest[rows] = torch.where(better, largest, self.largest[rows])
        self.squares[rows] += squares


def authors_per_row(W: torch.Tensor, pairs: list[tuple[slice, slice]]) -> tuple[int, float, float, PerRow]:
    """`authors` block by block as it is, with what our statistics have besides: torch.histc, max and sum of each block."""
    count, total, squares, found = 0, 0.0, 0.0, PerRow(len(W))
    for left, right in pairs:
        x = W[left] / W[left].norm(dim=1, keepdim=True)
        y = W[right] / W[right].norm(dim=1, keepdim=True)
        signed = x @ y.T
        if left == right:
            signed.fill_diagonal_(2)  # outside the histogram
            found.histogram += torch.histc(signed, BINS, -1, 1).double() / 2
            signed.fill_diagonal_(0)
            overlaps = signed.abs()
            square = overlaps.square()
            found.add(left, *_largest(overlaps, 1, right), square.sum(dim=1, dtype=torch.float64))
            overlaps, square = overlaps.triu(), square.triu()
            count += len(x) * (len(x) - 1) // 2
        else:
            found.histogram += torch.histc(signed, BINS, -1, 1).double()
            overlaps = signed.abs()
            square = overlaps.square()
            found.add(left, *_largest(overlaps, 1, right), square.sum(dim=1, dtype=torch.float64))
            found.add(right, *_largest(overlaps, 0, left), square.sum(dim=0, dtype=torch.float64))
            count += len(x) * len(y)
        total += overlaps.to(torch.float64).sum().item()
        squares += square.to(torch.float64).sum().item()
    return count, total, squares, found


def _largest(overlaps: torch.Tensor, axis: int, partners: slice) -> tuple[torch.Tensor, torch.Tensor]:
    values, index = overlaps.max(dim=axis)
    return values, index + partners.start


def read_rows(W: torch.Tensor, tile_rows: int) -> UnitRows:
    blocks = MatrixBlocks(W, default_block_rows(len(W), W.shape[1] * W.element_size()))
    rows: UnitRows = one_pass(blocks, [ResidentRows(tile_rows)], backend=choose_backend(device="cpu"))[0]
    return rows


def tiles_of(rows: int, tile_rows: int, fraction: float) -> Tiles:
    tiles = every_tile(rows, tile_rows)
    keep = max(1, round(len(tiles) * fraction))
    return tiles[((np.arange(keep) + 0.5) * len(tiles) / keep).astype(int)]


def pairs_of(tiles: Tiles, rows: int, tile_rows: int) -> int:
    i, j = tiles.T
    left, right = (np.minimum(rows - k * tile_rows, tile_rows) for k in (i, j))
    return int(np.where(i == j, left * (left - 1) // 2, left * right).sum())


def check_agreement(W: torch.Tensor, tile_rows: int) -> None:
    blocks = authors_blocks(len(W))
    count, total, squares = authors(W, blocks)
    counted, _, _, per_row = authors_per_row(W, blocks)
    found = all_pairs(MatrixBlocks(W), choose_backend(device="cpu"), tile_rows=tile_rows)
    sums = sum_tiles(read_rows(W, tile_rows), every_tile(len(W), tile_rows), choose_backend(device="cpu"))
    report(f"the first {len(W):,} rows", total / count, squares / count, found, "float32")
    if not count == counted == found.pairs == sum(found.histogram_counts) == per_row.histogram.sum():
        raise SystemExit(f"error: {count:,}, {found.pairs:,} and {sum(found.histogram_counts):,} pairs were counted.")
    moved = (torch.from_numpy(sums.histogram) - per_row.histogram).abs().sum().item() / 2 / count
    largest = np.abs(np.abs(sums.largest) - per_row.largest.numpy()).max()
    square = np.abs(sums.row_squares / per_row.squares.numpy() - 1).max()
    partners = float((sums.partner == per_row.partner.numpy()).mean())
    print(
        f"authors with a histogram and row maxima: {moved:.1e} of the pairs in another bin, largest overlaps {largest:.1e} "
        f"apart, {100 * partners:.2f} % of the partners the same, Σc² of the rows {square:.1e} apart"
    )
    if not (moved <= MOVED and max(largest, square) <= AGREEMENT["float32"]):
        raise SystemExit("error: the two find different statistics: the times would compare nothing.")


def check_agreement_stored(W: torch.Tensor, tile_rows: int, dtype: str) -> None:
    """The same for a head stored in 16 bits, in which the authors compute."""
    count, total, squares = authors(W, authors_blocks(len(W)))
    found = all_pairs(MatrixBlocks(W), choose_backend(device="cpu"), tile_rows=tile_rows)
    report(f"the first {len(W):,} rows", total / count, squares / count, found, dtype)


def report(what: str, absolute: float, square: float, found: object, dtype: str) -> None:
    for name, theirs in (("mean_absolute_overlap", absolute), ("mean_squared_overlap", square)):
        ours = getattr(found, name)
        apart = abs(ours / theirs - 1)
        print(f"{name} of {what}: authors {theirs:.9g}, llmsuper {ours:.9g}, {apart:.1e} apart")
        if not apart <= AGREEMENT[dtype]:
            raise SystemExit(f"error: they are more than {AGREEMENT[dtype]:g} apart: the times would compare nothing.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_257)
    parser.add_argument("--columns", type=int, default=768)
    parser.add_argument("--dtype", choices=AGREEMENT, default="float32", help="that the head is stored in")
    parser.add_argument("--tile-rows", type=int, default=TILE_ROWS["cpu"])
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--tiles-fraction", type=float, default=1.0, help="of our tiles, evenly spread")
    parser.add_argument("--pairs-fraction", type=float, default=1.0, help="of the authors' block pairs; 0: none")
    parser.add_argument("--per-row-fraction", type=float, default=1.0, help="the same, with histogram and row maxima")
    parser.add_argument("--save", action="store_true", help="add a row to results/pairs-<device>.csv")
    options = parser.parse_args()
    if options.dtype != "float32" and options.per_row_fraction:
        parser.error("torch.histc has no 16-bit floats on a CPU: give --per-row-fraction 0")
    n, m, tile_rows = options.rows, options.columns, options.tile_rows

    row = machine.description()
    machine.print_description(row)
    torch.set_num_threads(usable_cores())
    W = (random_head(n, m, torch.Generator().manual_seed(0)) + 0.3).to(getattr(torch, options.dtype))
    print(f"\n{n:,} × {m:,} {options.dtype}, {usable_cores()} threads\n")
    part = W[: AUTHORS_BLOCK + AUTHORS_BLOCK // 2]
    if options.dtype == "float32":
        check_agreement(part, tile_rows)
    else:
        check_agreement_stored(part[: AUTHORS_BLOCK // 2], tile_rows, options.dtype)

    rows, backend = read_rows(W, tile_rows), choose_backend(device="cpu")
    tiles = tiles_of(n, tile_rows, options.tiles_fraction)
    share = pairs_of(tiles, n, tile_rows) / (n * (n - 1) // 2)
    print(f"llmsuper: {len(tiles):,} of {len(every_tile(n, tile_rows)):,} tiles, {100 * share:.1f} % of the pairs")
    kept: list[PairSums] = []
    a, b = torch.rand(PRODUCT_SIZE, PRODUCT_SIZE), torch.rand(PRODUCT_SIZE, PRODUCT_SIZE)
    pair_flops, product_flops = 2.0 * m * share * (n * (n - 1) // 2), 2.0 * PRODUCT_SIZE**3
    works: dict[str, Callable[[], object]] = {
        "llmsuper, unit rows": lambda: read_rows(W, tile_rows),
        "llmsuper, tiles": lambda: kept.__setitem__(slice(None), [sum_tiles(rows, tiles, backend)]),
        "torch.mm float32": lambda: torch.mm(a, b),
        "numpy.matmul float32": lambda: np.matmul(a.numpy(), b.numpy()),
    }
    amounts = {
        "llmsuper, unit rows": ((4.0 + W.element_size()) * n * m, "GB/s"),
        "llmsuper, tiles": (pair_flops, "GFLOP/s"),
        "torch.mm float32": (product_flops, "GFLOP/s"),
        "numpy.matmul float32": (product_flops, "GFLOP/s"),
    }
    found = rounds(works, -(-options.repeats // 2))
    authors_s = authors_cpu = None
    pairs = authors_blocks(n)
    if options.pairs_fraction > 0:
        sample = pairs if options.pairs_fraction >= 1 else evenly(pairs, options.pairs_fraction)
        wall, cpu = time.perf_counter(), time.process_time()
        count, total, squares = authors(W, sample)
        scale = products(pairs) / products(sample)
        authors_s, authors_cpu = (time.perf_counter() - wall) * scale, (time.process_time() - cpu) * scale
        how = f"{len(sample)} of {len(pairs)} block pairs, once, times {scale:.2f}"
        print(f"authors ({how}) {authors_s:.1f} s, {authors_cpu:.1f} CPU-s")
        if sample is pairs and share == 1:
            _, _, absolutes, ours = kept[0].per_tile().sum(axis=1)
            for theirs, mine in ((total, absolutes), (squares, ours)):
                if not abs(mine / theirs - 1) <= AGREEMENT[options.dtype]:
                    raise SystemExit(f"error: over all {count:,} pairs the sums are {theirs:.9g} and {mine:.9g}.")
    same_s = same_cpu = None
    if options.per_row_fraction > 0:
        sample = evenly(pairs, options.per_row_fraction) if options.per_row_fraction < 1 else pairs
        wall, cpu = time.perf_counter(), time.process_time()
        authors_per_row(W, sample)
        scale = products(pairs) / products(sample)
        same_s, same_cpu = (time.perf_counter() - wall) * scale, (time.process_time() - cpu) * scale
        how = f"{len(sample)} of {len(pairs)} block pairs, once, times {scale:.2f}"
        print(f"authors, with a histogram and row maxima ({how}) {same_s:.1f} s, {same_cpu:.1f} CPU-s")
    for name, times in rounds(works, options.repeats // 2).items():
        found[name] += times

    print(
        f"\nbest of {options.repeats}; the tiles counted as n²m operations: a multiplication and an addition for each pair"
    )
    print("\n".join(lines_of(found, amounts)))
    best = {name: min(times) for name, times in found.items()}
    rate = product_flops / min(best["torch.mm float32"][0], best["numpy.matmul float32"][0])
    tiles_s, tiles_cpu = (t / share for t in best["llmsuper, tiles"])
    ours_s, ours_cpu = (t + u for t, u in zip((tiles_s, tiles_cpu), best["llmsuper, unit rows"], strict=True))
    of_products = zip(found["torch.mm float32"], found["numpy.matmul float32"], strict=True)
    in_turn = statistics.median(
        pair_flops / t / (product_flops / min(p, q))
        for (t, _), ((p, _), (q, _)) in zip(found["llmsuper, tiles"], of_products, strict=True)
    )
    print()
    print(f"all pairs of all rows              {ours_s:8.2f} s, {ours_cpu:.2f} CPU-s")
    print(f"tiles ÷ this machine's product     {pair_flops / best['llmsuper, tiles'][0] / rate:8.2f} ×")
    print(f"the same, median of the rounds     {in_turn:8.2f} ×")
    if authors_s is not None and authors_cpu is not None:
        print(f"authors ÷ llmsuper, wall           {authors_s / ours_s:8.2f} ×")
        print(f"authors ÷ llmsuper, CPU time       {authors_cpu / ours_cpu:8.2f} ×")
        floor = 1.0 * n * n * m / rate
        print(
            f"authors ÷ n²m operations at the product's rate, which nothing in float32 beats {authors_s / floor:8.2f} ×"
        )
    if same_s is not None and same_cpu is not None:
        print("authors with a histogram and row maxima, that is the same statistics as ours:")
        print(f"                ÷ llmsuper, wall   {same_s / ours_s:8.2f} ×")
        print(f"                ÷ llmsuper, CPU    {same_cpu / ours_cpu:8.2f} ×")
    print(f"load now {os.getloadavg()[0]:.2f}")
    if options.save:
        row |= {
            "rows": n,
            "columns": m,
            "dtype": options.dtype,
            "tile_rows": tile_rows,
            "repeats": options.repeats,
            "tiles_fraction": options.tiles_fraction,
            "all_pairs_s": round(ours_s, 3),
            "all_pairs_cpu_s": round(ours_cpu, 3),
            "unit_rows_s": round(best["llmsuper, unit rows"][0], 4),
            "tiles_to_product_median": round(in_turn, 3),
            "product_gflops": round(rate / 1e9, 1),
            "pairs_fraction": options.pairs_fraction,
            "authors_s": "" if authors_s is None else round(authors_s, 2),
            "authors_cpu_s": "" if authors_cpu is None else round(authors_cpu, 2),
            "per_row_fraction": options.per_row_fraction,
            "authors_per_row_s": "" if same_s is None else round(same_s, 2),
            "authors_per_row_cpu_s": "" if same_cpu is None else round(same_cpu, 2),
            "load_after": round(os.getloadavg()[0], 2),
        }
        machine.save_row(f"pairs-{machine.device()}.csv", row)


if __name__ == "__main__":
    main()
