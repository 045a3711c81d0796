"""PRECISIONS: how exactly rows are multiplied, by name, each with the promise it keeps.

| name      | rows                        | products, ≤ 8,192 rows each            | across products | promise |
| `exact`   | float64                     | float64                                | float64         | 1e-12   |
| `float32` | float32                     | IEEE float32                           | float64         | 1e-6    |
| `fast`    | float16 × 2ᵏ, 2ᵏ ≈ √m       | of float16 on tensor cores, in float32 | float64         | 1e-4    |

A promise is on the relative error of the mean squared overlap. Rows become float32 (or float64) *before* their norm is
taken, since bfloat16 leaves 1,500 random rows with 23 distinct norms.

float16 has three more bits than bfloat16 at the same speed; unit rows cannot overflow it, and the power of two, which costs no
rounding, keeps their entries (about 1/√m) away from its subnormals. Errors up to 3.5e-5 were seen of `fast` with sums that
round to nearest, on near-duplicates; the promise leaves room for tensor cores that truncate (docs/kernels.md).

Taking the diagonal away from ‖G‖²_F amplifies errors by up to n / (n − m), so `auto` computes a matrix with n ≤ 1.5 m in
`exact`, and so one that is stored in float64; any other in `float32`. It never chooses `fast`.
"""

from __future__ import annotations

import math
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

from llmsuper.errors import lookup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

Precision = Literal["exact", "float32", "fast"]

PRODUCT_ROWS = 8_192
"""Rows in one product: the most that float32 accumulators add up before float64 takes over."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A row of PRECISIONS."""

    dtype: Literal["float64", "float32"]
    """What unit rows are kept in. Rows of `fast` are float32 numbers that float16 × 2ᵏ holds exactly."""
    promise: float
    """Relative error of the mean squared overlap that is not exceeded."""
    summary: str


PRECISIONS: dict[Precision, Policy] = {
    "exact": Policy("float64", 1e-12, "float64 everywhere"),
    "float32": Policy("float32", 1e-6, "IEEE float32 products, float64 across them"),
    "fast": Policy("float32", 1e-4, "float16 rows, float32 products, float64 across them"),
}
"""Best promise first."""


def choose_precision(rows: int, columns: int, dtype: str, name: str = "auto") -> Precision:
    """`auto`: `exact` for `F64` heads and where n ≤ 1.5 m, else `float32`. Raises `UnknownNameError` for a name in no row."""
    if name == "auto":
        return "exact" if dtype == "F64" or rows <= 1.5 * columns else "float32"
    lookup(cast("dict[str, Policy]", PRECISIONS), name, "precision")
    return cast("Precision", name)


def half_scale(columns: int) -> float:
    """2ᵏ ≈ √m: unit rows times this have entries of about 1. A power of two, so that scaling rounds nothing."""
    return 2.0 ** round(0.5 * math.log2(max(columns, 1)))


def to_half(unit: torch.Tensor) -> torch.Tensor:
    """Unit rows (b, m) as float16 × 2ᵏ, to nearest: no rounding for rows of `fast`, and none at all for float16 rows."""
    return unit if unit.element_size() == 2 else (unit * half_scale(unit.shape[1])).half()


def round_to_half_(unit: torch.Tensor) -> torch.Tensor:
    """Unit rows (b, m) float32, rounded in place to what `to_half` holds."""
    return unit.copy_(to_half(unit)).div_(half_scale(unit.shape[1]))


_lock = threading.Lock()
_users = 0
_put_back: list[Callable[[], object]] = []


@contextmanager
def ieee_products() -> Iterator[None]:
    """torch's switches for TF32, bfloat16 and float16 arithmetic inside products: all off.

    They belong to the process, not to a thread: the first thread that enters turns them off, and the last that leaves
    puts back what was found. A tensor core truncates inputs to TF32, 1.4e-3 off in the mean squared overlap; what torch calls
    `medium` multiplies float32 in bfloat16 on some CPUs too.
    """
    global _users, _put_back
    with _lock:
        if not _users:
            _put_back = _switch_off()
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                for put_back in _put_back:
                    put_back()


def _switch_off() -> list[Callable[[], object]]:
    """Turn every switch off; what has to be called, in this order, to have them as they were."""
    import torch

    products = torch.backends.cuda.matmul
    before: list[Callable[[], object]] = []
    for name in (
        "allow_fp16_reduced_precision_reduction",
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_accumulation",
    ):
        value = getattr(products, name)
        splits = getattr(products, f"{name}_split_k", True)  # newer versions set a second switch by the same name
        before.append(partial(setattr, products, name, value if splits else (value, splits)))
        setattr(products, name, False)
    # There is an old way and a new way (since torch 2.9) to allow TF32, and torch refuses to multiply where they disagree.
    # The old way sets both; it cannot be asked where only the new one was used, and then need not be put back.
    with suppress(RuntimeError):
        before.append(partial(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()))
    before += [
        partial(setattr, owner, "fp32_precision", owner.fp32_precision)
        for owner in (products, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
        if hasattr(owner, "fp32_precision")
    ]
    torch.set_float32_matmul_precision("highest")
    return before
