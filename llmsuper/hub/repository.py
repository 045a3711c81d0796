"""Opens a model's repository at one commit: on the Hub, in the Hub cache, or in a local folder or file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from llmsuper.errors import CheckpointError, HubError, UnknownNameError
from llmsuper.hub.client import hub_errors, is_transient, patiently
from llmsuper.hub.formats import weight_files
from llmsuper.hub.source import HubFile, LocalFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from huggingface_hub import HfApi

    from llmsuper.hub.rowcache import RowCache
    from llmsuper.hub.source import ByteSource
    from llmsuper.types import ModelEntry

BESIDE = (
    "config.json",
    "tokenizer.json",
    "vocab.json",
    "added_tokens.json",
    "tokenizer_config.json",
)
"""Files that are used when they lie beside a single weight file that was given by its path."""
MOST_BYTES = 100_000_000
"""Of a file that is read whole: three times the largest tokenizer.json, five times the index of the largest models."""


class Repository(Protocol):
    """The files of one model at one commit."""

    @property
    def entry(self) -> ModelEntry: ...

    @property
    def commit(self) -> str:
        """40 hexadecimal digits on the Hub; `local-` and 16 digits for local files."""

    @property
    def files(self) -> Mapping[str, int]:
        """Bytes of every file, by name."""

    @property
    def origin(self) -> Literal["hub", "hub-cache", "local"]:
        """`hub-cache`: the Hub was not asked or not reached, and only files of the Hub cache are here."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a record must say of where these files are from, one sentence each."""

    def open(self, file: str) -> ByteSource:
        """The file as a source of byte ranges; from the Hub cache where it holds the file at this commit."""

    def fetch(self, file: str) -> Path:
        """A small file as a path on this machine; a file of the Hub is kept in the Hub cache.

        Raises `CheckpointError` for one of more than MOST_BYTES, before any of it is moved.
        """

    def uncached_bytes(self, files: Iterable[str]) -> int:
        """Bytes that `fetch` of those of `files` that there are would still move over the network."""


@dataclass(frozen=True)
class HubRepository:
    """A repository of the Hub, pinned to the commit that its revision meant when it was opened."""

    entry: ModelEntry
    commit: str
    files: Mapping[str, int]
    origin: Literal["hub", "hub-cache"] = "hub"
    token: str | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    _opened: dict[str, HubFile] = field(default_factory=dict, init=False, repr=False, compare=False)

    def open(self, file: str) -> ByteSource:
        _require(self, file)
        cached = self._cached(file)
        if cached is not None:
            return LocalFile(cached)
        if file not in self._opened:  # opened once, so that the header's bytes and the rows' are counted together
            self._opened[file] = HubFile(self.entry.repo, file, self.commit, token=self.token)
        return self._opened[file]

    def fetch(self, file: str) -> Path:
        _require_small(self, file)
        from huggingface_hub import hf_hub_download

        from llmsuper.version import __version__

        name = f"{self.entry.repo}@{self.commit[:7]}/{file}"
        with hub_errors(name, self.entry.repo):
            try:
                path = patiently(  # the Hub's client tries again by itself after some failures, a reset not among them
                    lambda: hf_hub_download(
                        self.entry.repo,
                        file,
                        revision=self.commit,
                        token=self.token,
                        library_name="llmsuper",
                        library_version=__version__,
                    )
                )
            except RuntimeError as error:  # all that hf_xet says when its store gives trouble
                raise HubError(
                    f"{name}: the download through Xet failed ({error}). "
                    "Set HF_HUB_DISABLE_XET=1, which goes by plain HTTP, and run the same command again."
                ) from error
        return Path(path)

    def uncached_bytes(self, files: Iterable[str]) -> int:
        return sum(self.files[file] for file in files if file in self.files and self._cached(file) is None)

    def _cached(self, file: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.entry.repo, file, revision=self.commit)
        return Path(found) if isinstance(found, str) else None  # it may also say that the file is known not to exist


@dataclass(frozen=True)
class LocalRepository:
    """A local folder, or a single weight file and what lies beside it."""

    entry: ModelEntry
    commit: str
    files: Mapping[str, int]
    folder: Path
    origin: Literal["local"] = "local"
    notes: tuple[str, ...] = ()

    def open(self, file: str) -> ByteSource:
        _require(self, file)
        return LocalFile(self.folder / file)

    def fetch(self, file: str) -> Path:
        _require_small(self, file)
        return self.folder / file

    def uncached_bytes(self, files: Iterable[str]) -> int:  # noqa: ARG002
        return 0


def open_repository(entry: ModelEntry, *, token: str | None = None, cache: RowCache | None = None) -> Repository:
    """The files of `entry` at the commit that its revision means now.

    What `cache` remembers of the revision, or else the Hub cache, stands in for a Hub that cannot be asked.

    Raises `UnknownNameError` for a local path that does not exist, and `HubError` where the Hub refuses, or cannot
    be reached while the Hub cache does not hold the revision.
    """
    return _open_local(entry) if entry.local else _open_hub(entry, token, cache)


def _open_local(entry: ModelEntry) -> LocalRepository:
    path = Path(entry.repo).expanduser()
    if path.is_dir():
        folder, names = path, sorted(p.name for p in path.iterdir() if p.is_file())
    elif path.is_file():
        folder, names = path.parent, [path.name, *(name for name in BESIDE if (path.parent / name).is_file())]
    else:
        raise UnknownNameError(
            f"{entry.repo}: there is no such file or folder. Give a path that exists, or owner/name."
        )
    stats = {name: (folder / name).stat() for name in names}
    weights = [path.name] if path.is_file() else weight_files(names)
    identity = "\n".join(f"{name} {stats[name].st_size} {stats[name].st_mtime_ns}" for name in weights)
    commit = f"local-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    return LocalRepository(entry, commit, {name: stat.st_size for name, stat in stats.items()}, folder)


def _open_hub(entry: ModelEntry, token: str | None, cache: RowCache | None) -> HubRepository:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    from llmsuper.version import __version__

    api = HfApi(token=token, library_name="llmsuper", library_version=__version__)
    name = f"{entry.repo}@{entry.revision}"
    with hub_errors(name, entry.repo):
        try:
            info = patiently(
                lambda: api.model_info(entry.repo, revision=entry.revision, files_metadata=True, timeout=30)
            )
        except (OfflineModeIsEnabled, httpx.HTTPError) as error:
            if not isinstance(error, OfflineModeIsEnabled) and not is_transient(error):
                raise
            remembered = cache.recall_files(entry) if cache is not None else None
            if remembered is not None:
                return HubRepository(entry, *remembered, origin="hub-cache", token=token)
            cached = _open_cache(entry, token)
            if cached is None:
                raise
            return cached
        except (KeyError, TypeError, RecursionError) as error:  # JSON, but not the Hub's
            raise HubError(
                f"{name}: the answer is not that of a Hub. Check that HF_ENDPOINT is a Hugging Face Hub."
            ) from error
    files = {file.rfilename: file.size for file in info.siblings or []}
    if info.sha is not None and None in files.values():
        with hub_errors(name, entry.repo):
            files |= _sizes(api, entry.repo, info.sha, list(files))
    sizes = {file: size for file, size in files.items() if size is not None}
    if info.sha is None or len(sizes) < len(files):
        raise HubError(
            f"{name}: the answer has no commit, or files without sizes. Check that HF_ENDPOINT is a Hugging Face Hub."
        )
    if cache is not None:
        cache.remember_files(entry, info.sha, sizes)
    return HubRepository(entry, info.sha, sizes, token=token)


def _sizes(api: HfApi, repo: str, commit: str, files: list[str]) -> dict[str, int]:
    """Bytes of `files`, asked for by name: some mirrors leave them out of what they say of the model."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile

    try:
        found = patiently(lambda: api.get_paths_info(repo, files, revision=commit))
    except HfHubHTTPError as error:
        if is_transient(error):
            raise
        return {}  # it does not know this question either
    except (KeyError, TypeError, RecursionError):  # JSON, but not the Hub's
        return {}
    return {entry.path: entry.size for entry in found if isinstance(entry, RepoFile)}


def _open_cache(entry: ModelEntry, token: str | None) -> HubRepository | None:
    """The revision as the Hub cache has it (refs/REVISION → commit → snapshots/COMMIT/), or None.

    The layout is a public one: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{entry.repo.replace('/', '--')}"
    ref = folder / "refs" / entry.revision
    commit = ref.read_text().strip() if ref.is_file() else entry.revision
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        return None
    sizes = {p.relative_to(snapshot).as_posix(): p.stat().st_size for p in sorted(snapshot.rglob("*")) if p.is_file()}
    return HubRepository(entry, commit, sizes, origin="hub-cache", token=token)


def _require(repository: HubRepository | LocalRepository, file: str) -> None:
    if file not in repository.files:
        raise CheckpointError(f"{repository.entry.name}: there is no file {file!r}. Check the repository's file list.")


def _require_small(repository: HubRepository | LocalRepository, file: str) -> None:
    _require(repository, file)
    if repository.files[file] > MOST_BYTES:
        from llmsuper.hub.vocabulary import TOKENIZER_FILES

        raise CheckpointError(
            f"{repository.entry.name}: {file} has {repository.files[file]:,} bytes and would be read whole, which is done "
            f"up to {MOST_BYTES:,}. Use a revision where it is what its name says"
            f"{', or count every stored row with --rows all' if file in TOKENIZER_FILES else ''}."
        )
