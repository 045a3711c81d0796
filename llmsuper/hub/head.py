"""Opens a model's head: where it lies, and its rows from this machine or from the Hub."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsuper.hub.locate import check_claims, locate_head
from llmsuper.hub.stream import stream_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmsuper.hub.repository import Repository
    from llmsuper.hub.rowcache import HeadCopy, RowCache
    from llmsuper.hub.source import ByteSource
    from llmsuper.hub.stream import HeadStream
    from llmsuper.types import HeadLocation


@dataclass(frozen=True, slots=True)
class Head:
    """A head that was found, and where its rows come from."""

    location: HeadLocation
    source: ByteSource
    copy: HeadCopy | None
    """The copy on this machine, whole or to be filled; None for a file that is here anyway."""

    @property
    def bytes_to_move(self) -> int:
        """Bytes of the head that are not on this machine yet; what an interrupted run has left is counted as missing."""
        return (
            0
            if self.source.etag is None or (self.copy is not None and self.copy.complete)
            else self.location.span_bytes
        )

    def rows(self, on_bytes: Callable[[int], None] | None = None) -> HeadStream:
        """The rows, to be iterated over once a pass."""
        return stream_rows(self.location, self.source, copy=self.copy, on_bytes=on_bytes)

    def close(self) -> None:
        self.source.close()


class UnopenedFile:
    """A file that is opened only if some of it is read: the source of a head that is kept on this machine already."""

    def __init__(self, name: str, etag: str | None, size: int, open_it: Callable[[], ByteSource]) -> None:
        self.name, self.etag, self.size = name, etag, size
        self._open_it = open_it
        self._opened: ByteSource | None = None
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
        with self._lock:
            if self._opened is None:
                self._opened = self._open_it()
            return self._opened


def open_head(repository: Repository, cache: RowCache, *, tensor: str | None = None, file: str | None = None) -> Head:
    """The head of `repository`, or the named tensor, or that of the named file; what the cache holds needs no network.

    Raises what `locate_head` raises.
    """
    asked = "|".join(name for name in (file, tensor) if name)
    recalled = (
        cache.recall_location(repository.entry, repository.commit, asked) if repository.origin != "local" else None
    )
    if recalled is not None:
        location, etag = recalled
        if not tensor:
            check_claims(repository, location.file, location.tensor)  # the model list may have changed since
        source: ByteSource = UnopenedFile(
            f"{repository.entry.name}/{location.file}",
            etag,
            repository.files.get(location.file, 0),
            lambda: repository.open(location.file),
        )
        return Head(location, source, cache.head(location, etag))
    location = locate_head(repository, tensor=tensor, file=file)
    source = repository.open(location.file)
    if source.etag is None:
        return Head(location, source, None)
    cache.remember_location(location, source.etag, asked)
    return Head(location, source, cache.head(location, source.etag))
