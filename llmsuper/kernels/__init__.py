"""BACKENDS, the choice among them, and the precision policy.

A backend is one module with two functions (a third, for all pairs of rows, comes with the distribution of overlaps):

    unit_rows(rows, *, dtype, device, centre)  rows (b, m) as stored → unit (b, m), norms (b,)
    gram(unit)                                 unit (b, m) → Ûᵀ Û (m, m)

The precision policy, written here and nowhere else: rows become float32 (or float64) *before* their norm is taken, since
bfloat16 leaves 1,500 random rows with 23 distinct norms; products are IEEE float32 inside a block of at most 8,192 rows,
never TF32; sums across blocks are float64. Against float64 throughout, the mean squared overlap is then good to 1e-6
(1.1e-8 seen). Taking the diagonal away from ‖G‖²_F amplifies errors by up to n / (n − m), so a matrix with n ≤ 1.5 m is
computed in float64, and so is one that is stored in float64.
"""

from __future__ import annotations

import importlib
import os
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from llmsuper.errors import BackendError, lookup

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from threadpoolctl import ThreadpoolController

Precision = Literal["float32", "float64"]


class Operations(Protocol):
    """What a backend's module holds."""

    def unit_rows(
        self,
        rows: torch.Tensor,
        *,
        dtype: str,
        device: str,
        centre: NDArray[np.float64] | None,
        out: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, NDArray[np.float64]]:
        """Rows (b, m) minus `centre` (m,), divided by their norms, in `dtype` on `device`; and the norms (b,).

        `out` (b, m), of that dtype and on that device, is memory that the unit rows may be put into: fresh memory
        costs as much as the arithmetic. A row of zero norm stays zero, with norm 0. Raises `NonFiniteRowError` for the
        first NaN or infinite row.
        """

    def gram(self, unit: torch.Tensor) -> Any:
        """Ûᵀ Û (m, m) in the dtype of `unit`: a numpy array for the CPU, a tensor on any other device."""


@dataclass(frozen=True, slots=True)
class BackendRow:
    """A row of BACKENDS: where its operations are, and the devices they run on, best first."""

    module: str
    devices: tuple[str, ...]
    precisions: tuple[Precision, ...]


BACKENDS: dict[str, BackendRow] = {
    "reference": BackendRow("llmsuper.kernels.reference", ("cpu",), ("float64",)),
    "torch": BackendRow("llmsuper.kernels.torch_ops", ("cuda", "cpu"), ("float32", "float64")),
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
        product = (8 if self.precision == "float64" else 4) * columns**2
        return max(1, min(usable_cores(), PRODUCT_BYTES // product))

    def unit_rows(
        self, rows: torch.Tensor, centre: NDArray[np.float64] | None = None, out: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, NDArray[np.float64]]:
        return self.operations.unit_rows(rows, dtype=self.precision, device=self.device, centre=centre, out=out)

    def workspace(self, rows: int, columns: int) -> torch.Tensor:
        """(rows, columns) of the dtype and on the device that `unit_rows` puts its result in; uninitialised."""
        import torch

        return torch.empty(rows, columns, dtype=getattr(torch, self.precision), device=self.device)

    def gram(self, unit: torch.Tensor) -> Any:
        return self.operations.gram(unit)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_precision(rows: int, columns: int, dtype: str) -> Precision:
    """The precision that keeps the promise of 1e-6: float64 for `F64` heads and where n ≤ 1.5 m, else float32."""
    return "float64" if dtype == "F64" or rows <= 1.5 * columns else "float32"


def choose_backend(name: str = "auto", device: str = "auto", precision: Precision = "float32") -> Backend:
    """The backend of that name on that device; `auto` takes the GPU where there is one.

    Raises `UnknownNameError` for a name that is in no row, `BackendError` for one that cannot run here.
    """
    chosen = "torch" if name == "auto" else name
    row = lookup(BACKENDS, chosen, "backend")
    places = row.devices if device == "auto" else (device,)
    if not set(places) <= set(row.devices):
        raise BackendError(
            f"backend {chosen!r} runs on {' or '.join(row.devices)}, not on {device!r}: choose one of those."
        )
    place = next((p for p in places if _is_here(p)), None)
    if place is None:
        raise BackendError(f"device {device!r} is not on this machine: torch finds no GPU. Use --device cpu.")
    if precision not in row.precisions:
        precision = row.precisions[0]
    return Backend(chosen, place, precision, cast("Operations", importlib.import_module(row.module)))


def _is_here(device: str) -> bool:
    if device == "cpu":
        return True
    import torch

    return torch.cuda.is_available()


@cache
def _blas_libraries() -> ThreadpoolController:
    """Found once: looking through the loaded libraries takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def one_thread_per_block() -> Iterator[None]:
    """BLAS and torch single-threaded while blocks are worked on in parallel.

    torch's OpenMP pool and OpenBLAS's own pool spin against each other when they alternate (six times slower than one
    thread); with one thread in each, parallelism is over blocks alone. A worker thread must call `torch.set_num_threads(1)`
    itself: OpenMP keeps that number per thread.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _blas_libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
