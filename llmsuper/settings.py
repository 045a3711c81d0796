"""What to measure and how: everything about a run that is not a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmsuper.errors import lookup
from llmsuper.geometry import DEFAULT_STATISTICS
from llmsuper.geometry.suite import passes
from llmsuper.kernels.precision import PRECISIONS

if TYPE_CHECKING:
    from llmsuper.types import RowRule

SHARED_BYTES = 256_000_000
"""Bytes of a head above which several processes share its rows, rather than have a head each."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure and how: everything about a run that is not a model."""

    statistics: tuple[str, ...] = DEFAULT_STATISTICS
    row_rule: RowRule = "tokens"
    lm_head: str | None = None
    """Measure this tensor, whatever it is, instead of the head."""
    backend: str = "auto"
    device: str = "auto"
    file: str | None = None
    """Take the head from this file of the repository, whatever else there is."""
    max_bytes: int | None = None
    """Refuse a head that would move more bytes than this over the network."""
    keep_heads: bool = True
    """Keep fetched heads on this machine, so that a later run moves nothing."""
    allow_pr: bool = False
    """Where a revision has no safetensors, take the conversion that the Hub's bot offers in a pull request."""
    precision: str = "auto"
    """A name in `kernels.precision.PRECISIONS`, or `auto`, which keeps the promise of 1e-6 at the least cost."""
    shard: Literal["auto", "rows", "models"] = "auto"
    """What several processes share: the rows of each head, the models, or as `measure_heads` sees fit."""

    def __post_init__(self) -> None:
        passes(self.statistics)  # raises for a name that no statistic has
        if self.precision != "auto":
            lookup(dict[str, object](PRECISIONS.items()), self.precision, "precision")

    @property
    def passes(self) -> int:
        """How often the rows are read, at least."""
        return passes(self.statistics)
