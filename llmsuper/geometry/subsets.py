"""Gram matrices of rows that something was taken away from, and of some of the rows: what `anisotropy` compares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llmsuper.geometry.blocks import UnitBlock
from llmsuper.geometry.overlap import GramAccumulator

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

COSINE = 0.95
"""Rows that overlap the crowd's centre by more (18°) are of the crowd."""


class ProjectedGramAccumulator(GramAccumulator):
    """G of the rows after some directions are projected out of each unit row, and the rest normalised again.

    A row that lies within those directions, to rounding, has none left and counts as a zero row.
    """

    def __init__(self, directions: NDArray[np.float64]) -> None:
        super().__init__()
        self.directions = directions  # (m, k), orthonormal columns

    def summarize(self, block: UnitBlock) -> Any:
        unit, lengths = project_out(block.unit, self.directions)
        return super().summarize(UnitBlock(unit, lengths, block.backend))


class EarlyGramAccumulator(GramAccumulator):
    """G of the rows whose number in the matrix is below `before`."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.before = before

    def summarize(self, block: UnitBlock) -> Any:
        assert block.numbers is not None
        return super().summarize(_part(block, block.numbers < self.before))


class CrowdGramAccumulator(GramAccumulator):
    """G of the rows that overlap `centre` (m,), a unit vector, by more than COSINE."""

    def __init__(self, centre: NDArray[np.float64]) -> None:
        super().__init__()
        self.centre = centre

    def summarize(self, block: UnitBlock) -> Any:
        import torch

        near = (block.unit @ torch.from_numpy(self.centre).to(block.unit)) > COSINE
        return super().summarize(_part(block, near.cpu().numpy()))


class SampleAccumulator:
    """Every `step`-th row of the matrix, normalised, but for zero rows."""

    products = 0

    def __init__(self, step: int) -> None:
        self.step = step
        self._parts: list[NDArray[np.float64]] = []

    def summarize(self, block: UnitBlock) -> NDArray[np.float64]:
        assert block.numbers is not None
        picked = np.flatnonzero((block.numbers % self.step == 0) & (block.norms > 0))
        found: NDArray[np.float64] = block.unit[picked].double().cpu().numpy()
        return found

    def add(self, partial: NDArray[np.float64]) -> None:
        self._parts.append(partial)

    def update(self, block: UnitBlock) -> None:
        self.add(self.summarize(block))

    def merge(self, other: SampleAccumulator) -> None:
        self._parts.extend(other._parts)

    def compute(self) -> NDArray[np.float64]:
        """(k, m) float64."""
        return np.concatenate(self._parts) if self._parts else np.empty((0, 0))


def crowd_centre(sample: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """(m,) the middle of the densest crowd among unit rows (k, m); None where no two overlap by more than COSINE.

    The mean of the row whose overlaps above COSINE add up to most, and of all that overlap it by more than that.
    """
    overlaps = sample @ sample.T
    np.fill_diagonal(overlaps, 0)
    near = np.clip(overlaps - COSINE, 0, None).sum(axis=1)
    if near.max(initial=0.0) == 0:
        return None
    seed = int(near.argmax())
    overlaps[seed, seed] = 1
    total: NDArray[np.float64] = sample[overlaps[seed] > COSINE].sum(axis=0)
    return total / np.linalg.norm(total)


def project_out(unit: torch.Tensor, directions: NDArray[np.float64]) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """Unit rows (b, m) without their parts along `directions` (m, k), normalised again; what length (b,) was left of each.

    Length 0, and a row of zeros, where no more was left than rounding.
    """
    import torch

    along = torch.from_numpy(directions).to(unit)
    rest = unit - (unit @ along) @ along.T
    lengths = torch.linalg.vector_norm(rest, dim=1)
    lengths = torch.where(lengths > 16 * torch.finfo(unit.dtype).eps, lengths, 0)
    rest = torch.where(lengths[:, None] > 0, rest / lengths[:, None], 0)
    return rest, lengths.double().cpu().numpy()


def _part(block: UnitBlock, wanted: NDArray[np.bool_]) -> UnitBlock:
    picked = np.flatnonzero(wanted)
    numbers = None if block.numbers is None else block.numbers[picked]
    return UnitBlock(block.unit[picked], block.norms[picked], block.backend, numbers)
