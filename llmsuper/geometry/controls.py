"""What "nothing" looks like: random rows of the same norms, and the head with each column shuffled, measured by the same code.

A random head has the rows' norms and directions that have nothing to do with each other. A shuffled head has the columns'
values, each column in an order of its own: the mean row and the scale of each column stay, what ties columns into rows goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmsuper.errors import CheckpointError
from llmsuper.geometry.norms import NORMS
from llmsuper.geometry.overlap import CentredGramAccumulator, GramAccumulator, MeanRowAccumulator
from llmsuper.geometry.passes import one_pass
from llmsuper.types import RowBlock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from llmsuper.geometry.blocks import Rows, Steps
    from llmsuper.kernels import Backend

SEED = 0
BLOCK_ROWS, RANDOM_ROWS = 8_192, 2_048
"""Rows of a block, of a matrix and of random numbers, which are made in float64."""
MEMORY = 8 << 30
"""Bytes that rows may take in memory."""


@dataclass(frozen=True, slots=True)
class Control:
    """One control's overlaps."""

    rows: int
    mean_squared_overlap: float
    ratio_to_isotropic: float
    """m × mean_squared_overlap."""
    mean_overlap: float
    participation_ratio: float
    centred_mean_squared_overlap: float
    """Of the rows minus their mean row, normalised again."""
    centred_ratio_to_isotropic: float


@dataclass(frozen=True, slots=True)
class ControlStatistics:
    """What the head's own overlaps are to be compared with, besides 1/m."""

    rows: int
    """Rows of non-zero norm: what both controls are made of."""
    zero_rows: int
    columns: int
    seed: int
    """Of torch's generator: for the shuffles of columns this, for block k of RANDOM_ROWS random rows 2²⁰ times this, plus k."""
    memory_bytes: int
    """Of the rows that were held in memory to be shuffled."""
    random: Control
    shuffled: Control


class MatrixBlocks:
    """A matrix in memory as blocks of rows; iterate as often as there are passes."""

    def __init__(self, matrix: torch.Tensor, block_rows: int = BLOCK_ROWS) -> None:
        self.matrix = matrix  # (n, m)
        self.block_rows = block_rows

    def __iter__(self) -> Iterator[RowBlock]:
        for start in range(0, len(self.matrix), self.block_rows):
            yield RowBlock(start, self.matrix[start : start + self.block_rows])


class RandomBlocks:
    """Rows of given norms (n,) and random directions, float64; made anew, and the same, each time they are iterated over."""

    def __init__(self, norms: NDArray[np.float64], columns: int, seed: int = SEED) -> None:
        self.norms, self.columns, self.seed = norms, columns, seed

    def __iter__(self) -> Iterator[RowBlock]:
        import torch

        for start in range(0, len(self.norms), RANDOM_ROWS):
            lengths = torch.from_numpy(self.norms[start : start + RANDOM_ROWS])
            generator = torch.Generator().manual_seed((self.seed << 20) + start // RANDOM_ROWS)  # 32 bits
            rows = random_head(len(lengths), self.columns, generator).double()
            yield RowBlock(start, torch.nn.functional.normalize(rows, dim=1).mul_(lengths[:, None]))


def random_head(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """(n, m) float32, independent standard normal entries: directions that have nothing to do with each other."""
    import torch

    return torch.randn(rows, columns, generator=generator)


def shuffle_columns(matrix: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`matrix` (n, m) itself, with each column put into an order of its own."""
    import torch

    for column in matrix.T:
        column.copy_(column[torch.randperm(len(matrix), generator=generator)])
    return matrix


def controls(rows: Rows) -> Steps:
    """The statistic `controls`: a pass for the norms, and one that reads the rows into memory.

    Raises `CheckpointError` where they take more than MEMORY there.
    """
    import torch

    (found,) = yield (NORMS,)
    summary, norms = found.compute(), found.norms
    matrix = in_memory(rows, summary.rows, drop_zero_rows=True)
    columns, nbytes = matrix.shape[1], matrix.nbytes
    shuffled = shuffle_columns(matrix, torch.Generator().manual_seed(SEED))
    return ControlStatistics(
        rows=summary.rows,
        zero_rows=summary.zero_rows,
        columns=columns,
        seed=SEED,
        memory_bytes=nbytes,
        random=_measured(RandomBlocks(norms, columns), rows.backend),
        shuffled=_measured(MatrixBlocks(shuffled), rows.backend),
    )


def in_memory(rows: Rows, count: int, *, drop_zero_rows: bool = False) -> torch.Tensor:
    """(count, m) the rows that count, in storage dtype, in one piece. Raises `CheckpointError` where that is above MEMORY."""
    import torch

    held: Any = None
    filled = 0
    for block in rows.blocks:
        stored = block.rows
        if rows.mask is not None:
            stored = stored[torch.from_numpy(rows.mask[block.start : block.start + len(stored)])]
        if drop_zero_rows:
            stored = stored[(stored != 0).any(dim=1)]
        if held is None:
            nbytes = count * stored.shape[1] * stored.element_size()
            if nbytes > MEMORY:
                raise CheckpointError(
                    f"{count:,} rows of {stored.shape[1]:,} columns take {nbytes / 1e9:.1f} GB in memory, and "
                    f"{MEMORY / 1e9:.1f} GB are allowed. Leave out what needs them there: controls, --compat."
                )
            held = torch.empty(count, stored.shape[1], dtype=stored.dtype)
        held[filled : filled + len(stored)] = stored
        filled += len(stored)
        block.release()
    if held is None or filled != count:
        raise ValueError(f"{filled} rows were read, and {count} were counted before")
    matrix: torch.Tensor = held
    return matrix


def _measured(blocks: Iterable[RowBlock], backend: Backend) -> Control:
    mean_row, plain = one_pass(blocks, [MeanRowAccumulator(), GramAccumulator()], backend=backend)
    (centred,) = one_pass(blocks, [CentredGramAccumulator()], backend=backend, centre=mean_row)
    return Control(
        rows=plain.rows,
        mean_squared_overlap=plain.mean_squared_overlap,
        ratio_to_isotropic=plain.ratio_to_isotropic,
        mean_overlap=plain.mean_overlap,
        participation_ratio=plain.participation_ratio,
        centred_mean_squared_overlap=centred.mean_squared_overlap,
        centred_ratio_to_isotropic=centred.ratio_to_isotropic,
    )
