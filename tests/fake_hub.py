"""A faithful Hugging Face Hub on loopback: its repositories, the faults it is told to have, and a log of requests.

Two origins: the hub (127.0.0.1) answers the API and the /resolve/ URLs; large files are answered with a redirect to
a signed URL on the CDN (127.0.0.2), which refuses any Authorization header, so a client that hands its token on is
caught. What it answers is in `fake_hub_api`, how it goes out in `fake_hub_wire`.
By hand, or in a process of its own for a benchmark:

    python -m tests.fake_hub DIR --rate 50e6 --latency 0.08      # serves DIR/<owner>/<name>/<files>
"""

from __future__ import annotations

import argparse
import hashlib
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import fake_hub_api

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

PIECE = 256 << 10
"""Bytes read and sent at a time, so that a file larger than memory can be served."""
LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".msgpack", ".h5")

FAULTS: dict[str, tuple[str, str]] = {
    "status": ("request", "answer arg = (code, headers, body)"),
    "html": ("request", "answer 200 with the log-in page of a captive portal"),
    "reset": ("request", "RST before any answer"),
    "stall": ("request", "wait arg seconds, then answer"),
    "expire": ("request", "every URL signed so far stops working; a new HEAD or GET on the hub gives a good one"),
    "etag": ("headers", "arg in the place of the ETag (the CDN) or of the X-Linked-ETag (the hub)"),
    "total": ("headers", "arg in the place of the file's size in Content-Range and X-Linked-Size"),
    "headers": ("headers", "arg = {name: value, or None to leave the header out}"),
    "content_range": ("body", "arg in the place of the Content-Range"),
    "no_content_range": ("body", "no Content-Range"),
    "ignore_range": ("body", "200 and the whole file"),
    "short": ("body", "an honest answer of at most arg bytes"),
    "excess": ("body", "arg bytes more than the Content-Range says"),
    "flip": ("body", "byte arg (default 0) of the body is flipped"),
    "gzip": ("body", "the body is compressed, asked for or not"),
    "chunked": ("body", "no Content-Length"),
    "cut": ("body", "FIN after arg bytes"),
    "rst": ("body", "RST after arg bytes"),
    "stall_body": ("body", "arg = (after bytes, seconds): a pause in the body"),
}
"""Every kind of fault: the stage at which it strikes, and what it does with its `arg`."""


@dataclass
class File:
    """One file: bytes, or a path on disk that is read piece by piece. A given `etag` (64 hex digits) saves hashing."""

    content: bytes | Path
    lfs: bool = False
    etag: str = ""

    def __post_init__(self) -> None:
        if not self.etag:
            self.etag = self._sha256() if self.lfs else self.blob_id

    def _sha256(self) -> str:
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        with self.content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @property
    def blob_id(self) -> str:
        """Git's name for what the repository holds: the file, or the pointer to a large one."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.etag}\nsize {self.size}\n"
        blob = pointer.encode() if self.lfs else b"".join(self.pieces(0, self.size))
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    def pieces(self, begin: int, end: int) -> Iterator[bytes]:
        """The bytes [begin, end)."""
        if isinstance(self.content, bytes):
            yield from (self.content[at : min(at + PIECE, end)] for at in range(begin, end, PIECE))
            return
        with self.content.open("rb") as file:
            file.seek(begin)
            for at in range(begin, end, PIECE):
                yield file.read(min(PIECE, end - at))

    def describe(self, path: str) -> dict[str, Any]:
        """The entry of /tree/ and /paths-info/."""
        lfs = {"lfs": {"oid": self.etag, "size": self.size, "pointerSize": 134}} if self.lfs else {}
        return {"type": "file", "path": path, "size": self.size, "oid": self.blob_id, **lfs}


Content = bytes | Path | File | None


@dataclass(slots=True)
class Thread:
    """A discussion, or a pull request, whose files are the branch `refs/pr/<number>`."""

    title: str
    author: str
    status: str = "open"
    pull: bool = True


@dataclass(slots=True)
class Repo:
    """One model repository: commits by sha, and the names that point to them."""

    id: str
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    git_tags: dict[str, str] = field(default_factory=dict)
    gated: str | bool = False
    """What a gated repository says of itself: False, True, `auto` or `manual`."""
    private: bool = False
    allowed_tokens: Collection[str] = ()
    """Who may read it where it is gated or private."""
    tags: Collection[str] = ()
    downloads: int = 0
    threads: dict[int, Thread] = field(default_factory=dict)
    """By number."""


@dataclass
class Fault:
    """Strikes the first `times` requests that match, after letting `after` of them pass. See `FAULTS`."""

    kind: str
    path: str = ""
    """Regex on the unquoted `path?query`; a signed URL of the CDN has the file's name in its query."""
    origin: str = ""
    """`hub` or `cdn`; empty: either."""
    method: str = "GET"
    """Regex; the default leaves a client's HEAD alone."""
    times: int = 1
    after: int = 0
    arg: Any = None
    struck: int = 0

    def __post_init__(self) -> None:
        if self.kind not in FAULTS:
            raise ValueError(f"no fault is named {self.kind!r}; there are: {', '.join(FAULTS)}")

    def strikes(self, request: Request, stage: str) -> bool:
        if FAULTS[self.kind][0] != stage or self.struck == self.times or self.origin not in ("", request.origin):
            return False
        if not re.fullmatch(self.method, request.method) or not re.search(self.path, request.target):
            return False
        if self.after:
            self.after -= 1
            return False
        self.struck += 1
        return True


@dataclass
class Request:
    """One request as it arrived, and what it was answered."""

    origin: str
    method: str
    path: str
    query: str
    range: str | None
    auth: str | None
    accept_encoding: str | None
    status: int | None = None
    """None where no answer was sent."""
    sent: int = 0
    """Bytes of the body that were handed to the network."""

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}"


class FakeHub:
    """The Hub; `url` is its endpoint. `rate` in bytes/s per connection, `latency` in seconds per request."""

    def __init__(self, *, rate: float | None = None, latency: float = 0.0, page: int = 2) -> None:
        self.rate, self.latency, self.page = rate, latency, page
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.generation = 0
        """Part of every signature, so that counting on makes the URLs signed so far bad."""
        self.reset()
        self.servers = fake_hub_api.serve(self)
        self.url, self.cdn_url = (server.url for server in self.servers)

    def close(self) -> None:
        self.released.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def reset(self) -> None:
        """Empty the Hub of repositories, faults and log, and let go of every request that is being stalled."""
        self.released.set()
        with self.lock:
            self.released = threading.Event()
            self.repos: dict[str, Repo] = {}
            self.renamed: dict[str, str] = {}
            self.tokens = {"hf_valid"}
            self.faults: list[Fault] = []
            self.before_the_end: Callable[[], object] = lambda: None
            """What happens between the last byte of a body and the FIN or RST that a fault has it end by."""
            self.log: list[Request] = []

    def add(self, repo_id: str, files: Mapping[str, Content], *, branch: str = "main", **about: Any) -> str:
        """Commit `files` on top of `branch` (None deletes one), making the repository if need be; returns the sha.

        `about` sets fields of `Repo`: gated, private, allowed_tokens, tags, downloads.
        """
        repo = self.repos.setdefault(repo_id, Repo(repo_id))
        for name, value in about.items():
            setattr(repo, name, value)
        self.tokens |= set(repo.allowed_tokens)
        tree = dict(repo.commits.get(repo.branches.get(branch, ""), {}))
        for path, content in files.items():
            if content is None:
                del tree[path]
            elif isinstance(content, File):
                tree[path] = content
            else:
                tree[path] = File(content, lfs=path.endswith(LFS_SUFFIXES))
        named = [repo_id, branch, str(len(repo.commits)), *(f"{path} {file.etag}" for path, file in tree.items())]
        sha = hashlib.sha1("\n".join(named).encode()).hexdigest()
        repo.commits[sha], repo.branches[branch] = tree, sha
        return sha

    def open_pull(self, repo_id: str, files: Mapping[str, Content], thread: Thread) -> tuple[int, str]:
        """A pull request that lays `files` over main; returns its number and commit."""
        repo = self.repos[repo_id]
        number = len(repo.threads) + 1
        repo.threads[number] = thread
        branch = f"refs/pr/{number}"
        repo.branches[branch] = repo.branches["main"]
        return number, self.add(repo_id, files, branch=branch)

    def rename(self, old: str, new: str) -> None:
        """Move a repository; requests for the old id are redirected."""
        repo = self.repos.pop(old)
        repo.id = new
        self.repos[new], self.renamed[old] = repo, new

    def fault(self, kind: str, path: str = "", **fields: Any) -> Fault:
        """Plan a `Fault`; its `struck` tells how often it has struck."""
        fault = Fault(kind, path, **fields)
        self.faults.append(fault)
        return fault

    def note(self, **fields: Any) -> Request:
        """Put a request that has arrived in the log."""
        request = Request(**fields)
        with self.lock:
            self.log.append(request)
        return request

    def large_file(self, etag: str) -> File | None:
        """What the CDN keeps under this ETag."""
        commits = [commit for repo in self.repos.values() for commit in repo.commits.values()]
        return next((file for commit in commits for file in commit.values() if file.lfs and file.etag == etag), None)

    def strike(self, request: Request, stage: str) -> tuple[str, Any]:
        """Kind and `arg` of the first fault that strikes this request at this stage; kind is empty where none does."""
        with self.lock:
            return next(((fault.kind, fault.arg) for fault in self.faults if fault.strikes(request, stage)), ("", None))

    def wait(self, seconds: float) -> None:
        """Stall a request; `reset` and `close` let go of it."""
        self.released.wait(seconds)

    def expire_urls(self) -> None:
        """Every URL signed so far is answered 403 from now on."""
        self.generation += 1

    def take_log(self) -> list[Request]:
        """The requests since the last call."""
        with self.lock:
            taken, self.log = self.log, []
        return taken

    def bytes_sent(self, origin: str = "") -> int:
        """Bytes of the bodies in the log, of one origin or of both."""
        with self.lock:
            return sum(request.sent for request in self.log if origin in ("", request.origin))


def add_folder(hub: FakeHub, root: Path) -> None:
    """Serve root/<owner>/<name>/<files>; large files get an ETag from their name, size and time, without being read."""
    for folder in sorted(path for path in root.glob("*/*") if path.is_dir()):
        files: dict[str, Content] = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name, lfs = path.relative_to(folder).as_posix(), path.name.endswith(LFS_SUFFIXES)
            stat = path.stat()
            identity = f"{name} {stat.st_size} {stat.st_mtime_ns}"
            files[name] = File(path, lfs, hashlib.sha256(identity.encode()).hexdigest() if lfs else "")
        hub.add(f"{folder.parent.name}/{folder.name}", files)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve DIR/<owner>/<name>/<files> as a Hub on loopback.")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--rate", type=float, help="bytes per second and connection")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    options = parser.parse_args()
    hub = FakeHub(rate=options.rate, latency=options.latency, page=100)
    add_folder(hub, options.dir)
    print(hub.url, hub.cdn_url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
