"""GramAccumulator → OverlapStatistics: mean squared overlap, in one pass.

With ûᵢ the rows divided by their norms and G = Σᵢ ûᵢ ûᵢᵀ (m × m),

    Σᵢⱼ (ûᵢ·ûⱼ)² = ‖G‖²_F        Σᵢⱼ ûᵢ·ûⱼ = ‖s‖²,  s = Σᵢ ûᵢ

so all n² pairs cost n m² operations, not n² m, and no n × n matrix is ever made. The diagonal, Σᵢ ‖ûᵢ‖⁴, is taken away with
the lengths that the rows have after rounding: t = tr G = Σᵢ ‖ûᵢ‖². Dividing by the same lengths cancels what rounding has
done to all rows alike:

    mean squared overlap = (‖G‖²_F − t²/n) / (t² − t²/n)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from llmsuper.errors import CheckpointError
from llmsuper.geometry.blocks import Request
from llmsuper.geometry.bounds import isotropic, welch_floor
from llmsuper.kernels.precision import PRECISIONS

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from llmsuper.geometry.blocks import Rows, Steps, UnitBlock

VARIANCE_ERROR = 0.01
"""Relative error of the variance, mean square − mean², beyond which it counts as cancelled away."""

STRIP = 512
"""Rows in one float32 sum of vectors."""


@dataclass(frozen=True, slots=True)
class OverlapStatistics:
    """Overlaps ûᵢ·ûⱼ over the ordered pairs i ≠ j of the rows that are not zero."""

    rows: int
    """n: rows counted, those of non-zero norm."""
    zero_rows: int
    columns: int
    """m."""
    mean_squared_overlap: float
    """Mean of (ûᵢ·ûⱼ)², what arXiv:2505.10465 (figure 6a) compares with 1/m."""
    mean_overlap: float
    """Mean of ûᵢ·ûⱼ, signed; good to 1e-7 absolute, not relative."""
    overlap_variance: float | None
    """mean_squared_overlap − mean_overlap²; null where the difference is within the error of its terms."""
    isotropic: float
    """1/m."""
    ratio_to_isotropic: float
    """m × mean_squared_overlap."""
    welch_floor: float
    """(n − m) / (m (n − 1)): no n directions in m dimensions have a smaller mean squared overlap."""
    welch_ratio: float | None
    """mean_squared_overlap ÷ welch_floor; null where n ≤ m, since the floor is 0 there."""
    participation_ratio: float
    """(tr G)² ÷ ‖G‖²_F: how many directions the rows fill evenly, between 1 and m."""


@dataclass(frozen=True, slots=True)
class _Partial:
    gram: Any  # (m, m), numpy on the CPU, else a tensor on its device
    direction: NDArray[np.float64]  # (m,) Σ ûᵢ
    rows: int
    zero_rows: int
    promise: float  # relative error of the mean square that the rows' precision does not exceed


class GramAccumulator:
    """Sums Ûᵀ Û over blocks, in float64: 8 m² bytes, whatever n is."""

    products: ClassVar[int] = 1
    kind: ClassVar[str] = "rows that are not zero"
    """What it counts, for an error."""

    def __init__(self) -> None:
        self._gram: Any = None
        self._direction: NDArray[np.float64] = np.zeros(0)
        self._rows = self._zero_rows = 0
        self._promise = 0.0

    def summarize(self, block: UnitBlock) -> _Partial:
        zero_rows = int(np.count_nonzero(block.norms == 0))
        direction = _weighted_sum(block.unit, np.ones(len(block.norms)))
        gram = block.backend.gram(block.unit)
        promise = PRECISIONS[block.backend.precision].promise
        return _Partial(gram, direction, len(block.norms) - zero_rows, zero_rows, promise)

    def add(self, partial: _Partial) -> None:
        if self._gram is None:
            self._gram = partial.gram.astype(np.float64) if _is_numpy(partial.gram) else partial.gram.double()
            self._direction = partial.direction.copy()
        else:
            self._gram += partial.gram  # widened on the way: no float64 copy of the partial is made
            self._direction += partial.direction
        self._rows += partial.rows
        self._zero_rows += partial.zero_rows
        self._promise = max(self._promise, partial.promise)

    def update(self, block: UnitBlock) -> None:
        self.add(self.summarize(block))

    def merge(self, other: GramAccumulator) -> None:
        if other._gram is not None:
            self.add(_Partial(other._gram, other._direction, other._rows, other._zero_rows, other._promise))

    @property
    def rows(self) -> int:
        """Rows that have a direction."""
        return self._rows

    @property
    def zero_rows(self) -> int:
        return self._zero_rows

    @property
    def matrix(self) -> NDArray[np.float64] | None:
        """(m, m) G = Σ ûᵢ ûᵢᵀ; None where no row was seen."""
        if self._gram is not None and not _is_numpy(self._gram):
            self._gram = self._gram.cpu().numpy()  # moved, so that it is not in two places
        return cast("NDArray[np.float64] | None", self._gram)

    @property
    def gram(self) -> NDArray[np.float64]:
        """`matrix` of two rows or more. Raises `CheckpointError` when fewer than two rows have a direction."""
        n, matrix = self._rows, self.matrix
        if n < 2 or matrix is None:
            raise CheckpointError(
                f"overlaps need two {self.kind}; {n} of {n + self._zero_rows} are. Is this the right tensor? See --lm-head."
            )
        return matrix

    @property
    def direction(self) -> NDArray[np.float64]:
        """(m,) Σ ûᵢ."""
        return self._direction

    def compute(self) -> OverlapStatistics:
        """Raises `CheckpointError` when fewer than two rows have a direction."""
        gram, n = self.gram, self._rows
        m = gram.shape[0]
        trace = float(np.trace(gram))
        frobenius = float(np.vdot(gram, gram))  # ‖G‖²_F
        mean_square = mean_squared_overlap(frobenius, trace, n)
        mean = (float(self._direction @ self._direction) - trace) / (trace * (n - 1))
        variance = mean_square - mean * mean
        floor = welch_floor(n, m)
        return OverlapStatistics(
            rows=n,
            zero_rows=self._zero_rows,
            columns=m,
            mean_squared_overlap=mean_square,
            mean_overlap=mean,
            overlap_variance=variance if VARIANCE_ERROR * variance > self._promise * mean_square else None,
            isotropic=isotropic(m),
            ratio_to_isotropic=m * mean_square,
            welch_floor=floor,
            welch_ratio=mean_square / floor if floor > 0 else None,
            participation_ratio=trace * trace / frobenius,
        )


def mean_squared_overlap(frobenius: float, trace: float, rows: int) -> float:
    """The mean squared overlap of the pairs i ≠ j of n ≥ 2 rows, from ‖G‖²_F and tr G; see the top of this file."""
    diagonal = trace * trace / rows
    # rounding can leave a hair below zero, or above the mean square that it cannot exceed
    return max(0.0, (frobenius - diagonal) / (trace * trace - diagonal))


class CentredGramAccumulator(GramAccumulator):
    """The same for rows minus their mean row µ = Σᵢ wᵢ / n, each normalised again: true cosines of wᵢ − µ and wⱼ − µ."""

    kind: ClassVar[str] = "rows that are not zero after centring"


class MeanRowAccumulator:
    """µ, the mean of the rows of non-zero norm, as stored: what centring takes away."""

    products: ClassVar[int] = 0

    def __init__(self) -> None:
        self._sum: NDArray[np.float64] | None = None
        self._rows = 0

    def summarize(self, block: UnitBlock) -> tuple[NDArray[np.float64], int]:
        # Taken out, since float32 has no room for every norm. A power of two, so that sums over blocks are exact in any order.
        scale = math.ldexp(1.0, math.frexp(float(block.norms.max(initial=0.0)))[1] - 1)
        total = scale * _weighted_sum(block.unit, block.norms / scale)  # Σ ‖wᵢ‖ ûᵢ
        return total, int(np.count_nonzero(block.norms))

    def add(self, partial: tuple[NDArray[np.float64], int]) -> None:
        total, rows = partial
        self._sum = total.copy() if self._sum is None else self._sum + total
        self._rows += rows

    def update(self, block: UnitBlock) -> None:
        self.add(self.summarize(block))

    def merge(self, other: MeanRowAccumulator) -> None:
        if other._sum is not None:
            self.add((other._sum, other._rows))

    def compute(self) -> NDArray[np.float64]:
        """(m,) float64. Raises `CheckpointError` when no row has a non-zero norm."""
        if self._sum is None or self._rows == 0:
            raise CheckpointError(
                "no row has a non-zero norm, so there is no mean row. Is this the right tensor? See --lm-head."
            )
        return self._sum / self._rows


GRAM = Request("gram", GramAccumulator)
MEAN_ROW = Request("mean row", MeanRowAccumulator, finish=MeanRowAccumulator.compute)


def centred_gram(mean_row: NDArray[np.float64]) -> Request:
    """The overlaps of the rows minus `mean_row` (m,), as `OverlapStatistics`."""
    return Request("centred gram", CentredGramAccumulator, centre=mean_row, finish=CentredGramAccumulator.compute)


def overlap(_: Rows) -> Steps:
    """The statistic `overlap`: one pass."""
    (found,) = yield (GRAM,)
    return found.compute()


def centred_overlap(_: Rows) -> Steps:
    """The statistic `centred_overlap`: one pass for the mean row, one for the overlaps."""
    (mean_row,) = yield (MEAN_ROW,)
    (found,) = yield (centred_gram(mean_row),)
    return found


def _weighted_sum(unit: torch.Tensor, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ weightᵢ ûᵢ (m,), float64 across strips: a single float32 sum over thousands of rows would be off by 1e-6."""
    import torch

    weight = torch.from_numpy(weights).to(unit)
    sums = [rows.T @ w for rows, w in zip(torch.split(unit, STRIP), torch.split(weight, STRIP), strict=True)]
    total: NDArray[np.float64] = torch.stack(sums).double().sum(dim=0).cpu().numpy()
    return total


def _is_numpy(array: Any) -> bool:
    return isinstance(array, np.ndarray)
