"""What is known of a head before its rows are read: where it lies, which rows are tokens, and what they will cost."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmsuper.errors import CheckpointError, HubError
from llmsuper.hub.checkpoint import small_files
from llmsuper.hub.conversions import with_conversion
from llmsuper.hub.head import open_head, open_located
from llmsuper.hub.repository import open_repository
from llmsuper.hub.rowcache import RowCache
from llmsuper.hub.vocabulary import files_needed, read_vocabulary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmsuper.hub.head import Head
    from llmsuper.hub.repository import Repository
    from llmsuper.types import HeadLocation, ModelEntry, RowRule


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """What measuring one head would move over the network, from headers alone."""

    location: HeadLocation
    origin: str
    """`hub`, `hub-cache` or `local`."""
    head_bytes: int
    """0 for a file that is already on this machine."""
    other_bytes: int
    """Header, index, config and tokenizer files that are not yet in the Hub cache."""

    @property
    def total_bytes(self) -> int:
        return self.head_bytes + self.other_bytes


@dataclass(frozen=True)
class FoundHead:
    """One head. It can be handed to another process, which opens the file for itself and asks nothing else again."""

    repository: Repository
    location: HeadLocation
    etag: str | None
    """Of the file; None for one that is on this machine."""
    mask: NDArray[np.bool_] | None
    """(n,) True for rows that a token has; None where no tokenizer says so."""
    row_source: str
    """Where that is known from."""
    row_notes: tuple[str, ...]
    moved: int
    """Bytes that finding it took from the head's file."""
    requests: int
    seconds: float
    head: Head | None = None
    """Open, in the process that found it."""

    def __reduce__(self) -> Any:
        """For another process: no open files, and a repository that has none."""
        bare = {name: value for name, value in vars(self).items() if name != "head"}
        return _unpickled, ({**bare, "repository": replace(self.repository)},)  # type: ignore[type-var]

    def close(self) -> None:
        if self.head is not None:
            self.head.close()

    def opened(self, cache: RowCache | None) -> Head:
        """The head, to be closed by the caller."""
        return self.head or open_located(self.repository, cache, self.location, self.etag)


def plan_head(
    entry: ModelEntry, lm_head: str | None = None, file: str | None = None, *, allow_pr: bool = False
) -> HeadPlan:
    """Where the head of `entry` is and what measuring it would move. Reads headers, the shard index and config.json only."""
    cache = RowCache()
    repository = open_entry(entry, cache, file, allow_pr=allow_pr)
    small = small_files(repository, file) + (() if lm_head else files_needed(repository.files))
    other = repository.uncached_bytes(small)  # asked before `open_head` fetches some of them
    with closing(open_head(repository, cache, tensor=lm_head, file=file)) as head:
        return HeadPlan(head.location, repository.origin, head.bytes_to_move, other + head.source.moved)


def open_entry(entry: ModelEntry, cache: RowCache | None, file: str | None, *, allow_pr: bool) -> Repository:
    """The repository of `entry`, or with `allow_pr` the conversion of it that waits in a pull request. See `open_repository`."""
    repository = open_repository(entry, cache=cache)
    return with_conversion(repository, cache, file) if allow_pr else repository


def find_head(
    repository: Repository,
    cache: RowCache | None,
    *,
    tensor: str | None = None,
    file: str | None = None,
    row_rule: RowRule = "tokens",
    max_bytes: int | None = None,
) -> FoundHead:
    """Locate the head, or the tensor or the file asked for, and tell its tokens from padding.

    Raises what `open_head` raises, `CheckpointError` where tokens are to be counted and the tokenizer is broken, or that of
    another model, and `HubError` where more than `max_bytes` would have to be moved.
    """
    began = time.monotonic()
    head = open_head(repository, cache, tensor=tensor, file=file)
    location = head.location
    try:
        mask, row_source, row_notes = _token_rows(repository, location, tensor, row_rule)
        if max_bytes is not None and head.bytes_to_move > max_bytes:
            raise HubError(
                f"{location.entry.name}: {location.tensor.name!r} has {head.bytes_to_move:,} bytes to move, --max-bytes allows "
                f"{max_bytes:,}. Raise it, or leave the model out with --exclude."
            )
    except BaseException:
        head.close()
        raise
    return FoundHead(
        repository,
        location,
        head.source.etag,
        mask,
        row_source,
        row_notes,
        head.source.moved,
        head.source.requests,
        time.monotonic() - began,
        head,
    )


def _unpickled(values: dict[str, Any]) -> FoundHead:
    return FoundHead(**values)


def _token_rows(
    repository: Repository, location: HeadLocation, tensor: str | None, row_rule: RowRule
) -> tuple[NDArray[np.bool_] | None, str, tuple[str, ...]]:
    """(n,) True for rows that a token has, or None where no tokenizer says so; where that is known from; what to note."""
    if tensor:
        return None, "every row: the tensor was asked for by name", ()
    try:
        vocabulary = read_vocabulary(repository, location)
    except CheckpointError as error:
        if row_rule == "tokens":
            raise
        return None, f"every stored row: {error}", ()
    if vocabulary is None:
        return None, "every stored row: the checkpoint comes without tokenizer files", ()
    mask = vocabulary.mask(location.rows, location.row_ids)
    if not mask.any():
        raise CheckpointError(
            f"{location.entry.name}: no row of {location.tensor.name!r} is a token of {', '.join(vocabulary.files)}. "
            "Take every stored row with --rows all, or name the right tensor with --lm-head."
        )
    beyond = vocabulary.beyond(location.rows, location.row_ids)
    notes = (f"the tokenizer has {beyond} ids beyond the head's {location.rows} rows.",) if beyond else ()
    return mask, ", ".join(vocabulary.files), notes
