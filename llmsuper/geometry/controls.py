"""What "nothing" looks like: heads made of random numbers, measured by the same code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsuper.types import RowBlock

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


class MatrixBlocks:
    """A matrix in memory as blocks of rows; iterate as often as there are passes."""

    def __init__(self, matrix: torch.Tensor, block_rows: int = 8192) -> None:
        self.matrix = matrix  # (n, m)
        self.block_rows = block_rows

    def __iter__(self) -> Iterator[RowBlock]:
        for start in range(0, len(self.matrix), self.block_rows):
            yield RowBlock(start, self.matrix[start : start + self.block_rows])


def random_head(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """(n, m) float32, independent standard normal entries: directions that have nothing to do with each other."""
    import torch

    return torch.randn(rows, columns, generator=generator)
