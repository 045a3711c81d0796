"""How the fake Hub puts an answer on the wire: the request log, byte ranges, and what faults spoil.

The standard library's server is used because it can send what a broken proxy sends: a lying Content-Range, half a
body, an RST. A front that speaks proper HTTP refuses to.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from tests.fake_hub import FakeHub, File

Pieces = Iterator[bytes]
Headers = dict[str, str]


class RefusalError(Exception):
    """An answer that is not what was asked for."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        super().__init__(status, code, message)
        self.status = status
        named = {"X-Error-Code": code, "X-Error-Message": message, **headers}
        self.headers = {name.replace("_", "-"): value for name, value in named.items() if value}
        self.body = json.dumps({"error": message}).encode()


class Server(ThreadingHTTPServer):
    """One origin, listening on a free port from the moment it is made."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: FakeHub, origin: str, host: str, handler: type[Wire]) -> None:
        super().__init__((host, 0), handler)
        self.hub, self.origin, self.url = hub, origin, f"http://{host}:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may leave; anything else is a bug of the fake
            super().handle_error(request, client_address)


class Wire(BaseHTTPRequestHandler):
    """One connection; a subclass says in `route` what the paths mean."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def route(self, path: str) -> None:
        """Answer a path that is still quoted, or raise a `RefusalError`."""
        raise NotImplementedError

    def log_message(self, *_: Any) -> None:
        """Silent: the log is `FakeHub.log`."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
        self.asked = hub.note(
            origin=self.server.origin,
            method=self.command,
            path=unquote(url.path),
            query=unquote(url.query),
            range=self.headers.get("Range"),
            auth=self.headers.get("Authorization"),
            accept_encoding=self.headers.get("Accept-Encoding"),
        )
        try:
            hub.wait(hub.latency)
            if not self._struck_at_once():
                self.route(url.path)
        except RefusalError as refusal:
            self.answer(refusal.status, refusal.body, refusal.headers)
        except ConnectionError:
            self.close_connection = True  # the client has left

    def _struck_at_once(self) -> bool:
        """Whether a fault has answered already, or made an answer impossible."""
        hub = self.server.hub
        kind, arg = hub.strike(self.asked, "request")
        match kind:
            case "status":
                code, headers, body = arg
                self.answer(code, body, headers)
            case "html":
                self.answer(200, b"<html>Log in to the network</html>", {"Content-Type": "text/html"})
            case "reset":
                self._reset_connection()
            case "stall":
                hub.wait(arg)
                return False
            case "expire":
                hub.expire_urls()
                return False
        return bool(kind)

    def _reset_connection(self) -> None:
        """Close with RST: a close that lingers for no time."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def answer(self, status: int, body: bytes = b"", headers: Headers | None = None) -> None:
        self._send_head(
            status, {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        )
        if self.command != "HEAD":
            self._send_pieces(iter([body]))

    def answer_json(self, value: Any, headers: Headers | None = None) -> None:
        self.answer(200, json.dumps(value).encode(), headers)

    def answer_file(self, file: File, headers: Headers, *, text: bool = False) -> None:
        """200 or 206 with the file's bytes, spoilt by at most one fault of the headers and one of the body."""
        kind, arg = self.server.hub.strike(self.asked, "body")
        begin, end, status = 0, file.size, 200
        if self.asked.range and kind != "ignore_range":
            begin, end = parse_range(self.asked.range, file.size)
            status = 206
        if kind == "short":
            end = min(end, begin + arg)
        pieces, length = file.pieces(begin, end), end - begin
        if kind == "excess":
            length += arg
        # As the Hub's front does with text, where the client takes it
        welcome = text and status == 200 and self.command == "GET" and "gzip" in (self.asked.accept_encoding or "")
        if kind == "gzip" or welcome:
            packed = gzip.compress(b"".join(pieces))
            headers = headers | {"Content-Encoding": "gzip", "ETag": f"W/{headers['ETag']}"}
            pieces, length = iter([packed]), len(packed)
        headers |= {"Content-Length": str(length)} if kind != "chunked" else {"Transfer-Encoding": "chunked"}
        if status == 206 and kind != "no_content_range":
            headers["Content-Range"] = arg if kind == "content_range" else f"bytes {begin}-{end - 1}/{file.size}"
        self._send_head(status, self.spoil({"Content-Type": "binary/octet-stream", **headers}))
        if self.command == "HEAD":
            return
        self._send_pieces(SPOILERS[kind](pieces, arg, self.server.hub) if kind in SPOILERS else pieces)
        if kind in ("cut", "rst"):
            self.server.hub.before_the_end()
            self.close_connection = True
        if kind == "rst":
            self._reset_connection()

    def spoil(self, headers: Headers) -> Headers:
        """The headers of an answer about a file, as a fault would have them."""
        kind, arg = self.server.hub.strike(self.asked, "headers")
        match kind:
            case "etag":
                return headers | {"X-Linked-ETag" if "X-Linked-ETag" in headers else "ETag": f'"{arg}"'}
            case "total" if "Content-Range" in headers:
                return headers | {"Content-Range": f"{headers['Content-Range'].split('/')[0]}/{arg}"}
            case "total":
                return headers | {"X-Linked-Size": str(arg)}
            case "headers":
                return {name: value for name, value in (headers | arg).items() if value is not None}
        return headers

    def _send_head(self, status: int, headers: Headers) -> None:
        self.asked.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_pieces(self, pieces: Pieces) -> None:
        started, rate = time.monotonic(), self.server.hub.rate
        for piece in pieces:
            self.asked.sent += len(piece)  # before the write, so that the log is never behind the client
            self.wfile.write(piece)
            if rate:
                time.sleep(max(0.0, started + self.asked.sent / rate - time.monotonic()))


def parse_range(asked: str, size: int) -> tuple[int, int]:
    """The [begin, end) of a Range header; a `RefusalError` 416 where the file has no such bytes."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
    first, last = found.groups() if found else ("", "")
    begin = int(first) if first else size - min(size, int(last or 0))
    end = min(size, int(last) + 1) if first and last else size
    if begin >= end:
        raise RefusalError(416, message="Range Not Satisfiable", Content_Range=f"bytes */{size}")
    return begin, end


def stop_at(pieces: Pieces, count: int) -> Pieces:
    """The first `count` bytes."""
    for piece in pieces:
        yield piece[:count]
        count -= len(piece)
        if count <= 0:
            return


def pause_at(pieces: Pieces, count: int, pause: Callable[[], object]) -> Pieces:
    """All bytes, with a pause after the first `count`."""
    for piece in pieces:
        if 0 <= count < len(piece):
            yield piece[:count]
            pause()
            yield piece[count:]
        else:
            yield piece
        count -= len(piece)


def flip_at(pieces: Pieces, position: int) -> Pieces:
    """All bytes, every bit of the one at `position` turned over."""
    for piece in pieces:
        spoilt = bytearray(piece)
        if 0 <= position < len(piece):
            spoilt[position] ^= 0xFF
        yield bytes(spoilt)
        position -= len(piece)


def append(pieces: Pieces, more: bytes) -> Pieces:
    """All bytes, and then some."""
    yield from pieces
    yield more


def chunk(pieces: Pieces) -> Pieces:
    """All bytes in chunks with their lengths, and the empty chunk that ends them."""
    for piece in pieces:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


SPOILERS: dict[str, Callable[[Pieces, Any, FakeHub], Pieces]] = {
    "cut": lambda pieces, count, _: stop_at(pieces, count),
    "rst": lambda pieces, count, _: stop_at(pieces, count),
    "stall_body": lambda pieces, arg, hub: pause_at(pieces, arg[0], partial(hub.wait, arg[1])),
    "flip": lambda pieces, position, _: flip_at(pieces, position or 0),
    "excess": lambda pieces, count, _: append(pieces, bytes(count)),
    "chunked": lambda pieces, *_: chunk(pieces),
}
"""What a fault does to the bytes of a body, given its `arg` and the Hub."""
