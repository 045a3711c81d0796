"""One fake Hub for the whole run, a Hub cache of its own, and no way to any other network."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fake_hub import FakeHub

if TYPE_CHECKING:
    from collections.abc import Iterator

HUB = FakeHub()
HOME = Path(tempfile.mkdtemp(prefix="llmsuper-hf-home-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

# huggingface_hub reads these when it is imported, and a command line run in a subprocess inherits them.
for name in list(os.environ):
    if name.startswith(("HF_", "HUGGING_FACE_", "LLMSUPER_")) or name.lower().endswith("_proxy"):
        del os.environ[name]
os.environ |= {
    "HF_ENDPOINT": HUB.url,
    "HF_HOME": str(HOME),
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_ETAG_TIMEOUT": "2",
    "HF_HUB_DOWNLOAD_TIMEOUT": "2",
}


def empty_home() -> None:
    """Forget everything the Hub client has kept. A fresh agent list saves it a request that no test has asked for."""
    for path in HOME.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (HOME / ".agent_harnesses.json").write_text(json.dumps({"standardEnvVars": [], "harnesses": {}}))


empty_home()


LONGEST = [
    Path(__file__).with_name(f"test_{name}.py")
    for name in ("olah", "triton", "rowcache", "action", "faults", "fuzz", "notebooks", "cli")
]
"""Begun first, so that no core waits at the end for one of them: a file is run by one process. olah installs a program."""
assert all(path.is_file() for path in LONGEST)


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist would begin with the files of the most tests, and end with the few tests that take a minute each."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path) if item.path in LONGEST else len(LONGEST))


class NetworkError(BaseException):
    """A test tried to leave the machine; not an Exception, so that no retry or fallback can hide it."""


def check_loopback(address: Any) -> None:
    """Refuse an (address, port) that is not this machine's own."""
    host = address[0] if isinstance(address, tuple) else "localhost"
    if host is not None and not str(host).startswith("127.") and host not in ("localhost", "::1", "", b"localhost"):
        raise NetworkError(f"a test tried to reach {address!r}; tests may only reach the fake Hub at {HUB.url}")


@pytest.fixture(scope="session", autouse=True)
def _loopback_only() -> Iterator[None]:
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def checked_connect(self: socket.socket, address: Any) -> None:
        check_loopback(address)
        connect(self, address)

    def checked_connect_ex(self: socket.socket, address: Any) -> int:
        check_loopback(address)
        return connect_ex(self, address)

    def checked_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        check_loopback((host,))
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", checked_connect)
        patch.setattr(socket.socket, "connect_ex", checked_connect_ex)
        patch.setattr(socket, "getaddrinfo", checked_getaddrinfo)
        yield


@pytest.fixture
def hub() -> FakeHub:
    """The fake Hub, empty, with an empty Hub cache on this side."""
    HUB.reset()
    empty_home()
    return HUB


@pytest.fixture(scope="session")
def weights() -> Path:
    """The folder of real heads, which is larger than a repository should be."""
    path = Path(__file__).parents[2] / "shared" / "data" / "weights"
    if not path.is_dir():
        pytest.skip(f"no real heads at {path}: they are not part of the repository")
    return path


def pytest_unconfigure() -> None:
    HUB.close()
