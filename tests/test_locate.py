"""The head of every kind of checkpoint is found from headers alone, and what cannot be its head is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
import torch

from llmsuper.errors import CatalogError, CheckpointError
from llmsuper.hub.locate import HEAD_NAMES, locate_head
from llmsuper.hub.repository import open_repository
from llmsuper.types import ModelEntry
from tests.checkpoints import ARCHITECTURES, Checkpoint, build, safetensors_bytes, weight_files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llmsuper.types import HeadLocation
    from tests.fake_hub import FakeHub

REPO = "org/tiny"
HEAD = torch.ones(6, 4)


def locate(hub: FakeHub, files: Mapping[str, bytes], tensor: str | None = None, **claims: Any) -> HeadLocation:
    hub.reset()
    hub.add(REPO, files)
    return locate_head(open_repository(ModelEntry(REPO, **claims)), tensor=tensor)


def single(tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> dict[str, bytes]:
    files = {"model.safetensors": safetensors_bytes(tensors)}
    return files if config is None else {**files, "config.json": json.dumps(config).encode()}


def stored(files: Mapping[str, bytes], found: HeadLocation) -> bytes:
    return files[found.file][found.tensor.begin : found.tensor.end]


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())


# ---- what there is


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("where", ["hub", "local"])
def test_the_head_of(hub: FakeHub, tmp_path: Path, name: str, shards: int, where: str) -> None:
    checkpoint: Checkpoint = build(name, rows=64, columns=16, tokens=60, format="safetensors", shards=shards)
    if where == "hub":
        commit = hub.add(REPO, checkpoint)
        entry = ModelEntry(REPO)
    else:
        entry = ModelEntry(str(checkpoint.write(tmp_path / "model")), local=True)
        commit = open_repository(entry).commit
    found = locate_head(open_repository(entry))
    assert (found.commit, found.file, found.tensor.name) == (commit, checkpoint.head_file, checkpoint.head_name)
    assert (found.rows, found.columns, found.nbytes) == (64, 16, checkpoint.head.nbytes)
    assert found.tied == ("embed" in checkpoint.head_name.replace("embed_out", "") or "wte" in checkpoint.head_name)
    assert (found.notes, found.row_ids) == ((), None)
    assert stored(checkpoint, found) == raw(checkpoint.head)
    weights = [content for file, content in checkpoint.items() if file.endswith(".safetensors")]
    assert found.checkpoint_bytes == sum(map(len, weights))


@pytest.mark.parametrize("shards", [1, 3])
def test_only_headers_cross_the_network_and_only_of_one_shard(hub: FakeHub, shards: int) -> None:
    checkpoint = build("qwen_untied", rows=4000, columns=64, tokens=3900, shards=shards)
    hub.add(REPO, checkpoint)
    repository = open_repository(ModelEntry(REPO))
    found = locate_head(repository)
    log = hub.take_log()
    assert [(r.origin, r.range) for r in log if r.range] == [("cdn", "bytes=0-65535")]
    opened = {r.path.rsplit("/", 1)[1] for r in log if r.method == "HEAD" and r.status == 302}
    assert opened == {found.file}
    assert sum(r.method == "GET" and "/api/models" in r.path for r in log) == 1
    assert len(log) == (6 if shards == 1 else 9)  # list, HEAD, range; and 3 for each small file
    assert repository.open(found.file).moved == 65536
    assert hub.take_log() == [], "a file that is open is not asked for again"


@pytest.mark.parametrize("head", HEAD_NAMES, ids=lambda head: head.name)
def test_every_name_is_known(hub: FakeHub, head: Any) -> None:
    found = locate(hub, single({"model.layers.0.mlp.weight": torch.ones(3, 3), head.name: HEAD}))
    assert (found.tensor.name, found.tied) == tuple(head)


def test_an_own_head_comes_before_every_embedding() -> None:
    tied = [head.tied for head in HEAD_NAMES]
    assert tied == sorted(tied)
    assert len({head.name for head in HEAD_NAMES}) == len(HEAD_NAMES)


@pytest.mark.parametrize("shards", [1, 2])
def test_the_head_wins_over_the_embedding(hub: FakeHub, shards: int) -> None:
    tensors = {"model.embed_tokens.weight": torch.zeros(6, 4), "lm_head.weight": HEAD}
    found = locate(hub, weight_files(tensors, shards=shards))
    assert (found.tensor.name, found.tied) == ("lm_head.weight", False)


def test_the_model_list_has_the_say_about_names(hub: FakeHub) -> None:
    files = single({"lm_head.weight": HEAD, "score.weight": torch.zeros(2, 4)})
    assert locate(hub, files, lm_head=("none.weight", "score.weight")).tensor.name == "score.weight"
    with pytest.raises(CheckpointError, match=r"no LM head under any of the names none.weight"):
        locate(hub, files, lm_head=("none.weight",))


def test_a_tensor_can_be_asked_for_by_name(hub: FakeHub) -> None:
    files = build("qwen_untied", rows=64, columns=16, tokens=60, shards=3)
    asked = locate(hub, files, tensor="model.embed_tokens.weight", rows=1, columns=1)
    assert (asked.tensor.name, asked.tied, asked.notes) == ("model.embed_tokens.weight", True, ())
    assert stored(files, asked) == raw(files.tensors["model.embed_tokens.weight"])
    assert locate(hub, files, tensor="model.layers.0.mlp.up_proj.weight").columns == 16


@pytest.mark.parametrize("shards", [1, 3])
def test_a_name_that_is_not_there_is_answered_with_near_ones(hub: FakeHub, shards: int) -> None:
    files = build("qwen_untied", rows=64, columns=16, tokens=60, shards=shards)
    with pytest.raises(CheckpointError, match=r"no tensor is named 'lm_head'; the most like it are .*lm_head.weight"):
        locate(hub, files, tensor="lm_head")
    with pytest.raises(CheckpointError, match="no tensor is named 'zzz'; the most like it are "):
        locate(hub, files, tensor="zzz")


def test_a_local_file_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    path.write_bytes(safetensors_bytes({"lm_head.weight": HEAD}))
    for place in (path, tmp_path):
        found = locate_head(open_repository(ModelEntry(str(place), local=True)))
        assert (found.file, found.rows) == ("head.safetensors", 6)
    (tmp_path / "config.json").write_text('{"vocab_size": 7}')
    found = locate_head(open_repository(ModelEntry(str(path), local=True)))
    assert found.notes == ("config.json says vocab_size = 7, the head has 6 rows.",)


def test_weights_in_subfolders_are_another_model(hub: FakeHub) -> None:
    files = {"onnx/a.safetensors": b"", "unet/b.safetensors": b"", **single({"lm_head.weight": HEAD})}
    files["consolidated.safetensors"] = files.pop("model.safetensors")
    assert locate(hub, files).file == "consolidated.safetensors"


def test_rows_of_a_subset(hub: FakeHub) -> None:
    subset = {"vocab_size": 100, "row_subset": {"start": 3, "stop": 99, "step": 16}}
    found = locate(hub, single({"lm_head.weight": HEAD}, subset))
    assert (found.row_ids, found.notes) == ((3, 16), ())
    subset["row_subset"] = {"start": 0, "stop": 100, "step": 16}
    found = locate(hub, single({"lm_head.weight": HEAD}, subset))
    assert found.notes == ("config.json says row_subset has 7 rows, the head has 6.",)


@pytest.mark.parametrize("subset", [[], {"start": 0}, {"start": 0, "stop": 9, "step": 0}, {"start": 0, "stop": "9"}, 1])
def test_a_malformed_subset(hub: FakeHub, subset: Any) -> None:
    with pytest.raises(CheckpointError, match=r"`row_subset` in config.json is "):
        locate(hub, single({"lm_head.weight": HEAD}, {"row_subset": subset}))


# ---- config.json is a check

OWN = {"lm_head.weight": HEAD}
TIED = {"model.embed_tokens.weight": HEAD}
EMBEDDING = "there is no head of its own: the input embedding"
CHECKED: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], tuple[str, ...]]] = {
    "nothing claimed": (OWN, {}, ()),
    "all as it is": (OWN, {"vocab_size": 6, "hidden_size": 4, "tie_word_embeddings": False}, ()),
    "tied as it is": (TIED, {"tie_word_embeddings": True}, ()),
    "null claims nothing": (OWN, {"hidden_size": None, "vocab_size": None, "tie_word_embeddings": None}, ()),
    "width": (OWN, {"hidden_size": 8}, ("config.json says hidden_size = 8, the head has 4 columns.",)),
    "n_embd": (OWN, {"n_embd": 8}, ("config.json says n_embd = 8, the head has 4 columns.",)),
    "d_model": (OWN, {"d_model": 8}, ("config.json says d_model = 8, the head has 4 columns.",)),
    "the head's own width first": (OWN, {"hidden_size": 8, "word_embed_proj_dim": 4}, ()),
    "rows": (OWN, {"vocab_size": 5}, ("config.json says vocab_size = 5, the head has 6 rows.",)),
    "tied, with a head": (
        OWN,
        {"tie_word_embeddings": True},
        ("config.json says tie_word_embeddings = true, but there is a head of its own: 'lm_head.weight' is used.",),
    ),
    "untied, without": (
        TIED,
        {"weight_tying": False},
        (f"config.json says weight_tying = false, but {EMBEDDING} 'model.embed_tokens.weight' is used.",),
    ),
    "text_config first": (
        OWN,
        {"hidden_size": 9, "text_config": {"hidden_size": 4, "vocab_size": 7}},
        ("config.json says vocab_size = 7, the head has 6 rows.",),
    ),
    "top level where text_config is silent": (
        TIED,
        {"tie_word_embeddings": True, "vocab_size": 6, "text_config": {"hidden_size": 4}},
        (),
    ),
    "a number that is text": (
        OWN,
        {"hidden_size": "4"},
        ("config.json says hidden_size = '4', the head has 4 columns.",),
    ),
    "a text without end": (
        OWN,
        {"hidden_size": "x" * 100_000},
        ("config.json says hidden_size = 'xxxxxxxxxxxx...xxxxxxxxxxxxx', the head has 4 columns.",),
    ),
}
"""Tensors, config.json, and the notes."""


@pytest.mark.parametrize("name", CHECKED)
def test_the_checkpoint_decides_and_config_is_a_note(hub: FakeHub, name: str) -> None:
    tensors, config, notes = CHECKED[name]
    assert locate(hub, single(tensors, config)).notes == notes


@pytest.mark.parametrize(("content", "found"), [(b"{", "not valid JSON"), (b"[]", "not a JSON object")])
def test_a_malformed_config(hub: FakeHub, content: bytes, found: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json is {found}"):
        locate(hub, {**single(OWN), "config.json": content})


# ---- what the model list claims


@pytest.mark.parametrize(("claim", "value", "there"), [("rows", 7, 6), ("columns", 8, 4)])
def test_a_claim_that_is_wrong(hub: FakeHub, claim: str, value: int, there: int) -> None:
    message = rf"claims {value} {claim}, 'lm_head.weight' in model.safetensors has {there} .*model_lists/pythia.toml"
    with pytest.raises(CatalogError, match=message):
        locate(hub, single(OWN), family="pythia", **{claim: value})


def test_claims_that_are_right(hub: FakeHub) -> None:
    assert locate(hub, single(OWN), rows=6, columns=4, width=8).columns == 4


# ---- what cannot be a head


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "uint8", "bool", "int64"])
def test_a_quantised_head_is_refused_by_name(hub: FakeHub, dtype: str) -> None:
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' is stored as (F8_E\dM\d|U8|I8|BOOL|I64); .* F32"):
        locate(hub, single({"lm_head.weight": HEAD.to(getattr(torch, dtype))}))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_head_of_floating_point_numbers(hub: FakeHub, dtype: str) -> None:
    assert locate(hub, single({"lm_head.weight": HEAD.to(getattr(torch, dtype))})).rows == 6


@pytest.mark.parametrize("shape", [(6,), (2, 3, 4), (), (0, 4), (6, 0)])
def test_what_is_not_a_matrix(hub: FakeHub, shape: tuple[int, ...]) -> None:
    for tensor in (None, "lm_head.weight"):
        with pytest.raises(CheckpointError, match=r"'lm_head.weight' has shape \[.*\], which is not a matrix"):
            locate(hub, single({"lm_head.weight": torch.ones(shape)}), tensor)


def test_no_head_lists_the_matrices_there_are(hub: FakeHub) -> None:
    files = single({"a.weight": torch.ones(2, 2), "b.weight": torch.ones(9, 2), "c.bias": torch.ones(7)})
    message = r"names lm_head.weight, .*Two-dimensional tensors, largest first: b.weight \[9, 2\], a.weight \[2, 2\]\. "
    with pytest.raises(CheckpointError, match=message + "Name the head with --lm-head NAME"):
        locate(hub, files)


def test_no_head_in_an_index_lists_what_lies_outside_the_layers(hub: FakeHub) -> None:
    files = weight_files({"a.layers.0.weight": HEAD, "a.norm": HEAD}, shards=2)
    with pytest.raises(CheckpointError, match=r"Tensors outside the layers: a.norm. Name the head"):
        locate(hub, files)


def test_index_and_shard_disagree(hub: FakeHub) -> None:
    files = weight_files({"norm.weight": HEAD, "lm_head.weight": HEAD}, shards=2)
    index = json.loads(files["model.safetensors.index.json"])
    index["weight_map"]["lm_head.weight"] = index["weight_map"]["norm.weight"]
    wrong = {**files, "model.safetensors.index.json": json.dumps(index).encode()}
    with pytest.raises(CheckpointError, match=r"puts 'lm_head.weight' in model-00001.*, which does not hold it"):
        locate(hub, wrong)
    index["weight_map"]["lm_head.weight"] = "model-00007.safetensors"
    wrong["model.safetensors.index.json"] = json.dumps(index).encode()
    with pytest.raises(CheckpointError, match=r"puts 'lm_head.weight' in model-00007.safetensors, which is not there"):
        locate(hub, wrong)


@pytest.mark.parametrize("content", [b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": 1}}'])
def test_an_index_without_a_map(hub: FakeHub, content: bytes) -> None:
    with pytest.raises(CheckpointError, match="has no weight_map of file names"):
        locate(hub, {"model.safetensors.index.json": content})


def test_an_index_that_points_to_a_file_of_another_format(hub: FakeHub) -> None:
    index = json.dumps({"weight_map": {"lm_head.weight": "tf_model.h5"}}).encode()
    with pytest.raises(CheckpointError, match="this is Keras HDF5, which is not read"):
        locate(hub, {"model.safetensors.index.json": index, "tf_model.h5": b"x"})


def test_several_files_without_an_index(hub: FakeHub) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"there are 2 weight files and no model.safetensors.index.json or pytorch_.*: a.safe.*--file",
    ):
        locate(hub, {"a.safetensors": b"", "b.safetensors": b""})


def test_formats_that_are_not_read(hub: FakeHub) -> None:
    files = {"tf_model.h5": b"", "flax_model.msgpack": b"", "config.json": b"{}"}
    message = r"not read: flax_model.msgpack \(Flax msgpack\), tf_model.h5 \(Keras HDF5\). Use a revision"
    with pytest.raises(CheckpointError, match=message):
        locate(hub, files)


def test_no_weights_at_all(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no weight file among its files: config.json. Check the repo"):
        locate(hub, {"config.json": b"{}"})
    with pytest.raises(CheckpointError, match=r"among its files: none at all. Give the folder or the file"):
        locate_head(open_repository(ModelEntry(str(tmp_path), local=True)))


def test_the_hub_cache_without_weights_says_that_only_it_was_searched(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, single(OWN, {}))
    huggingface_hub.hf_hub_download(REPO, "config.json")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"only what is kept on this machine was searched. Run this again online"):
        locate_head(open_repository(ModelEntry(REPO)))


def test_a_cut_file_is_noticed_before_any_row_is_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(single(OWN)["model.safetensors"][:-1])
    with pytest.raises(CheckpointError, match=r"the header describes \d+ bytes, the file has \d+"):
        locate_head(open_repository(ModelEntry(str(tmp_path), local=True)))


def test_real_heads(weights: Path) -> None:
    for folder in sorted(path.parent for path in weights.glob("*/config.json")):
        config = json.loads((folder / "config.json").read_text())
        found = locate_head(open_repository(ModelEntry(str(folder), local=True)))
        assert found.columns == config.get("hidden_size", config.get("d_model"))
        assert found.notes == (), folder.name
        assert (found.row_ids is not None) == ("row_subset" in config)
