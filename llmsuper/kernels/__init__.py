"""BACKENDS, and the choice among them.

A backend is one module with three functions:

    unit_rows(rows, *, precision, device, centre)  rows (b, m) as stored → unit (b, m), norms (b,)
    gram(unit, *, precision)                       unit (b, m) → Ûᵀ Û (m, m)
    overlap_sums(left, right, *, …)                two blocks of unit rows → TileSums of all their overlaps

How exactly they compute is a name in `kernels.precision`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast

from llmsuper.errors import BackendError, lookup
from llmsuper.kernels.precision import PRECISIONS, PRODUCT_ROWS, half_scale, ieee_products, to_half
from llmsuper.kernels.precision import Precision as Precision
from llmsuper.kernels.precision import choose_precision as choose_precision

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from threadpoolctl import ThreadpoolController

    from llmsuper.kernels.tiles import TileSums


class Operations(Protocol):
    """What a backend's module holds."""

    def unit_rows(
        self,
        rows: torch.Tensor,
        *,
        precision: Precision,
        device: str,
        centre: NDArray[np.float64] | None,
        out: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, NDArray[np.float64]]:
        """Rows (b, m) minus `centre` (m,), divided by their norms, in the precision's dtype on `device`; the norms (b,).

        `out` (b, m), of that dtype and on that device, is memory that the unit rows may be put into: fresh memory
        costs as much as the arithmetic. A row of zero norm stays zero, with norm 0. Raises `NonFiniteRowError` for the
        first NaN or infinite row.
        """

    def gram(self, unit: torch.Tensor, *, precision: Precision) -> Any:
        """Ûᵀ Û (m, m) in the dtype of `unit`: a numpy array for the CPU, a tensor on any other device."""

    def overlap_sums(
        self, left: torch.Tensor, right: torch.Tensor, *, bins: int, diagonal: bool, scale: float = 1.0
    ) -> TileSums:
        """Statistics of all overlaps of `left` (a, m) with `right` (b, m): the contract is in `kernels.tiles`."""


@dataclass(frozen=True, slots=True)
class BackendRow:
    """A row of BACKENDS: where its operations are, and the devices they run on and the precisions they have, best first."""

    module: str
    devices: tuple[str, ...]
    precisions: tuple[Precision, ...]


BACKENDS: dict[str, BackendRow] = {
    "reference": BackendRow("llmsuper.kernels.reference", ("cpu",), ("exact",)),
    "torch": BackendRow("llmsuper.kernels.torch_ops", ("cuda", "cpu"), ("exact", "float32", "fast")),
    "triton": BackendRow("llmsuper.kernels.triton_ops", ("cuda", "cpu"), ("float32", "fast")),
}


PRODUCT_BYTES = 4 << 30
"""Room for the products of blocks that are in flight: 16 of a head with 8,192 columns in float32."""


class NonFiniteRowError(Exception):
    """Row `index` of a block holds a NaN or an infinity. Whoever knows the row's place turns it into an error for users."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


@dataclass(frozen=True, slots=True)
class Backend:
    """Operations bound to a device and a precision."""

    name: str
    device: str
    precision: Precision
    operations: Operations

    def threads(self, columns: int) -> int:
        """Blocks to work on at once: one per core on a CPU, where each runs single-threaded BLAS; one on a GPU.

        Fewer where the m × m products of that many blocks would take more than PRODUCT_BYTES.
        """
        if self.device != "cpu":
            return 1
        product = (8 if self.dtype == "float64" else 4) * columns**2
        return max(1, min(usable_cores(), PRODUCT_BYTES // product))

    @property
    def dtype(self) -> str:
        """Of unit rows in memory, by torch's and numpy's name."""
        return PRECISIONS[self.precision].dtype

    def unit_rows(
        self, rows: torch.Tensor, centre: NDArray[np.float64] | None = None, out: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, NDArray[np.float64]]:
        return self.operations.unit_rows(rows, precision=self.precision, device=self.device, centre=centre, out=out)

    def workspace(self, rows: int, columns: int) -> torch.Tensor:
        """(rows, columns) of the dtype and on the device that `unit_rows` puts its result in; uninitialised."""
        import torch

        return torch.empty(rows, columns, dtype=getattr(torch, self.dtype), device=self.device)

    def gram(self, unit: torch.Tensor) -> Any:
        """Ûᵀ Û (m, m): a product in float32, or where there are more than PRODUCT_ROWS rows a sum in float64."""
        if len(unit) <= PRODUCT_ROWS:
            return self.operations.gram(unit, precision=self.precision)
        import torch

        first, *rest = (
            self.operations.gram(part, precision=self.precision) for part in torch.split(unit, PRODUCT_ROWS)
        )
        total = first.astype("float64") if self.device == "cpu" else first.double()
        for product in rest:
            total += product
        return total

    def overlap_sums(self, left: torch.Tensor, right: torch.Tensor, *, bins: int, diagonal: bool) -> TileSums:
        """Statistics of all overlaps of two blocks of unit rows: see `kernels.tiles`. In `fast` they may be `to_half(rows)`."""
        scale = 1.0
        if self.precision == "fast":
            scale = half_scale(left.shape[1]) ** -2
            left, right = (to_half(left),) * 2 if left is right else (to_half(left), to_half(right))
        return self.operations.overlap_sums(left, right, bins=bins, diagonal=diagonal, scale=scale)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def why_not(name: str, device: str) -> str | None:
    """What keeps a backend from running on a device of this machine, and what to do about it; None where it runs."""
    if name == "triton":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if importlib.util.find_spec("triton") is None:
            return "backend 'triton': Triton is not installed. Install it (pip install triton) or use --backend torch."
        if device == "cpu" and not interpreted:
            return "backend 'triton' runs on a CPU in Triton's interpreter alone. Set TRITON_INTERPRET=1 or use --backend torch."
        if device != "cpu" and interpreted:
            return "backend 'triton' is kept off the GPU by TRITON_INTERPRET=1. Unset it."
    if device != "cpu":
        import torch

        if not torch.cuda.is_available():
            return f"device {device!r} is not on this machine: torch finds no GPU. Use --device cpu."
    return None


def choose_backend(name: str = "auto", device: str = "auto", precision: Precision = "float32") -> Backend:
    """The backend of that name on that device; `auto` takes the GPU where there is one.

    A backend that lacks the precision computes in a better one, never in a worse one; what it does is in `Backend.precision`.
    Raises `UnknownNameError` for a name that is in no row, `BackendError` for one that cannot run here.
    """
    chosen = "torch" if name == "auto" else name
    row = lookup(BACKENDS, chosen, "backend")
    places = row.devices if device == "auto" else (device,)
    if not set(places) <= set(row.devices):
        raise BackendError(
            f"backend {chosen!r} runs on {' or '.join(row.devices)}, not on {device!r}: choose one of those."
        )
    reasons = {place: why_not(chosen, place) for place in places}
    place = next((p for p, reason in reasons.items() if reason is None), None)
    if place is None:
        raise BackendError(str(reasons[places[-1]]))
    order = list(PRECISIONS)
    good = [p for p in reversed(row.precisions) if order.index(p) <= order.index(precision)]
    if not good:
        raise BackendError(
            f"backend {chosen!r} computes in {' or '.join(row.precisions)}, and {precision!r} is called for. "
            "Take --backend torch, or another --precision."
        )
    return Backend(chosen, place, good[0], cast("Operations", importlib.import_module(row.module)))


@cache
def _blas_libraries() -> ThreadpoolController:
    """Found once: looking through the loaded libraries takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def one_thread_per_block() -> Iterator[None]:
    """BLAS and torch single-threaded while blocks are worked on in parallel.

    torch's OpenMP pool and OpenBLAS's own pool spin against each other when they alternate (six times slower than one
    thread); with one thread in each, parallelism is over blocks alone, on `worker_threads`. torch's products are IEEE ones
    meanwhile (`kernels.precision`).
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _blas_libraries().limit(limits=1, user_api="blas"), ieee_products():
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def worker_threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Threads that work on so many blocks at once, under `one_thread_per_block`, whose number OpenMP keeps for each thread."""
    import torch

    with (
        one_thread_per_block(),
        ThreadPoolExecutor(count, name, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        yield pool
