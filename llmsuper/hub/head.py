"""Opens a model's head: where it lies, and its rows from this machine or from the Hub."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmsuper.errors import HubError, LlmsuperError
from llmsuper.hub.locate import check_claims, locate_head
from llmsuper.hub.stream import stream_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmsuper.hub.headcopy import HeadCopy
    from llmsuper.hub.repository import Repository
    from llmsuper.hub.rowcache import RowCache
    from llmsuper.hub.source import ByteSource
    from llmsuper.hub.stream import HeadStream
    from llmsuper.types import HeadLocation


@dataclass(frozen=True, slots=True)
class Head:
    """A head that was found, and where its rows come from."""

    location: HeadLocation
    source: ByteSource
    copy: HeadCopy | None
    """The copy on this machine, whole or to be filled; None for a file that is here anyway, and where none is kept."""

    @property
    def bytes_to_move(self) -> int:
        """Bytes of the head that are not on this machine yet."""
        if self.source.etag is None or (self.copy is not None and self.copy.complete):
            return 0
        # rows of a wider storage are kept without what lies between them, which is fetched with them
        kept = self.copy.kept_bytes if self.copy is not None and self.location.tensor.row_stride is None else 0
        return self.location.span_bytes - kept

    def rows(self, on_bytes: Callable[[int], None] | None = None, share: tuple[int, int] = (0, 1)) -> HeadStream:
        """The rows, or the share (r, P) of them: the r-th of every P blocks. To be iterated over once a pass."""
        return stream_rows(self.location, self.source, copy=self.copy, on_bytes=on_bytes, share=share)

    def close(self) -> None:
        self.source.close()


class UnopenedFile:
    """A file that is opened only if some of it is read: the source of a head that is kept on this machine already."""

    def __init__(self, name: str, etag: str, size: int, open_it: Callable[[], ByteSource]) -> None:
        self.name, self.etag, self.size = name, etag, size
        self._open_it = open_it
        self._opened: ByteSource | None = None
        self._failed: LlmsuperError | None = None
        self._lock = threading.Lock()

    @property
    def moved(self) -> int:
        return self._opened.moved if self._opened else 0

    @property
    def requests(self) -> int:
        return self._opened.requests if self._opened else 0

    def read(self, offset: int, n: int) -> bytes:
        return self._source().read(offset, n)

    def read_into(self, offset: int, buffer: memoryview, stop: threading.Event | None = None) -> None:
        self._source().read_into(offset, buffer, stop)

    def close(self) -> None:
        if self._opened:
            self._opened.close()

    def _source(self) -> ByteSource:
        """Opened by the first thread to read; where that fails, the others do not wait for the Hub one after another."""
        with self._lock:
            if self._failed is not None:
                raise self._failed
            if self._opened is None:
                try:
                    opened = self._open_it()
                    if opened.etag not in (None, self.etag):
                        raise HubError(
                            f"{self.name}: its ETag is {opened.etag}, and was {self.etag} when its head was found. A commit "
                            "does not change: check HF_ENDPOINT, and forget what was found with `llmsuper cache --clear`."
                        )
                except LlmsuperError as error:
                    self._failed = error
                    raise
                self._opened = opened
            return self._opened


def open_head(
    repository: Repository, cache: RowCache | None, *, tensor: str | None = None, file: str | None = None
) -> Head:
    """The head of `repository`, or the named tensor, or that of the named file; what the cache holds needs no network.

    Raises what `locate_head` raises.
    """
    asked = (file, tensor, None if file or tensor else repository.entry.lm_head)  # what `locate_head` goes by
    recalled = None
    if cache is not None and repository.origin != "local":
        recalled = cache.recall_location(repository.entry, repository.commit, asked)
    if recalled is None:
        location = locate_head(repository, tensor=tensor, file=file)
        source = repository.open(location.file)
        etag = source.etag
        if cache is not None and etag is not None:
            cache.remember_location(location, etag, asked)
    else:
        location, etag = recalled
        if not tensor:
            check_claims(repository, location.file, location.tensor)  # the model list may have changed since
        source = _unopened(repository, location, etag)
    copy = cache.head(location, etag) if cache is not None and etag is not None and source.etag is not None else None
    return Head(replace(location, notes=repository.notes + location.notes), source, copy)


def open_located(repository: Repository, cache: RowCache | None, location: HeadLocation, etag: str | None) -> Head:
    """The head that another process has found, `location` and the `etag` of its file, in `repository` as it is seen here."""
    source = repository.open(location.file) if etag is None else _unopened(repository, location, etag)
    copy = cache.head(location, etag) if cache is not None and etag is not None and source.etag is not None else None
    return Head(location, source, copy)


def _unopened(repository: Repository, location: HeadLocation, etag: str) -> ByteSource:
    file = location.file
    if file in repository.files and repository.uncached_bytes((file,)) == 0:
        return repository.open(file)  # downloaded since: it need not be kept twice
    name = f"{repository.entry.repo}@{repository.commit[:7]}/{file}"
    return UnopenedFile(name, etag, repository.files.get(file, 0), lambda: repository.open(file))
