"""The unit rows of a matrix, all in memory at once, cut into the blocks that tiles are made of."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from llmsuper.errors import BackendError
from llmsuper.kernels.precision import half_scale, to_half

if TYPE_CHECKING:
    from collections.abc import Callable, Set

    import torch
    from numpy.typing import NDArray

    from llmsuper.geometry.blocks import UnitBlock

    Kept = tuple[torch.Tensor, NDArray[np.int64], int]


@dataclass(frozen=True, slots=True)
class UnitRows:
    """n unit rows; those without a direction are left out, so that nothing that looks at pairs has to know of them."""

    blocks: dict[int, torch.Tensor]
    """Block k (≤ block_rows, m) holds rows k × block_rows and on; only those that were wanted."""
    numbers: NDArray[np.int64]
    """(n,) where the rows are in the matrix."""
    zero_rows: int
    columns: int
    block_rows: int

    def __len__(self) -> int:
        return len(self.numbers)

    def block(self, k: int) -> torch.Tensor:
        """Rows of block k in the backend's dtype."""
        return self._whole(self.blocks[k])

    def row(self, i: int) -> torch.Tensor:
        """(m,) row i of the n."""
        k, place = divmod(i, self.block_rows)
        return self._whole(self.blocks[k][place])

    def _whole(self, held: torch.Tensor) -> torch.Tensor:
        return held if held.element_size() > 2 else held.float() / half_scale(self.columns)


class ResidentRows:
    """An accumulator that keeps the unit rows: n × m numbers in the backend's dtype, in `fast` precision as float16.

    wanted: the blocks to keep; None keeps all.
    memory: the most bytes to keep; None asks the machine (see `room`).
    """

    products: ClassVar[int] = 0

    def __init__(self, block_rows: int, wanted: Set[int] | None = None, memory: int | None = None) -> None:
        self._block_rows = block_rows
        self._wanted = wanted
        self._memory = memory
        self._blocks: dict[int, torch.Tensor] = {}
        self._numbers: list[NDArray[np.int64]] = []
        self._count = self._zero_rows = self._columns = 0

    def summarize(self, block: UnitBlock) -> Kept:
        present = np.flatnonzero(block.norms)
        unit = _pick(block.unit, present)
        assert block.numbers is not None, "rows are kept with their numbers"
        kept = to_half(unit) if block.backend.precision == "fast" else unit.clone()
        return kept, block.numbers[present], len(block.norms) - len(present)

    def add(self, partial: Kept) -> None:
        """Raises `BackendError` when the rows do not fit into memory."""
        unit, numbers, zero_rows = partial
        self._zero_rows += zero_rows
        self._columns = unit.shape[1]
        self._numbers.append(numbers)
        done = 0
        while done < len(unit):
            k, place = divmod(self._count, self._block_rows)
            rows = unit[done : done + self._block_rows - place]
            if self._wanted is None or k in self._wanted:
                self._block(k, unit)[place : place + len(rows)] = rows
            done += len(rows)
            self._count += len(rows)

    def update(self, block: UnitBlock) -> None:
        self.add(self.summarize(block))

    def merge(self, other: ResidentRows) -> None:
        rows = other.compute()
        for k, start in enumerate(range(0, len(rows), rows.block_rows)):
            self.add((rows.blocks[k], rows.numbers[start : start + rows.block_rows], 0))
        self._zero_rows += rows.zero_rows

    def compute(self) -> UnitRows:
        numbers = np.concatenate(self._numbers) if self._numbers else np.empty(0, np.int64)
        last, rest = divmod(self._count, self._block_rows)
        blocks = {k: block[:rest] if k == last else block for k, block in self._blocks.items()}
        return UnitRows(blocks, numbers, self._zero_rows, self._columns, self._block_rows)

    def _block(self, k: int, like: torch.Tensor) -> torch.Tensor:
        import torch

        if k not in self._blocks:
            bytes_each = self._block_rows * like.shape[1] * like.element_size()
            if not self._blocks and self._memory is None:
                self._memory = room(like.device.type)
            if self._memory is not None and (len(self._blocks) + 1) * bytes_each > self._memory:
                raise BackendError(
                    f"all pairs of rows need all unit rows in memory, and row {self._count:,} of {like.shape[1]:,} columns in "
                    f"{str(like.dtype).removeprefix('torch.')} is the first beyond the {self._memory / 2**30:.3g} GiB that are "
                    f"there for them on {like.device.type}. Look at a few tiles of them (--sample 64), or halve the rows with "
                    "--precision fast."
                )
            self._blocks[k] = torch.empty(self._block_rows, like.shape[1], dtype=like.dtype, device=like.device)
        return self._blocks[k]


def room(device: str) -> int | None:
    """Bytes that unit rows may take: four fifths of what is free on a GPU, else half the memory of the machine."""
    if device == "cuda":
        import torch

        return int(0.8 * torch.cuda.mem_get_info()[0])
    sysconf: Callable[[str], int] | None = getattr(os, "sysconf", None)
    return sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES") // 2 if sysconf else None


def _pick(unit: torch.Tensor, present: NDArray[np.int64]) -> torch.Tensor:
    import torch

    return unit if len(present) == len(unit) else unit[torch.from_numpy(present).to(unit.device)]
