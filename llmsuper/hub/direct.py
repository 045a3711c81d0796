"""Reads a byte range straight into a buffer, for the sunny case.

The Hub's client hands on every 16 KiB of a TLS body through four layers that are written in Python, and one thread at
a time; eight threads are slower than one. The standard library reads into the buffer where the rows will lie, at a
third of the processor time (benchmarks/bench_stream.py). It knows no proxies, redirects or the client that a user has
set; where there is one of those, and for the rest of a range after any trouble, the Hub's client is used.
"""

from __future__ import annotations

import os
import weakref
from contextlib import contextmanager
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from huggingface_hub.utils import httpx

Idle = dict[tuple[int, str, bytes], list[HTTPConnection]]
"""Connections that wait for a request, by process, scheme and host."""
PIECE = 128 << 10
"""Bytes read at a time: eight TLS records, and as much as a stop may wait for or a broken connection lose."""


def is_sunny() -> bool:
    """Whether a request needs nothing but a connection: no proxy, no client that the user has set, not offline."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    set_by_user = getattr(_http, "_GLOBAL_CLIENT_FACTORY", None) is not getattr(_http, "default_client_factory", ...)
    return not (set_by_user or constants.HF_HUB_OFFLINE or {"http", "https", "all"} & getproxies().keys())


class DirectConnections:
    """Connections that are kept alive, at most one for each thread that reads at the same time."""

    def __init__(self) -> None:
        self._idle: Idle = {}
        weakref.finalize(self, _close, self._idle)

    def close(self) -> None:
        _close(self._idle)

    @contextmanager
    def get(self, url: str, headers: dict[str, str], buffer: memoryview) -> Iterator[httpx.Response]:
        """The answer to a GET, as the Hub's client gives it; the pieces of its body are views of `buffer`, filled.

        Raises `httpx.ReadError` for whatever goes wrong on the connection, and for a redirect.
        """
        from huggingface_hub.utils import httpx

        place = httpx.URL(url)
        # A forked child that went on with its parent's connections would take the parent's answers.
        idle = self._idle.setdefault((os.getpid(), place.scheme, place.netloc), [])
        connection = idle.pop() if idle else self._connect(place)
        whole = False
        try:
            with _read_errors():
                connection.request("GET", place.raw_path.decode("ascii"), headers=headers)
                answer = connection.getresponse()
                if 300 <= answer.status < 400:
                    raise HTTPException(f"redirected ({answer.status})")
            request = httpx.Request("GET", place, headers=headers)
            yield httpx.Response(
                answer.status, headers=answer.getheaders(), content=_pieces(answer, buffer), request=request
            )
            whole = answer.isclosed() and not answer.length and not answer.will_close
        finally:
            if whole:
                idle.append(connection)
            else:
                connection.close()

    def _connect(self, place: httpx.URL) -> HTTPConnection:
        from huggingface_hub import constants

        host, timeout = place.netloc.decode("ascii"), constants.HF_HUB_DOWNLOAD_TIMEOUT
        if place.scheme == "https":
            return HTTPSConnection(host, timeout=timeout, context=self._tls)
        return HTTPConnection(host, timeout=timeout)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """What the Hub's client trusts, SSL_CERT_FILE and SSL_CERT_DIR included."""
        from huggingface_hub.utils import httpx

        return httpx.create_ssl_context()


def _pieces(answer: HTTPResponse, buffer: memoryview) -> Iterator[Any]:
    """The body: views of what has been filled, which httpx hands on as it does bytes."""
    with _read_errors():
        got = 0
        while n := answer.readinto(buffer[got : got + PIECE]):
            got += n
            yield buffer[got - n : got]
        yield answer.read(PIECE)  # what is more than was asked for, for the caller to refuse


@contextmanager
def _read_errors() -> Iterator[None]:
    from huggingface_hub.utils import httpx

    try:
        yield
    except (OSError, HTTPException) as error:
        raise httpx.ReadError(f"{type(error).__name__}: {error}") from error


def _close(idle: Idle) -> None:
    for connections in idle.values():
        while connections:
            connections.pop().close()
