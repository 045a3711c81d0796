"""What to measure and how: everything about a run that is not a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmsuper.errors import LlmsuperError, lookup
from llmsuper.geometry import DEFAULT_STATISTICS
from llmsuper.geometry.suite import passes
from llmsuper.geometry.tile_list import check_sample
from llmsuper.kernels.precision import PRECISIONS
from llmsuper.version import __version__

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
    sample: float | None = None
    """Of `pairs` look at this share (below 1) or number of the tiles, chosen at random; None: at all of them."""

    def __post_init__(self) -> None:
        passes(self.statistics)  # raises for a name that no statistic has
        if self.precision != "auto":
            lookup(dict[str, object](PRECISIONS.items()), self.precision, "precision")
        if self.sample is not None:
            check_sample(self.sample)
            if "pairs" not in self.statistics:
                raise LlmsuperError(
                    f"a sample of {self.sample:g} is one of pairs, and {', '.join(self.statistics)} need none. "
                    "Ask for the statistic `pairs` as well, or for no sample."
                )

    @property
    def key(self) -> dict[str, Any]:
        """What tells records of one commit from each other, in the words of `ResultStore.find`, but for the sample."""
        return {"version": __version__, "row_rule": self.row_rule, "tensor": self.lm_head, "file": self.file}

    @property
    def passes(self) -> int:
        """How often the rows are read, at least."""
        return passes(self.statistics) + (self.sample is not None)
