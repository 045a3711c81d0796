"""One head on this machine: whole, in part, or not begun, with a checksum for every block.

A block counts as kept when its line is in the log, which is written after its bytes, and when its checksum holds as it is
read. So a process may die at any moment, a disk may fill up or rot, and two processes may write one head: whatever is not
as it was written is fetched again. The part is renamed to the whole only when every row has been written or read back.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import threading
import zlib
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from llmsuper.errors import LlmsuperError
from llmsuper.hub.formats.rows import PLAIN
from llmsuper.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llmsuper.types import HeadLocation

HEADER_BYTES = 4096
"""Room for the header of a kept head, padded with spaces, so that rows start at a page."""

Checksums = dict[tuple[int, int], int]
"""CRC-32 by (offset among the rows' bytes, length)."""

_filling: set[tuple[Path, int]] = set()
"""Heads that are being fetched by this process, and the thread that does it."""


class HeadCopy:
    """One head on disk: `STEM.safetensors` once it is whole, `STEM.part` before, and `STEM.blocks`, its log."""

    def __init__(self, stem: Path, location: HeadLocation) -> None:
        self.path = stem.with_name(f"{stem.name}.safetensors")
        self.part = stem.with_name(f"{stem.name}.part")
        self.log = stem.with_name(f"{stem.name}.blocks")
        self.location = location
        self._lock_path = stem.with_name(f".{stem.name}.lock")

    @property
    def complete(self) -> bool:
        """Whether every row is here."""
        try:
            return self.path.stat().st_size == HEADER_BYTES + self.location.nbytes
        except OSError:
            return False

    @property
    def kept_bytes(self) -> int:
        """Bytes of the rows that need not be fetched, as the log has it: all, some after an interruption, or none."""
        if self.complete:
            return self.location.nbytes
        kept = reached = 0
        for offset, length in sorted(self.logged()) if self.part.is_file() else ():
            kept += max(0, offset + length - max(offset, reached))
            reached = max(reached, offset + length)
        return kept

    def logged(self) -> Checksums:
        """What the log says was written. A line that was cut, or is of no block of this head, says nothing."""
        try:
            text = self.log.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return {}
        lines = (re.fullmatch(r"(\d+) (\d+) ([0-9a-f]{8})", line) for line in text.splitlines())
        found = {(int(m[1]), int(m[2])): int(m[3], 16) for m in lines if m}
        return {(at, n): crc for (at, n), crc in found.items() if at + n <= self.location.nbytes}

    @contextmanager
    def opened(self, *, shared: bool = False) -> Iterator[OpenCopy | None]:
        """The copy while one pass over the rows lasts.

        The first to fetch a head holds a lock; another process or thread waits for it, and then reads what it has kept.
        A second pass that a thread begins before its first has ended gets None: it would wait for itself. Processes that
        fetch a share each (`shared`) do so side by side; `assemble`, when all have, makes the whole of their blocks.
        """
        me = (self.path, threading.get_ident())
        if not self.complete and me in _filling:
            yield None
            return
        if not self.complete:
            _filling.add(me)
            try:
                with ExitStack() as held:
                    with writing(self.path):
                        self.path.parent.mkdir(parents=True, exist_ok=True)
                        held.enter_context(_locked(self._lock_path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
                    if not self.complete:  # the one that held the lock before was interrupted too, or there was none
                        self._require_room()
                        with OpenCopy(self, self.part) as copy:
                            yield copy
                        return
            finally:
                _filling.discard(me)
        with OpenCopy(self, self.path) as copy:
            yield copy

    def assemble(self) -> None:
        """The part becomes the whole, if every block is in its log; where another process is at it, it is left to that one."""
        if self.complete or self.kept_bytes < self.location.nbytes:
            return
        at_once = fcntl.LOCK_EX | fcntl.LOCK_NB
        with writing(self.path), suppress(BlockingIOError), _locked(self._lock_path, at_once):
            if not self.complete and self.kept_bytes == self.location.nbytes:
                with OpenCopy(self, self.part) as copy:
                    copy.finish()

    def discard(self) -> None:
        """What was kept is wrong: nothing of it is read again."""
        for path in (self.log, self.part, self.path):
            path.unlink(missing_ok=True)

    def _require_room(self) -> None:
        have = on_disk(self.part) if self.part.is_file() else 0
        free = shutil.disk_usage(self.path.parent).free
        if free < self.location.nbytes - have:
            raise not_writable(
                self.path, f"{free / 1e9:.2f} GB are free, the head has {self.location.nbytes / 1e9:.2f} GB"
            )


class OpenCopy:
    """A copy whose blocks are being read and written, by several threads at once."""

    def __init__(self, copy: HeadCopy, path: Path) -> None:
        self._copy, self._path = copy, path
        self._lock = threading.Lock()
        self._checksums = copy.logged()
        with writing(path), ExitStack() as opened:
            create = os.O_CREAT if path == copy.part else 0
            # read and write: a block that has rotted is written again
            self._fd: int | None = os.open(path, os.O_RDWR | create, 0o644)
            opened.callback(os.close, self._fd)
            # Held open: once `llmsuper cache --clear` has removed both files, neither is mixed up with its successor.
            self._log: int | None = os.open(copy.log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            opened.callback(os.close, self._log)
            size = os.fstat(self._log).st_size
            if size and os.pread(self._log, 1, size - 1) != b"\n":
                os.write(self._log, b"\n")  # the last line was cut: the next one must not lengthen it
            self._close = opened.pop_all().close

    def __enter__(self) -> OpenCopy:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._fd = self._log = None
        self._close()

    def read(self, offset: int, buffer: memoryview) -> bool:
        """Fills `buffer` with the rows' bytes from `offset` on, if they are here and the checksums of their blocks hold."""
        if (offset, len(buffer)) in self._checksums:
            return self._read_block(offset, buffer)
        done = 0
        while done < len(buffer):  # blocks of another size, which another version, or another caller, has kept
            at = offset + done
            block = next((block for block in list(self._checksums) if block[0] <= at < sum(block)), None)
            if block is None:
                return False
            whole = memoryview(bytearray(block[1]))
            if not self._read_block(block[0], whole):
                return False
            piece = whole[at - block[0] :][: len(buffer) - done]
            buffer[done : done + len(piece)] = piece
            done += len(piece)
        return True

    def _read_block(self, offset: int, buffer: memoryview) -> bool:
        fd = self._fd
        try:
            if fd is None or os.preadv(fd, [buffer], HEADER_BYTES + offset) < len(buffer):
                return False
        except OSError:
            return False  # the disk does not give the block back: it is fetched again
        return zlib.crc32(buffer) == self._checksums.get((offset, len(buffer)))

    def write(self, offset: int, buffer: memoryview) -> None:
        """Keeps a block, and then its line in the log. Raises `LlmsuperError` where there is no room."""
        checksum = zlib.crc32(buffer)
        line = f"{offset} {len(buffer)} {checksum:08x}\n".encode()
        with writing(self._copy.path), self._lock:
            if self._fd is None or self._log is None:
                return  # a read that ended after its pass did; the descriptor may be another file's by now
            done = 0
            while done < len(buffer):
                done += os.pwrite(self._fd, buffer[done:], HEADER_BYTES + offset + done)
            if os.write(self._log, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._checksums[offset, len(buffer)] = checksum

    def finish(self) -> None:
        """Every row has been written or read back: the part becomes the whole, unless it was removed meanwhile."""
        if self._path == self._copy.path or self._fd is None or self._log is None:
            return
        with writing(self._copy.path):
            os.pwrite(self._fd, _header(self._copy.location), 0)
            os.fsync(self._fd)
            os.fsync(self._log)
            if self._path.is_file() and os.path.samestat(self._path.stat(), os.fstat(self._fd)):
                self._path.replace(self._copy.path)


def on_disk(path: Path) -> int:
    """Bytes that a file takes: fewer than its size while there are holes in it."""
    stat = path.stat()
    return min(stat.st_size, stat.st_blocks * 512)


def described(path: Path) -> tuple[str, str] | None:
    """(`owner/name@commit/file`, tensor) as a whole head says of itself; None where it does not."""
    try:
        with path.open("rb") as file:
            file.seek(8)
            header = json.loads(file.read(HEADER_BYTES - 8))
        source = header.pop("__metadata__")["source"]
        (name,) = header
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return str(source), str(name)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the disk says into an `LlmsuperError` about the head cache that `path` is in."""
    try:
        yield
    except OSError as error:
        raise not_writable(path, error.strerror or str(error)) from error


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    """Waits for this lock, to share it or alone. Where the disk knows no locks there is none: heads may be fetched twice."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o664)
    try:
        try:
            fcntl.flock(fd, how)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        yield
    finally:
        os.close(fd)


def _header(location: HeadLocation) -> bytes:
    """A safetensors header of one tensor, padded to HEADER_BYTES; what safetensors cannot name is kept as bytes (U8)."""
    info = location.tensor
    plain = info.dtype in PLAIN and info.byteorder == "little"
    source = f"{location.entry.repo}@{location.commit}/{location.file}"
    header = {
        "__metadata__": {
            "source": source[:200],  # JSON may write a character in twelve bytes, and all must find room
            "dtype": info.dtype,
            "shape": json.dumps(info.shape),
            "byteorder": info.byteorder,
            "made_by": f"llmsuper {__version__}",
        },
        info.name[:100]: {
            "dtype": info.dtype if plain else "U8",
            "shape": list(info.shape) if plain else [location.rows, location.row_bytes],
            "data_offsets": [0, location.nbytes],
        },
    }
    return (HEADER_BYTES - 8).to_bytes(8, "little") + json.dumps(header).encode().ljust(HEADER_BYTES - 8)


def not_writable(path: Path, found: str) -> LlmsuperError:
    """The error about the head cache that `path` is in."""
    return LlmsuperError(
        f"head cache {path.parent}: cannot be written ({found}). Free some space with `llmsuper cache --clear`, set "
        "HF_ASSETS_CACHE to a folder on a larger disk, or do without it by --no-cache --stat norms,overlap."
    )
