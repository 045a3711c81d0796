"""The operations as Triton kernels: each block of rows is read once, and no overlap is ever written to memory.

`unit_rows` finds norms, tells the usual rows, divides and rounds in one read. `gram` is the vendor's product, which no kernel
of our own would beat by as much as symmetry could save. `overlap_sums` makes 128 × 128 overlaps at a time and reduces them
in registers.

Triton decides when it is imported whether kernels run on a GPU or, with TRITON_INTERPRET=1, in its interpreter on the CPU.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
import triton

from llmsuper.kernels.precision import PRECISIONS, half_scale, round_to_half_
from llmsuper.kernels.tiles import RowSums, TileSums, pairs_in
from llmsuper.kernels.torch_ops import SAFE_NORMS, unusual_rows
from llmsuper.kernels.torch_ops import gram as gram
from llmsuper.kernels.triton_kernels import overlap_sums_kernel, unit_rows_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from llmsuper.kernels.precision import Precision

LAYOUTS = {
    8: {"DOWN": 128, "ACROSS": 64, "DEPTH": 32, "num_warps": 8, "num_stages": 3},
    9: {"DOWN": 128, "ACROSS": 64, "DEPTH": 64, "num_warps": 8, "num_stages": 4},
}
"""By the GPU's major compute capability: left and right rows of one tile of overlaps, columns multiplied at once in half
precision (float32 takes half of them). Larger tiles do not fit into registers."""
GROUP = 8
"""Rows of tiles that are swept together, so that what they share stays in the second-level cache."""
LOADED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Storage dtypes that the row kernel reads; others are widened first."""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def unit_rows(
    rows: torch.Tensor,
    *,
    precision: Precision,
    device: str,
    centre: NDArray[np.float64] | None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """One read of the rows, one write of the unit rows. See `kernels.Operations`."""
    unit = (
        torch.empty(rows.shape, dtype=getattr(torch, PRECISIONS[precision].dtype), device=device)
        if out is None
        else out
    )
    x = rows.to(unit.device, None if rows.dtype in LOADED else torch.float32)
    if x.stride(1) != 1:
        x = x.contiguous()
    n, m = x.shape
    norms = torch.empty(n, dtype=torch.float32, device=unit.device)
    usual = torch.empty(n, dtype=torch.int8, device=unit.device)
    least, most = SAFE_NORMS
    floor = least if centre is None else max(least, 16 * torch.finfo(torch.float32).eps * float(np.linalg.norm(centre)))
    shape = row_shape(m)
    with _launch():
        unit_rows_kernel[(triton.cdiv(n, shape["ROWS"]),)](
            x,
            norms if centre is None else torch.from_numpy(centre).to(unit),
            unit, norms, usual, n, m, x.stride(0), unit.stride(0), least, most, floor, half_scale(m),
            CENTRED=centre is not None, HALF=precision == "fast", **shape,
        )  # fmt: skip
    wide = norms.double()
    odd = torch.nonzero(usual == 0)[:, 0]
    if len(odd):
        replaced, wide[odd] = unusual_rows(rows, odd, centre, unit)
        unit[odd] = round_to_half_(replaced) if precision == "fast" else replaced
    return unit, wide.cpu().numpy()


_one_launch = threading.Lock()


@contextmanager
def _launch() -> Iterator[None]:
    """The interpreter changes Triton's own functions while it runs a kernel, so no two threads may run one at a time.

    It computes with numpy, which warns where rows are huge or not finite; `unit_rows` looks at those again.
    """
    with _one_launch, np.errstate(all="ignore"):
        yield


def row_shape(columns: int) -> dict[str, int]:
    """How the row kernel is laid out for rows of this many columns: about 4,096 numbers a program, 32 at most a thread."""
    padded = max(16, triton.next_power_of_2(columns))
    return {
        "COLUMNS": padded,
        "ROWS": max(1, 4096 // padded),
        "num_warps": 4 if padded <= 2048 else 8 if padded <= 8192 else 16,
    }


def overlap_sums(left: torch.Tensor, right: torch.Tensor, *, bins: int, diagonal: bool, scale: float = 1.0) -> TileSums:
    """Each overlap made, used and forgotten in registers; float32 or float16 rows. See `kernels.tiles`."""
    a, b, m = len(left), len(right), left.shape[1]
    layout = tile_layout(left)
    size = layout["DOWN"], layout["ACROSS"]
    down, across = triton.cdiv(a, size[0]), triton.cdiv(b, size[1])
    tiles = tile_list(down, across, size if diagonal else None).to(left.device)

    def place(*shape: int, fill: float = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full(shape, fill, dtype=dtype, device=left.device)

    sums = place(len(tiles), 3)
    counts = place(len(tiles), triton.next_power_of_2(bins), dtype=torch.int32)
    of_left = place(across, a, fill=-1), place(across, a, dtype=torch.int32), place(across, a)
    of_right = place(down, b, fill=-1), place(down, b, dtype=torch.int32), place(down, b)
    with _launch():
        overlap_sums_kernel[(len(tiles),)](
            left, right, tiles, sums, counts, *of_left, *of_right,
            a, b, m, left.stride(0), right.stride(0), scale, bins / 2, 0.5 * (bins % 2), bins,
            BINS=counts.shape[1], DIAGONAL=diagonal, WIDEN=INTERPRETED, **layout,
        )  # fmt: skip
    pairs = pairs_in(a, b, diagonal=diagonal)
    histogram = counts.sum(dim=0, dtype=torch.int64)[:bins].cpu().numpy()
    histogram[bins // 2] -= len(tiles) * size[0] * size[1] - pairs  # numbers of the tiles that are no pair, all 0
    total, absolute, squares = sums.sum(dim=0, dtype=torch.float64).tolist()
    if diagonal:  # a row's partners are those after it, which it met as a left row, and those before it
        both = [torch.cat(parts) for parts in zip(of_left, of_right, strict=True)]
        left_rows = right_rows = _row_sums(*both)
    else:
        left_rows, right_rows = _row_sums(*of_left), _row_sums(*of_right)
    return TileSums(pairs, total, absolute, squares, histogram, left_rows, right_rows)


def tile_list(down: int, across: int, triangle: tuple[int, int] | None = None) -> torch.Tensor:
    """Tiles (i, j) as i · 2¹⁶ + j, int32, GROUP rows of them swept together.

    All (down × across) of them; or, for tiles of the size `triangle`, those that hold a pair of rows i < j.
    """
    i, j = (index.reshape(-1) for index in torch.meshgrid(torch.arange(down), torch.arange(across), indexing="ij"))
    if triangle is not None:
        above = i * triangle[0] < (j + 1) * triangle[1] - 1
        i, j = i[above], j[above]
    order = torch.argsort((i // GROUP * across + j) * GROUP + i % GROUP)
    return ((i << 16) | j)[order].to(torch.int32)


def tile_layout(rows: torch.Tensor) -> dict[str, int]:
    """How the tile kernel is laid out for rows of this dtype on this device; the interpreter takes any layout."""
    major = torch.cuda.get_device_capability(rows.device)[0] if rows.is_cuda else max(LAYOUTS)
    return layout_for(major, half=rows.dtype == torch.float16)


def layout_for(major: int, *, half: bool) -> dict[str, int]:
    """The same by compute capability; a GPU newer than those of the table takes its last row."""
    layout = LAYOUTS[min(max(major, min(LAYOUTS)), max(LAYOUTS))]
    return layout | {"DEPTH": layout["DEPTH"] // (1 if half else 2)}


def _row_sums(size: torch.Tensor, code: torch.Tensor, squares: torch.Tensor) -> RowSums:
    """From each tile's best (tiles, rows) to the best of each row; the smallest partner of equal ones."""
    largest = size.amax(dim=0)
    best = torch.where(size == largest, code, torch.iinfo(torch.int32).max).amin(dim=0)
    overlap = torch.where(best % 2 == 1, -largest, largest).double()
    return RowSums(
        overlap.cpu().numpy(), (best // 2).long().cpu().numpy(), squares.sum(dim=0, dtype=torch.float64).cpu().numpy()
    )
