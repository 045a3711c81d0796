"""Bytes of a file on disk and on the Hub: exact whatever the network does, or a message that says what it did."""

from __future__ import annotations

import builtins
import gc
import json
import os
import re
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import close_session, httpx
from huggingface_hub.utils._http import default_client_factory

from llmsuper.errors import CheckpointError, HubError, UnknownNameError
from llmsuper.hub import client
from llmsuper.hub.checkpoint import LAYOUTS
from llmsuper.hub.client import REFUSALS, STATUSES, Patience, hub_errors
from llmsuper.hub.repository import MOST_BYTES, open_repository
from llmsuper.hub.source import HubFile, LocalFile
from llmsuper.hub.vocabulary import TOKENIZER_FILES
from llmsuper.types import ModelEntry
from tests.checkpoints import pythia_like
from tests.command import llmsuper, the_error
from tests.fake_hub import File

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fake_hub import FakeHub

REPO = "org/tiny"
FILE = "model.safetensors"
DATA = os.urandom(600_000)
BEGIN, END = 1_000, 500_000
PART = DATA[BEGIN:END]
EVER = -1
"""`times` of a fault that never ends."""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience, "pause", 0.001)


@pytest.fixture
def source(hub: FakeHub) -> HubFile:
    """The file on the Hub, already resolved, with an empty log."""
    commit = hub.add(REPO, {FILE: DATA, "config.json": b"{}"})
    found = HubFile(REPO, FILE, commit)
    hub.take_log()
    return found


# ---- ranges


def test_a_range_is_one_request_to_the_cdn_and_no_byte_more(hub: FakeHub, source: HubFile) -> None:
    assert source.read(BEGIN, len(PART)) == PART
    (request,) = hub.take_log()
    assert (request.origin, request.range, request.sent) == ("cdn", f"bytes={BEGIN}-{END - 1}", len(PART))
    assert request.accept_encoding == "identity"
    assert (source.size, source.moved, source.requests) == (len(DATA), len(PART), 2)


def test_the_whole_file_and_a_single_byte(source: HubFile) -> None:
    assert source.read(0, len(DATA)) == DATA
    assert source.read(len(DATA) - 1, 1) == DATA[-1:]
    assert source.read(5, 0) == b""


def test_a_file_that_is_not_large_is_read_from_the_hub_itself(hub: FakeHub) -> None:
    commit = hub.add(REPO, {"config.json": b'{"a": 1}'})
    assert HubFile(REPO, "config.json", commit).read(2, 3) == b'a":'


def test_threads_share_a_source(source: HubFile) -> None:
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda at: source.read(at, 10_000), range(0, len(DATA), 10_000)))
    assert b"".join(parts) == DATA
    assert (source.moved, source.requests) == (len(DATA), 61)


BUSY = (503, {}, b"busy")
SLOW_DOWN = (429, {"Retry-After": "0"}, b"")
RECOVERED: dict[str, tuple[list[tuple[str, dict[str, Any]]], int]] = {
    "FIN in the middle of three bodies": ([("cut", {"times": 3, "arg": 30_000})], 4),
    "RST in the middle of two bodies": ([("rst", {"times": 2, "arg": 70_000})], 3),
    "RST before any answer": ([("reset", {"times": 4})], 5),
    "more cuts than the budget, each after progress": ([("cut", {"times": 9, "arg": 30_000})], 10),
    "every range cut short by a proxy": ([("short", {"times": EVER, "arg": 100_000})], 5),
    "500, 502, 503, 504": ([("status", {"arg": (code, {}, b"")}) for code in (500, 502, 503, 504)], 5),
    "408": ([("status", {"arg": (408, {}, b"")})], 2),
    "429 with Retry-After": ([("status", {"times": 3, "arg": SLOW_DOWN})], 4),
    "429 with a date in Retry-After": (
        [("status", {"arg": (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b"")})],
        2,
    ),
    "an empty body": ([("cut", {"times": 2, "arg": 0})], 3),
    "no Content-Length": ([("chunked", {"times": EVER})], 1),
}
"""Faults from which the range recovers, and the ranges it then takes."""


@pytest.mark.parametrize("name", RECOVERED)
def test_the_range_is_exact_in_spite_of(hub: FakeHub, source: HubFile, name: str) -> None:
    faults, ranges = RECOVERED[name]
    for kind, fields in faults:
        hub.fault(kind, FILE, origin="cdn", **fields)
    assert source.read(BEGIN, len(PART)) == PART
    log = hub.take_log()
    assert [request.origin for request in log] == ["cdn"] * ranges
    assert source.moved == len(PART), "nothing that arrived is fetched again"


def cut_when_taken(cdn: FakeHub, source: HubFile, kind: str, count: int) -> None:
    """Cuts a body once `count` bytes of it are seen in the buffer, which no kernel can then discard."""
    buffer = bytearray(byte ^ 0xFF for byte in PART)

    def taken() -> None:
        while buffer[:count] != PART[:count] and not cdn.released.wait(0.001):
            pass

    cdn.before_the_end = taken
    cdn.fault(kind, FILE, origin="cdn", arg=count)
    cdn.take_log()
    source.read_into(BEGIN, memoryview(buffer))
    assert buffer == PART
    assert [request.range for request in cdn.take_log()] == [f"bytes={BEGIN + at}-{END - 1}" for at in (0, count)]
    assert source.moved == len(PART)


def test_a_body_that_stalls_is_cut_and_resumed(hub: FakeHub, source: HubFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    hub.fault("stall_body", FILE, origin="cdn", arg=(50_000, 30))
    assert source.read(BEGIN, len(PART)) == PART
    assert [request.range for request in hub.take_log()] == [f"bytes={at}-{END - 1}" for at in (BEGIN, BEGIN + 50_000)]


@pytest.mark.parametrize("after", [0, 3])
def test_an_expired_url_is_renewed_once_for_all_threads(hub: FakeHub, source: HubFile, after: int) -> None:
    hub.fault("expire", FILE, origin="cdn", after=after)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda at: source.read(at, 50_000), range(0, len(DATA), 50_000)))
    assert b"".join(parts) == DATA
    assert [request.method for request in hub.take_log() if request.origin == "hub"] == ["HEAD"]


def test_a_failing_renewal_is_tried_again(hub: FakeHub, source: HubFile) -> None:
    hub.expire_urls()
    hub.fault("status", FILE, method="HEAD", times=2, arg=BUSY)
    assert source.read(BEGIN, len(PART)) == PART


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a socket that the library lets go of
def test_the_shared_client_may_be_closed_in_the_middle_of_a_body(hub: FakeHub, source: HubFile) -> None:
    hub.fault("stall_body", FILE, origin="cdn", arg=(50_000, 30))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(source.read, BEGIN, len(PART))
        while hub.bytes_sent("cdn") < 50_000:
            time.sleep(0.001)
        close_session()
        hub.released.set()
        assert reading.result(timeout=30) == PART
    gc.collect()


def test_the_shared_client_may_be_closed_before_a_request(source: HubFile) -> None:
    clients: list[httpx.Client] = []

    class Fragile(httpx.Client):
        """The first one is closed, as by another thread, when a request is on its way to it."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            clients.append(self)

        def build_request(self, *args: Any, **options: Any) -> httpx.Request:
            if self is clients[0]:
                close_session()
            return super().build_request(*args, **options)

    set_client_factory(Fragile)
    try:
        assert source.read(BEGIN, len(PART)) == PART
        assert len(clients) == 2
    finally:
        set_client_factory(default_client_factory)


RUINED: dict[str, tuple[list[tuple[str, dict[str, Any]]], str]] = {
    "the server ignores Range": (
        [("ignore_range", {})],
        r"asked for 499,000 bytes, .*whole file, 0.00 GB.*hf download org/tiny model.safetensors --revision [0-9a-f]{40}`",
    ),
    "a log-in page": ([("html", {})], "an HTML page came in place of 499,000 bytes"),
    "another range": (
        [("content_range", {"arg": f"bytes {BEGIN + 1}-{END}/{len(DATA)}"})],
        "asked for bytes 1,000 to 499,999, the server sent bytes 1,001 to 500,000",
    ),
    "a longer range": (
        [("content_range", {"arg": f"bytes {BEGIN}-{END}/{len(DATA)}"})],
        "the server sent bytes 1,000 to 500,000",
    ),
    "a range that ends before it begins": (
        [("content_range", {"arg": f"bytes {BEGIN}-{BEGIN - 1}/{len(DATA)}"})],
        "the server sent bytes 1,000 to 999",
    ),
    "no Content-Range": ([("no_content_range", {})], "answered 206 with Content-Range None"),
    "a Content-Range without a size": (
        [("content_range", {"arg": f"bytes {BEGIN}-{END - 1}/*"})],
        r"answered 206 with Content-Range 'bytes 1000-499999/\*'",
    ),
    "another size": (
        [("total", {"arg": len(DATA) + 1})],
        r"changed while being read \(600,000 bytes at first, 600,001 bytes now\)",
    ),
    "more bytes than announced": ([("excess", {"arg": 100})], "sent more than the 499,000 bytes it announced"),
    "a compressed body": ([("gzip", {})], "sent a gzip-encoded body where none was asked for"),
    "no answer, ever": ([("reset", {"times": EVER})], "the connection failed .* Check the connection"),
    "cut at once, ever": ([("cut", {"times": EVER, "arg": 0})], "the connection failed"),
    "503, ever": ([("status", {"times": EVER, "arg": BUSY})], "the server answered 503, several times"),
    "403, whatever the URL": (
        [("status", {"times": EVER, "arg": (403, {}, b"")})],
        r"access is forbidden \(403\)",
    ),
    "a rate limit of hours": (
        [("status", {"arg": (429, {"Retry-After": "9999"}, b"")})],
        r"too many requests \(429\).*`hf auth login`",
    ),
    "416": ([("status", {"arg": (416, {}, b"")})], "the server answered 416"),
}
"""Faults that no patience helps against, and what is said of them."""


@pytest.mark.parametrize("name", RUINED)
def test_the_range_is_refused_when(hub: FakeHub, source: HubFile, name: str) -> None:
    faults, message = RUINED[name]
    for kind, fields in faults:
        hub.fault(kind, FILE, origin="cdn", **fields)
    with pytest.raises(HubError, match=message) as caught:
        source.read(BEGIN, len(PART))
    assert "org/tiny@" in str(caught.value)
    assert len(hub.take_log()) <= 8
    assert source.moved <= len(PART)


def test_a_server_that_ignores_range_is_left_after_its_first_bytes(hub: FakeHub) -> None:
    commit = hub.add(REPO, {FILE: bytes(64 << 20)})
    source = HubFile(REPO, FILE, commit)
    hub.fault("ignore_range", FILE, origin="cdn")
    with pytest.raises(HubError, match=r"0\.07 GB"):
        source.read(0, 1000)
    assert source.moved == 0
    assert hub.bytes_sent("cdn") < 32 << 20


def test_an_etag_that_changes_between_ranges_is_noticed(hub: FakeHub, source: HubFile) -> None:
    hub.fault("etag", FILE, origin="cdn", after=1, arg="ab" * 32)
    source.read(0, 1000)
    with pytest.raises(HubError, match=r"changed while being read \(ETag .* at first, ETag .*abab"):
        source.read(1000, 1000)


@pytest.mark.parametrize(("kind", "arg"), [("etag", "ab" * 32), ("total", 17)])
def test_a_renewed_url_must_be_of_the_same_file(hub: FakeHub, source: HubFile, kind: str, arg: Any) -> None:
    hub.expire_urls()
    hub.fault(kind, FILE, method="HEAD", arg=arg)
    with pytest.raises(HubError, match="changed while being read"):
        source.read(0, 1000)


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: FakeHub) -> None:
    commit = hub.add(REPO, {FILE: DATA}, private=True, allowed_tokens=["hf_mine"])
    source = HubFile(REPO, FILE, commit, token="hf_mine")
    source.read(0, 1000)
    hub.expire_urls()
    assert source.read(0, 1000) == DATA[:1000]
    log = hub.take_log()
    assert {request.auth for request in log if request.origin == "hub"} == {"Bearer hf_mine"}
    assert {request.auth for request in log if request.origin == "cdn"} == {None}


@pytest.mark.parametrize("fault", [("stall_body", (1_000, 30)), ("status", (429, {"Retry-After": "60"}, b""))])
def test_a_stop_ends_a_read_that_waits(hub: FakeHub, source: HubFile, fault: tuple[str, Any]) -> None:
    hub.fault(fault[0], FILE, origin="cdn", arg=fault[1])
    stop, buffer = threading.Event(), bytearray(len(PART))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(source.read_into, BEGIN, memoryview(buffer), stop)
        while not hub.log:
            time.sleep(0.001)
        stop.set()
        hub.released.set()  # lets the stalled body go on, so that the next chunk arrives
        assert isinstance(reading.exception(timeout=30), CancelledError)


# ---- refusals of the Hub

GATED = "gated and you have not been let in. Accept the licence at http://127.0.0.1:[0-9]+/org/tiny, .*`hf auth login`"
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no such model": ({"repo": "org/none"}, {}, "org/none@main: there is no such model at http.* or it is private"),
    "a private model": ({}, {"private": True}, "there is no such model"),
    "a private model, with another's token": (
        {"token": "hf_valid"},
        {"private": True},
        "there is no such model",
    ),
    "no such revision": ({"revision": "nope"}, {}, "org/tiny@nope: the repository has no such branch, tag or commit"),
    "a token that is refused": ({"token": "hf_bad"}, {}, r"the token was refused \(401\)"),
    "gated, without a token": ({}, {"gated": "manual"}, GATED),
    "gated, not let in": ({"token": "hf_valid"}, {"gated": "manual"}, GATED),
    "not a repository id": ({"repo": "a/b/c"}, {}, "a/b/c@main: this is not a repository id"),
}
"""What is asked for, how the repository is, and what is said."""


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_to_do(hub: FakeHub, name: str) -> None:
    asked, repository, message = REFUSED[name]
    hub.add(REPO, {FILE: DATA}, **repository)
    entry = ModelEntry(asked.get("repo", REPO), revision=asked.get("revision", "main"))
    with pytest.raises(HubError, match=message):
        open_repository(entry, token=asked.get("token")).open(FILE).read(0, 10)


UNREACHABLE: dict[str, tuple[str, Any, str]] = {
    "reset": ("reset", None, "the connection failed"),
    "rate limit": ("status", (429, {"Retry-After": "9999"}, b""), r"too many requests \(429\)"),
    "server trouble": ("status", (502, {}, b""), "the server answered 502, several times"),
    "log-in page": ("html", None, "the answer is not JSON"),
    "another service": ("status", (200, {}, b"{}"), "the answer is not that of a Hub"),
    "a list": ("status", (200, {}, b"[]"), "the answer is not that of a Hub"),
    "a bottomless list": ("status", (200, {}, b"[" * 100_000), "the answer is not that of a Hub"),
    "no sizes": (
        "status",
        (200, {}, json.dumps({"id": REPO, "sha": "0" * 40, "siblings": [{"rfilename": "a"}]}).encode()),
        "files without sizes",
    ),
}
"""What answers in place of the Hub, and what is said."""


@pytest.mark.parametrize("name", UNREACHABLE)
def test_a_hub_that_does_not_answer_as_one(hub: FakeHub, name: str) -> None:
    kind, arg, message = UNREACHABLE[name]
    hub.add(REPO, {FILE: DATA})
    hub.fault(kind, "/api/models", times=EVER, arg=arg)
    with pytest.raises(HubError, match=message):
        open_repository(ModelEntry(REPO))


def test_a_hub_that_stumbles_is_asked_again(hub: FakeHub) -> None:
    commit = hub.add(REPO, {FILE: DATA})
    hub.fault("status", "/api/models", times=3, arg=BUSY)
    hub.fault("reset", FILE, method="HEAD", times=4)
    repository = open_repository(ModelEntry(REPO))
    assert (repository.commit, repository.open(FILE).read(0, 4)) == (commit, DATA[:4])


def test_a_missing_file_is_named(hub: FakeHub) -> None:
    commit = hub.add(REPO, {FILE: DATA})
    with pytest.raises(HubError, match="the repository has no such file"):
        HubFile(REPO, "none.safetensors", commit)
    with pytest.raises(CheckpointError, match=r"org/tiny: there is no file 'none.safetensors'"):
        open_repository(ModelEntry(REPO)).open("none.safetensors")


@pytest.mark.parametrize("name", REFUSALS)
def test_every_refusal_is_of_a_class_that_there_is(name: str) -> None:
    homes = (huggingface_hub.errors, httpx, json, builtins)
    assert any(issubclass(getattr(home, name, object), Exception) for home in homes)


@pytest.mark.parametrize("found", [*REFUSALS.values(), *STATUSES.values(), client.SERVER_TROUBLE, client.OTHER_STATUS])
def test_every_refusal_can_be_said(found: tuple[str, str]) -> None:
    known = {"endpoint": "E", "page": "P", "status": 1, "error": "X"}
    assert all(not text.format(**known).endswith(".") for text in found)


def test_a_bug_is_not_taken_for_a_refusal() -> None:
    with pytest.raises(ValueError, match="ours"), hub_errors("thing"):
        raise ValueError("ours")


# ---- the repository: one commit, whatever happens


def test_a_branch_that_moves_does_not_mix_two_commits(hub: FakeHub) -> None:
    first = hub.add(REPO, {FILE: DATA, "config.json": b"first"})
    repository = open_repository(ModelEntry(REPO))
    hub.add(REPO, {FILE: bytes(len(DATA)), "config.json": b"second"})
    assert repository.commit == first
    assert repository.open(FILE).read(0, 1000) == DATA[:1000]
    assert repository.fetch("config.json").read_bytes() == b"first"
    assert open_repository(ModelEntry(REPO)).fetch("config.json").read_bytes() == b"second"


def test_revisions_and_renamed_repositories(hub: FakeHub) -> None:
    hub.add(REPO, {FILE: DATA})
    step = hub.add(REPO, {FILE: b"early"}, branch="refs/pr/1")
    hub.rename(REPO, "org/new")
    assert open_repository(ModelEntry(REPO, revision="refs/pr/1")).commit == step
    assert open_repository(ModelEntry(REPO, revision=step)).open(FILE).read(0, 5) == b"early"


def test_a_file_in_the_hub_cache_is_read_from_there(hub: FakeHub) -> None:
    hub.add(REPO, {FILE: DATA, "config.json": b"{}"})
    repository = open_repository(ModelEntry(REPO))
    assert repository.uncached_bytes([FILE, "config.json", "none"]) == len(DATA) + 2
    huggingface_hub.hf_hub_download(REPO, FILE)
    repository.fetch("config.json")
    hub.take_log()
    source = repository.open(FILE)
    assert (source.read(0, len(DATA)), source.moved) == (DATA, 0)
    assert repository.fetch("config.json").read_bytes() == b"{}"
    assert repository.uncached_bytes([FILE, "config.json", "none"]) == 0
    assert hub.take_log() == []
    source.close()


@pytest.mark.parametrize("how", ["offline", "unreachable", "server trouble"])
def test_without_the_hub_the_cache_is_enough(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    commit = hub.add(REPO, {FILE: DATA, "config.json": b"{}", "other.bin": b"not fetched"})
    for name in (FILE, "config.json"):
        huggingface_hub.hf_hub_download(REPO, name)
    hub.take_log()
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "unreachable":
        hub.fault("reset", times=EVER)
    else:
        hub.fault("status", times=EVER, arg=BUSY)
    for revision in ("main", commit):
        repository = open_repository(ModelEntry(REPO, revision=revision))
        assert (repository.origin, repository.commit) == ("hub-cache", commit)
        assert dict(repository.files) == {FILE: len(DATA), "config.json": 2}
        source = repository.open(FILE)
        assert source.read(7, 9) == DATA[7:16]
        source.close()
        assert repository.fetch("config.json").read_bytes() == b"{}"
    if how == "offline":
        assert hub.take_log() == []


def test_offline_without_the_cache_says_so(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, {FILE: DATA})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"offline mode is on \(HF_HUB_OFFLINE=1\).* Unset HF_HUB_OFFLINE"):
        open_repository(ModelEntry(REPO))


def test_a_refusal_is_not_answered_from_the_cache(hub: FakeHub) -> None:
    hub.add(REPO, {FILE: DATA})
    huggingface_hub.hf_hub_download(REPO, FILE)
    hub.repos[REPO].private = True
    with pytest.raises(HubError, match="no such model"):
        open_repository(ModelEntry(REPO))


def test_trouble_with_xet_names_the_way_round_it(hub: FakeHub) -> None:
    pytest.importorskip("hf_xet")
    name, place, xet = "tokenizer.json", f"{hub.cdn_url}/cas", "ab" * 32
    commit = hub.add(REPO, {name: File(DATA, lfs=True)})
    link = f'<{hub.url}/api/models/{REPO}/xet-read-token/{commit}>; rel="xet-auth"'
    told = {"X-Xet-Cas-Url": place, "X-Xet-Access-Token": "x", "X-Xet-Token-Expiration": "9999999999"}
    hub.fault("headers", name, method="HEAD", origin="hub", arg={"X-Xet-Hash": xet, "Link": link})
    hub.fault("status", "xet-read-token", arg=(200, told, b"{}"))
    with pytest.raises(HubError, match=r"the download through Xet failed .*404.* Set HF_HUB_DISABLE_XET=1"):
        open_repository(ModelEntry(REPO)).fetch(name)


def test_going_offline_between_two_files(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, {FILE: DATA, "config.json": b"{}"})
    repository = open_repository(ModelEntry(REPO))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="offline mode is on"):
        repository.fetch("config.json")
    with pytest.raises(HubError, match="offline mode is on"):
        repository.open(FILE)


# ---- files that are read whole

READ_WHOLE = ("config.json", *(layout.sharded for layout in LAYOUTS), *TOKENIZER_FILES)


def checkpoint_with(name: str, content: Any) -> dict[str, Any]:
    """A checkpoint of which that file is read."""
    files: dict[str, Any] = {**pythia_like(rows=64, columns=16, tokens=60), "vocab.json": b'{"a": 0}'}
    for other in ("model.safetensors",) * ("index" in name) + ("tokenizer.json",) * (name in TOKENIZER_FILES):
        del files[other]
    return {**files, name: content}


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize("name", READ_WHOLE)
def test_a_file_too_large_to_be_read_whole_is_not_fetched(hub: FakeHub, tmp_path: Path, name: str) -> None:
    content = File(sparse(tmp_path / name, MOST_BYTES + 1), lfs=True, etag="ab" * 32)
    hub.add(REPO, checkpoint_with(name, content))
    done = llmsuper("overlap", REPO, "-q", "--results", tmp_path / "results")
    assert done.exit_code == CheckpointError.exit_code
    said = re.search(f"^{REPO}: {name} has {MOST_BYTES + 1:,} bytes .* up to {MOST_BYTES:,}. Use", the_error(done))
    assert said, the_error(done)
    assert ("--rows all" in the_error(done)) == (name in TOKENIZER_FILES)
    assert not [request for request in hub.take_log() if name in request.target]


@pytest.mark.parametrize("name", READ_WHOLE)
def test_a_local_file_too_large_to_be_read_whole(tmp_path: Path, name: str) -> None:
    for file, content in checkpoint_with(name, b"").items():
        (tmp_path / file).write_bytes(content)
    sparse(tmp_path / name, MOST_BYTES + 1)
    done = llmsuper("overlap", tmp_path, "-q", "--results", tmp_path / "results")
    assert done.exit_code == CheckpointError.exit_code
    assert f"{name} has {MOST_BYTES + 1:,} bytes" in the_error(done)


def test_the_tokenizer_may_be_too_large_where_every_row_counts(hub: FakeHub, tmp_path: Path) -> None:
    large = File(sparse(tmp_path / "large", MOST_BYTES + 1), lfs=True, etag="ab" * 32)
    hub.add(REPO, checkpoint_with("tokenizer.json", large))
    done = llmsuper("overlap", REPO, "-q", "--rows", "all", "--results", tmp_path / "results")
    assert done.exit_code == 0, done.stderr


def test_the_largest_file_that_is_read_whole(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, {"config.json": b"{}"})
    opened = open_repository(ModelEntry(REPO))
    monkeypatch.setattr("llmsuper.hub.repository.MOST_BYTES", 1)
    with pytest.raises(
        CheckpointError, match=r"config.json has 2 bytes .* up to 1\. Use a revision where it is what its name says\.$"
    ):
        opened.fetch("config.json")
    monkeypatch.setattr("llmsuper.hub.repository.MOST_BYTES", 2)
    assert opened.fetch("config.json").read_bytes() == b"{}"


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("name", READ_WHOLE)
def test_a_file_that_is_nested_without_end(hub: FakeHub, tmp_path: Path, name: str, opening: bytes) -> None:
    hub.add(REPO, checkpoint_with(name, opening * 100_000))
    done = llmsuper("overlap", REPO, "-q", "--results", tmp_path / "results")
    assert done.exit_code == CheckpointError.exit_code
    assert re.search(f"{name}( is|:) not .*recursion", the_error(done))


# ---- files on this machine


def test_local_bytes(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(DATA)
    source = LocalFile(path)
    assert (source.size, source.moved, source.requests) == (len(DATA), 0, 0)
    assert source.read(BEGIN, len(PART)) == PART
    with pytest.raises(CheckpointError, match=r"the file ends at byte 600,000, bytes up to 600,001 are needed"):
        source.read(599_999, 2)
    source.close()
    source.close()


def test_a_local_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it cannot be opened \(No such file or directory\)"):
        LocalFile(tmp_path / "none")


def local(path: Path) -> ModelEntry:
    return ModelEntry(str(path), local=True)


def test_a_local_folder(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(DATA)
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "folder").mkdir()
    repository = open_repository(local(tmp_path))
    assert (dict(repository.files), repository.origin) == ({FILE: len(DATA), "config.json": 2}, "local")
    assert re.fullmatch("local-[0-9a-f]{16}", repository.commit)
    assert repository.fetch("config.json") == tmp_path / "config.json"
    assert repository.uncached_bytes(repository.files) == 0
    source = repository.open(FILE)
    assert source.read(0, 5) == DATA[:5]
    source.close()


def test_a_local_commit_follows_the_weights_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(DATA)
    first = open_repository(local(tmp_path)).commit
    (tmp_path / "README.md").write_bytes(b"hello")
    assert open_repository(local(tmp_path)).commit == first
    os.utime(tmp_path / FILE, ns=(1, 1))
    second = open_repository(local(tmp_path)).commit
    (tmp_path / FILE).write_bytes(DATA[:-1])
    os.utime(tmp_path / FILE, ns=(1, 1))
    assert len({first, second, open_repository(local(tmp_path)).commit}) == 3


def test_a_single_local_file_comes_with_what_lies_beside_it(tmp_path: Path) -> None:
    for name in ("head.safetensors", FILE, "config.json", "tokenizer.json", "notes.txt"):
        (tmp_path / name).write_bytes(b"{}")
    repository = open_repository(local(tmp_path / "head.safetensors"))
    assert set(repository.files) == {"head.safetensors", "config.json", "tokenizer.json"}


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="there is no such file or folder"):
        open_repository(local(tmp_path / "none"))


def test_nothing_is_left_open(hub: FakeHub, source: HubFile) -> None:
    hub.fault("rst", FILE, origin="cdn", times=EVER, arg=0)
    with suppress(HubError):
        source.read(0, 1000)
    source.close()
