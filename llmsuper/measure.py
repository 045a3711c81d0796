"""Measures one catalog entry, or many with resume, into HeadRecords."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from llmsuper.errors import CheckpointError, LlmsuperError
from llmsuper.found import HeadPlan as HeadPlan
from llmsuper.found import find_head, open_entry
from llmsuper.found import plan_head as plan_head
from llmsuper.geometry import STATISTICS
from llmsuper.geometry.suite import measure_rows as measure_rows
from llmsuper.hub.rowcache import row_cache
from llmsuper.hub.stream import count_blocks
from llmsuper.hub.token_strings import name_pairs
from llmsuper.kernels import choose_backend, choose_precision
from llmsuper.processes import ALONE, LostProcessError
from llmsuper.settings import SHARED_BYTES
from llmsuper.settings import Settings as Settings
from llmsuper.types import HeadRecord
from llmsuper.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from llmsuper.found import FoundHead
    from llmsuper.geometry.blocks import Accumulator
    from llmsuper.hub.repository import Repository
    from llmsuper.hub.rowcache import RowCache
    from llmsuper.processes import Processes
    from llmsuper.store import ResultStore
    from llmsuper.types import HeadLocation, ModelEntry


@runtime_checkable
class Progress(Protocol):
    """Hears of bytes as they are read, and of how far a computation of n² m operations is."""

    def __call__(self, n: int, /) -> None: ...
    def step(self, name: str, done: int, total: int, /) -> None: ...


Watch: TypeAlias = "Callable[[HeadLocation], Callable[[int], None]]"
"""Called once the head is located; what it returns is called with each count of bytes read, a pass of rows at a time.
It may be a `Progress`, which hears of more."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one entry: a record, measured now or earlier, or the error that stopped it."""

    entry: ModelEntry
    record: HeadRecord | None = None
    stored: bool = False
    """True when the record was in the store already."""
    error: LlmsuperError | None = None


def measure_head(
    entry: ModelEntry, settings: Settings | None = None, watch: Watch | None = None, processes: Processes = ALONE
) -> HeadRecord:
    """Find, stream and measure one head, whose rows `processes` share: each calls this, and all get the same record.

    Raises the `LlmsuperError` that stopped it.
    """
    settings = settings or Settings()
    # nothing is kept of a file that is here anyway
    kept = nullcontext(None) if entry.local else row_cache(keep=settings.keep_heads, passes=settings.passes)
    with kept as cache:
        found = processes.from_first(
            lambda: _find(open_entry(entry, cache, settings.file, allow_pr=settings.allow_pr), cache, settings)
        )
        job = _Job(entry, found, settings)
        if job.shareable(processes):
            return _measure(job, cache, watch, processes)
        return processes.from_first(lambda: _measure(job, cache, watch, ALONE))


def measure_heads(
    entries: Iterable[ModelEntry],
    store: ResultStore,
    settings: Settings | None = None,
    *,
    force: bool = False,
    watch: Watch | None = None,
    processes: Processes = ALONE,
) -> Iterator[Outcome]:
    """Measure each entry that has no record yet and store it; one outcome an entry, as soon as it is known.

    A head counts as measured when the store has a record of the same repo, commit, rows rule, tensor and version of
    llmsuper that holds every statistic asked for; where a sample of pairs is asked for, a record of all pairs or of the same
    sample. What a record holds besides is measured again with the rest, so that nothing stored is lost. An error stops its own
    entry and no other; a backend that cannot run here stops the run.

    Several processes (all of which call this, and get the same outcomes) take as many entries at a time as they are, and the
    first of them asks the Hub and the store about these. Then each measures one, except that all share the rows of a head
    of more than SHARED_BYTES, and of every head where there are fewer than processes; `Settings.shard` says otherwise.
    The first process stores each record.
    """
    settings = settings or Settings()
    with processes.together():
        choose_backend(settings.backend, settings.device)
    processes.from_first(store.check_writable)
    waiting = iter(entries)
    with row_cache(keep=settings.keep_heads, passes=settings.passes) as cache:
        while some := list(islice(waiting, processes.count)):
            if cache is not None and not settings.keep_heads:
                cache.clear()  # of the models before: a whole family's heads may not find room
            known = processes.from_first(partial(_known, some, store, settings, cache, force))
            yield from _measured(known, store, cache, watch, processes)


@dataclass(frozen=True)
class _Job:
    """A head to be measured, and which statistics of it."""

    entry: ModelEntry
    found: FoundHead
    settings: Settings

    def shareable(self, processes: Processes) -> bool:
        """Whether there is a block of rows for each process, and something for each to do with them in every statistic."""
        chosen = [STATISTICS[name] for name in self.settings.statistics]
        whole = any(row.reads and not row.shared for row in chosen)
        return processes.count > 1 and not whole and count_blocks(self.found.location) >= processes.count

    def shared(self, processes: Processes, jobs: int) -> bool:
        """Whether the processes share the rows of this one of so many jobs."""
        how = self.settings.shard
        few = jobs < processes.count or self.found.location.nbytes > SHARED_BYTES
        return self.shareable(processes) and (how == "rows" or (how == "auto" and few))


def _known(
    entries: list[ModelEntry], store: ResultStore, settings: Settings, cache: RowCache | None, force: bool
) -> list[Outcome | _Job]:
    """What is to be done about each entry, or what came of it already."""
    known: list[Outcome | _Job] = []
    for entry in entries:
        try:
            known.append(_job(entry, store, settings, cache, force))
        except LlmsuperError as error:
            known.append(Outcome(entry, error=error))
    return known


def _job(
    entry: ModelEntry, store: ResultStore, settings: Settings, cache: RowCache | None, force: bool
) -> Outcome | _Job:
    repository = open_entry(entry, cache, settings.file, allow_pr=settings.allow_pr)
    asked = set(settings.statistics)
    look = partial(store.find, repo=repository.entry.repo, commit=repository.commit, **settings.key)
    found = look()
    if settings.sample is not None and (force or not asked <= _held(found)):
        found = look(sample=settings.sample)
    held = _held(found)
    said = found is not None and set(repository.notes) <= set(found.notes)
    if found is not None and said and asked <= held and not force:
        # two revisions may be one commit, which has one record: this is what it says of the revision asked for
        return Outcome(entry, replace(found, revision=entry.revision), stored=True)
    wanted = tuple(name for name in STATISTICS if name in held | asked)
    return _Job(entry, _find(repository, cache, settings), replace(settings, statistics=wanted))


def _held(record: HeadRecord | None) -> set[str]:
    return set() if record is None else set(record.statistics[record.row_class])


def _measured(
    known: list[Outcome | _Job],
    store: ResultStore,
    cache: RowCache | None,
    watch: Watch | None,
    processes: Processes,
) -> Iterator[Outcome]:
    """The outcomes of some entries, no more than there are processes: first what each process does, then what all do."""
    jobs = [job for job in known if isinstance(job, _Job)]
    yield from (outcome for outcome in known if isinstance(outcome, Outcome))
    alone = [job for job in jobs if not job.shared(processes, len(jobs))]
    mine = alone[processes.rank :: processes.count]
    own = [_outcome(job, cache, watch if processes.first else None, ALONE) for job in mine]
    for job in alone:
        job.found.close()
    done = chain.from_iterable(processes.gathered(own))
    yield from processes.from_first(lambda: [_stored_now(outcome, store) for outcome in done])
    for job in jobs:
        if job not in alone:
            outcome = _outcome(job, cache, watch, processes)
            yield processes.from_first(partial(_stored_now, outcome, store))


def _outcome(job: _Job, cache: RowCache | None, watch: Watch | None, processes: Processes) -> Outcome:
    try:
        return Outcome(job.entry, _measure(job, cache, watch, processes))
    except LostProcessError:
        raise
    except LlmsuperError as error:
        return Outcome(job.entry, error=error)


def _stored_now(outcome: Outcome, store: ResultStore) -> Outcome:
    try:
        if outcome.record is not None:
            store.put(outcome.record)
    except LlmsuperError as error:
        return replace(outcome, error=error)  # measured, though not kept: the caller can still print it
    return outcome


def _find(repository: Repository, cache: RowCache | None, settings: Settings) -> FoundHead:
    return find_head(
        repository,
        cache,
        tensor=settings.lm_head,
        file=settings.file,
        row_rule=settings.row_rule,
        max_bytes=settings.max_bytes,
    )


def _measure(job: _Job, cache: RowCache | None, watch: Watch | None, processes: Processes) -> HeadRecord:
    """The record of one head, each of the processes having read its share of the rows."""
    began = time.monotonic()
    found, settings, location = job.found, job.settings, job.found.location
    tensor, entry, mask = location.tensor, location.entry, found.mask
    with ExitStack() as opened:
        with processes.together():
            precision = choose_precision(location.rows, location.columns, tensor.dtype, settings.precision)
            backend = choose_backend(settings.backend, settings.device, precision)
            head = opened.enter_context(closing(found.opened(cache)))
        advance = watch(location) if watch and processes.first else None
        on_bytes = None if advance is None else lambda n: advance(n * processes.count)  # the others are as far, about
        stream = head.rows(on_bytes, (processes.rank, processes.count))

        def reduce(accumulators: Sequence[Accumulator]) -> None:
            processes.merge(accumulators)
            stream.settle(processes.gathered(stream.checksum))

        try:
            with processes.together():
                statistics = measure_rows(
                    stream,
                    settings.statistics,
                    backend,
                    mask=mask,
                    row_rule=settings.row_rule,
                    reduce=reduce,
                    every_block=head.rows(on_bytes),
                    share=processes,
                    sample=settings.sample,
                    progress=advance.step if isinstance(advance, Progress) else None,
                )
                name_pairs(statistics, found.repository, location, strings=mask is not None)
        except CheckpointError as error:
            raise CheckpointError(f"{entry.name}, {location.file}, {tensor.name!r}: {error}") from error
        by_process = processes.gathered((head.source.moved, head.source.requests))
        if found.head is None and processes.first:  # another process has found it
            by_process[0] = (by_process[0][0] + found.moved, by_process[0][1] + found.requests)
        moved, requests = (sum(numbers) for numbers in zip(*by_process, strict=True))
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
        row_source=found.row_source,
        padding_rows=0 if mask is None else int((~mask).sum()),
        statistics=statistics,
        notes=location.notes + found.row_notes,
        made_by={
            "tool": "llmsuper",
            "version": __version__,
            "backend": backend.name,
            "device": backend.device,
            "precision": backend.precision,
            "tensor_by_name": settings.lm_head is not None,
            "file_by_name": settings.file is not None,
            **({} if settings.sample is None else {"sample": settings.sample}),
            "bytes_moved": moved,
            **({"bytes_moved_by_process": [moved for moved, _ in by_process]} if processes.count > 1 else {}),
            "requests": requests,
            "seconds": round(found.seconds + time.monotonic() - began, 3),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
