"""Keeps heads that were fetched (only the heads), so that a second run needs no network.

    <assets of the Hub client>/llmsuper/heads/v1/
        heads/<ETag of the file>/<tensor>-<digest>.safetensors   a whole head: an ordinary one-tensor safetensors file
        heads/<ETag of the file>/<tensor>-<digest>.blocks        one line a block: offset, length, CRC-32 of its bytes
        heads/<ETag of the file>/<tensor>-<digest>.part          a head that is being fetched, or was interrupted
        models/<owner--name>/<revision>.json                     the commit that a revision meant, and its files
        models/<owner--name>/<commit>/head-<digest>.json         where the head of that commit lies

The key is the ETag of the file, which for large files is the SHA-256 of its content: a commit that changes only the README
keeps its head. The digest is that of the tensor's place in the file, or of what was asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import threading
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsuper.errors import LlmsuperError
from llmsuper.hub.headcopy import HEADER_BYTES, HeadCopy, described, not_writable, on_disk, writing
from llmsuper.types import HeadLocation, ModelEntry, TensorInfo
from llmsuper.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["HEADER_BYTES", "KeptHead", "RowCache", "row_cache"]

CONTENT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""An ETag that is a digest of the content: git's of a small file, SHA-256 of a large one."""


@dataclass(frozen=True, slots=True)
class KeptHead:
    """One head in the cache, for people who ask what is there."""

    path: Path
    tensor: str
    nbytes: int
    """What it takes on disk."""
    complete: bool
    source: str | None
    """`owner/name@commit/file`, as the file itself says; None for one that is not complete."""


class RowCache:
    """The folder of kept heads, and of what the Hub said of their models."""

    def __init__(self, folder: Path | None = None) -> None:
        if folder is None:
            from huggingface_hub import cached_assets_path, constants

            assets = Path(constants.HF_ASSETS_CACHE) / "llmsuper"
            try:
                with writing(assets):
                    folder = cached_assets_path("llmsuper", namespace="heads", subfolder="v1")
            except ValueError as error:
                raise not_writable(assets, "a file lies where a folder should be") from error
        self.folder = folder

    def head(self, location: HeadLocation, etag: str) -> HeadCopy:
        """The copy of this head: whole, in part, or not begun."""
        info = location.tensor
        place = (info.dtype, info.shape, info.begin, info.end, info.row_stride, info.byteorder)
        # a mirror's ETag may say less than what the content is
        of = () if CONTENT.fullmatch(etag) else (location.entry.repo, location.commit, location.file)
        return HeadCopy(self.folder / "heads" / _file_name(etag, *of) / _file_name(info.name, *place), location)

    def kept(self) -> list[KeptHead]:
        """Every head that is there, whole or in part, in the order of their paths."""
        found = []
        for path in sorted(p for p in self.folder.rglob("*") if p.suffix in (".safetensors", ".part")):
            source, tensor = (described(path) if path.suffix == ".safetensors" else None) or (None, path.stem[:-9])
            with suppress(FileNotFoundError):  # renamed or removed by another process since it was listed
                found.append(KeptHead(path, tensor, on_disk(path), source is not None, source))
        return found

    def clear(self) -> int:
        """Removes every kept head and what is remembered of models; returns the bytes set free.

        A run that is going on elsewhere goes on; what it is fetching is not kept. Raises `LlmsuperError` for what
        cannot be removed.
        """
        freed = 0
        for path in sorted(self.folder.rglob("*"), reverse=True):  # what is in a folder before the folder
            try:
                if path.is_dir() and not path.is_symlink():
                    with suppress(OSError):  # something was put there meanwhile
                        path.rmdir()
                    continue
                size = on_disk(path)
                path.unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise LlmsuperError(
                    f"head cache: {path} cannot be removed ({error.strerror}). Check whose it is, then run this again."
                ) from error
            freed += size
        return freed

    def remember_files(self, entry: ModelEntry, commit: str, files: dict[str, int]) -> None:
        """Keep which commit a revision meant, and what files it has, for a time when the Hub cannot be asked."""
        for revision in {entry.revision, commit}:
            self._write(self._model(entry.repo) / f"{_file_name(revision)}.json", {"commit": commit, "files": files})

    def recall_files(self, entry: ModelEntry) -> tuple[str, dict[str, int]] | None:
        """(commit, files) as they were when the Hub was last asked for this revision."""
        found = self._read(self._model(entry.repo) / f"{_file_name(entry.revision)}.json")
        match found:
            case {"commit": str(commit), "files": dict(files)}:
                return commit, files
        return None

    def remember_conversion(self, entry: ModelEntry, commit: str, used: str, notes: Sequence[str]) -> None:
        """Keep which commit stands in for `commit` where pull requests are allowed, and what there was to note."""
        self._write(self._model(entry.repo) / _file_name(commit) / "conversion.json", {"used": used, "notes": notes})

    def recall_conversion(self, entry: ModelEntry, commit: str) -> tuple[str, tuple[str, ...]] | None:
        """(commit that stands in, notes) as they were when the Hub was last asked."""
        found = self._read(self._model(entry.repo) / _file_name(commit) / "conversion.json")
        match found:
            case {"used": str(used), "notes": list(notes)}:
                return used, tuple(str(note) for note in notes)
        return None

    def remember_location(self, location: HeadLocation, etag: str, asked: Sequence[object]) -> None:
        """Keep where a head lies, so that its header need not be read again; `asked`: all that the answer depends on."""
        plain = asdict(location)
        del plain["entry"]
        self._write(self._location(location.entry.repo, location.commit, asked), {"etag": etag, **plain})

    def recall_location(
        self, entry: ModelEntry, commit: str, asked: Sequence[object]
    ) -> tuple[HeadLocation, str] | None:
        """(location, ETag of its file), if it was found before, by this version of llmsuper."""
        found = self._read(self._location(entry.repo, commit, asked))
        try:
            return None if found is None else _as_location(entry, found)
        except (KeyError, TypeError, ValueError):
            return None  # of another time: the header is read again

    def _model(self, repo: str) -> Path:
        return self.folder / "models" / _file_name(repo.lower().replace("/", "--"))

    def _location(self, repo: str, commit: str, asked: Sequence[object]) -> Path:
        return self._model(repo) / _file_name(commit) / f"{_file_name('head', __version__, *asked)}.json"

    def _write(self, path: Path, value: dict[str, Any]) -> None:
        with writing(path):
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


@contextmanager
def row_cache(*, keep: bool, passes: int) -> Iterator[RowCache | None]:
    """The cache of kept heads; where they are not to be kept, one that goes with the run, or none for a single pass."""
    if not keep and passes == 1:
        yield None
        return
    kept = RowCache()
    if keep:
        yield kept
        return
    with writing(kept.folder / "run"):
        kept.folder.mkdir(parents=True, exist_ok=True)  # `clear` may have removed it
        folder = tempfile.TemporaryDirectory(prefix="run-", dir=kept.folder)  # on the disk that is meant for heads
    with folder as path:
        yield RowCache(Path(path))


def _as_location(entry: ModelEntry, found: dict[str, Any]) -> tuple[HeadLocation, str]:
    """The other way from JSON, which knows no tuples."""
    tensor, row_ids, ranges = found.pop("tensor"), found.pop("row_ids"), found.pop("token_ranges")
    etag, notes = found.pop("etag"), found.pop("notes")
    info = TensorInfo(**{**tensor, "shape": tuple(tensor["shape"]), "shared_with": tuple(tensor["shared_with"])})
    start, step = row_ids or (0, 1)
    return HeadLocation(
        entry=entry,
        tensor=info,
        row_ids=None if row_ids is None else (start, step),
        token_ranges=None if ranges is None else tuple((first, last) for first, last in ranges),
        notes=tuple(notes),
        **found,
    ), str(etag)


def _file_name(text: str, *more: object) -> str:
    """The text as one file name, with a digest where there is `more` to tell apart, or where the text had to change."""
    plain = re.sub(r"[^\w.\-]+", "-", text, flags=re.ASCII).lstrip(".")[:80]
    if not more and plain == text.lower():
        return plain
    digest = hashlib.sha256(json.dumps([text, *more]).encode()).hexdigest()
    return f"{plain}-{digest[:8]}"
