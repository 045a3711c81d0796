"""Yields the located rows block by block, reading ahead by parallel byte ranges.

One block is one byte range, one buffer and one tensor: bytes go from the network into the buffer that the tensor is
a view of. Memory is (workers + 1) blocks, whatever the number of rows.

Several processes share a head by blocks in turn: of P processes, the r-th reads the blocks r, r + P, r + 2P … and no other
byte. Blocks are the same however many share them, so that sums over them are too.
"""

from __future__ import annotations

import threading
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import partial, reduce
from operator import xor
from typing import TYPE_CHECKING

from llmsuper.errors import CheckpointError
from llmsuper.hub.crc import moved_along
from llmsuper.hub.formats.rows import decode_rows, stored_type
from llmsuper.types import RowBlock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    import torch

    from llmsuper.hub.headcopy import HeadCopy, OpenCopy
    from llmsuper.hub.source import ByteSource
    from llmsuper.types import HeadLocation

BLOCK_BYTES = 16 << 20
"""Aimed at: enough to hide 80 ms of latency per request over eight connections."""
READERS, LOCAL_READERS = 8, 2
"""Ranges that are read at once, from the Hub and from this machine, whose disk two keep busy: each costs a block of memory."""
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


def count_blocks(location: HeadLocation) -> int:
    """In how many blocks a head is read, by one process or by several."""
    stride = location.tensor.row_stride or location.row_bytes
    return -(-location.rows // min(default_block_rows(location.rows, stride), location.rows))


def stream_rows(
    location: HeadLocation,
    source: ByteSource,
    *,
    copy: HeadCopy | None = None,
    block_rows: int | None = None,
    workers: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
    share: tuple[int, int] = (0, 1),
) -> HeadStream:
    """The rows of a located head, as something to iterate over, more than once if need be. See `HeadStream`."""
    return HeadStream(
        location, source, copy=copy, block_rows=block_rows, workers=workers, on_bytes=on_bytes, share=share
    )


class HeadStream:
    """Each iteration is one pass over all rows, in order, in `RowBlock`s of `block_rows` rows (the last has the rest).

    `workers` ranges are read at once, so at most that many blocks wait to be taken; None: READERS from the Hub,
    LOCAL_READERS where the rows are on this machine. A block's buffer is used again after `block.release()`; until then its
    rows stay valid, and a consumer that never releases pays with memory. `on_bytes(n)` is called for every block of n bytes
    that a pass delivers, whether or not they crossed the network. `share` (r, P): of every P blocks only the r-th.

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
        workers: int | None = None,
        on_bytes: Callable[[int], None] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if (workers is not None and workers < 1) or (block_rows is not None and block_rows < 1):
            raise ValueError("workers and block_rows are at least 1")
        if not 0 <= share[0] < share[1]:
            raise ValueError(f"share {share}: the first number counts from 0 and is less than the second")
        self.location = location
        self.source = source
        self.copy = copy
        self.stride = location.tensor.row_stride or location.row_bytes
        self.block_rows = min(block_rows or default_block_rows(location.rows, self.stride), location.rows)
        self.share = share
        self.starts = range(share[0] * self.block_rows, location.rows, share[1] * self.block_rows)
        self.checksum = 0
        self._workers = workers
        self._on_bytes = on_bytes

    @property
    def blocks(self) -> int:
        """Blocks in a pass of this share."""
        return len(self.starts)

    @property
    def workers(self) -> int:
        """Ranges that the next pass reads at once."""
        here = self.source.etag is None or (self.copy is not None and self.copy.complete)
        return min(self._workers or (LOCAL_READERS if here else READERS), self.blocks)

    def __iter__(self) -> Iterator[RowBlock]:
        if not self.starts:
            return
        shared = self.share[1] > 1
        with self.copy.opened(shared=shared) if self.copy is not None else nullcontext() as copy:
            yield from self._pass(copy)

    def _pass(self, copy: OpenCopy | None) -> Iterator[RowBlock]:
        stop = threading.Event()
        starts, workers = iter(self.starts), self.workers
        free: deque[torch.Tensor] = deque()
        pending: deque[tuple[int, torch.Tensor, Future[torch.Tensor]]] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="llmsuper-rows")
        self.checksum = 0

        def ask_for_next() -> None:
            start = next(starts, None)
            if start is not None:
                # A buffer that the consumer has not released is not in `free`: a new one, rather than overwritten rows.
                buffer = free.popleft() if free else self._new_buffer()
                pending.append((start, buffer, pool.submit(self._read, start, buffer, copy, stop)))

        try:
            for _ in range(workers):
                ask_for_next()
            while pending:
                start, buffer, future = pending[0]
                rows = future.result()
                pending.popleft()
                ask_for_next()  # before the consumer computes, so that every worker reads while it does
                nbytes = len(rows) * self.location.row_bytes
                if self.location.tensor.crc32 is not None:
                    following = (self.location.rows - start - len(rows)) * self.location.row_bytes
                    self.checksum ^= moved_along(zlib.crc32(buffer.numpy().data[:nbytes]), following)
                if self._on_bytes is not None:
                    self._on_bytes(nbytes)
                if not pending and self.share[1] == 1:
                    self.settle([self.checksum])
                    if copy is not None:
                        copy.finish()
                yield RowBlock(start, rows, partial(_release, [buffer], free))
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            begun = [future for _, _, future in pending if not future.cancelled()]
            wait(begun, timeout=5)  # a read ends at its next chunk, or times out

    def settle(self, checksums: Iterable[int]) -> None:
        """Every share of a pass has been read, each with this `checksum`: what was kept is the whole head.

        Where there is one share the pass does so itself. Raises `CheckpointError` if the file says another CRC-32; what was
        kept is then thrown away.
        """
        expected, found = self.location.tensor.crc32, reduce(xor, checksums)
        if expected is not None and found != expected:
            if self.copy is not None:
                self.copy.discard()
            raise CheckpointError(
                f"{self.source.name}: the bytes of {self.location.tensor.name!r} have CRC-32 {found:08x}, the file "
                f"says {expected:08x}. Something on the way, or the file itself, is damaged: run this again, and if it "
                "says the same, download the file anew."
            )
        if self.copy is not None and self.share[1] > 1:
            self.copy.assemble()

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
