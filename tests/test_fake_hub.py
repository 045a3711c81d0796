"""The fake Hub through the real client, and every fault through a client that hides nothing."""

from __future__ import annotations

import http.client
import io
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session

from tests.checkpoints import ARCHITECTURES, Checkpoint, build, torch_bytes
from tests.conftest import NetworkError
from tests.fake_hub import FAULTS, PIECE, FakeHub, File

if TYPE_CHECKING:
    from collections.abc import Callable

REPO = "org/tiny"
WEIGHTS = bytes(range(256)) * 4096
SMALL = b'{"model_type": "gpt_neox"}'


@pytest.fixture
def commit(hub: FakeHub) -> str:
    return hub.add(REPO, {"config.json": SMALL, "model.safetensors": WEIGHTS})


# ---- the real client


def test_model_info_has_sizes_and_hashes(commit: str) -> None:
    info = HfApi().model_info(REPO, files_metadata=True)
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
    assert (info.sha, sizes) == (commit, {"config.json": len(SMALL), "model.safetensors": len(WEIGHTS)})
    (lfs,) = [sibling.lfs for sibling in info.siblings or [] if sibling.lfs]
    assert (lfs.size, lfs.sha256) == (len(WEIGHTS), File(WEIGHTS, lfs=True).etag)


@pytest.mark.parametrize(("name", "content"), [("config.json", SMALL), ("model.safetensors", WEIGHTS)])
def test_a_download_is_the_file(commit: str, name: str, content: bytes) -> None:
    path = Path(hf_hub_download(REPO, name))
    assert path.read_bytes() == content
    assert commit in path.parts


@pytest.mark.parametrize(("name", "origin"), [("config.json", "hub"), ("model.safetensors", "cdn")])
def test_file_metadata_is_pinned(hub: FakeHub, commit: str, name: str, origin: str) -> None:
    found = get_hf_file_metadata(hf_hub_url(REPO, name))
    file = hub.repos[REPO].commits[commit][name]
    assert (found.commit_hash, found.etag, found.size) == (commit, file.etag, file.size)
    assert found.location.startswith(hub.cdn_url if origin == "cdn" else hub.url)


def test_a_second_commit_moves_main_and_keeps_the_first(hub: FakeHub, commit: str) -> None:
    second = hub.add(REPO, {"model.safetensors": b"other", "config.json": None})
    assert get_hf_file_metadata(hf_hub_url(REPO, "model.safetensors")).size == 5
    assert get_hf_file_metadata(hf_hub_url(REPO, "model.safetensors", revision=commit)).size == len(WEIGHTS)
    assert [entry.path for entry in HfApi().list_repo_tree(REPO, revision=second)] == ["model.safetensors"]


def test_branches_and_tags(hub: FakeHub, commit: str) -> None:
    step = hub.add(REPO, {"model.safetensors": b"early"}, branch="step/3000")
    hub.repos[REPO].git_tags["v1"] = commit
    refs = HfApi().list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": commit, "step/3000": step}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": commit}
    assert HfApi().model_info(REPO, revision="step/3000").sha == step
    assert HfApi().model_info(REPO, revision="v1").sha == commit
    assert HfApi().model_info(REPO, revision=step[:8]).sha == step


def test_listing_follows_pages(hub: FakeHub) -> None:
    for number in range(5):
        hub.add(f"Org/model-{number}", {}, downloads=100 - number, tags=["text-generation"])
    hub.add("other/model-9", {}, tags=["text-generation"])
    hub.add("org/hidden", {}, private=True)
    hub.add("org/image-model", {})
    found = [model.id for model in HfApi().list_models(author="org", search="model", filter="text-generation")]
    assert found == [f"Org/model-{number}" for number in range(5)]
    assert len([request for request in hub.take_log() if request.path == "/api/models"]) == 3
    assert len(list(HfApi().list_models(author="org", limit=3))) == 3


def test_tree_and_paths_info(hub: FakeHub) -> None:
    hub.add(REPO, {"a.json": b"1", "deep/b.json": b"22", "deep/er/c.bin": b"333"})
    api = HfApi()
    assert [entry.path for entry in api.list_repo_tree(REPO)] == ["a.json", "deep"]
    assert [entry.path for entry in api.list_repo_tree(REPO, "deep")] == ["deep/b.json", "deep/er"]
    assert api.list_repo_files(REPO) == ["a.json", "deep/b.json", "deep/er/c.bin"]
    (found,) = api.get_paths_info(REPO, ["deep/er/c.bin", "absent"])
    assert (found.size, found.lfs.sha256) == (3, File(b"333", lfs=True).etag)


@pytest.mark.usefixtures("commit")
def test_the_token_goes_to_the_hub_and_not_to_the_cdn(hub: FakeHub) -> None:
    headers = {**build_hf_headers(token="hf_valid"), "Range": "bytes=10-19"}
    answer = get_session().get(hf_hub_url(REPO, "model.safetensors"), headers=headers, follow_redirects=True)
    assert (answer.status_code, answer.content) == (206, WEIGHTS[10:20])
    to_hub, to_cdn = hub.take_log()
    assert (to_hub.origin, to_hub.auth, to_hub.status) == ("hub", "Bearer hf_valid", 302)
    assert (to_cdn.origin, to_cdn.auth, to_cdn.range, to_cdn.sent) == ("cdn", None, "bytes=10-19", 10)


@pytest.mark.usefixtures("commit")
def test_the_cdn_refuses_a_token() -> None:
    location = get_hf_file_metadata(hf_hub_url(REPO, "model.safetensors")).location
    assert raw(location, headers={"Authorization": "Bearer hf_valid"}).status == 400


def read_config(revision: str | None = None, token: str | bool = False, name: str = "config.json") -> str:
    return hf_hub_download(REPO, name, revision=revision, token=token)


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], type[Exception], int]] = {
    "gated, nobody": ({"gated": "auto"}, {}, GatedRepoError, 401),
    "gated, not on the list": (
        {"gated": "manual", "allowed_tokens": ["hf_a"]},
        {"token": "hf_valid"},
        GatedRepoError,
        403,
    ),
    "private, nobody": ({"private": True}, {}, RepositoryNotFoundError, 401),
    "private, somebody": ({"private": True}, {"token": "hf_valid"}, RepositoryNotFoundError, 404),
    "bad token": ({}, {"token": "hf_bad"}, HfHubHTTPError, 401),
    "no such revision": ({}, {"revision": "absent"}, RevisionNotFoundError, 404),
    "no such file": ({}, {"name": "absent.json"}, RemoteEntryNotFoundError, 404),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_the_clients_own_errors(hub: FakeHub, case: str) -> None:
    made, asked, error, status = REFUSALS[case]
    hub.add(REPO, {"config.json": SMALL}, **made)
    with pytest.raises(HfHubHTTPError) as caught:
        read_config(**asked)
    assert type(caught.value) is error
    assert caught.value.response.status_code == status


def test_an_absent_repository(hub: FakeHub) -> None:
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("org/absent")
    assert [request.status for request in hub.take_log()] == [401]


def test_gated_and_private_open_to_those_on_the_list(hub: FakeHub) -> None:
    hub.add(REPO, {"config.json": SMALL}, gated="auto", private=True, allowed_tokens=["hf_a"])
    assert Path(read_config(token="hf_a")).read_bytes() == SMALL


@pytest.mark.usefixtures("commit")
def test_a_renamed_repository_redirects(hub: FakeHub) -> None:
    hub.rename(REPO, "neworg/renamed")
    assert HfApi().model_info(REPO).id == "neworg/renamed"
    assert Path(read_config()).read_bytes() == SMALL
    assert hub.take_log()[0].status == 307


def test_a_repository_without_an_owner(hub: FakeHub) -> None:
    hub.add("openai-community/gpt2", {"config.json": SMALL})
    hub.rename("openai-community/gpt2", "gpt2")
    assert HfApi().model_info("gpt2", revision="main").id == "gpt2"
    assert Path(hf_hub_download("openai-community/gpt2", "config.json")).read_bytes() == SMALL


def test_a_sparse_file_is_served_in_pieces(hub: FakeHub, tmp_path: Path) -> None:
    path, gigabytes = tmp_path / "huge.bin", 3 << 30
    with path.open("wb") as file:
        file.truncate(gigabytes)
        file.seek(gigabytes - 4)
        file.write(b"tail")
    hub.add(REPO, {"huge.bin": File(path, lfs=True, etag="ab" * 32)})
    found = get_hf_file_metadata(hf_hub_url(REPO, "huge.bin"))
    assert (found.size, found.etag) == (gigabytes, "ab" * 32)
    assert raw(found.location, "bytes=-4").body == b"tail"
    assert hub.bytes_sent("cdn") == 4
    assert max(map(len, File(path, True, "ab" * 32).pieces(5, 3 * PIECE))) == PIECE


def test_main_serves_a_folder(tmp_path: Path) -> None:
    Checkpoint({"config.json": SMALL, "model.safetensors": WEIGHTS}, {}, "", 0).write(tmp_path / "org" / "name")
    command = [sys.executable, "-m", "tests.fake_hub", str(tmp_path), "--latency", "0.001", "--rate", "1e9"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as served:
        assert served.stdout is not None
        try:
            url, cdn_url = served.stdout.readline().split()
            found = get_hf_file_metadata(hf_hub_url("org/name", "model.safetensors", endpoint=url))
            assert found.location.startswith(cdn_url)
            assert raw(found.location, "bytes=1000-1999").body == WEIGHTS[1000:2000]
        finally:
            served.terminate()


# ---- faults, seen by a client that hides nothing


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes
    end: str = "whole"
    """How the body ended: `whole`, `cut` or `reset`."""


def raw(url: str, span: str | None = None, *, method: str = "GET", headers: dict[str, str] | None = None) -> Answer:
    """One request on a connection of its own; the part of the body that came, and how it ended."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=5)
    sent = {"Range": span, **(headers or {})} if span else headers or {}
    try:
        connection.request(method, f"{parts.path}?{parts.query}", headers=sent)
        answer = connection.getresponse()
        body, end = bytearray(), "whole"
        try:
            while piece := answer.read1(1 << 16):
                body += piece
        except ConnectionResetError:
            end = "reset"
        length = answer.headers["Content-Length"]
        if end == "whole" and length and method == "GET" and len(body) < int(length):
            end = "cut"
        return Answer(answer.status, answer.headers, bytes(body), end)
    finally:
        connection.close()


SPAN, PART = "bytes=1000-1999", WEIGHTS[1000:2000]
RANGE = f"bytes 1000-1999/{len(WEIGHTS)}"


def is_ranged(answer: Answer, body: bytes = PART, content_range: str | None = RANGE, end: str = "whole") -> bool:
    return (answer.status, answer.body, answer.headers["Content-Range"], answer.end) == (206, body, content_range, end)


FAULT_CASES: dict[str, tuple[Any, Callable[[Answer], bool]]] = {
    "status": (
        (429, {"Retry-After": "7", "RateLimit": '"resolvers";r=0;t=7'}, b"slow"),
        lambda got: (got.status, got.body, got.headers["Retry-After"]) == (429, b"slow", "7"),
    ),
    "html": (None, lambda got: got.status == 200 and got.body.startswith(b"<html>")),
    "expire": (None, lambda got: got.status == 403),
    "etag": ("new", lambda got: is_ranged(got) and got.headers["ETag"] == '"new"'),
    "total": (5, lambda got: is_ranged(got, content_range="bytes 1000-1999/5")),
    "headers": (
        {"X-Cache": "Miss", "ETag": None},
        lambda got: got.headers["X-Cache"] == "Miss" and "ETag" not in got.headers,
    ),
    "content_range": ("bytes 0-999/7", lambda got: is_ranged(got, content_range="bytes 0-999/7")),
    "no_content_range": (None, lambda got: is_ranged(got, content_range=None)),
    "ignore_range": (None, lambda got: (got.status, got.body) == (200, WEIGHTS)),
    "short": (300, lambda got: is_ranged(got, PART[:300], f"bytes 1000-1299/{len(WEIGHTS)}")),
    "excess": (9, lambda got: is_ranged(got, PART + bytes(9))),
    "flip": (2, lambda got: is_ranged(got, PART[:2] + bytes([PART[2] ^ 255]) + PART[3:])),
    "gzip": (None, lambda got: got.headers["Content-Encoding"] == "gzip" and got.body[:2] == b"\x1f\x8b"),
    "chunked": (None, lambda got: is_ranged(got) and "Content-Length" not in got.headers),
    "cut": (400, lambda got: is_ranged(got, PART[:400], end="cut")),
    "rst": (400, lambda got: got.status == 206 and got.end == "reset" and PART[:400].startswith(got.body)),
    "stall": (0.01, is_ranged),
    "stall_body": ((500, 0.01), is_ranged),
}
"""Each fault's `arg`, and what a client that asks for 1,000 bytes gets. `reset` gives no answer, so it is apart."""


@pytest.fixture
def location(hub: FakeHub, commit: str) -> str:
    """The signed URL of the large file, with an empty log."""
    found = get_hf_file_metadata(hf_hub_url(REPO, "model.safetensors", revision=commit)).location
    hub.take_log()
    return found


def test_every_fault_has_a_case() -> None:
    assert set(FAULT_CASES) | {"reset"} == set(FAULTS)


@pytest.mark.parametrize("kind", FAULT_CASES)
def test_a_fault_strikes_once_and_as_described(hub: FakeHub, location: str, kind: str) -> None:
    arg, expected = FAULT_CASES[kind]
    fault = hub.fault(kind, r"model\.safetensors", origin="cdn", arg=arg)
    got = raw(location, SPAN)
    assert expected(got), got
    assert fault.struck == 1
    fresh = get_hf_file_metadata(hf_hub_url(REPO, "model.safetensors")).location
    assert is_ranged(raw(fresh, SPAN))


def test_reset_gives_no_answer(hub: FakeHub, location: str) -> None:
    hub.fault("reset")
    with pytest.raises(ConnectionResetError):
        raw(location)
    (request,) = hub.take_log()
    assert (request.status, request.sent) == (None, 0)


def test_an_unknown_fault_is_refused(hub: FakeHub) -> None:
    with pytest.raises(ValueError, match="no fault is named 'explode'"):
        hub.fault("explode")


def test_faults_wait_their_turn_and_pick_their_requests(hub: FakeHub, location: str) -> None:
    hub.fault("status", method="HEAD", origin="hub", arg=(503, {}, b""))
    hub.fault("status", r"config\.json", times=2, arg=(500, {}, b""))
    hub.fault("status", after=1, arg=(502, {}, b""))
    assert [raw(location, SPAN).status for _ in range(3)] == [206, 502, 206]
    small = hf_hub_url(REPO, "config.json")
    assert [raw(small).status for _ in range(3)] == [500, 500, 307]
    assert [raw(small, method="HEAD").status for _ in range(2)] == [503, 307]


@pytest.mark.usefixtures("commit")
def test_etag_and_size_of_a_redirect_can_change(hub: FakeHub) -> None:
    hub.fault("etag", method="HEAD", arg="ef" * 32)
    hub.fault("total", method="HEAD", arg=17)
    hub.fault("headers", method="HEAD", arg={"X-Repo-Commit": None})
    url = hf_hub_url(REPO, "model.safetensors")
    assert raw(url, method="HEAD").headers["X-Linked-ETag"] == f'"{"ef" * 32}"'
    assert raw(url, method="HEAD").headers["X-Linked-Size"] == "17"
    assert "X-Repo-Commit" not in raw(url, method="HEAD").headers


def test_expired_urls_stay_bad_and_new_ones_are_good(hub: FakeHub, location: str) -> None:
    hub.expire_urls()
    assert [raw(location, SPAN).status for _ in range(2)] == [403, 403]
    assert raw(get_hf_file_metadata(hf_hub_url(REPO, "model.safetensors")).location, SPAN).status == 206


def test_a_changed_signature_is_refused(location: str) -> None:
    assert raw(location.replace("Signature=", "Signature=0")).status == 403


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=-5", (-5, None)),
        ("bytes=1048570-", (-6, None)),
        ("bytes=1048570-9999999", (-6, None)),
    ],
)
def test_ranges(location: str, span: str, expected: tuple[int, int | None]) -> None:
    assert raw(location, span).body == WEIGHTS[slice(*expected)]


def test_a_range_beyond_the_end(location: str) -> None:
    got = raw(location, f"bytes={len(WEIGHTS)}-")
    assert (got.status, got.headers["Content-Range"]) == (416, f"bytes */{len(WEIGHTS)}")


def test_reset_of_the_hub_lets_go_of_a_stalled_request(hub: FakeHub, location: str) -> None:
    hub.fault("stall", arg=3600)
    answers: list[Answer] = []
    asking = threading.Thread(target=lambda: answers.append(raw(location)))
    asking.start()
    while not hub.log:
        time.sleep(0.001)
    hub.reset()
    asking.join()
    assert [answer.status for answer in answers] == [404]  # the repository has gone too


def test_bytes_sent_counts_bodies_by_origin(hub: FakeHub, location: str) -> None:
    raw(location, SPAN)
    raw(hf_hub_url(REPO, "model.safetensors"), method="HEAD")
    assert (hub.bytes_sent("cdn"), hub.bytes_sent("hub"), hub.bytes_sent()) == (1000, 0, 1000)


# ---- the rest of the stage


def test_no_other_network_can_be_reached() -> None:
    with pytest.raises(NetworkError), socket.socket() as outside:
        outside.connect(("192.0.2.1", 80))
    with pytest.raises(NetworkError):
        socket.create_connection(("example.org", 80))


def test_the_client_was_imported_with_the_fake_endpoint(hub: FakeHub) -> None:
    assert hub.url == huggingface_hub.constants.ENDPOINT
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_field_that_no_repository_has_is_refused(hub: FakeHub) -> None:
    with pytest.raises(AttributeError):
        hub.add(REPO, {}, gatted="auto")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_checkpoint_holds_its_head(name: str, shards: int) -> None:
    checkpoint = build(name, rows=40, columns=8, tokens=30, shards=shards, kind="anisotropic")
    content = checkpoint[checkpoint.head_file]
    if checkpoint.head_file.endswith(".bin"):
        stored = torch.load(io.BytesIO(content), weights_only=True)
    else:
        stored = safetensors.torch.load(content)
    assert torch.equal(stored[checkpoint.head_name], checkpoint.head)
    assert checkpoint.head.shape == (40, 8)
    assert checkpoint.head.dtype == ARCHITECTURES[name].dtype
    assert checkpoint.head[30:].float().norm(dim=1).max() < 0.1 * checkpoint.head[:30].float().norm(dim=1).min()


def test_legacy_torch_files_are_not_zip() -> None:
    tensors = {"weight": torch.ones(2, 3)}
    assert torch_bytes(tensors)[:2] == b"PK"
    assert torch_bytes(tensors, legacy=True)[:2] != b"PK"
