"""UnitBlock, what accumulators are fed with; Accumulator, what they promise; Request, how a statistic asks for one."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from llmsuper.kernels import Backend
    from llmsuper.types import RowBlock


@dataclass(frozen=True, slots=True)
class UnitBlock:
    """Some rows after normalisation."""

    unit: torch.Tensor
    """(b, m) float32 or float64, on the backend's device; a row of zero norm is zero. Memory that the next block is put
    into: what is to outlive `summarize` is copied."""
    norms: NDArray[np.float64]
    """(b,) the norms that the rows had; 0 marks a zero row."""
    backend: Backend
    numbers: NDArray[np.int64] | None = None
    """(b,) the rows' places in the matrix, ascending; None where nobody has counted."""


class Accumulator(Protocol):
    """A sum over rows in one pass. `update(block)` is `add(summarize(block))`.

    `summarize` is the heavy half: a pure function of the block, which worker threads run side by side. `add` is the light
    half: it runs on one thread, in the order of the rows, so a result does not depend on how many threads there were.
    An accumulator can be pickled, so that processes which saw different rows can merge theirs.
    """

    @property
    def products(self) -> int:
        """How many m × m products `summarize` makes of a block: what its memory is counted in."""

    def summarize(self, block: UnitBlock) -> Any: ...
    def add(self, partial: Any) -> None: ...
    def update(self, block: UnitBlock) -> None: ...
    def merge(self, other: Self) -> None:
        """Take in what another accumulator of the same kind has seen; `other` stays as it is."""

    def compute(self) -> Any:
        """The statistic, a frozen dataclass."""


@dataclass(frozen=True, slots=True)
class Request:
    """An accumulator that a statistic wants to see filled in the next pass."""

    key: str
    """What it is: several statistics that ask for the same thing share one accumulator."""
    make: Callable[[], Accumulator]
    centre: NDArray[np.float64] | None = None
    """(m,) subtracted from each row before it is normalised."""
    finish: Callable[[Any], Any] | None = None
    """Makes something small of the accumulator once every row is in it; None hands out the accumulator itself."""


Steps: TypeAlias = Generator[tuple[Request, ...], list[Any], Any]
"""A statistic at work: each `yield` asks for accumulators, is answered when a pass has filled them, and so on until it
returns its result, a frozen dataclass. What it is handed is shared: it reads it and changes nothing."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that a statistic is over, for one that has to look at them itself, or to know where they lie."""

    blocks: Iterable[RowBlock]
    """Every stored row; each iteration is one more pass."""
    backend: Backend
    mask: NDArray[np.bool_] | None = None
    """(n,) True for the rows that count; None: all do."""
    progress: Callable[[str, int, int], None] | None = None
    """Called with a name, how much of a long computation is done, and how much there is."""
    share: Share | None = None
    """The processes that all look at these rows, each at its share of what is to be made of them."""
    sample: float | None = None
    """The share (below 1) or number of tiles of pairs to look at; None: all."""


class Share(Protocol):
    """One of several processes that share out some work, such as the tiles `tiles[rank::count]`."""

    rank: int
    count: int

    def total(self, sums: Any) -> Any:
        """What every process has summed up, merged. Each of them calls this."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """A row of STATISTICS."""

    steps: Callable[[Rows], Steps]
    passes: int = 0
    """The number of its yields: passes that it shares with the other statistics."""
    default: bool = False
    """Measured where no statistic is asked for by name."""
    reads: int = 0
    """How often it reads the rows itself. It then needs all of them in the memory of one process."""
    shared: bool = False
    """Processes share the work that it reads the rows for (`Rows.share`)."""
    every_row: bool = False
    """It is over every stored row, whichever rows count."""

    @property
    def of_both(self) -> bool:
        """It costs one shared pass, in which the rows that count and all rows are told apart for nothing."""
        return self.passes == 1 and self.reads == 0 and not self.every_row
