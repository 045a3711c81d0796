"""What can be wrong with a model or a command: one clear line, the right exit status, and nothing stored is lost."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
import torch

from llmsuper.store import ResultStore
from tests.checkpoints import Checkpoint, pythia_like, qwen_untied, safetensors_bytes
from tests.command import llmsuper, model_list, succeed, the_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fake_hub import FakeHub


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stored(folder: str = "reports/data/heads") -> list[str]:
    return [record.repo for record in ResultStore(folder).records()]


# ---- models that fail: what they are made of, the exit status, and what the error says

Files = dict[str, bytes]


def with_header(checkpoint: Checkpoint, change: Callable[[dict[str, dict[str, object]]], object]) -> Files:
    """The checkpoint with another safetensors header before the same tensors."""
    content = checkpoint["model.safetensors"]
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    packed = json.dumps(header).encode()
    return {**checkpoint, "model.safetensors": len(packed).to_bytes(8, "little") + packed + content[8 + length :]}


def no_head() -> Files:
    checkpoint = pythia_like()
    inside = {name: tensor for name, tensor in checkpoint.tensors.items() if "embed" not in name}
    return {**checkpoint, "model.safetensors": safetensors_bytes(inside)}


def no_head_in_the_index() -> Files:
    checkpoint = qwen_untied()
    index = json.loads(checkpoint["model.safetensors.index.json"])
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if "layers" in name}
    return {**checkpoint, "model.safetensors.index.json": json.dumps(index).encode()}


def cut_short() -> Files:
    checkpoint = pythia_like()
    return {**checkpoint, "model.safetensors": checkpoint["model.safetensors"][:-1000]}


def cut_in_the_header() -> Files:
    checkpoint = pythia_like()
    return {**checkpoint, "model.safetensors": checkpoint["model.safetensors"][:100]}


def lying_offsets() -> Files:
    checkpoint = pythia_like()
    begin, end = checkpoint.head.nbytes, 2 * checkpoint.head.nbytes
    return with_header(checkpoint, lambda h: h["embed_out.weight"].update(data_offsets=[begin, end]))


def lying_shape() -> Files:
    return with_header(pythia_like(), lambda h: h["embed_out.weight"].update(shape=[640, 640]))


def offsets_beyond_the_file() -> Files:
    checkpoint = pythia_like()
    begin = 10 * len(checkpoint["model.safetensors"])
    return with_header(
        checkpoint, lambda h: h["embed_out.weight"].update(data_offsets=[begin, begin + checkpoint.head.nbytes])
    )


def float8() -> Files:
    checkpoint = pythia_like()
    tensors = {**checkpoint.tensors, "embed_out.weight": checkpoint.head.to(torch.float8_e4m3fn)}
    return {**checkpoint, "model.safetensors": safetensors_bytes(tensors)}


def nan_row() -> Files:
    checkpoint = pythia_like()
    checkpoint.head[411, 3] = float("nan")
    return {**checkpoint, "model.safetensors": safetensors_bytes(checkpoint.tensors)}


def all_zero() -> Files:
    checkpoint = pythia_like()
    checkpoint.head.zero_()
    return {**checkpoint, "model.safetensors": safetensors_bytes(checkpoint.tensors)}


def only_a_pickle() -> Files:
    checkpoint = pythia_like()
    return {"config.json": checkpoint["config.json"], "model.h5": b"\x89HDF" * 100}


def not_json(file: str) -> Callable[[], Files]:
    return lambda: {**pythia_like(), file: b"{not JSON"}


MALFORMED: dict[str, tuple[Callable[[], Files], str]] = {
    "no head": (no_head, r"a/bad@[0-9a-f]{7}: .*no LM head under any of the names .*embed_out\.weight.*--lm-head"),
    "no head in the index": (no_head_in_the_index, r"a/bad@[0-9a-f]{7}: .*no LM head under any of the names"),
    "no weights": (lambda: {"config.json": b"{}", "README.md": b"soon"}, r"a/bad.*no weight file.*config\.json"),
    "only Keras weights": (only_a_pickle, r"a/bad.*model\.h5 \(Keras HDF5\).*safetensors"),
    "cut short": (cut_short, r"a/bad@.*model\.safetensors: .*describes 222,336 bytes, the file has 221,336"),
    "cut in the header": (cut_in_the_header, r"a/bad@.*model\.safetensors: .*header claims .*the file has 100"),
    "a header that lies about offsets": (lying_offsets, r"a/bad@.*(hole|overlap).*'embed_out\.weight'"),
    "a header that lies about a shape": (lying_shape, r"a/bad@.*'embed_out\.weight' has 81,920 bytes for shape"),
    "offsets beyond the file": (offsets_beyond_the_file, r"a/bad@.*malformed safetensors: there is a hole before"),
    "eight-bit floats": (float8, r"a/bad@.*'embed_out\.weight' is stored as F8_E4M3; .*BF16.*--lm-head"),
    "a NaN": (nan_row, r"a/bad, model\.safetensors, 'embed_out\.weight': row 411 holds a NaN"),
    "zero rows alone": (all_zero, r"a/bad, model\.safetensors, 'embed_out\.weight': no row has a non-zero norm"),
    "a tokenizer that is not JSON": (not_json("tokenizer.json"), r"a/bad/tokenizer\.json: .*--rows all"),
    "a config that is not JSON": (not_json("config.json"), r"a/bad@.*config\.json is not valid JSON"),
}


@pytest.fixture(params=MALFORMED.values(), ids=MALFORMED.keys())
def malformed(request: pytest.FixtureRequest, hub: FakeHub) -> str:
    """A checkpoint a/bad between a/one and a/two, and what must be said of it."""
    files, message = request.param
    hub.add("a/one", pythia_like())
    hub.add("a/bad", files())
    hub.add("a/two", pythia_like(seed=1))
    return str(message)


def test_a_malformed_checkpoint_is_one_line_and_status_5(malformed: str) -> None:
    done = llmsuper("overlap", "a/bad")
    assert (done.exit_code, done.stdout) == (5, "")
    assert re.match(malformed, the_error(done)), done.stderr
    assert stored() == []


def test_what_comes_before_and_after_it_is_stored(malformed: str) -> None:
    done = llmsuper("overlap", "a/one", "a/bad", "a/two", "--json")
    assert done.exit_code == 1
    assert [json.loads(line)["repo"] for line in done.stdout.splitlines()] == ["a/one", "a/two"]
    error, summary = done.stderr.splitlines()
    assert re.match(f"error: {malformed}", error), error
    assert summary == "1 of 3 models failed: a/bad"
    assert stored() == ["a/one", "a/two"]


def test_fail_fast_stops_at_it(malformed: str) -> None:
    done = llmsuper("overlap", "a/one", "a/bad", "a/two", "--fail-fast", "-q")
    assert done.exit_code == 5
    assert re.match(malformed, the_error(done))
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == stored() == ["a/one"]


@pytest.mark.parametrize("files", [files for files, _ in MALFORMED.values()], ids=MALFORMED.keys())
def test_a_malformed_folder_is_one_line_too(files: Callable[[], Files], tmp_path: Path) -> None:
    Checkpoint(files(), {}, "", 0).write(tmp_path / "bad")
    done = llmsuper("overlap", "./bad")
    assert (done.exit_code, done.stdout) == (5, "")
    assert the_error(done).startswith("bad")


# ---- disagreements that are told and do not stop


def test_a_config_that_disagrees_with_the_file_is_a_note(hub: FakeHub) -> None:
    checkpoint = pythia_like()
    claims = {"hidden_size": 128, "vocab_size": 600, "tie_word_embeddings": True}
    checkpoint["config.json"] = json.dumps(json.loads(checkpoint["config.json"]) | claims).encode()
    hub.add("a/b", checkpoint)
    done = succeed("overlap", "a/b")
    (record,) = ResultStore("reports/data/heads").records()
    told = (
        "hidden_size = 128, the head has 64",
        "vocab_size = 600, the head has 640",
        "tie_word_embeddings = true, but",
    )
    assert [part in note for part, note in zip(told, record.notes, strict=True)] == [True] * 3
    assert done.stderr.splitlines() == [f"warning: a/b: {note}" for note in record.notes]
    assert succeed("plan", "a/b").stderr == succeed("overlap", "a/b").stderr == done.stderr


def test_a_model_list_that_disagrees_with_the_file_is_an_error(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("a/b", pythia_like())
    lists = model_list(tmp_path / "lists", "mine", "a/b", width=64, rows=600)
    done = llmsuper("overlap", "mine", "--lists", lists)
    assert done.exit_code == 3
    assert "claims 600 rows" in the_error(done)
    succeed("overlap", "mine", "--lists", model_list(tmp_path / "lists", "mine", "a/b", width=64, rows=640))


def test_a_malformed_model_list_names_itself(tmp_path: Path) -> None:
    lists = model_list(tmp_path / "lists", "mine", "a/b", width="wide")
    done = llmsuper("overlap", "mine", "--lists", lists)
    assert done.exit_code == 3
    assert re.match(r".*mine\.toml: width is 'wide'\. Write a whole number", the_error(done))
