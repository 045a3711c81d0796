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
from io import DEFAULT_BUFFER_SIZE
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from socket import socket

    from huggingface_hub.utils import httpx

Idle = dict[tuple[int, str, bytes], list[HTTPConnection]]
"""Connections that wait for a request, by process, scheme and host."""
PIECE = 128 << 10
"""Bytes handed on at a time: eight TLS records, and as much as a stop may wait for."""


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
        """The answer to a GET, as the Hub's client gives it; most pieces of its body are views of `buffer`, filled.

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
                sock = connection.sock  # which `connection` lets go of where the server says that it will close it
                answer = connection.getresponse()
                if 300 <= answer.status < 400:
                    raise HTTPException(f"redirected ({answer.status})")
            request = httpx.Request("GET", place, headers=headers)
            yield httpx.Response(
                answer.status, headers=answer.getheaders(), content=_pieces(answer, sock, buffer), request=request
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


def _pieces(answer: HTTPResponse, sock: socket, buffer: memoryview) -> Iterator[Any]:
    """The body, which httpx hands on as it does bytes: views of what has been filled, or else bytes.

    `HTTPResponse.readinto` goes on until it has all, and an error takes along what it has. Here each step reads the
    connection once, and what came before an error is handed on before the error is raised: it is not asked for again.
    """
    with _read_errors():
        if answer.chunked or answer.length is None:
            while data := answer.read1(PIECE):
                yield data
            return
        whole = min(len(buffer), answer.length)
        # What came along with the headers is in the reader's own buffer, which this empties; or else it is one read.
        yield (data := answer.fp.read1(min(whole, DEFAULT_BUFFER_SIZE)))
        handed = got = n = len(data)
        try:
            while n and got < whole:
                n = sock.recv_into(buffer[got : min(handed + PIECE, whole)])  # a tenth less work for TLS than by `fp`
                got += n
                if got == handed + PIECE:
                    yield buffer[handed:got]
                    handed = got
        except OSError:
            yield buffer[handed:got]
            raise
        yield buffer[handed:got]
        answer.length -= got
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
