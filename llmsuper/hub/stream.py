"""Yields the located rows block by block, reading ahead by parallel byte ranges.

One block is one byte range, one buffer and one tensor: bytes go from the network into the buffer that the tensor is
a view of. Memory is (workers + 1) blocks, whatever the number of rows.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import IO, TYPE_CHECKING

from llmsuper.errors import LlmsuperError
from llmsuper.hub.source import LocalFile, read_exactly
from llmsuper.types import HEAD_DTYPES, RowBlock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    import torch

    from llmsuper.hub.source import ByteSource
    from llmsuper.types import HeadLocation

BLOCK_BYTES = 16 << 20
"""Aimed at: enough to hide 80 ms of latency per request over eight connections."""
FEWEST_ROWS, MOST_ROWS = 2_048, 8_192
"""Bounds of a block's rows: a matrix product wants many, an n-independent memory not too many."""


def default_block_rows(row_bytes: int) -> int:
    """Rows in a block of about 16 MiB, at least 2,048 and at most 8,192."""
    return min(MOST_ROWS, max(FEWEST_ROWS, BLOCK_BYTES // row_bytes))


def stream_rows(
    location: HeadLocation,
    source: ByteSource,
    *,
    block_rows: int | None = None,
    workers: int = 8,
    on_bytes: Callable[[int], None] | None = None,
    keep: bool = False,
) -> HeadStream:
    """The rows of a located head, as something to iterate over, more than once if need be. See `HeadStream`."""
    return HeadStream(location, source, block_rows=block_rows, workers=workers, on_bytes=on_bytes, keep=keep)


class HeadStream:
    """Each iteration is one pass over all rows, in order, in `RowBlock`s of `block_rows` rows (the last has the rest).

    `workers` ranges are read at once, so at most that many blocks wait to be taken. A block's buffer is used again
    after `block.release()`; until then its rows stay valid, and a consumer that never releases pays with memory.
    `on_bytes(n)` is called for every block of n bytes that a pass delivers, whether or not they crossed the network.

    With `keep`, the first whole pass over a file of the Hub also writes the head to an unnamed temporary file, on
    disk in huggingface_hub's assets folder, and later passes read that: the head crosses the network once. The file
    goes with the stream. A pass that was left early leaves nothing behind, and the next one starts over.

    Raises, while iterating, whatever the source raises, and `LlmsuperError` where the kept copy finds no room.
    """

    def __init__(
        self,
        location: HeadLocation,
        source: ByteSource,
        *,
        block_rows: int | None = None,
        workers: int = 8,
        on_bytes: Callable[[int], None] | None = None,
        keep: bool = False,
    ) -> None:
        if workers < 1 or (block_rows is not None and block_rows < 1):
            raise ValueError("workers and block_rows are at least 1")
        self.location = location
        self.source = source
        self.block_rows = min(block_rows or default_block_rows(location.row_bytes), location.rows)
        self.blocks = -(-location.rows // self.block_rows)
        self.workers = min(workers, self.blocks)
        self.keep = keep and not isinstance(source, LocalFile)
        self._on_bytes = on_bytes
        self._kept: IO[bytes] | None = None

    def __iter__(self) -> Iterator[RowBlock]:
        kept, copy = self._kept, None
        if self.keep and kept is None:
            copy = _temporary_file(self.location.nbytes)
            weakref.finalize(self, copy.close)
        stop = threading.Event()
        starts = iter(range(0, self.location.rows, self.block_rows))
        free: deque[torch.Tensor] = deque()
        pending: deque[tuple[int, torch.Tensor, Future[torch.Tensor]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="llmsuper-rows")

        def ask_for_next() -> None:
            start = next(starts, None)
            if start is not None:
                # A buffer that the consumer has not released is not in `free`: a new one, rather than overwritten rows.
                buffer = free.popleft() if free else self._new_buffer()
                pending.append((start, buffer, pool.submit(self._read, start, buffer, kept, copy, stop)))

        try:
            for _ in range(self.workers):
                ask_for_next()
            while pending:
                start, buffer, future = pending[0]
                rows = future.result()
                pending.popleft()
                ask_for_next()  # before the consumer computes, so that every worker reads while it does
                if self._on_bytes is not None:
                    self._on_bytes(rows.nbytes)
                if not pending and copy is not None and self._kept is None:
                    self._kept, copy = copy, None  # every row is in it
                yield RowBlock(start, rows, partial(_release, [buffer], free))
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            begun = [future for _, _, future in pending if not future.cancelled()]
            wait(begun, timeout=5)  # a read ends at its next chunk, or times out
            if copy is not None:
                copy.close()

    def _new_buffer(self) -> torch.Tensor:
        import torch

        return torch.empty(self.block_rows * self.location.row_bytes, dtype=torch.uint8)

    def _read(
        self, start: int, buffer: torch.Tensor, kept: IO[bytes] | None, copy: IO[bytes] | None, stop: threading.Event
    ) -> torch.Tensor:
        """Fills `buffer` with the block that starts at row `start`, and returns the rows as a view of it."""
        import torch

        location = self.location
        count = min(self.block_rows, location.rows - start)
        offset, n = start * location.row_bytes, count * location.row_bytes
        view = buffer.numpy().data[:n]
        if kept is not None:
            read_exactly(kept.fileno(), offset, view, "the kept copy of the head")
        else:
            self.source.read_into(location.tensor.begin + offset, view, stop)
        if copy is not None:
            _write(copy, offset, view)
        dtype = getattr(torch, HEAD_DTYPES[location.tensor.dtype])
        return buffer[:n].view(dtype).view(count, location.columns)


def _release(slot: list[torch.Tensor], free: deque[torch.Tensor]) -> None:
    """Hands a block's buffer back, the first time only."""
    if slot:
        free.append(slot.pop())


def _temporary_file(nbytes: int) -> IO[bytes]:
    """An unnamed file on the disk of the Hub client's assets, where there is room for `nbytes`."""
    from huggingface_hub import cached_assets_path

    try:
        folder = cached_assets_path("llmsuper", namespace="heads", subfolder="streaming")
        room = shutil.disk_usage(folder).free
        if room >= nbytes:
            return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError as error:
        raise _no_copy(nbytes, error.strerror or str(error)) from error
    raise _no_copy(nbytes, f"{folder} has {room / 1e9:.2f} GB free")


def _write(copy: IO[bytes], offset: int, view: memoryview) -> None:
    try:
        while view:
            n = os.pwrite(copy.fileno(), view, offset)
            offset, view = offset + n, view[n:]
    except OSError as error:
        raise _no_copy(offset + len(view), error.strerror or str(error)) from error


def _no_copy(nbytes: int, found: str) -> LlmsuperError:
    return LlmsuperError(
        f"the temporary copy of the head: {found}, {nbytes / 1e9:.2f} GB are needed. "
        "Free some space, set HF_ASSETS_CACHE to a larger disk, or leave out the statistics that read the rows twice."
    )
