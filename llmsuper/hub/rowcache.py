"""Keeps heads that were fetched (only the heads), so that a second run needs no network.

    <assets of the Hub client>/llmsuper/heads/v1/
        heads/<ETag of the file>/<tensor>.safetensors   a whole head: an ordinary one-tensor safetensors file
        heads/<ETag of the file>/<tensor>.blocks        one line a block: offset, length, CRC-32 of what was written
        heads/<ETag of the file>/<tensor>.part          a head that is being fetched, or whose fetching was interrupted
        models/<owner--name>/<revision>.json            the commit that a revision meant, and its files
        models/<owner--name>/<commit>/<tensor>.json     where the head of that commit lies

The key is the ETag of the file, which for large files is the SHA-256 of its content: a commit that changes only the README
keeps its head. A block counts as fetched when its line is in the log, written after its bytes, and its checksum holds; so a
process may die at any moment. A file is renamed from `.part` only when every row is there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import zlib
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsuper.errors import LlmsuperError
from llmsuper.hub.formats.rows import PLAIN
from llmsuper.types import HeadLocation, ModelEntry, TensorInfo
from llmsuper.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER_BYTES = 4096
"""Room for the header of a kept head, padded with spaces, so that rows start at a page."""


@dataclass(frozen=True, slots=True)
class KeptHead:
    """One head in the cache, for people who ask what is there."""

    path: Path
    nbytes: int
    complete: bool
    source: str
    """`owner/name@commit/file`, as the file itself says; empty for one that is not complete."""


class RowCache:
    """The folder of kept heads. Nothing is written before the first head is."""

    def __init__(self, folder: Path | None = None) -> None:
        if folder is None:
            from huggingface_hub import constants  # not `cached_assets_path`, which makes the folder at once

            folder = Path(constants.HF_ASSETS_CACHE) / "llmsuper" / "heads" / "v1"
        self.folder = folder

    def head(self, location: HeadLocation, etag: str) -> HeadCopy:
        """The copy of this head: whole, in part, or not begun."""
        return HeadCopy(self.folder / "heads" / _safe(etag) / _safe(location.tensor.name), location)

    def kept(self) -> list[KeptHead]:
        """Every head that is there, whole or in part, in the order of their paths."""
        paths = sorted(p for p in self.folder.glob("heads/*/*") if p.suffix in (".safetensors", ".part"))
        return [KeptHead(p, p.stat().st_size, p.suffix == ".safetensors", _source(p)) for p in paths]

    def clear(self) -> int:
        """Removes every kept head and what is remembered of models; returns the bytes set free."""
        freed = sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
        for name in ("heads", "models"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return freed

    def remember_files(self, entry: ModelEntry, commit: str, files: dict[str, int]) -> None:
        """Keep which commit a revision meant, and what files it has, for a time when the Hub cannot be asked."""
        self._write(self._model(entry.repo) / f"{_safe(entry.revision)}.json", {"commit": commit, "files": files})

    def recall_files(self, entry: ModelEntry) -> tuple[str, dict[str, int]] | None:
        """(commit, files) as they were when the Hub was last asked for this revision."""
        found = self._read(self._model(entry.repo) / f"{_safe(entry.revision)}.json")
        return None if found is None else (found["commit"], found["files"])

    def remember_location(self, location: HeadLocation, etag: str, asked: str | None) -> None:
        """Keep where a head lies, so that its header need not be read again."""
        plain = asdict(location)
        del plain["entry"]
        self._write(self._location(location.entry.repo, location.commit, asked), {"etag": etag, **plain})

    def recall_location(self, entry: ModelEntry, commit: str, asked: str | None) -> tuple[HeadLocation, str] | None:
        """(location, ETag of its file), if it was found before; `asked` is the tensor's name where one was given."""
        found = self._read(self._location(entry.repo, commit, asked))
        if found is None:
            return None
        tensor = found.pop("tensor")
        info = TensorInfo(**{**tensor, "shape": tuple(tensor["shape"]), "shared_with": tuple(tensor["shared_with"])})
        row_ids = tuple(found.pop("row_ids") or ()) or None
        ranges = found.pop("token_ranges")
        notes = tuple(found.pop("notes"))
        etag = found.pop("etag")
        return HeadLocation(
            entry=entry,
            tensor=info,
            row_ids=row_ids,
            token_ranges=None if ranges is None else tuple((first, last) for first, last in ranges),
            notes=notes,
            **found,
        ), etag

    def _model(self, repo: str) -> Path:
        return self.folder / "models" / _safe(repo.lower().replace("/", "--"))

    def _location(self, repo: str, commit: str, asked: str | None) -> Path:
        return self._model(repo) / commit / f"{_safe(asked or 'head')}.v{__version__}.json"

    def _write(self, path: Path, value: dict[str, Any]) -> None:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
            part.write_text(json.dumps(value), encoding="utf-8")
            part.replace(path)

    def _read(self, path: Path) -> dict[str, Any] | None:
        """None also for a file that is cut or not ours: it is only a memory, and the Hub knows better."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


class HeadCopy:
    """One head on disk: whole, in part, or not begun."""

    def __init__(self, stem: Path, location: HeadLocation) -> None:
        self.path = stem.with_name(f"{stem.name}.safetensors")
        self.part = stem.with_name(f"{stem.name}.part")
        self.log = stem.with_name(f"{stem.name}.blocks")
        self.location = location
        self._lock_path = stem.with_name(f".{stem.name}.lock")
        self._filling = threading.Lock()

    @property
    def complete(self) -> bool:
        """Whether every row is here."""
        return self.path.is_file() and self.path.stat().st_size == HEADER_BYTES + self.location.nbytes

    @contextmanager
    def opened(self) -> Iterator[OpenCopy | None]:
        """The copy while one pass over the rows lasts.

        The first process to fetch a head holds a lock; another waits for it, and then reads. A second pass that begins in
        this process before the first has ended gets None: it would wait for itself.
        """
        from huggingface_hub.utils import WeakFileLock

        with _writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.complete:
            with OpenCopy(self, self.path) as copy:
                yield copy
        elif not self._filling.acquire(blocking=False):
            yield None
        else:
            try:
                with WeakFileLock(self._lock_path):
                    if not self.complete:
                        self._require_room()
                    with OpenCopy(self, self.path if self.complete else self.part) as copy:
                        yield copy
            finally:
                self._filling.release()

    def _require_room(self) -> None:
        have = self.part.stat().st_blocks * 512 if self.part.is_file() else 0
        free = shutil.disk_usage(self.path.parent).free
        if free < self.location.nbytes - have:
            raise _no_room(self.path, f"{free / 1e9:.2f} GB are free, the head has {self.location.nbytes / 1e9:.2f} GB")


class OpenCopy:
    """A copy whose blocks are being read and written, by several threads at once."""

    def __init__(self, copy: HeadCopy, path: Path) -> None:
        self._copy = copy
        with _writing(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # RDWR: a block that has rotted is written again
        self._checksums = self._logged()
        self._log_lock = threading.Lock()

    def __enter__(self) -> OpenCopy:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, offset: int, buffer: memoryview) -> bool:
        """Fills `buffer` with the rows' bytes from `offset` on, if that block is here and its checksum holds."""
        expected = self._checksums.get((offset, len(buffer)))
        if expected is None:
            return False
        return os.preadv(self._fd, [buffer], HEADER_BYTES + offset) == len(buffer) and zlib.crc32(buffer) == expected

    def write(self, offset: int, buffer: memoryview) -> None:
        """Keeps a block, and then its line in the log. Raises `LlmsuperError` where there is no room."""
        with _writing(self._copy.path):
            done = 0
            while done < len(buffer):
                done += os.pwrite(self._fd, buffer[done:], HEADER_BYTES + offset + done)
            checksum = zlib.crc32(buffer)
            with self._log_lock, self._copy.log.open("a", encoding="ascii") as log:
                log.write(f"{offset} {len(buffer)} {checksum:08x}\n")
            self._checksums[offset, len(buffer)] = checksum

    def finish(self) -> None:
        """Every row has been written or read back: the part becomes the whole."""
        if self._copy.complete:
            return
        with _writing(self._copy.path):
            os.pwrite(self._fd, _header(self._copy.location), 0)
            os.fsync(self._fd)
            self._copy.part.replace(self._copy.path)

    def discard(self) -> None:
        """What was kept is wrong: nothing of it is read again."""
        self._checksums = {}
        for path in (self._copy.log, self._copy.part, self._copy.path):
            path.unlink(missing_ok=True)

    def _logged(self) -> dict[tuple[int, int], int]:
        """Checksums by (offset, length); a last line that was cut, or a block written twice, does no harm."""
        if not self._copy.log.is_file():
            return {}
        lines = self._copy.log.read_text(encoding="ascii", errors="replace").splitlines()
        found = (re.fullmatch(r"(\d+) (\d+) ([0-9a-f]{8})", line) for line in lines)
        return {(int(m[1]), int(m[2])): int(m[3], 16) for m in found if m}


def _header(location: HeadLocation) -> bytes:
    """A safetensors header of one tensor, padded to HEADER_BYTES; what safetensors cannot name is kept as bytes (U8)."""
    info = location.tensor
    plain = info.dtype in PLAIN and info.byteorder == "little"
    header = {
        "__metadata__": {
            "source": f"{location.entry.repo}@{location.commit}/{location.file}",
            "dtype": info.dtype,
            "made_by": f"llmsuper {__version__}",
        },
        info.name: {
            "dtype": info.dtype if plain else "U8",
            "shape": list(info.shape) if plain else [location.rows, location.row_bytes],
            "data_offsets": [0, location.nbytes],
        },
    }
    return (HEADER_BYTES - 8).to_bytes(8, "little") + json.dumps(header).encode().ljust(HEADER_BYTES - 8)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _no_room(path, error.strerror or str(error)) from error


def _no_room(path: Path, found: str) -> LlmsuperError:
    return LlmsuperError(
        f"head cache {path.parent}: cannot be written ({found}). Free some space with `llmsuper cache --clear`, set "
        "HF_ASSETS_CACHE to a larger disk, or do without it by --no-cache."
    )


def _safe(text: str) -> str:
    """The text as one file name."""
    return re.sub(r"[^\w.\-]+", "-", text).lstrip(".") or "-"


def _source(path: Path) -> str:
    if path.suffix != ".safetensors":
        return ""
    with path.open("rb") as file:
        file.seek(8)
        return str(json.loads(file.read(HEADER_BYTES - 8))["__metadata__"]["source"])
