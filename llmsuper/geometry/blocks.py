"""UnitBlock, what accumulators are fed with, and Accumulator, what they promise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from llmsuper.kernels import Backend


@dataclass(frozen=True, slots=True)
class UnitBlock:
    """Some rows after normalisation."""

    unit: torch.Tensor
    """(b, m) float32 or float64, on the backend's device; a row of zero norm is zero. Memory that the next block is put
    into: what is to outlive `summarize` is copied."""
    norms: NDArray[np.float64]
    """(b,) the norms that the rows had; 0 marks a zero row."""
    backend: Backend


class Accumulator(Protocol):
    """A statistic in one pass. `update(block)` is `add(summarize(block))`.

    `summarize` is the heavy half: a pure function of the block, which worker threads run side by side. `add` is the light
    half: it runs on one thread, in the order of the rows, so a result does not depend on how many threads there were.
    """

    centred: ClassVar[bool]
    """True for a statistic of the rows minus their mean row: it is fed in a second pass."""

    def summarize(self, block: UnitBlock) -> Any: ...
    def add(self, partial: Any) -> None: ...
    def update(self, block: UnitBlock) -> None: ...
    def merge(self, other: Self) -> None:
        """Take in what another accumulator of the same kind has seen; `other` must not be used afterwards."""

    def compute(self) -> Any:
        """The statistic, a frozen dataclass."""
