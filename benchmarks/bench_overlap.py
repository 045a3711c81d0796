"""Times llmsuper's overlap pass beside the authors' algorithm and beside this machine's own matrix product.

    python benchmarks/bench_overlap.py                          # 50,257 × 768 float32; minutes, for the authors' part
    python benchmarks/bench_overlap.py --pairs-fraction 0.1     # a tenth of the authors' block pairs, scaled up
    python benchmarks/bench_overlap.py --pairs-fraction 0       # ours and the machine alone; seconds

Everything is measured in one run, in rounds that take each thing in turn, half of them before the authors' part and half
after it; the best of all rounds counts, and every one is printed. Reading the head from a disk or a network is not in
these times. Exits with status 1 where results disagree.
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

from llmsuper.geometry.controls import MatrixBlocks, random_head
from llmsuper.geometry.norms import NormAccumulator
from llmsuper.geometry.overlap import GramAccumulator, MeanRowAccumulator
from llmsuper.geometry.passes import one_pass
from llmsuper.hub.stream import default_block_rows
from llmsuper.kernels import choose_backend, usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AUTHORS_BLOCK = 8_192
AGREEMENT = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 5e-3}
"""Relative, of the mean squared overlap: the authors round norms, quotients, products and squares to the storage dtype."""
PRODUCT_SIZE = 4_096
COPY_BYTES = 256 << 20


def authors_blocks(rows: int) -> list[tuple[slice, slice]]:
    """Pairs of row blocks on and above the diagonal, of which each is one product."""
    starts = range(0, rows, AUTHORS_BLOCK)
    blocks = [slice(a, min(a + AUTHORS_BLOCK, rows)) for a in starts]
    return [(left, right) for i, left in enumerate(blocks) for right in blocks[i:]]


def authors(W: torch.Tensor, pairs: list[tuple[slice, slice]]) -> tuple[int, float, float]:
    """The algorithm of arXiv:2505.10465, written from its description: all pairs i < j, block by block.

    Rows are normalised in the storage dtype for each product, absolute overlaps are squared in it, and sums are float64.
    Returns the number of pairs, Σ|c| and Σc².
    """
    count, total, squares = 0, 0.0, 0.0
    for left, right in pairs:
        x = W[left] / W[left].norm(dim=1, keepdim=True)
        y = W[right] / W[right].norm(dim=1, keepdim=True)
        overlaps = (x @ y.T).abs()
        if left == right:
            overlaps = overlaps.triu(diagonal=1)
            count += len(x) * (len(x) - 1) // 2
        else:
            count += len(x) * len(y)
        total += overlaps.to(torch.float64).sum().item()
        squares += overlaps.square().to(torch.float64).sum().item()
    return count, total, squares


def products(pairs: list[tuple[slice, slice]]) -> int:
    """Inner products that these blocks take, both triangles of a diagonal block counted."""
    return sum((a.stop - a.start) * (b.stop - b.start) for a, b in pairs)


def ours(W: torch.Tensor, *, whole: bool = True) -> float:
    """What `llmsuper overlap` does in its first pass: norms, overlap and mean row; or the Gram matrix alone."""
    row_bytes = W.shape[1] * W.element_size()
    accumulators = [GramAccumulator(), NormAccumulator(), MeanRowAccumulator()] if whole else [GramAccumulator()]
    blocks = MatrixBlocks(W, default_block_rows(len(W), row_bytes))
    found: float = one_pass(blocks, accumulators, backend=choose_backend(device="cpu"))[0].mean_squared_overlap
    return found


def rounds(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """(wall, CPU) seconds of each work, in turn, `repeats` times after one round that is thrown away."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            time.sleep(0.05)  # a thread pool spins for a while after its last task
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            if repeat:
                found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return found


def evenly(pairs: list[tuple[slice, slice]], fraction: float) -> list[tuple[slice, slice]]:
    keep = max(1, round(len(pairs) * fraction))
    return [pairs[int((k + 0.5) * len(pairs) / keep)] for k in range(keep)]


def report_agreement(what: str, theirs: float, found: float, dtype: str) -> None:
    apart = abs(found / theirs - 1)
    print(f"mean squared overlap of {what}: authors {theirs:.9g}, llmsuper {found:.9g}, {apart:.1e} apart")
    if not apart <= AGREEMENT[dtype]:
        raise SystemExit(f"error: they are more than {AGREEMENT[dtype]:g} apart: the times would compare nothing.")


def lines_of(found: dict[str, list[tuple[float, float]]], amounts: dict[str, tuple[float, str]]) -> Iterator[str]:
    for name, times in found.items():
        amount, unit = amounts[name]
        wall, cpu = min(times)
        every = " ".join(f"{t:.3f}" for t, _ in times)
        yield f"{name:<26}{wall:9.3f} s {cpu:9.3f} CPU-s {amount / wall / 1e9:9.1f} {unit:<8} all: {every}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_257)
    parser.add_argument("--columns", type=int, default=768)
    parser.add_argument("--dtype", choices=AGREEMENT, default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--pairs-fraction", type=float, default=1.0, help="of the authors' block pairs; 0: none")
    parser.add_argument("--save", action="store_true", help="add a row to results/<device>.csv")
    options = parser.parse_args()
    n, m, dtype = options.rows, options.columns, options.dtype

    row = machine.description()
    machine.print_description(row)
    torch.set_num_threads(usable_cores())
    W = (random_head(n, m, torch.Generator().manual_seed(0)) + 0.3).to(getattr(torch, dtype))
    print(f"\n{n:,} × {m:,} {dtype}, {usable_cores()} threads\n")

    part = W[: AUTHORS_BLOCK + AUTHORS_BLOCK // 2]
    count, _, squares = authors(part, authors_blocks(len(part)))
    report_agreement(f"the first {len(part):,} rows", squares / count, ours(part), dtype)

    a, b = torch.rand(PRODUCT_SIZE, PRODUCT_SIZE), torch.rand(PRODUCT_SIZE, PRODUCT_SIZE)
    source, target = torch.rand(COPY_BYTES // 4), torch.empty(COPY_BYTES // 4)
    gram_flops, product_flops = 2.0 * n * m * m, 2.0 * PRODUCT_SIZE**3
    works: dict[str, Callable[[], object]] = {
        "llmsuper, one pass": lambda: ours(W),
        "llmsuper, Gram alone": lambda: ours(W, whole=False),
        "torch.mm float32": lambda: torch.mm(a, b),
        "numpy.matmul float32": lambda: np.matmul(a.numpy(), b.numpy()),
        "memory copy": lambda: target.copy_(source),
    }
    amounts = {
        "llmsuper, one pass": (gram_flops, "GFLOP/s"),
        "llmsuper, Gram alone": (gram_flops, "GFLOP/s"),
        "torch.mm float32": (product_flops, "GFLOP/s"),
        "numpy.matmul float32": (product_flops, "GFLOP/s"),
        "memory copy": (2.0 * COPY_BYTES, "GB/s"),
    }
    found = rounds(works, -(-options.repeats // 2))
    authors_s = authors_cpu = None
    pairs = authors_blocks(n)
    if options.pairs_fraction > 0:
        sample = pairs if options.pairs_fraction >= 1 else evenly(pairs, options.pairs_fraction)
        wall, cpu = time.perf_counter(), time.process_time()
        count, _, squares = authors(W, sample)
        scale = products(pairs) / products(sample)
        authors_s = (time.perf_counter() - wall) * scale
        authors_cpu = (time.process_time() - cpu) * scale
        how = (
            "all block pairs, once"
            if sample is pairs
            else f"{len(sample)} of {len(pairs)} block pairs, once, times {scale:.2f}"
        )
        print(f"{'authors (' + how + ')':<26} {authors_s:.1f} s, {authors_cpu:.1f} CPU-s")
        if sample is pairs:
            report_agreement("every row", squares / count, ours(W), dtype)
    for name, times in rounds(works, options.repeats // 2).items():
        found[name] += times

    print(
        f"\nbest of {options.repeats}; llmsuper counted as 2nm² operations, though it needs nm² (half is its mirror image)"
    )
    print("\n".join(lines_of(found, amounts)))
    best = {name: min(times) for name, times in found.items()}
    rate = product_flops / min(best["torch.mm float32"][0], best["numpy.matmul float32"][0])
    one_pass_s, gram_s = best["llmsuper, one pass"][0], best["llmsuper, Gram alone"][0]
    of_products = zip(found["torch.mm float32"], found["numpy.matmul float32"], strict=True)
    product_s = [min(torch_s, numpy_s) for (torch_s, _), (numpy_s, _) in of_products]
    in_turn = [
        gram_flops / t / (product_flops / p) for (t, _), p in zip(found["llmsuper, one pass"], product_s, strict=True)
    ]

    print()
    print(f"one pass ÷ this machine's product  {gram_flops / one_pass_s / rate:8.2f} ×")
    print(f"the same, median of the rounds     {statistics.median(in_turn):8.2f} ×")
    print(f"Gram alone ÷ this machine's product{gram_flops / gram_s / rate:8.2f} ×")
    if authors_s is not None and authors_cpu is not None:
        print(f"authors ÷ one pass, wall           {authors_s / one_pass_s:8.0f} ×")
        print(f"authors ÷ one pass, CPU time       {authors_cpu / best['llmsuper, one pass'][1]:8.0f} ×")
    print(f"load now {os.getloadavg()[0]:.2f}")
    if options.save:
        row |= {
            "rows": n,
            "columns": m,
            "dtype": dtype,
            "repeats": options.repeats,
            "one_pass_s": round(one_pass_s, 4),
            "one_pass_cpu_s": round(best["llmsuper, one pass"][1], 4),
            "gram_s": round(gram_s, 4),
            "one_pass_to_product_median": round(statistics.median(in_turn), 3),
            "product_gflops": round(rate / 1e9, 1),
            "copy_gbs": round(2 * COPY_BYTES / best["memory copy"][0] / 1e9, 2),
            "pairs_fraction": options.pairs_fraction,
            "authors_s": "" if authors_s is None else round(authors_s, 2),
            "authors_cpu_s": "" if authors_cpu is None else round(authors_cpu, 2),
            "load_after": round(os.getloadavg()[0], 2),
        }
        machine.save_row(f"{machine.device()}.csv", row)


if __name__ == "__main__":
    main()
