"""Every id that a tokenizer's own files give is counted, added tokens too, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llmsuper.errors import CheckpointError
from llmsuper.hub.repository import open_repository
from llmsuper.hub.vocabulary import READERS, SETS, TOKENIZER_FILES, Vocabulary, files_needed, read_vocabulary, runs
from llmsuper.types import HeadLocation, ModelEntry, TensorInfo
from tests.checkpoints import opt_like, pythia_like

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fake_hub import FakeHub


LOCATION = HeadLocation(ModelEntry("a/b"), "0" * 40, "x", TensorInfo("w", "F32", (9, 2), 0, 72), False, 72)
"""A head in a file that has no tokenizer inside."""


def read(folder: Path, files: dict[str, Any]) -> Vocabulary | None:
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_vocabulary(open_repository(ModelEntry(str(folder), local=True)), LOCATION)


def tokenizer(vocab: Any, added: Any = ()) -> dict[str, Any]:
    return {"tokenizer.json": {"model": {"type": "BPE", "vocab": vocab}, "added_tokens": added}}


def words(count: int) -> dict[str, int]:
    return {f"t{i}": i for i in range(count)}


def ids(first: int, last: int) -> list[dict[str, Any]]:
    return [{"id": i, "content": f"<{i}>"} for i in range(first, last + 1)]


COUNTED: dict[str, tuple[dict[str, Any], int, int]] = {
    "base tokens": (tokenizer(words(50)), 50, 49),
    "Pythia: spaces are added tokens": (tokenizer(words(50254), ids(50254, 50276)), 50277, 50276),
    "Qwen2.5: specials are added tokens": (tokenizer(words(151643), ids(151643, 151664)), 151665, 151664),
    "an added token that is a base token too": (tokenizer(words(50), ids(0, 2)), 50, 49),
    "a gap": (tokenizer(words(50), ids(60, 61)), 52, 61),
    "Unigram: the id is the place": (tokenizer([["<unk>", 0.0], ["a", -1.5], ["b", -2.0]], ids(3, 3)), 4, 3),
    "null added tokens": (tokenizer(words(5), None), 5, 4),
    "no model type": ({"tokenizer.json": {"model": {"vocab": words(5)}}}, 5, 4),
    "vocab.json alone": ({"vocab.json": words(50265)}, 50265, 50264),
    "with added_tokens.json": ({"vocab.json": words(5), "added_tokens.json": {"<a>": 5, "<b>": 6}}, 7, 6),
    "with the decoder of tokenizer_config.json": (
        {"vocab.json": words(5), "tokenizer_config.json": {"added_tokens_decoder": {"4": {}, "5": {"content": "x"}}}},
        6,
        5,
    ),
    "a tokenizer_config.json without a decoder": ({"vocab.json": words(5), "tokenizer_config.json": {}}, 5, 4),
    "tokenizer.json goes first": ({**tokenizer(words(7)), "vocab.json": words(5)}, 7, 6),
}
"""Files, the number of ids, and the largest."""


@pytest.mark.parametrize("name", COUNTED)
def test_the_ids_of(tmp_path: Path, name: str) -> None:
    files, count, largest = COUNTED[name]
    found = read(tmp_path, files)
    assert found is not None
    assert (len(found), found.ids[-1]) == (count, largest)
    assert found.ids.dtype == np.int64
    assert (np.diff(found.ids) > 0).all()
    assert found.files == files_needed(files)


def test_every_file_has_a_reader_and_a_place() -> None:
    assert set(TOKENIZER_FILES) == set(READERS) == {name for names in SETS for name in names}


def test_no_tokenizer(tmp_path: Path) -> None:
    assert read(tmp_path, {"config.json": {}, "tokenizer_config.json": {}, "added_tokens.json": {"a": 1}}) is None


def test_from_the_hub_with_one_file_fetched(hub: FakeHub) -> None:
    for build, file in ((pythia_like, "tokenizer.json"), (opt_like, "vocab.json")):
        checkpoint = build(rows=64, columns=8, tokens=60)
        hub.add("org/tiny", checkpoint)
        repository = open_repository(ModelEntry("org/tiny"))
        assert repository.uncached_bytes(files_needed(repository.files)) == len(checkpoint[file])
        found = read_vocabulary(repository, LOCATION)
        assert found is not None
        assert (len(found), found.files) == (60, (file,))
        assert found.mask(64).tolist() == [True] * 60 + [False] * 4
        assert repository.uncached_bytes(files_needed(repository.files)) == 0
        hub.reset()


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "not JSON": ({"tokenizer.json": b"{"}, "tokenizer.json: not the tokenizer file that its name says"),
    "an LFS pointer": ({"tokenizer.json": b"version https://git-lfs.github.com/spec/v1\n"}, "not the tokenizer file"),
    "a list": ({"tokenizer.json": []}, "not the tokenizer file"),
    "no model": ({"tokenizer.json": {}}, "KeyError: 'model'"),
    "a vocabulary that is a number": (tokenizer(5), "TypeError"),
    "an added token without id": (tokenizer({}, [{"content": "a"}]), "KeyError: 'id'"),
    "a negative id": (tokenizer({"a": -1}), "tokenizer.json: -1 is given as a token id"),
    "an id that is a fraction": (tokenizer({"a": 1.5}), "1.5 is given as a token id"),
    "an id that is true": (tokenizer({"a": True}), "True is given as a token id"),
    "an id that is text": ({"vocab.json": {"a": "1"}}, "vocab.json: '1' is given as a token id"),
    "an id beyond reason": (tokenizer({"a": 2**63}), "9223372036854775808 is given as a token id"),
    "vocab.json is a list": ({"vocab.json": ["a"]}, "AttributeError"),
    "a decoder key that is no number": (
        {"vocab.json": {}, "tokenizer_config.json": {"added_tokens_decoder": {"x": {}}}},
        "tokenizer_config.json: not the tokenizer file",
    ),
}
"""Malformed tokenizer files, and what is said."""


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused(tmp_path: Path, name: str) -> None:
    files, message = MALFORMED[name]
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, files)


VOCABULARY = Vocabulary(np.array([0, 1, 2, 5, 8]), ("vocab.json",))


def test_rows_that_are_tokens() -> None:
    assert VOCABULARY.mask(7).tolist() == [True, True, True, False, False, True, False]
    assert VOCABULARY.mask(10).sum() == 5
    assert VOCABULARY.mask(7).dtype == bool


@pytest.mark.parametrize(("rows", "beyond"), [(10, 0), (9, 0), (8, 1), (5, 2), (0, 5)])
def test_ids_without_a_row(rows: int, beyond: int) -> None:
    assert VOCABULARY.beyond(rows) == beyond


@pytest.mark.parametrize(("start", "step"), [(0, 1), (0, 4), (1, 4), (2, 3)])
def test_rows_of_a_subset(start: int, step: int) -> None:
    expected = [start + r * step in VOCABULARY.ids for r in range(3)]
    assert VOCABULARY.mask(3, (start, step)).tolist() == expected
    assert VOCABULARY.beyond(3, (start, step)) == 0


@pytest.mark.parametrize("ids", [[], [0], [0, 1, 2, 5, 6, 9], list(range(50)), [3, 1000]])
def test_ids_as_runs_and_back(ids: list[int], tmp_path: Path) -> None:
    ranges = runs(np.array(ids, dtype=np.int64))
    location = replace(LOCATION, file="x.gguf", token_ranges=ranges)
    found = read_vocabulary(open_repository(ModelEntry(str(tmp_path), local=True)), location)
    assert found is not None
    assert found.ids.tolist() == ids
    assert found.files == ("x.gguf",)
