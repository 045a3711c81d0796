"""What the Hub, the catalog, the machine or a limit refuses: one clear line, the right exit status, nothing moved."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import torch

from llmsuper.store import ResultStore
from tests.checkpoints import pythia_like
from tests.command import llmsuper, succeed, the_error, weights_requests

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fake_hub import FakeHub


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def gated(hub: FakeHub) -> list[str]:
    hub.add("a/gated", pythia_like(), gated="manual")
    return ["a/gated"]


def ignored_ranges(hub: FakeHub) -> list[str]:
    hub.add("a/b", pythia_like(rows=6400, tokens=6000))
    hub.fault("ignore_range", origin="cdn", times=100)
    return ["a/b"]


def wrong_claim(hub: FakeHub) -> list[str]:
    hub.add("EleutherAI/pythia-14m", pythia_like())
    return ["pythia-14m"]


def over_the_limit(hub: FakeHub) -> list[str]:
    hub.add("a/b", pythia_like())
    return ["a/b", "--max-bytes", "81919"]


def unlike_tensor(hub: FakeHub) -> list[str]:
    hub.add("a/b", pythia_like())
    return ["a/b", "--lm-head", "embed_out"]


def a_vector(hub: FakeHub) -> list[str]:
    hub.add("a/b", pythia_like())
    return ["a/b", "--lm-head", "gpt_neox.final_layer_norm.weight"]


def no_such_revision(hub: FakeHub) -> list[str]:
    hub.add("a/b", pythia_like())
    return ["a/b@step7"]


def no_such_revisions(hub: FakeHub) -> list[str]:
    hub.add("a/b", pythia_like())
    return ["a/b@step*"]


def too_long_a_body(hub: FakeHub) -> list[str]:
    hub.add("a/b", pythia_like())
    hub.fault("excess", origin="cdn", times=100, arg=10)
    return ["a/b"]


REFUSED: dict[str, tuple[Callable[[FakeHub], list[str]], int, str]] = {
    "gated": (gated, 4, r"a/gated.*gated.*licence at \S+/a/gated.*hf auth login"),
    "missing": (lambda _: ["a/gone"], 4, r"a/gone@main: there is no such model at http://.*hf auth login"),
    "no such revision": (no_such_revision, 4, r"a/b@step7: the repository has no such branch, tag or commit.*/a/b"),
    "ranges ignored": (ignored_ranges, 4, r"a/b@.*ignores byte ranges.*whole file, 0\.00 GB.*hf download a/b"),
    "a body too long": (too_long_a_body, 4, r"a/b@.*model\.safetensors"),
    "--max-bytes": (over_the_limit, 4, r"a/b: 'embed_out\.weight' has 81,920 bytes to move, --max-bytes allows 81,919"),
    "wrong claim": (wrong_claim, 3, r"EleutherAI/pythia-14m: the model list claims 50304 rows.*has 640.*pythia\.toml"),
    "no pattern": (lambda _: ["pythio"], 3, r"'pythio': no model matches\. Near to it: pythia"),
    "no owner": (lambda _: ["nobody/x-*"], 3, r"'nobody/x-\*': no model matches"),
    "no path": (lambda _: ["./gone"], 3, r"\./gone: there is no such file or folder"),
    "a glob of revisions": (no_such_revisions, 3, r"'a/b@step\*': .*matches 'step\*'.*main"),
    "nothing left": (lambda _: ["gpt2", "--exclude", "*"], 3, r"gpt2: --exclude leaves none of 4 models"),
    "no such tensor": (unlike_tensor, 5, r"a/b@.*no tensor is named 'embed_out'.*embed_out\.weight.*--lm-head"),
    "not a matrix": (a_vector, 5, r"a/b@.*'gpt_neox\.final_layer_norm\.weight' has shape \[64\].*--lm-head"),
    "no such statistic": (
        lambda _: ["gpt2", "--stat", "norm"],
        3,
        r"no statistic is named 'norm'.*Did you mean 'norms'",
    ),
    "no such backend": (lambda _: ["gpt2", "--backend", "torhc"], 3, r"no backend is named 'torhc'.*'torch'\?"),
    "no such device": (lambda _: ["gpt2", "--device", "tpu"], 6, r"backend 'torch' runs on cuda or cpu, not on 'tpu'"),
}


@pytest.mark.parametrize(("prepare", "status", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_is_one_line_and_its_own_status(
    prepare: Callable[[FakeHub], list[str]], status: int, message: str, hub: FakeHub
) -> None:
    done = llmsuper("overlap", *prepare(hub))
    assert (done.exit_code, done.stdout) == (status, ""), done.stderr
    assert re.match(message, the_error(done)), done.stderr
    assert list(ResultStore("reports/data/heads").records()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_known_before_anything_is_asked_of_the_hub(hub: FakeHub) -> None:
    done = llmsuper("overlap", "gpt2", "--device", "cuda")
    assert done.exit_code == 6
    assert the_error(done) == "device 'cuda' is not on this machine: torch finds no GPU. Use --device cpu."
    assert hub.take_log() == []


def test_a_refused_head_moves_no_weights(hub: FakeHub) -> None:
    done = llmsuper("overlap", *over_the_limit(hub))
    assert done.exit_code == 4
    assert [request.range for request in weights_requests(hub)] == ["bytes=0-65535"]  # the header alone
    succeed("overlap", "a/b", "--max-bytes", "81920")


def test_ranges_that_are_ignored_do_not_move_the_file(hub: FakeHub) -> None:
    """The server sends until the client hangs up, which is at once: what the sockets hold, not the whole file."""
    hub.add("a/b", pythia_like(rows=200_000, tokens=100))  # 51 MB
    hub.fault("ignore_range", origin="cdn", times=100)
    done = llmsuper("overlap", "a/b")
    assert re.match(r"a/b@.*began to send the whole file, 0\.05 GB", the_error(done))
    assert hub.bytes_sent("cdn") < 20e6


def test_a_token_opens_a_gated_model(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("a/gated", pythia_like(), gated="manual", allowed_tokens=["hf_valid"])
    monkeypatch.setenv("HF_TOKEN", "hf_valid")
    succeed("overlap", "a/gated")
    assert all(request.auth is None for request in weights_requests(hub))


# ---- the results folder


@pytest.mark.parametrize("folder", ["file/heads", "/proc/self/heads"])
def test_a_folder_that_cannot_be_written_stops_the_run_before_a_request(
    hub: FakeHub, tmp_path: Path, folder: str
) -> None:
    hub.add("a/b", pythia_like())
    (tmp_path / "file").touch()
    done = llmsuper("overlap", "a/b", "gpt2", "--results", folder)
    assert (done.exit_code, done.stdout) == (1, "")
    assert re.match(rf"results folder {folder}: cannot be written \(.*--results DIR", the_error(done))
    assert hub.take_log() == []


def test_a_record_that_is_not_one_is_named_and_stays_where_it_is(hub: FakeHub) -> None:
    hub.add("a/one", pythia_like())
    hub.add("a/two", pythia_like(seed=1))
    succeed("overlap", "a/one")
    (path,) = ResultStore("reports/data/heads").folder.iterdir()
    path.write_text("{")
    done = llmsuper("overlap", "a/one", "a/two", "-q")
    assert done.exit_code == 1
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["a/two"]
    error, _ = done.stderr.splitlines()
    assert error.startswith(f"error: {path}: is not a record of llmsuper (JSONDecodeError: ")
    assert path.read_text() == "{"


def test_usage_is_clicks_own(hub: FakeHub) -> None:
    for wrong in (
        ["overlap"],
        ["overlap", "gpt2", "--rows", "most"],
        ["overlap", "gpt2", "--max-bytes", "-1"],
        ["fly"],
    ):
        assert llmsuper(*wrong).exit_code == 2
    assert hub.take_log() == []
