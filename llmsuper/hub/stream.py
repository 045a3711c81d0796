"""Yields the located rows block by block, reading ahead by parallel byte ranges.

One block is one byte range, one buffer and one tensor: bytes go from the network into the buffer that the tensor is
a view of. Memory is (workers + 1) blocks, whatever the number of rows.
"""

from __future__ import annotations

import threading
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

from llmsuper.errors import CheckpointError
from llmsuper.hub.formats.rows import decode_rows, stored_type
from llmsuper.types import RowBlock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    import torch

    from llmsuper.hub.headcopy import HeadCopy, OpenCopy
    from llmsuper.hub.source import ByteSource
    from llmsuper.types import HeadLocation

BLOCK_BYTES = 16 << 20
"""Aimed at: enough to hide 80 ms of latency per request over eight connections."""
FEWEST_ROWS, MOST_ROWS = 2_048, 8_192
"""Bounds of a block's rows: a matrix product wants many, an n-independent memory not too many."""
EVEN = 8
"""Of several blocks there are a multiple of this many, all of one size: so 2, 4 or 8 threads end at the same time."""


def default_block_rows(rows: int, row_bytes: int) -> int:
    """Rows in a block of at most about 16 MiB, about 2,048 to 8,192 of them, evenly spread over the n `rows`.

    It depends on the matrix alone, never on the machine: the blocks of a kept head are the same everywhere.
    """
    most = min(MOST_ROWS, max(FEWEST_ROWS, BLOCK_BYTES // row_bytes))
    blocks = -(-rows // most)
    return -(-rows // (-(-blocks // EVEN) * EVEN)) if blocks > 1 else rows


def stream_rows(
    location: HeadLocation,
    source: ByteSource,
    *,
    copy: HeadCopy | None = None,
    block_rows: int | None = None,
    workers: int = 8,
    on_bytes: Callable[[int], None] | None = None,
) -> HeadStream:
    """The rows of a located head, as something to iterate over, more than once if need be. See `HeadStream`."""
    return HeadStream(location, source, copy=copy, block_rows=block_rows, workers=workers, on_bytes=on_bytes)


class HeadStream:
    """Each iteration is one pass over all rows, in order, in `RowBlock`s of `block_rows` rows (the last has the rest).

    `workers` ranges are read at once, so at most that many blocks wait to be taken. A block's buffer is used again
    after `block.release()`; until then its rows stay valid, and a consumer that never releases pays with memory.
    `on_bytes(n)` is called for every block of n bytes that a pass delivers, whether or not they crossed the network.

    With a `copy`, each block that the copy does not hold yet is read from `source` and kept; what it holds is read from
    there. So the head crosses the network once, whatever the number of passes and runs, and an interrupted pass is
    taken up where it stopped.

    Raises, while iterating, whatever the source raises, `LlmsuperError` where the copy finds no room, and
    `CheckpointError` where the format has a checksum of the whole tensor (a torch zip) and it does not hold; the copy
    is then thrown away, before its last block is delivered.
    """

    def __init__(
        self,
        location: HeadLocation,
        source: ByteSource,
        *,
        copy: HeadCopy | None = None,
        block_rows: int | None = None,
        workers: int = 8,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        if workers < 1 or (block_rows is not None and block_rows < 1):
            raise ValueError("workers and block_rows are at least 1")
        self.location = location
        self.source = source
        self.copy = copy
        self.stride = location.tensor.row_stride or location.row_bytes
        self.block_rows = min(block_rows or default_block_rows(location.rows, self.stride), location.rows)
        self.blocks = -(-location.rows // self.block_rows)
        self.workers = min(workers, self.blocks)
        self._on_bytes = on_bytes

    def __iter__(self) -> Iterator[RowBlock]:
        with self.copy.opened() if self.copy is not None else nullcontext() as copy:
            yield from self._pass(copy)

    def _pass(self, copy: OpenCopy | None) -> Iterator[RowBlock]:
        stop = threading.Event()
        starts = iter(range(0, self.location.rows, self.block_rows))
        free: deque[torch.Tensor] = deque()
        pending: deque[tuple[int, torch.Tensor, Future[torch.Tensor]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="llmsuper-rows")
        checksum = 0

        def ask_for_next() -> None:
            start = next(starts, None)
            if start is not None:
                # A buffer that the consumer has not released is not in `free`: a new one, rather than overwritten rows.
                buffer = free.popleft() if free else self._new_buffer()
                pending.append((start, buffer, pool.submit(self._read, start, buffer, copy, stop)))

        try:
            for _ in range(self.workers):
                ask_for_next()
            while pending:
                start, buffer, future = pending[0]
                rows = future.result()
                pending.popleft()
                ask_for_next()  # before the consumer computes, so that every worker reads while it does
                nbytes = len(rows) * self.location.row_bytes
                if self.location.tensor.crc32 is not None:
                    checksum = zlib.crc32(buffer.numpy().data[:nbytes], checksum)
                if self._on_bytes is not None:
                    self._on_bytes(nbytes)
                if not pending:
                    self._finish(checksum, copy)
                yield RowBlock(start, rows, partial(_release, [buffer], free))
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            begun = [future for _, _, future in pending if not future.cancelled()]
            wait(begun, timeout=5)  # a read ends at its next chunk, or times out

    def _finish(self, checksum: int, copy: OpenCopy | None) -> None:
        """Every row has been read, and the last block is about to be delivered."""
        expected = self.location.tensor.crc32
        if expected is not None and checksum != expected:
            if copy is not None:
                copy.discard()
            raise CheckpointError(
                f"{self.source.name}: the bytes of {self.location.tensor.name!r} have CRC-32 {checksum:08x}, the file "
                f"says {expected:08x}. Something on the way, or the file itself, is damaged: run this again, and if it "
                "says the same, download the file anew."
            )
        if copy is not None:
            copy.finish()

    def _new_buffer(self) -> torch.Tensor:
        import torch

        return torch.empty(self.block_rows * self.stride, dtype=torch.uint8)

    def _read(self, start: int, buffer: torch.Tensor, copy: OpenCopy | None, stop: threading.Event) -> torch.Tensor:
        """Fills `buffer` with the block that starts at row `start`, and returns its rows, a view of it where possible."""
        location = self.location
        count, width = min(self.block_rows, location.rows - start), location.row_bytes
        packed = buffer.numpy().data[: count * width]
        if copy is None or not copy.read(start * width, packed):
            raw = buffer.numpy().data[: (count - 1) * self.stride + width]
            self.source.read_into(location.tensor.begin + start * self.stride, raw, stop)
            if self.stride != width:  # rows of a wider storage: what lies between them is left out
                buffer[: count * width] = buffer.as_strided((count, width), (self.stride, 1)).reshape(-1)
            if copy is not None:
                copy.write(start * width, packed)
        raw_rows = buffer[: count * width]
        if location.tensor.byteorder == "big":
            element = stored_type(location.tensor.dtype).block_bytes
            raw_rows = raw_rows.view(-1, element).flip(1).reshape(-1)
        return decode_rows(location.tensor.dtype, raw_rows, count, location.columns)


def _release(slot: list[torch.Tensor], free: deque[torch.Tensor]) -> None:
    """Hands a block's buffer back, the first time only."""
    if slot:
        free.append(slot.pop())
