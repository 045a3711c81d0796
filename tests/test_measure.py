"""Measuring: the numbers are those of every pair of the right rows, and the record says which rows those were."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from llmsuper.errors import BackendError, CatalogError, CheckpointError, HubError, LlmsuperError, UnknownNameError
from llmsuper.measure import Settings, measure_head, measure_heads, plan_head
from llmsuper.store import ResultStore
from llmsuper.types import ModelEntry
from tests import checkpoints
from tests.checkpoints import build, gpt2_like, pythia_like, qwen_tied, qwen_untied, weight_files
from tests.command import weights_requests
from tests.conftest import empty_home

if TYPE_CHECKING:
    from pathlib import Path

    from llmsuper.types import HeadLocation
    from tests.checkpoints import Checkpoint
    from tests.fake_hub import FakeHub

KINDS = {
    "pythia": pythia_like,
    "gpt2": gpt2_like,
    "qwen tied": qwen_tied,
    "qwen untied": qwen_untied,
    "opt": partial(build, "opt", format="safetensors"),
    "opt-350m": partial(build, "opt350", format="safetensors"),
}
PROMISE = 1e-6
"""Relative, of the mean squared overlap; see `kernels`."""


def brute_force(rows: torch.Tensor, *, centred: bool = False) -> tuple[float, float]:
    """Mean squared overlap and mean norm of rows (n, m), by every pair of them, in float64."""
    W = rows.double().numpy()
    if centred:
        W = W - W.mean(axis=0)
    norms = np.linalg.norm(W, axis=1)
    overlaps = (W / norms[:, None]) @ (W / norms[:, None]).T
    return float(np.mean(overlaps[~np.eye(len(W), dtype=bool)] ** 2)), float(norms.mean())


def assert_measured(statistics: dict[str, dict[str, Any]], rows: torch.Tensor) -> None:
    """The statistics are those of exactly these rows."""
    overlap, norm = brute_force(rows)
    assert statistics["overlap"]["mean_squared_overlap"] == pytest.approx(overlap, rel=PROMISE)
    assert statistics["overlap"]["rows"] == statistics["norms"]["rows"] == len(rows)
    assert statistics["norms"]["mean"] == pytest.approx(norm, rel=PROMISE)
    if "centred_overlap" in statistics:
        centred, _ = brute_force(rows, centred=True)
        assert statistics["centred_overlap"]["mean_squared_overlap"] == pytest.approx(centred, rel=1e-5)


def local(checkpoint: Checkpoint, folder: Path) -> ModelEntry:
    return ModelEntry(str(checkpoint.write(folder)), local=True)


# ---- the numbers


@pytest.mark.parametrize("rule", ["tokens", "all"])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_a_record_holds_both_classes_of_rows_and_counts_the_padding(make: Any, rule: Any, tmp_path: Path) -> None:
    checkpoint = make(kind="anisotropic")
    record = measure_head(local(checkpoint, tmp_path), Settings(row_rule=rule))
    assert_measured(record.statistics["tokens"], checkpoint.head[: checkpoint.tokens])
    assert_measured(record.statistics["all"], checkpoint.head)
    with_centred = {name for name, found in record.statistics.items() if "centred_overlap" in found}
    assert with_centred == {rule}
    assert (record.rows, record.columns) == tuple(checkpoint.head.shape)
    assert (record.row_rule, record.row_class, record.padding_rows) == (rule, rule, 40)
    assert (record.tensor, record.file) == (checkpoint.head_name, checkpoint.head_file)
    assert record.statistic("norms")["rows"] == (600 if rule == "tokens" else 640)
    assert record.statistics["tokens"]["overlap"] != record.statistics["all"]["overlap"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_dtype_is_measured_as_stored(dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = pythia_like(dtype=dtype)
    record = measure_head(local(checkpoint, tmp_path))
    assert_measured(record.statistics["tokens"], checkpoint.head[:600])
    assert record.made_by["precision"] == ("exact" if dtype == torch.float64 else "float32")


def test_without_padding_a_centred_statistic_is_that_of_both_classes(tmp_path: Path) -> None:
    record = measure_head(local(pythia_like(tokens=640), tmp_path))
    assert record.padding_rows == 0
    assert record.statistics["tokens"] == record.statistics["all"]
    assert "centred_overlap" in record.statistics["all"]


def test_tokens_may_lie_anywhere_among_the_rows(tmp_path: Path) -> None:
    checkpoint = gpt2_like()
    ids = [*range(100), *range(250, 600, 3)]
    checkpoint["tokenizer.json"] = json.dumps({"model": {"vocab": {f"t{i}": i for i in ids}}}).encode()
    record = measure_head(local(checkpoint, tmp_path))
    assert_measured(record.statistics["tokens"], checkpoint.head[ids])
    assert record.padding_rows == 640 - len(ids)


def test_rows_may_be_a_sample_of_the_token_ids(tmp_path: Path) -> None:
    checkpoint = gpt2_like(rows=640)
    config = json.loads(checkpoint["config.json"]) | {"row_subset": {"start": 1, "stop": 1920, "step": 3}}
    checkpoint["config.json"] = json.dumps(config).encode()
    record = measure_head(local(checkpoint, tmp_path))
    assert_measured(record.statistics["tokens"], checkpoint.head[:200])  # 1 + 3 · 199 = 598 is the last of 600 ids


@pytest.mark.parametrize("rule", ["tokens", "all"])
def test_without_a_tokenizer_every_row_counts_and_the_record_says_why(rule: Any, tmp_path: Path) -> None:
    checkpoint = pythia_like()
    del checkpoint["tokenizer.json"]
    record = measure_head(local(checkpoint, tmp_path), Settings(row_rule=rule))
    assert (record.row_rule, record.row_class, record.padding_rows) == (rule, "all", 0)
    assert record.row_source == "every stored row: the checkpoint comes without tokenizer files"
    assert set(record.statistics) == {"all"}
    assert_measured(record.statistics["all"], checkpoint.head)


def test_a_broken_tokenizer_stops_a_count_of_tokens_and_not_one_of_all_rows(tmp_path: Path) -> None:
    checkpoint = pythia_like()
    checkpoint["tokenizer.json"] = b"{"
    entry = local(checkpoint, tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.*--rows all"):
        measure_head(entry)
    record = measure_head(entry, Settings(row_rule="all"))
    assert_measured(record.statistics["all"], checkpoint.head)
    assert "tokenizer.json" in record.row_source


def test_a_tokenizer_of_another_model_is_an_error_or_a_note(tmp_path: Path) -> None:
    longer = pythia_like()
    longer |= checkpoints.tokenizer_files("tokenizer.json", 700)
    record = measure_head(local(longer, tmp_path / "longer"))
    assert record.notes == ("the tokenizer has 60 ids beyond the head's 640 rows.",)
    beyond = pythia_like()
    beyond["tokenizer.json"] = json.dumps({"model": {"vocab": {"t": 5000}}}).encode()
    with pytest.raises(CheckpointError, match=r"no row of 'embed_out\.weight' is a token of tokenizer\.json.*--rows"):
        measure_head(local(beyond, tmp_path / "beyond"))


def test_a_tensor_asked_for_by_name_is_measured_over_every_row(tmp_path: Path) -> None:
    checkpoint = pythia_like()
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    record = measure_head(local(checkpoint, tmp_path), Settings(lm_head=name))
    assert_measured(record.statistics["all"], checkpoint.tensors[name])
    assert (record.tensor, record.row_class, record.made_by["tensor_by_name"]) == (name, "all", True)


def test_only_the_statistics_that_were_asked_for_are_measured(tmp_path: Path) -> None:
    record = measure_head(local(pythia_like(), tmp_path), Settings(("norms",)))
    assert [set(found) for found in record.statistics.values()] == [{"norms"}, {"norms"}]
    with pytest.raises(UnknownNameError, match=r"no statistic is named 'overlaps'.*norms, overlap"):
        Settings(("overlaps",))


@pytest.mark.parametrize(("statistics", "passes"), [(("norms", "overlap"), 1), (("norms", "centred_overlap"), 2)])
def test_a_watcher_hears_of_every_byte_of_every_pass(statistics: tuple[str, ...], passes: int, tmp_path: Path) -> None:
    checkpoint, heard = pythia_like(), []

    def watch(location: HeadLocation) -> Any:
        assert location.nbytes == checkpoint.head.nbytes
        return heard.append

    measure_head(local(checkpoint, tmp_path), Settings(statistics), watch)
    assert sum(heard) == passes * checkpoint.head.nbytes


def test_the_backends_agree(tmp_path: Path) -> None:
    entry = local(pythia_like(rows=200, tokens=180, columns=16), tmp_path)
    one, two = (measure_head(entry, Settings(backend=name)).statistic("overlap") for name in ("torch", "reference"))
    assert one["mean_squared_overlap"] == pytest.approx(two["mean_squared_overlap"], rel=PROMISE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 411, 639])
def test_a_row_that_is_not_finite_is_named_padding_or_not(bad: float, row: int, tmp_path: Path) -> None:
    checkpoint = pythia_like()
    checkpoint.head[row, 7] = bad
    checkpoint |= weight_files(checkpoint.tensors)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors, 'embed_out\.weight': row {row} holds a NaN"):
        measure_head(local(checkpoint, tmp_path))


# ---- many, with a store


def outcomes(store: ResultStore, *entries: ModelEntry, **settings: Any) -> list[tuple[str, bool, type | None]]:
    force = settings.pop("force", False)
    found = list(measure_heads(entries, store, Settings(**settings), force=force))
    return [(o.entry.repo, o.stored, type(o.error) if o.error else None) for o in found]


def test_an_error_stops_its_own_entry_and_no_other(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("a/good", pythia_like())
    hub.add("a/wide", pythia_like(columns=32))
    good, claimed, gone = ModelEntry("a/good"), ModelEntry("a/wide", family="f", columns=64), ModelEntry("a/gone")
    store = ResultStore(tmp_path)
    expected = [("a/wide", False, CatalogError), ("a/good", False, None), ("a/gone", False, HubError)]
    assert outcomes(store, claimed, good, gone) == expected
    assert [r.repo for r in store.records()] == ["a/good"]
    assert outcomes(store, good) == [("a/good", True, None)]


def test_a_record_that_cannot_be_kept_is_still_handed_out(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("a/one", pythia_like())
    hub.add("a/two", pythia_like())
    store, found = ResultStore(tmp_path / "heads"), []
    for outcome in measure_heads([ModelEntry("a/one"), ModelEntry("a/two")], store):
        found.append(outcome)
        if store.folder.is_dir():
            store.folder.rename(tmp_path / "away")
            store.folder.touch()  # in the way of the second
    assert [type(o.error) for o in found] == [type(None), LlmsuperError]
    assert found[1].record is not None
    assert found[1].record.statistics == found[0].record.statistics


def test_what_a_record_holds_is_never_lost_to_a_smaller_question(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("a/b", pythia_like())
    store, entry = ResultStore(tmp_path), ModelEntry("a/b")
    assert outcomes(store, entry, statistics=("overlap",)) == [("a/b", False, None)]
    assert outcomes(store, entry, statistics=("norms",)) == [("a/b", False, None)]
    assert outcomes(store, entry, statistics=("overlap", "norms")) == [("a/b", True, None)]
    assert outcomes(store, entry, statistics=("norms",), force=True) == [("a/b", False, None)]
    (record,) = store.records()
    assert set(record.statistics["tokens"]) == set(record.statistics["all"]) == {"norms", "overlap"}


def test_two_revisions_of_one_commit_are_measured_once_and_told_apart(hub: FakeHub, tmp_path: Path) -> None:
    sha = hub.add("a/b", pythia_like())
    hub.repos["a/b"].git_tags["v1"] = sha
    store, entries = ResultStore(tmp_path), [ModelEntry("a/b"), ModelEntry("a/b", "v1"), ModelEntry("a/b", sha)]
    found = list(measure_heads(entries, store))
    assert [o.stored for o in found] == [False, True, True]
    assert [o.record.revision for o in found if o.record] == ["main", "v1", sha]
    assert len(list(store.records())) == 1


def test_the_head_by_name_and_the_head_are_two_records(hub: FakeHub, tmp_path: Path) -> None:
    """Whichever was measured first: one counts tokens, the other every row."""
    hub.add("a/b", pythia_like())
    store, entry, name = ResultStore(tmp_path), ModelEntry("a/b"), "embed_out.weight"
    assert outcomes(store, entry) == [("a/b", False, None)]
    assert outcomes(store, entry, lm_head=name) == [("a/b", False, None)]
    assert outcomes(store, entry) == [("a/b", True, None)]
    assert outcomes(store, entry, lm_head=name) == [("a/b", True, None)]
    assert sorted(r.row_class for r in store.records()) == ["all", "tokens"]


@pytest.mark.parametrize("wrong", [{"device": "cuda"}, {"device": "tpu"}, {"backend": "numpy"}], ids=str)
def test_what_cannot_run_here_stops_the_run_before_a_request(
    wrong: dict[str, Any], hub: FakeHub, tmp_path: Path
) -> None:
    if wrong == {"device": "cuda"} and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    hub.add("a/b", pythia_like())
    kind = UnknownNameError if "backend" in wrong else BackendError
    with pytest.raises(kind):
        outcomes(ResultStore(tmp_path), ModelEntry("a/b"), ModelEntry("a/b"), **wrong)
    assert hub.take_log() == []


# ---- plans


HEADER_READ = 1 << 16
"""What is read of a weight file to find its header."""


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_a_plan_is_the_bytes_that_measuring_then_moves(make: Any, hub: FakeHub) -> None:
    checkpoint = make()
    hub.add("a/b", checkpoint)
    plan = plan_head(ModelEntry("a/b"))
    small = [name for name in checkpoint if not name.endswith((".safetensors", "merges.txt"))]
    header_read = min(HEADER_READ, len(checkpoint[checkpoint.head_file]))
    assert plan.head_bytes == checkpoint.head.nbytes
    assert plan.other_bytes == header_read + sum(len(checkpoint[name]) for name in small)
    assert plan.location.checkpoint_bytes == sum(len(checkpoint[n]) for n in checkpoint if n.endswith(".safetensors"))
    empty_home()  # of what the plan has read and remembered
    hub.take_log()
    record = measure_head(ModelEntry("a/b"))
    assert sum(r.sent for r in weights_requests(hub)) == record.made_by["bytes_moved"] == plan.head_bytes + header_read
    again = plan_head(ModelEntry("a/b"))
    assert (again.head_bytes, again.other_bytes) == (0, 0)  # everything is here by now


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_after_a_plan_only_the_head_is_left_to_move(make: Any, hub: FakeHub) -> None:
    """A plan remembers where the head lies, and keeps config.json; measuring reads the tokenizer besides."""
    checkpoint = make()
    hub.add("a/b", checkpoint)
    plan_head(ModelEntry("a/b"))
    again = plan_head(ModelEntry("a/b"))
    tokenizer = next(len(checkpoint[name]) for name in ("tokenizer.json", "vocab.json") if name in checkpoint)
    assert (again.head_bytes, again.other_bytes) == (checkpoint.head.nbytes, tokenizer)
    hub.take_log()
    record = measure_head(ModelEntry("a/b"))
    assert [r.sent for r in weights_requests(hub)] == [again.head_bytes]
    assert record.made_by["bytes_moved"] == again.head_bytes


def test_a_plan_counts_only_files_that_are_read(hub: FakeHub) -> None:
    checkpoint = pythia_like()
    checkpoint["model.safetensors.index.json"] = json.dumps({"weight_map": {}}).encode() + b" " * 1000
    hub.add("a/b", checkpoint)
    config, tokenizer = len(checkpoint["config.json"]), len(checkpoint["tokenizer.json"])
    by_name = plan_head(ModelEntry("a/b"), "gpt_neox.embed_in.weight")
    assert by_name.other_bytes == HEADER_READ + config  # which rows are tokens is not asked of a matrix by name
    assert plan_head(ModelEntry("a/b")).other_bytes == HEADER_READ + tokenizer  # config.json is here by now


def test_a_plan_of_local_files_moves_nothing(tmp_path: Path) -> None:
    entry = local(pythia_like(), tmp_path)
    assert plan_head(entry).total_bytes == 0
    file = replace(entry, repo=f"{entry.repo}/model.safetensors")
    assert plan_head(file).origin == "local"
    one, two = measure_head(entry), measure_head(file)
    assert one.statistics == two.statistics
    assert one.row_source == two.row_source == "tokenizer.json"
