"""`llmsuper backends`: what computes here, how well it agrees with the reference, and how fast it is."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from llmsuper.cli.options import output_options
from llmsuper.cli.table import Column, Table, count
from llmsuper.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from llmsuper.kernels import Backend
    from llmsuper.kernels.aot import Compiled

CHECKED = (900, 96)
"""Rows and columns of the matrix that backends are compared on: small enough for the reference and for an interpreter."""
TIMED = (8_192, 768)
"""Rows and columns of one block that is timed."""
PEAK_SIZE = 2_048
COPY_BYTES = 256 << 20
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Report:
    """One line: a backend on a device in a precision."""

    backend: str
    device: str
    precision: str
    promise: float
    """Largest relative error of the mean squared overlap."""
    missing: str | None = None
    """Why it cannot run here."""
    error: float | None = None
    """The largest found against the reference, raw and centred."""
    gflops: float | None = None
    """Of the Gram product, 2 m² operations a row."""
    gflops_share: float | None = None
    """Of this device's own product of square matrices in the same type."""
    gb_per_s: float | None = None
    """Of unit rows, bytes read and written."""
    gb_per_s_share: float | None = None
    """Of this device's own copy."""

    @property
    def agrees(self) -> bool | None:
        return None if self.error is None else self.error <= self.promise


@click.command(epilog="Example: llmsuper backends --bench")
@click.option("--bench", is_flag=True, help="Time them beside this machine's own matrix product and copy.")
@click.option(
    "--compile", "compiled", is_flag=True, help="Compile Triton's kernels for sm_80, sm_89 and sm_90 instead."
)
@output_options
def backends(bench: bool, compiled: bool, output: str) -> None:
    """Compare every backend with the reference, on every device and in every precision.

    "error" is the largest relative error of the mean squared overlap, raw and centred, that each made on a matrix with a
    common direction, near-duplicates and zero rows; "promise" what it may be. Exit status 1 where one exceeds its promise.

    --bench takes one block of 8,192 × 768 rows: "GFLOP/s" of the Gram product (2 m² operations a row; a product of a
    matrix with itself needs half of them, so its share of the peak can exceed 1), "GB/s" of the unit rows.

    --compile prints what the kernels take on GPUs that need not be here (minutes). Exit status 6 where one spills, or
    multiplies without tensor cores.
    """
    if bench and compiled:
        raise click.UsageError("--bench and --compile are two reports: ask for one of them.")
    if compiled:
        _compile(output)
        return
    table: Table[Report] = Table(output, _columns(bench), _as_json, _as_value)
    wrong = []
    for report in _reports(bench):
        table.row(report)
        if report.agrees is False:
            wrong.append(f"{report.backend} on {report.device} in {report.precision}")
    if wrong:
        click.echo(f"{', '.join(wrong)}: off by more than promised. Do not measure with that here.", err=True)
        click.get_current_context().exit(1)


def _reports(bench: bool) -> Iterator[Report]:
    from llmsuper.kernels import BACKENDS, choose_backend, why_not
    from llmsuper.kernels.precision import PRECISIONS

    peaks: dict[tuple[str, str], float] = {}
    for name, row in BACKENDS.items():
        for device in row.devices:
            missing = why_not(name, device)
            for precision in row.precisions:
                promise = PRECISIONS[precision].promise
                if missing is not None:
                    yield Report(name, device, precision, promise, missing)
                    continue
                backend = choose_backend(name, device, precision)
                slow = name == "reference" or (name, device) == ("triton", "cpu")
                report = Report(name, device, precision, promise, error=_error(backend))
                yield replace(report, **_rates(backend, peaks)) if bench and not slow else report


def _matrix() -> torch.Tensor:
    """Rows with a common direction; near-duplicates, zero rows and long rows among them; in bfloat16."""
    import torch

    from llmsuper.geometry.controls import random_head

    W = random_head(*CHECKED, torch.Generator().manual_seed(0)) + 0.7
    W[::20] = W[0] + 1e-3 * W[::20]
    W[5::50] = 0.0
    W[7::30] *= 100.0
    return W.bfloat16()


def _error(backend: Backend) -> float:
    """The larger relative error of the two mean squared overlaps."""
    from llmsuper.geometry.controls import MatrixBlocks
    from llmsuper.kernels import choose_backend
    from llmsuper.measure import measure_rows

    names = ["overlap", "centred_overlap"]
    blocks = MatrixBlocks(_matrix(), CHECKED[0] // 3)
    found, wanted = (measure_rows(blocks, names, b)["all"] for b in (backend, choose_backend("reference")))
    value = "mean_squared_overlap"
    return max(abs(float(found[name][value]) / float(wanted[name][value]) - 1) for name in names)


def _rates(backend: Backend, peaks: dict[tuple[str, str], float]) -> dict[str, Any]:
    """Of the two operations, and as shares of what the device does with square matrices and with a copy."""
    import torch

    from llmsuper.geometry.controls import random_head

    n, m = TIMED
    kind = "float16" if backend.precision == "fast" and backend.device != "cpu" else backend.dtype
    product, copy = (backend.device, kind), (backend.device, "copy")
    if product not in peaks:
        square = torch.randn(PEAK_SIZE, PEAK_SIZE, device=backend.device).to(getattr(torch, kind))
        peaks[product] = 2 * PEAK_SIZE**3 / _seconds(lambda: square @ square, backend.device) / 1e9
    if copy not in peaks:
        source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=backend.device)
        target = torch.empty_like(source)
        peaks[copy] = 2 * COPY_BYTES / _seconds(lambda: target.copy_(source), backend.device) / 1e9
    W = random_head(n, m, torch.Generator().manual_seed(0)).bfloat16().to(backend.device)
    memory = backend.workspace(n, m)
    unit, _ = backend.unit_rows(W)
    gflops = 2 * n * m * m / _seconds(lambda: backend.gram(unit), backend.device) / 1e9
    moved = n * m * (W.element_size() + unit.element_size())
    gb_per_s = moved / _seconds(lambda: backend.unit_rows(W, None, memory), backend.device) / 1e9
    return {
        "gflops": gflops,
        "gflops_share": gflops / peaks[product],
        "gb_per_s": gb_per_s,
        "gb_per_s_share": gb_per_s / peaks[copy],
    }


def _seconds(work: Callable[[], object], device: str) -> float:
    """The least of a few rounds, after one that does not count."""
    import torch

    def once() -> float:
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(ROUNDS))


def _columns(bench: bool) -> list[Column[Report]]:
    columns: list[Column[Report]] = [
        Column("backend", 9, lambda r: r.backend, left=True),
        Column("device", 6, lambda r: r.device, left=True),
        Column("precision", 9, lambda r: r.precision, left=True),
        Column("promise", 7, lambda r: f"{r.promise:.0e}"),
        Column("error", 7, lambda r: "" if r.error is None else f"{r.error:.0e}"),
    ]
    if bench:
        columns += [
            Column("GFLOP/s", 9, lambda r: _number(r.gflops, ",.0f")),
            Column("of product", 10, lambda r: _number(r.gflops_share, ".2f")),
            Column("GB/s", 7, lambda r: _number(r.gb_per_s, ",.1f")),
            Column("of copy", 7, lambda r: _number(r.gb_per_s_share, ".2f")),
        ]
    return [*columns, Column("", 0, _verdict, left=True)]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _verdict(report: Report) -> str:
    return report.missing or ("agrees" if report.agrees else "DISAGREES")


def _as_json(report: Report) -> dict[str, Any]:
    return asdict(report) | {"agrees": report.agrees}


def _as_value(report: Report) -> str:
    said = "missing" if report.missing else "agrees" if report.agrees else "disagrees"
    return f"{report.backend}\t{report.device}\t{report.precision}\t{said}"


def _compile(output: str) -> None:
    from llmsuper.kernels import aot

    columns: list[Column[Compiled]] = [
        Column("kernel", 12, lambda c: c.kernel, left=True),
        Column("variant", 24, lambda c: c.variant, left=True),
        Column("GPU", 5, lambda c: f"sm_{c.capability}", left=True),
        Column("registers", 9, lambda c: count(c.registers)),
        Column("spilled", 7, lambda c: count(c.spilled)),
        Column("shared", 8, lambda c: count(c.shared)),
        Column("threads", 7, lambda c: count(c.threads)),
        Column("instructions", 12, lambda c: count(c.instructions)),
        Column(
            "tensor core", 11, lambda c: f"{c.tensor_core} {aot.TENSOR_CORES[c.capability]}" if c.tensor_core else ""
        ),
        Column("", 0, lambda c: c.fault or "", left=True),
    ]
    table: Table[Compiled] = Table(
        output,
        columns,
        lambda c: asdict(c) | {"fault": c.fault},
        lambda c: f"{c.kernel}\t{c.variant}\tsm_{c.capability}",
    )
    kernels = []
    for kernel in aot.compile_kernels():
        table.row(kernel)
        kernels.append(kernel)
    faults = [kernel for kernel in kernels if kernel.fault]
    if faults:
        raise BackendError(
            f"{len(faults)} of {len(kernels)} kernels are slow by what they compile to. Another version of Triton, or a smaller "
            "tile in kernels.triton_ops.LAYOUTS, changes that."
        )
