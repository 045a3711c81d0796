"""The fast path is used where the sun shines, gives way wherever it does not, and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import shutil
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import _http, close_session, httpx
from huggingface_hub.utils._http import default_client_factory

from llmsuper.errors import HubError
from llmsuper.hub.client import Patience
from llmsuper.hub.direct import PIECE, DirectConnections, is_sunny
from llmsuper.hub.source import HubFile
from tests import test_source
from tests.fake_hub import FakeHub
from tests.test_source import BEGIN, DATA, FILE, PART, RECOVERED, REPO, RUINED, cut_when_taken

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience, "pause", 0.001)


@pytest.fixture
def source(hub: FakeHub) -> HubFile:
    """The file on the Hub, already resolved, with an empty log."""
    found = HubFile(REPO, FILE, hub.add(REPO, {FILE: DATA}))
    hub.take_log()
    return found


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs that are asked for directly from now on."""
    urls: list[str] = []
    get = DirectConnections.get

    @contextmanager
    def noted(self: DirectConnections, url: str, headers: dict[str, str], buffer: memoryview) -> Iterator[Any]:
        urls.append(url)
        assert "authorization" not in {name.lower() for name in headers}
        with get(self, url, headers, buffer) as response:
            yield response

    monkeypatch.setattr(DirectConnections, "get", noted)
    return urls


@pytest.fixture
def _clouded() -> Iterator[None]:
    """A client that the user has set, so that everything goes by way of it."""
    set_client_factory(lambda: default_client_factory())
    yield
    set_client_factory(default_client_factory)


def kept(source: HubFile) -> int:
    """How many connections wait for a next request."""
    return sum(map(len, source._direct._idle.values()))


# ---- used


def test_off_the_hub_ranges_go_over_one_connection_for_each_thread(source: HubFile, used: list[str]) -> None:
    assert [source.read(at, 10_000) for at in (0, 50_000, 0)] == [DATA[:10_000], DATA[50_000:60_000], DATA[:10_000]]
    assert (len(used), kept(source), source.moved, source.requests) == (3, 1, 30_000, 4)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda at: source.read(at, 10_000), range(0, len(DATA), 10_000)))
    assert b"".join(parts) == DATA
    assert len(used) == 63
    assert 1 <= kept(source) <= 4
    source.close()
    assert kept(source) == 0
    assert source.read(BEGIN, len(PART)) == PART, "a source that was closed opens again"


def test_on_the_hub_itself_its_client_is_used(hub: FakeHub, used: list[str]) -> None:
    commit = hub.add(REPO, {"config.json": b'{"a": 1}'}, private=True, allowed_tokens=["hf_mine"])
    assert HubFile(REPO, "config.json", commit, token="hf_mine").read(2, 3) == b'a":'
    assert used == []


def test_connections_end_with_the_source(source: HubFile) -> None:
    source.read(0, 10)
    (connections,) = source._direct._idle.values()
    connection = connections[0]
    assert connection.sock is not None
    del source._direct
    gc.collect()
    assert connection.sock is None


def test_a_forked_child_opens_its_own(source: HubFile, monkeypatch: pytest.MonkeyPatch) -> None:
    source.read(0, 10)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    source.read(0, 10)
    assert (len(source._direct._idle), kept(source)) == (2, 2)


# ---- gives way

OPENLY: dict[str, tuple[dict[str, str], bool]] = {
    "nothing set": ({}, True),
    "http_proxy": ({"http_proxy": "http://127.0.0.1:9"}, False),
    "HTTPS_PROXY": ({"HTTPS_PROXY": "http://127.0.0.1:9"}, False),
    "ALL_PROXY": ({"ALL_PROXY": "socks5://127.0.0.1:9"}, False),
    "an empty proxy": ({"HTTPS_PROXY": ""}, True),
    "hosts without a proxy, and no proxy": ({"no_proxy": "huggingface.co"}, True),
}
"""Variables of the environment, and whether the fast path is then open."""


@pytest.mark.parametrize("name", OPENLY)
def test_a_proxy_closes_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    variables, sunny = OPENLY[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert is_sunny() is sunny


def test_a_proxy_variable_sends_everything_through_the_client(
    source: HubFile, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # of another scheme than the fake Hub's
    assert source.read(BEGIN, len(PART)) == PART
    assert used == []


def test_a_client_that_the_user_has_set_is_used(source: HubFile, used: list[str]) -> None:
    requests: list[httpx.Request] = []
    set_client_factory(lambda: httpx.Client(event_hooks={"request": [requests.append]}))
    try:
        assert source.read(BEGIN, len(PART)) == PART
    finally:
        set_client_factory(default_client_factory)
    assert (used, len(requests)) == ([], 1)


def test_offline_is_offline(source: HubFile, used: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="offline mode is on"):
        source.read(0, 10)
    assert used == []


def test_a_hub_client_that_hides_its_factory_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_http, "_GLOBAL_CLIENT_FACTORY")
    assert not is_sunny()
    monkeypatch.delattr(_http, "default_client_factory")
    assert not is_sunny()


@pytest.mark.parametrize("name", RECOVERED)
def test_after_trouble_the_client_reads_the_rest_of_the_range(
    hub: FakeHub, source: HubFile, used: list[str], name: str
) -> None:
    test_source.test_the_range_is_exact_in_spite_of(hub, source, name)
    assert len(used) == 1
    hub.faults.clear()
    assert source.read(BEGIN, len(PART)) == PART, "the connection that was kept is a good one"
    assert len(used) == 2, "and the next range is read directly again"


@pytest.mark.parametrize("name", RUINED)
def test_a_refusal_leaves_no_connection_behind(hub: FakeHub, source: HubFile, used: list[str], name: str) -> None:
    test_source.test_the_range_is_refused_when(hub, source, name)
    assert (len(used), kept(source)) == (1, 0)
    hub.faults.clear()
    assert source.read(BEGIN, len(PART)) == PART


@pytest.mark.parametrize("kind", ["cut", "rst"])
@pytest.mark.parametrize("count", [1, 70_000, PIECE, PIECE + 1, len(PART) - 1])
def test_what_has_arrived_is_not_asked_for_again(
    hub: FakeHub, source: HubFile, used: list[str], kind: str, count: int
) -> None:
    cut_when_taken(hub, source, kind, count)
    assert len(used) == 1


def test_a_connection_that_the_server_will_close_is_read_to_its_end_and_not_kept(
    hub: FakeHub, source: HubFile, used: list[str]
) -> None:
    hub.fault("headers", FILE, origin="cdn", times=2, arg={"Connection": "close"})
    assert [source.read(BEGIN, len(PART)), source.read(0, 10)] == [PART, DATA[:10]]
    assert (len(used), kept(source), source.moved, source.requests) == (2, 0, len(PART) + 10, 3)


def test_a_redirect_is_followed_by_the_client(hub: FakeHub, source: HubFile, used: list[str]) -> None:
    source.read(0, 10)
    hub.fault("status", FILE, origin="cdn", times=2, arg=(302, {"Location": f"{used[0]}&again=1"}, b""))
    hub.take_log()
    assert source.read(BEGIN, len(PART)) == PART
    assert [request.status for request in hub.take_log()] == [302, 302, 206]
    assert len(used) == 2


def test_a_server_that_takes_too_long_is_asked_again(
    hub: FakeHub, source: HubFile, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.fault("stall", FILE, origin="cdn", arg=30)
    assert source.read(BEGIN, len(PART)) == PART
    assert (len(used), source.moved) == (1, len(PART))


def test_a_connection_that_the_server_has_closed_meanwhile(hub: FakeHub, source: HubFile, used: list[str]) -> None:
    source.read(0, 10)
    hub.fault("reset", FILE, origin="cdn")  # what such a connection answers
    assert source.read(BEGIN, len(PART)) == PART
    assert (len(used), kept(source)) == (2, 0)


# ---- without it, all is as with it


@pytest.mark.usefixtures("_clouded")
@pytest.mark.parametrize("name", [*RECOVERED, *RUINED])
def test_the_client_alone_stands_every_fault(hub: FakeHub, source: HubFile, used: list[str], name: str) -> None:
    if name in RECOVERED:
        test_source.test_the_range_is_exact_in_spite_of(hub, source, name)
    else:
        test_source.test_the_range_is_refused_when(hub, source, name)
    assert used == []


@pytest.mark.usefixtures("_clouded")
def test_a_body_that_stalls_by_way_of_the_client(
    hub: FakeHub, source: HubFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_source.test_a_body_that_stalls_is_cut_and_resumed(hub, source, monkeypatch)


@pytest.mark.usefixtures("_clouded")
@pytest.mark.parametrize("kind", ["cut", "rst"])
def test_what_has_arrived_by_way_of_the_client(hub: FakeHub, source: HubFile, kind: str) -> None:
    cut_when_taken(hub, source, kind, PIECE + 1)


@pytest.mark.usefixtures("_clouded")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_shared_client_may_be_closed(hub: FakeHub, source: HubFile) -> None:
    test_source.test_the_shared_client_may_be_closed_in_the_middle_of_a_body(hub, source)


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One that nobody has signed, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here, which makes the certificate")
    folder = tmp_path_factory.mktemp("certificate")
    path, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=loopback"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,IP:127.0.0.2"]
    subprocess.run([*command, "-keyout", key, "-out", path], check=True, capture_output=True)
    return path, key


@pytest.fixture
def secure(hub: FakeHub, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub whose CDN speaks TLS, which is where `hub` sends clients to."""
    secure = FakeHub()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = secure.servers[1]
    server.handle_error = lambda *_: None  # a client that does not trust it hangs up
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    secure.add(REPO, {FILE: DATA})
    secure.generation = hub.generation  # it is to honour what `hub` signs, whatever expired there before
    monkeypatch.setattr(hub, "cdn_url", secure.cdn_url.replace("http:", "https:"))
    close_session()  # which read the environment when it was made
    yield secure
    secure.close()
    close_session()


@pytest.fixture
def trusted(hub: FakeHub, secure: FakeHub, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> HubFile:
    """The file on that CDN, whose certificate is trusted."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    assert hub.cdn_url.endswith(secure.cdn_url.removeprefix("http"))
    return HubFile(REPO, FILE, hub.add(REPO, {FILE: DATA}))


def test_tls_trusts_what_the_client_trusts(trusted: HubFile, used: list[str]) -> None:
    assert [trusted.read(BEGIN, len(PART)), trusted.read(0, 10)] == [PART, DATA[:10]]
    assert [url.split(":")[0] for url in used] == ["https", "https"]
    assert kept(trusted) == 1
    trusted.close()


@pytest.mark.parametrize("kind", ["cut", "rst"])
@pytest.mark.parametrize("count", [1, PIECE + 1])
def test_what_has_arrived_over_tls_is_not_asked_for_again(
    secure: FakeHub, trusted: HubFile, used: list[str], kind: str, count: int
) -> None:
    cut_when_taken(secure, trusted, kind, count)
    assert [url.split(":")[0] for url in used] == ["https"]


def test_a_body_that_stalls_over_tls(secure: FakeHub, trusted: HubFile, monkeypatch: pytest.MonkeyPatch) -> None:
    test_source.test_a_body_that_stalls_is_cut_and_resumed(secure, trusted, monkeypatch)


def test_tls_that_the_server_will_close_is_read_to_its_end(secure: FakeHub, trusted: HubFile, used: list[str]) -> None:
    secure.fault("headers", FILE, origin="cdn", arg={"Connection": "close"})
    assert trusted.read(BEGIN, len(PART)) == PART
    assert (len(used), kept(trusted), trusted.moved) == (1, 0, len(PART))


@pytest.mark.usefixtures("secure")
def test_tls_that_is_not_trusted_is_refused(hub: FakeHub, used: list[str]) -> None:
    source = HubFile(REPO, FILE, hub.add(REPO, {FILE: DATA}))
    with pytest.raises(HubError, match=r"the connection failed .*certificate verify failed"):
        source.read(BEGIN, len(PART))
    assert (len(used), source.moved) == (1, 0)


def test_nothing_is_left_open(hub: FakeHub, source: HubFile) -> None:
    hub.fault("rst", FILE, origin="cdn", times=-1, arg=0)
    with suppress(HubError):
        source.read(0, 1000)
    assert kept(source) == 0
    gc.collect()  # a connection that is let go of open would warn
