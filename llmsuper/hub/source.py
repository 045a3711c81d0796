"""Reads bytes [offset, offset + n) of one file at one commit, on disk or on the Hub."""

from __future__ import annotations

import os
import re
import threading
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llmsuper.errors import CheckpointError, HubError
from llmsuper.hub.client import Patience, hub_errors, patiently, status_of
from llmsuper.hub.direct import DirectConnections, is_sunny

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from huggingface_hub.utils import httpx

EXPIRED = (401, 403, 404, 410)
"""What a store off the Hub answers when the signature of its URL is past its hour."""


class ByteSource(Protocol):
    """One file whose bytes can be read in any order and by several threads at once."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int:
        """Bytes of the file."""

    @property
    def etag(self) -> str | None:
        """What the Hub names the file's content by; None for a file on this machine."""

    @property
    def moved(self) -> int:
        """Bytes that came over the network so far; 0 for a file on this machine."""

    @property
    def requests(self) -> int: ...

    def read(self, offset: int, n: int) -> bytes: ...
    def read_into(self, offset: int, buffer: memoryview, stop: threading.Event | None = None) -> None: ...
    def close(self) -> None: ...


def read_exactly(fd: int, offset: int, buffer: memoryview, name: str) -> None:
    """Fills `buffer` from an open file, or raises `CheckpointError` where the file ends too early."""
    done = 0
    while done < len(buffer):
        n = os.preadv(fd, [buffer[done:]], offset + done)
        if n == 0:
            raise CheckpointError(
                f"{name}: the file ends at byte {offset + done:,}, bytes up to {offset + len(buffer):,} are needed. "
                "It is cut short: copy or download it again."
            )
        done += n


class LocalFile:
    """A file on this machine."""

    moved = 0
    requests = 0
    etag = None

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(
                f"{path}: it cannot be opened ({error.strerror}). Check the path and its permissions."
            ) from error
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, n: int) -> bytes:
        data = bytearray(n)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview, stop: threading.Event | None = None) -> None:  # noqa: ARG002
        read_exactly(self._fd, offset, buffer, self.name)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the Hub says the bytes of a file lie for the next hour or so."""

    url: str
    off_hub: bool


class HubFile:
    """A file on the Hub at one commit, read by byte ranges.

    The Hub is asked once where the file lies (HEAD); ranges go straight there, without the token where that is
    another origin. A cut range goes on at its first missing byte. When the signed URL expires the Hub is asked
    again, and size and ETag must be what they were. Whatever is not exactly the range that was asked for, of the
    very file that was seen first, is a `HubError`.
    """

    def __init__(self, repo: str, file: str, commit: str, *, token: str | None = None) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        from llmsuper.version import __version__

        self.name = f"{repo}@{commit[:7]}/{file}"
        self.moved = 0
        self.requests = 0
        self._repo, self._file, self._commit = repo, file, commit
        self._url = hf_hub_url(repo, file, revision=commit)
        self._token = token
        self._headers = build_hf_headers(token=token, library_name="llmsuper", library_version=__version__)
        self._lock, self._renewing = threading.Lock(), threading.Lock()
        self._body_etags: dict[str, str | None] = {}
        self._direct = DirectConnections()
        with hub_errors(self.name, repo):
            self.size, self.etag, self._place = patiently(self._ask, failures=5)

    def _ask(self) -> tuple[int, str, _Place]:
        """Size, ETag and place of the file, from one HEAD request. Patience is the caller's: the retries of the
        Hub's client close the connection that all threads share."""
        from huggingface_hub import get_hf_file_metadata

        self._count(requests=1)
        found = get_hf_file_metadata(self._url, token=self._token, library_name="llmsuper")
        if found.size is None or found.etag is None:
            raise HubError(
                f"{self.name}: the answer has no size or ETag. Check that HF_ENDPOINT is a Hugging Face Hub."
            )
        return found.size, found.etag, _Place(found.location, _origin(found.location) != _origin(self._url))

    def _renew(self, expired: _Place) -> _Place:
        """A new signed URL, asked for once by whichever thread first found the old one expired."""
        with self._renewing:
            if self._place is not expired:
                return self._place
            size, etag, place = self._ask()
            if (size, etag) != (self.size, self.etag):
                raise self._changed(f"ETag {self.etag}, {self.size:,} bytes", f"ETag {etag}, {size:,} bytes")
            self._place = place
            return place

    def read(self, offset: int, n: int) -> bytes:
        data = bytearray(n)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview, stop: threading.Event | None = None) -> None:
        """Fills `buffer` from byte `offset` on; raises `CancelledError` soon after `stop` is set."""
        with hub_errors(f"{self.name}, bytes {offset:,} to {offset + len(buffer):,}", self._repo):
            self._fill(offset, buffer, stop or threading.Event())

    def close(self) -> None:
        """Closes our own connections; the others belong to the Hub's client."""
        self._direct.close()

    def _fill(self, offset: int, buffer: memoryview, stop: threading.Event) -> None:
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import httpx

        patience, done, renewals = Patience(stop), 0, 0
        expired: _Place | None = None
        direct = is_sunny()
        while done < len(buffer):
            before, place = done, self._place
            if stop.is_set():
                raise CancelledError
            try:
                if expired is not None:
                    place, expired = self._renew(expired), None
                with closing(
                    self._range(place, offset + done, buffer[done:], direct=direct and place.off_hub)
                ) as chunks:
                    direct = False  # whatever comes in the way, the Hub's client reads the rest
                    for chunk in chunks:
                        buffer[done : done + len(chunk)] = chunk
                        done += len(chunk)
                        if stop.is_set():
                            raise CancelledError
                if done == before:
                    raise httpx.RemoteProtocolError("an empty body")
            except (httpx.TransportError, HfHubHTTPError) as error:
                if done > before:
                    patience.progress()
                    renewals = 0
                if place.off_hub and status_of(error) in EXPIRED and renewals < 2:
                    renewals += 1
                    expired = place
                else:
                    patience.after(error)
            else:
                patience.progress()
                renewals = 0

    def _range(self, place: _Place, begin: int, buffer: memoryview, *, direct: bool) -> Generator[bytes, None, None]:
        """The body of one GET for as many bytes as `buffer` has, which may end early and is never longer."""
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session, hf_raise_for_status, httpx

        end = begin + len(buffer)
        headers = {k: v for k, v in self._headers.items() if not (place.off_hub and k.lower() == "authorization")}
        headers |= {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        client, got = get_session(), 0
        try:
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            with (
                self._direct.get(place.url, headers, buffer)
                if direct
                else client.stream("GET", place.url, headers=headers, timeout=timeout, follow_redirects=True)
            ) as response:
                self._count(requests=1)
                hf_raise_for_status(response)
                promised = self._check(response, place, begin, end)
                for chunk in response.iter_raw():
                    if got + len(chunk) > promised:
                        raise HubError(
                            f"{self.name}: the server sent more than the {promised:,} bytes it announced. "
                            "A proxy in between is broken; try another network or HF_ENDPOINT."
                        )
                    got += len(chunk)
                    yield chunk
        except RuntimeError as error:
            if client.is_closed:  # the Hub's client closes it under all threads when one of them cannot connect
                raise httpx.ReadError("the shared connection was closed") from error
            raise
        finally:
            self._count(moved=got)

    def _check(self, response: httpx.Response, place: _Place, begin: int, end: int) -> int:
        """How many bytes the body will have, once the answer is known to be the range that was asked for."""
        found = None
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            found = f"sent a {encoding}-encoded body where none was asked for"
        elif response.status_code == 200:
            if (begin, end) == (0, self.size) and response.headers.get("content-length") == str(self.size):
                return self.size
            raise self._range_ignored(response, end - begin)
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("content-range", ""))
        if found is None and (response.status_code != 206 or span is None):
            found = f"answered {response.status_code} with Content-Range {response.headers.get('content-range')!r}"
        if found is None and span is not None:
            first, last, total = map(int, span.groups())
            if total != self.size:
                raise self._changed(f"{self.size:,} bytes", f"{total:,} bytes")
            if first == begin and first <= last < end:
                etag = response.headers.get("etag")
                with self._lock:
                    seen = self._body_etags.setdefault(place.url, etag)
                if etag != seen:
                    raise self._changed(f"ETag {seen}", f"ETag {etag}")
                return last - first + 1
            found = f"sent bytes {first:,} to {last:,}"
        raise HubError(
            f"{self.name}: asked for bytes {begin:,} to {end - 1:,}, the server {found}. "
            "A proxy in between is broken; try another network or HF_ENDPOINT."
        )

    def _range_ignored(self, response: httpx.Response, asked: int) -> HubError:
        if "html" in response.headers.get("content-type", ""):
            return HubError(
                f"{self.name}: an HTML page came in place of {asked:,} bytes of the file. "
                "Log in to the network, or check the proxy and HF_ENDPOINT."
            )
        return HubError(
            f"{self.name}: the server ignores byte ranges: asked for {asked:,} bytes, it began to send the whole file, "
            f"{self.size / 1e9:.2f} GB. If that is acceptable, run `hf download {self._repo} {self._file} --revision "
            f"{self._commit}` and then this command again; it reads the Hub cache."
        )

    def _changed(self, before: str, now: str) -> HubError:
        return HubError(f"{self.name}: it changed while being read ({before} at first, {now} now). Run this again.")

    def _count(self, *, requests: int = 0, moved: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.moved += moved


def _origin(url: str) -> tuple[str, str, int | None]:
    from huggingface_hub.utils import httpx

    parsed = httpx.URL(url)
    return parsed.scheme, parsed.host, parsed.port
