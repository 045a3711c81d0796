"""One command for a day with a GPU: are the kernels right, how near are they to what the machine can do, what does it round.

    python benchmarks/bench_kernels.py --save                       # every backend and precision that runs here
    python benchmarks/bench_kernels.py --sizes 50257x768 --tile 4096
    python benchmarks/bench_kernels.py --cpu                        # small, Triton's kernels in its interpreter

Everything is compared with the reference before anything is timed; exit status 1 where it disagrees. Then, in one run:

    rows    unit rows: bytes read and written a second, and their share of this device's own copy
    gram    the Gram product: 2 n m² operations, and their share of this device's own product of square matrices
    pairs   the overlap sums of one tile: 2 a b m operations, the same share; beside the product alone (`product`)
    tile    the fused kernel in other layouts
    tf32    the error of the mean squared overlap with TF32 switched on, beside TF32 that is rounded, and truncated, by us
    chunk   the same error of `fast`, by the rows that one float32 accumulator adds up

What the last two decide is in docs/kernels.md. --save adds a row for each to results/kernels-<device>.csv.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

if "--cpu" in sys.argv:  # to be chosen before Triton is imported
    os.environ["TRITON_INTERPRET"] = "1"

import machine
import torch

from llmsuper.geometry.controls import random_head
from llmsuper.kernels import BACKENDS, choose_backend, one_thread_per_block, why_not
from llmsuper.kernels.precision import PRECISIONS, half_scale, ieee_products, to_half

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmsuper.kernels import Backend

SIZES = "50257x768,50304x2048,50688x5120,152064x8192"
BINS = 512
LAYOUTS = ((128, 64, 8), (128, 128, 8), (64, 64, 4), (128, 128, 16))
"""(left rows, right rows, warps) of one tile of the fused kernel."""
CHUNKS = (2_048, 4_096, 8_192, 16_384, 1 << 30)


def head(rows: int, columns: int) -> torch.Tensor:
    """A head like a model's, bfloat16: a common direction (mean cosine about 0.3), near-duplicates, heavy-tailed norms."""
    generator = torch.Generator().manual_seed(0)
    W = random_head(rows, columns, generator) + 0.65
    W[::50] = W[0] + 1e-3 * W[::50]
    W *= torch.exp(0.5 * torch.randn(rows, 1, generator=generator))
    W[3::997] = 0.0
    return W.bfloat16()


def every_backend() -> Iterator[Backend]:
    for name, row in BACKENDS.items():
        for device in row.devices:
            if why_not(name, device) is None:
                yield from (choose_backend(name, device, precision) for precision in row.precisions)


def mean_square(gram: torch.Tensor, rows: int, *, ratio: bool = True) -> float:
    """From G (m, m); by the lengths that rows have after rounding (`ratio`), or as if they were 1."""
    trace = float(gram.trace()) if ratio else float(rows)
    diagonal = trace * trace / rows
    return (float((gram * gram).sum()) - diagonal) / (trace * trace - diagonal)


def as_float64(gram: Any) -> torch.Tensor:
    return torch.as_tensor(gram).double().cpu()


def compare() -> bool:
    """Each backend with the reference on a small matrix: Gram and overlap sums. True where all keep their promise."""
    W = head(700, 96)
    reference = choose_backend("reference")
    truth, norms = reference.unit_rows(W)
    rows = int((norms > 0).sum())
    wanted = mean_square(as_float64(reference.gram(truth)), rows)
    wanted_sums = reference.overlap_sums(truth, truth, bins=BINS, diagonal=True)
    good = True
    for backend in every_backend():
        unit, _ = backend.unit_rows(W)
        error = abs(mean_square(as_float64(backend.gram(unit)), rows) / wanted - 1)
        sums = backend.overlap_sums(unit, unit, bins=BINS, diagonal=True)
        tile = abs(sums.squares / wanted_sums.squares - 1)
        promise = PRECISIONS[backend.precision].promise
        # a tile's squares are not divided by the lengths that rounding left, each off by 2⁻¹² at most
        said = error <= promise and tile <= max(promise, 2.0**-10 if backend.precision == "fast" else 0)
        good &= said
        print(f"  {label(backend):24s} Gram {error:8.1e}  pairs {tile:8.1e}  {'agrees' if said else 'DISAGREES'}")
    return good


def label(backend: Backend) -> str:
    return f"{backend.name} {backend.device} {backend.precision}"


def seconds(work: Callable[[], object], device: str, rounds: int) -> float:
    """The least of some rounds, after one that does not count."""

    def once() -> float:
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(rounds))


class Bench:
    """Times one thing after the other on one device, prints each, and keeps the rows for the file."""

    def __init__(self, device: str, rounds: int, small: bool) -> None:
        self.device, self.rounds = device, rounds
        self.found: list[dict[str, Any]] = []
        self.peaks = self._peaks(512 if small else 8192 if device == "cuda" else 2048)

    def _peaks(self, size: int) -> dict[str, float]:
        """GFLOP/s of a square product by dtype, GB/s of a copy."""
        peaks: dict[str, float] = {}
        for dtype in (torch.float64, torch.float32, torch.float16):
            if dtype == torch.float16 and self.device == "cpu":
                continue  # a loop, thousands of times slower, that nothing here calls
            x = torch.randn(size, size, device=self.device).to(dtype)
            took = seconds(partial(product, x, x), self.device, self.rounds)
            peaks[str(dtype).removeprefix("torch.")] = 2 * size**3 / took / 1e9
        source = torch.zeros(256 << 20, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        peaks["copy"] = 2 * source.nbytes / seconds(lambda: target.copy_(source), self.device, self.rounds) / 1e9
        print(
            "  "
            + ", ".join(f"{name} {rate:,.0f} {'GB/s' if name == 'copy' else 'GFLOP/s'}" for name, rate in peaks.items())
        )
        return peaks

    def kind(self, backend: Backend) -> str:
        """What this backend multiplies."""
        return "float16" if backend.precision == "fast" and self.device == "cuda" else backend.dtype

    def time(self, what: str, who: str, shape: str, work: Callable[[], object], amount: float, peak: str) -> None:
        took = seconds(work, self.device, self.rounds)
        rate = amount / took / 1e9
        self.add(what, who, shape, seconds=took, rate=rate, share=rate / self.peaks[peak])

    def add(self, what: str, who: str, shape: str, **numbers: float) -> None:
        row = {"what": what, "who": who, "shape": shape, "seconds": "", "rate": "", "share": "", "error": ""} | numbers
        self.found.append(row)
        said = {"seconds": "{:10.6f} s", "rate": "{:10,.1f} G/s", "share": "{:5.2f} of peak", "error": "error {:9.2e}"}
        texts = [said[name].format(value) for name, value in numbers.items()]
        print(f"  {what:6s} {who:28s} {shape:14s} {'  '.join(texts)}", flush=True)


def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x yᵀ, in float32 at least."""
    if x.dtype == torch.float16:
        return torch.mm(x, y.T, out_dtype=torch.float32)
    return x @ y.T


def time_backend(bench: Bench, backend: Backend, W: torch.Tensor, tile: int) -> None:
    """W: one block of rows, on the CPU. tile: rows on either side of a tile of overlaps."""
    rows = W.to(backend.device)
    n, m = rows.shape
    kind, shape = bench.kind(backend), f"{n}x{m}"
    memory = backend.workspace(n, m)
    moved = n * m * (rows.element_size() + memory.element_size())
    bench.time("rows", label(backend), shape, lambda: backend.unit_rows(rows, None, memory), moved, "copy")
    unit, _ = backend.unit_rows(rows)
    bench.time("gram", label(backend), shape, lambda: backend.gram(unit), 2 * n * m * m, kind)

    left = to_half(unit[:tile]) if backend.precision == "fast" else unit[:tile]
    right = left.clone()
    operations, shape = 2 * len(left) ** 2 * m, f"{len(left)}x{len(left)}x{m}"

    def sums() -> object:
        return backend.overlap_sums(left, right, bins=BINS, diagonal=False)

    bench.time("pairs", label(backend), shape, sums, operations, kind)
    if backend.name == "torch" and str(left.dtype).endswith(kind):  # a CPU widens float16 before it multiplies
        bench.time("pairs", f"product {kind}", shape, lambda: product(left, right), operations, kind)
    if backend.name == "triton":
        time_layouts(bench, backend, sums, operations, kind, shape)


def time_layouts(
    bench: Bench, backend: Backend, sums: Callable[[], object], work: float, kind: str, shape: str
) -> None:
    """The fused kernel in layouts besides its own; the share tells whether it is worth keeping beside `product`."""
    from llmsuper.kernels import triton_ops

    kept = dict(triton_ops.LAYOUTS)
    for down, across, warps in LAYOUTS:
        changed = {"DOWN": down, "ACROSS": across, "num_warps": warps}
        triton_ops.LAYOUTS.update({major: layout | changed for major, layout in kept.items()})
        bench.time("tile", f"{backend.precision} {down}x{across}, {warps} warps", shape, sums, work, kind)
    triton_ops.LAYOUTS.update(kept)


def ask_rounding(bench: Bench, W: torch.Tensor) -> None:
    """What the device does with TF32, and with sums of many float16 products."""
    exact = choose_backend("torch", bench.device, "exact")
    shape = "x".join(map(str, W.shape))
    wide, norms = exact.unit_rows(W)
    rows = int((norms > 0).sum())
    wanted = mean_square(as_float64(exact.gram(wide)), rows)

    def ask(what: str, who: str, gram: torch.Tensor) -> None:
        for ratio in (False, True):
            name = f"{who}, {'ratio' if ratio else 'plain'}"
            bench.add(what, name, shape, error=mean_square(gram, rows, ratio=ratio) / wanted - 1)

    unit, _ = choose_backend("torch", bench.device, "float32").unit_rows(W)
    bits = unit.view(torch.int32)
    truncated = (bits & ~0x1FFF).view(torch.float32)
    rounded = ((bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)
    for who, x in (("rounded by us", rounded), ("truncated by us", truncated)):
        ask("tf32", who, as_float64(sum_of_products(x.double(), 8192)))
    if bench.device == "cuda":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        ask("tf32", "by the device", as_float64(sum_of_products(unit, 8192)))
        torch.set_float32_matmul_precision(before)
    half = to_half(choose_backend("torch", bench.device, "fast").unit_rows(W)[0])
    x = half if bench.device == "cuda" else half.float()
    with ieee_products():
        for chunk in CHUNKS:
            gram = as_float64(sum_of_products(x, chunk)) / half_scale(W.shape[1]) ** 2
            ask("chunk", f"{min(chunk, len(x)):,} rows", gram)
            if chunk >= len(x):
                break


def sum_of_products(x: torch.Tensor, chunk: int) -> torch.Tensor:
    """Xᵀ X in float64, from products of so many rows."""
    return sum(
        (product(part.T, part.T).double() for part in x.split(chunk)), start=torch.zeros((), dtype=torch.float64)
    )


def description(device: str) -> tuple[str, dict[str, Any]]:
    """A name for the file, and what is said of the machine in every row."""
    found = machine.description()
    triton = importlib.util.find_spec("triton")
    found["triton"] = __import__("triton").__version__ if triton else ""
    if device == "cpu":
        return machine.device(), found | {"gpu": "", "cuda": "", "driver": ""}
    name = torch.cuda.get_device_name()
    driver = machine.subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    return slug, found | {"gpu": name, "cuda": torch.version.cuda, "driver": driver}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=None, help=f"rows x columns, comma-separated (default: {SIZES})")
    parser.add_argument(
        "--block", type=int, default=8192, help="rows of one block, as they are streamed (default: 8192)"
    )
    parser.add_argument(
        "--tile", type=int, default=None, help="rows on either side of one tile (default: 8192, on a CPU 2048)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cpu", action="store_true", help="on the CPU, small, with Triton's kernels in its interpreter"
    )
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() and not asked.cpu else "cpu"
    name, said = description(device)
    machine.print_description(said)
    print("compared with the reference")
    if not compare():
        raise SystemExit("error: a backend is off by more than it promises; nothing was timed.")
    rounds = 1 if asked.cpu else asked.rounds
    print(f"peaks of this {device}")
    with one_thread_per_block() if asked.cpu else ieee_products():
        bench = Bench(device, rounds, asked.cpu)
        tile = asked.tile or (150 if asked.cpu else 8192 if device == "cuda" else 2048)
        for size in (asked.sizes or ("600x96" if asked.cpu else SIZES if device == "cuda" else "50257x768")).split(","):
            rows, columns = map(int, size.split("x"))
            print(f"{rows:,} x {columns:,}")
            W = head(rows, columns)
            for backend in every_backend():
                if backend.name != "reference" and backend.device == device:
                    time_backend(bench, backend, W[: asked.block], tile)
            ask_rounding(bench, W)
    if asked.save:
        for row in bench.found:
            machine.save_row(f"kernels-{name}.csv", said | row)


if __name__ == "__main__":
    main()
