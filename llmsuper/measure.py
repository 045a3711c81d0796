"""Measures one catalog entry, or many with resume, into HeadRecords."""

from __future__ import annotations

import time
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from llmsuper.errors import CheckpointError, HubError, LlmsuperError, lookup
from llmsuper.geometry import ACCUMULATORS
from llmsuper.geometry.overlap import MeanRowAccumulator
from llmsuper.geometry.passes import one_pass
from llmsuper.hub.checkpoint import small_files
from llmsuper.hub.conversions import with_conversion
from llmsuper.hub.head import open_head
from llmsuper.hub.repository import open_repository
from llmsuper.hub.rowcache import RowCache, row_cache
from llmsuper.hub.vocabulary import files_needed, read_vocabulary
from llmsuper.kernels import choose_backend, choose_precision
from llmsuper.types import HeadRecord
from llmsuper.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from llmsuper.hub.repository import Repository
    from llmsuper.kernels import Backend
    from llmsuper.store import ResultStore
    from llmsuper.types import HeadLocation, ModelEntry, RowBlock, RowRule

Watch: TypeAlias = "Callable[[HeadLocation], Callable[[int], None]]"
"""Called once the head is located; what it returns is called with each count of bytes read, a pass of rows at a time."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure and how: everything about a run that is not a model."""

    statistics: tuple[str, ...] = tuple(ACCUMULATORS)
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

    def __post_init__(self) -> None:
        for name in self.statistics:
            lookup(ACCUMULATORS, name, "statistic")

    @property
    def passes(self) -> int:
        """How often the rows are read."""
        return 2 if any(ACCUMULATORS[name].centred for name in self.statistics) else 1


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one entry: a record, measured now or earlier, or the error that stopped it."""

    entry: ModelEntry
    record: HeadRecord | None = None
    stored: bool = False
    """True when the record was in the store already."""
    error: LlmsuperError | None = None


def plan_head(
    entry: ModelEntry, lm_head: str | None = None, file: str | None = None, *, allow_pr: bool = False
) -> HeadPlan:
    """Where the head of `entry` is and what measuring it would move. Reads headers, the shard index and config.json only."""
    cache = RowCache()
    repository = _open(entry, cache, file, allow_pr)
    small = small_files(repository, file) + (() if lm_head else files_needed(repository.files))
    other = repository.uncached_bytes(small)  # asked before `open_head` fetches some of them
    with closing(open_head(repository, cache, tensor=lm_head, file=file)) as head:
        return HeadPlan(head.location, repository.origin, head.bytes_to_move, other + head.source.moved)


def measure_head(entry: ModelEntry, settings: Settings | None = None, watch: Watch | None = None) -> HeadRecord:
    """Find, stream and measure one head. Raises the `LlmsuperError` that stopped it."""
    settings = settings or Settings()
    # nothing is kept of a file that is here anyway
    kept = nullcontext(None) if entry.local else row_cache(keep=settings.keep_heads, passes=settings.passes)
    with kept as cache:
        return _measure(_open(entry, cache, settings.file, settings.allow_pr), settings, cache, watch)


def measure_heads(
    entries: Iterable[ModelEntry],
    store: ResultStore,
    settings: Settings | None = None,
    *,
    force: bool = False,
    watch: Watch | None = None,
) -> Iterator[Outcome]:
    """Measure each entry that has no record yet and store it; one outcome an entry, as soon as it is known.

    A head counts as measured when the store has a record of the same repo, commit, rows rule, tensor and version of
    llmsuper that holds every statistic asked for. What a record holds besides is measured again with the rest, so that
    nothing stored is lost. An error stops its own entry and no other; a backend that cannot run here stops the run.
    """
    settings = settings or Settings()
    choose_backend(settings.backend, settings.device)
    store.check_writable()
    with row_cache(keep=settings.keep_heads, passes=settings.passes) as cache:
        for entry in entries:
            if cache is not None and not settings.keep_heads:
                cache.clear()  # of the model before: a whole family's heads may not find room
            try:
                repository = _open(entry, cache, settings.file, settings.allow_pr)
                found = _stored(store, repository, settings)
                held = set(found.statistics[found.row_class]) if found is not None else set()
                said = found is not None and set(repository.notes) <= set(found.notes)
                if found is not None and said and held >= set(settings.statistics) and not force:
                    # two revisions may be one commit, which has one record: this is what it says of the revision asked for
                    yield Outcome(entry, replace(found, revision=entry.revision), stored=True)
                    continue
                wanted = tuple(name for name in ACCUMULATORS if name in held or name in settings.statistics)
                record = _measure(repository, replace(settings, statistics=wanted), cache, watch)
            except LlmsuperError as error:
                yield Outcome(entry, error=error)
                continue
            try:
                store.put(record)
            except LlmsuperError as error:
                yield Outcome(entry, record, error=error)  # measured, though not kept: the caller can still print it
                continue
            yield Outcome(entry, record)


def _open(entry: ModelEntry, cache: RowCache | None, file: str | None, allow_pr: bool) -> Repository:
    repository = open_repository(entry, cache=cache)
    return with_conversion(repository, cache, file) if allow_pr else repository


def _stored(store: ResultStore, repository: Repository, settings: Settings) -> HeadRecord | None:
    return store.find(
        repo=repository.entry.repo,
        commit=repository.commit,
        row_rule=settings.row_rule,
        version=__version__,
        tensor=settings.lm_head,
        file=settings.file,
    )


def _measure(repository: Repository, settings: Settings, cache: RowCache | None, watch: Watch | None) -> HeadRecord:
    began = time.monotonic()
    head = open_head(repository, cache, tensor=settings.lm_head, file=settings.file)
    location = head.location
    tensor, entry = location.tensor, location.entry
    mask, row_source, row_notes = _token_rows(repository, location, settings)
    precision = choose_precision(location.rows, location.columns, tensor.dtype)
    backend = choose_backend(settings.backend, settings.device, precision)
    with closing(head):
        if settings.max_bytes is not None and head.bytes_to_move > settings.max_bytes:
            raise HubError(
                f"{entry.name}: {tensor.name!r} has {head.bytes_to_move:,} bytes to move, --max-bytes allows "
                f"{settings.max_bytes:,}. Raise it, or leave the model out with --exclude."
            )
        stream = head.rows(on_bytes=watch(location) if watch else None)
        try:
            statistics = measure_rows(stream, settings.statistics, backend, mask=mask, row_rule=settings.row_rule)
        except CheckpointError as error:
            raise CheckpointError(f"{entry.name}, {location.file}, {tensor.name!r}: {error}") from error
        moved, requests = head.source.moved, head.source.requests
    return HeadRecord(
        repo=entry.repo,
        revision=entry.revision,
        commit=location.commit,
        family=entry.family,
        width=entry.width,
        file=location.file,
        tensor=tensor.name,
        dtype=tensor.dtype,
        tied=location.tied,
        rows=location.rows,
        columns=location.columns,
        row_rule=settings.row_rule,
        row_class="all" if mask is None else settings.row_rule,
        row_source=row_source,
        padding_rows=0 if mask is None else int((~mask).sum()),
        statistics=statistics,
        notes=location.notes + row_notes,
        made_by={
            "tool": "llmsuper",
            "version": __version__,
            "backend": backend.name,
            "device": backend.device,
            "precision": backend.precision,
            "tensor_by_name": settings.lm_head is not None,
            "file_by_name": settings.file is not None,
            "bytes_moved": moved,
            "requests": requests,
            "seconds": round(time.monotonic() - began, 3),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _token_rows(
    repository: Repository, location: HeadLocation, settings: Settings
) -> tuple[NDArray[np.bool_] | None, str, tuple[str, ...]]:
    """(n,) True for rows that a token has, or None where no tokenizer says so; where that is known from; what to note."""
    if settings.lm_head:
        return None, "every row: the tensor was asked for by name", ()
    try:
        vocabulary = read_vocabulary(repository, location)
    except CheckpointError as error:
        if settings.row_rule == "tokens":
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


def measure_rows(
    blocks: Iterable[RowBlock],
    statistics: Sequence[str],
    backend: Backend,
    *,
    mask: NDArray[np.bool_] | None = None,
    row_rule: RowRule = "all",
) -> dict[str, dict[str, dict[str, Any]]]:
    """Statistics by row class (`tokens`, `all`), then by name. `blocks` is iterated once, or twice for a centred statistic.

    mask: (n,) True for the rows that are tokens; None when that is not known, and then there is the class `all` alone.
    Both classes come from one pass. A centred statistic needs the mean row of its own class first, so it is measured for
    the class asked for by `row_rule` alone, unless no row is padding and the classes are the same.
    """
    plain = [name for name in statistics if not ACCUMULATORS[name].centred]
    centred = [name for name in statistics if ACCUMULATORS[name].centred]
    kinds = [ACCUMULATORS[name] for name in plain] + ([MeanRowAccumulator] if centred else [])
    chosen, padding = [kind() for kind in kinds], [kind() for kind in kinds]
    over_tokens = one_pass(blocks, chosen, backend=backend, mask=mask, others=padding if mask is not None else ())
    for accumulator, other in zip(chosen, padding, strict=True):
        accumulator.merge(other)
    over_all = [accumulator.compute() for accumulator in chosen]
    no_padding = mask is None or bool(mask.all())
    of_tokens = row_rule == "tokens" or no_padding

    found = {"all": _named(plain, over_all)}
    if mask is not None:
        found["tokens"] = _named(plain, over_tokens)
    if centred:
        again = [ACCUMULATORS[name]() for name in centred]
        mean_row = (over_tokens if of_tokens else over_all)[-1]
        computed = one_pass(blocks, again, backend=backend, centre=mean_row, mask=mask if of_tokens else None)
        for row_class in found:
            if no_padding or row_class == row_rule:
                found[row_class] |= _named(centred, computed)
    return found


def _named(names: Sequence[str], computed: Sequence[Any]) -> dict[str, dict[str, Any]]:
    return {name: asdict(statistic) for name, statistic in zip(names, computed, strict=False)}
