"""The store: a record comes back as it went in, is there whole or not at all, and is told from every other."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsuper.errors import LlmsuperError
from llmsuper.store import ResultStore, file_name, flat, to_json
from llmsuper.types import HeadRecord

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def record(value: float = 0.25, **changes: Any) -> HeadRecord:
    """A record whose mean squared overlap is `value`."""
    statistics = {
        "norms": {"rows": 3, "mean": 1.5, "quantiles": {"0.5": 1.0}, "histogram_counts": [1, 2]},
        "overlap": {"mean_squared_overlap": value, "overlap_variance": None},
    }
    made = {
        "repo": "EleutherAI/pythia-14m",
        "revision": "main",
        "commit": COMMIT,
        "family": "pythia",
        "width": 128,
        "file": "model.safetensors",
        "tensor": "embed_out.weight",
        "dtype": "F16",
        "tied": False,
        "rows": 50304,
        "columns": 128,
        "row_rule": "tokens",
        "row_class": "tokens",
        "row_source": "tokenizer.json",
        "padding_rows": 27,
        "statistics": {"all": statistics, "tokens": statistics},
        "notes": ("config.json says vocab_size = 50277, the head has 50304 rows.",),
        "made_by": {"tool": "llmsuper", "version": "0.1.0", "tensor_by_name": False, "seconds": 0.25},
    }
    return HeadRecord(**made | changes)


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "reports" / "heads")


def find(store: ResultStore, of: HeadRecord, **changes: Any) -> HeadRecord | None:
    asked = {"repo": of.repo, "commit": of.commit, "row_rule": of.row_rule, "version": of.made_by["version"]}
    return store.find(**asked | changes)


def files(store: ResultStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


# ---- round trips


def test_a_record_comes_back_as_it_went_in(store: ResultStore) -> None:
    kept = record(0.1 + 0.2)
    path = store.put(kept)
    assert list(store.records()) == [kept]
    assert find(store, kept) == kept
    assert path.name == "EleutherAI--pythia-14m@0123456789abcdef01.v0.1.0.embed_out.weight.tokens.json"
    assert files(store) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o644


TEXT = st.text(st.characters(exclude_categories=()), min_size=1)  # lone surrogates as well: JSON can carry them
FINITE = st.floats(allow_nan=False, allow_infinity=False)
STATISTIC = st.dictionaries(TEXT, FINITE | st.none() | st.integers() | st.lists(FINITE), max_size=4)
RECORDS = st.builds(
    HeadRecord,
    repo=TEXT,
    revision=TEXT,
    commit=st.text("0123456789abcdef", min_size=40, max_size=40),
    family=st.none() | TEXT,
    width=st.none() | st.integers(1),
    file=TEXT,
    tensor=TEXT,
    dtype=st.sampled_from(["F16", "BF16", "F32", "F64"]),
    tied=st.booleans(),
    rows=st.integers(1),
    columns=st.integers(1),
    row_rule=st.sampled_from(["tokens", "all"]),
    row_class=st.just("all"),
    row_source=TEXT,
    padding_rows=st.integers(0),
    statistics=st.fixed_dictionaries({"all": st.dictionaries(TEXT, STATISTIC, max_size=3)}),
    notes=st.lists(TEXT, max_size=3).map(tuple),
    made_by=st.fixed_dictionaries({"version": TEXT, "tensor_by_name": st.booleans(), "seconds": FINITE}),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(RECORDS, min_size=1, max_size=3, unique_by=file_name))
def test_any_record_comes_back_as_it_went_in(records: list[HeadRecord]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = ResultStore(folder)
        for kept in records:
            store.put(kept)
        assert len(files(store)) == len(records)
        assert sorted(map(to_json, store.records())) == sorted(map(to_json, records))
        for kept in records:
            by_name = kept.tensor if kept.made_by["tensor_by_name"] else None
            assert find(store, kept, tensor=by_name) == kept


def test_what_is_not_a_number_is_refused_rather_than_written(store: ResultStore) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.put(record(float("nan")))
    assert files(store) == []


# ---- one record a key


def test_the_latest_record_of_a_key_is_the_one_that_is_kept(store: ResultStore) -> None:
    assert store.put(record(0.5)) == store.put(record(0.25))
    assert list(store.records()) == [record(0.25)]


OTHERS: dict[str, dict[str, Any]] = {
    "repo": {"repo": "EleutherAI/pythia-14m-seed1"},
    "commit": {"commit": "f" + COMMIT[1:]},
    "tensor": {"tensor": "lm_head.weight"},
    "rows rule": {"row_rule": "all", "row_class": "all"},
    "version": {"made_by": record().made_by | {"version": "0.2.0"}},
    "by name": {"made_by": record().made_by | {"tensor_by_name": True}},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_records_that_differ_in_any_part_of_the_key_are_both_kept(store: ResultStore, other: dict[str, Any]) -> None:
    one, two = record(0.5), record(0.25, **other)
    store.put(one)
    store.put(two)
    assert len(files(store)) == 2
    assert find(store, one) == one or "tensor" in other  # two tensors cannot both have been found to be the head
    by_name = two.tensor if two.made_by["tensor_by_name"] else None
    assert find(store, two, tensor=by_name) is not None


def test_a_commit_is_compared_to_its_last_digit(store: ResultStore) -> None:
    store.put(record())
    assert find(store, record(), commit=COMMIT[:-1] + "0") is None


def test_a_tensor_asked_for_by_name_is_never_mistaken_for_the_head(store: ResultStore) -> None:
    by_name = record(0.5, made_by=record().made_by | {"tensor_by_name": True})
    store.put(by_name)
    assert find(store, by_name) is None
    assert find(store, by_name, tensor="embed_out.weight") == by_name
    store.put(record(0.25))
    assert find(store, by_name) == record(0.25)
    assert find(store, by_name, tensor="embed_out.weight") == by_name
    assert find(store, by_name, tensor="lm_head.weight") is None


ODD = [
    "a/b",
    "a b",
    "a-b",
    "./a-b",
    "../a-b",
    "/a-b",
    "é",
    "è",
    "-",
    "..",
    "x" * 300,
    "x" * 301,
    "/" + "d/" * 200,
]


@pytest.mark.parametrize("field", ["repo", "tensor"])
def test_odd_names_have_files_of_their_own_in_the_folder(store: ResultStore, field: str) -> None:
    kept = [record(at, **{field: name}) for at, name in enumerate(ODD, start=1)]
    for one in kept:
        path = store.put(one)
        assert path.parent == store.folder
        assert len(path.name.encode()) <= 255
        assert path.name[0] not in ".-"
    assert sorted(map(to_json, store.records())) == sorted(map(to_json, kept))


# ---- whole or not at all


@pytest.mark.parametrize("crash", [KeyboardInterrupt(), SystemExit(9)], ids=lambda e: type(e).__name__)
def test_a_crash_before_the_rename_leaves_what_was_there(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch, crash: BaseException
) -> None:
    store.put(record(0.5))
    before = files(store)

    def crashes(*_: Any) -> None:
        raise crash

    monkeypatch.setattr(Path, "replace", crashes)
    with pytest.raises(type(crash)):
        store.put(record(0.25))
    assert files(store) == before
    assert list(store.records()) == [record(0.5)]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError("quota")], ids=str)
def test_a_disk_that_fails_is_one_error_and_leaves_no_part(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(LlmsuperError, match=rf"heads: cannot be written \(({error.strerror or error})\)\. .*--results"):
        store.put(record())
    assert files(store) == []


def test_a_kill_before_the_rename_leaves_no_record_and_the_next_put_works(store: ResultStore) -> None:
    store.put(record(0.5))
    code = (
        "import os, sys; from pathlib import Path; from tests.test_store import record; "
        "from llmsuper.store import ResultStore; Path.replace = lambda *_: os._exit(9); "
        "ResultStore(sys.argv[1]).put(record(0.25))"
    )
    killed = subprocess.run([sys.executable, "-c", code, store.folder], cwd=Path(__file__).parents[1], check=False)
    assert killed.returncode == 9
    assert len(files(store)) == 2  # the part that nobody could remove any more
    assert list(store.records()) == [record(0.5)]
    assert find(store, record()) == record(0.5)
    store.put(record(0.125))
    assert list(store.records()) == [record(0.125)]


def test_two_processes_share_a_folder(store: ResultStore) -> None:
    code = (
        "import sys; from tests.test_store import record; from llmsuper.store import ResultStore\n"
        "for i in range(40): ResultStore(sys.argv[1]).put(record(float(sys.argv[2]), tensor=f't{i}'))"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, store.folder, value], cwd=Path(__file__).parents[1])
        for value in ("0.5", "0.25")
    ]
    while any(writer.poll() is None for writer in writers):
        assert {r.statistic("overlap")["mean_squared_overlap"] for r in store.records()} <= {0.5, 0.25}
    assert [writer.returncode for writer in writers] == [0, 0]
    assert len(files(store)) == 40
    assert {r.tensor for r in store.records()} == {f"t{i}" for i in range(40)}


# ---- what is in the way


NOT_RECORDS: dict[str, bytes] = {
    "empty": b"",
    "cut short": to_json(record()).encode()[:-100],
    "not UTF-8": b"\xff\xfe{}",
    "a list": b"[]",
    "null": b"null",
    "another object": b'{"repo": "a/b"}',
    "a field too many": to_json(record()).replace('{"repo"', '{"more": 1, "repo"').encode(),
    "no statistics": to_json(replace(record(), statistics={})).encode(),
    "statistics of no names": json.dumps(json.loads(to_json(record())) | {"statistics": {"tokens": []}}).encode(),
    "no version": to_json(replace(record(), made_by={})).encode(),
    "NaN": to_json(record(0.125)).replace("0.125", "NaN").encode(),
    "nested without end": b"[" * 100_000,
}


@pytest.mark.parametrize("content", NOT_RECORDS.values(), ids=NOT_RECORDS.keys())
def test_what_is_not_a_record_is_named(store: ResultStore, content: bytes) -> None:
    path = store.put(record())
    path.write_bytes(content)
    for read in (lambda: list(store.records()), lambda: find(store, record()), store.frame):
        with pytest.raises(LlmsuperError) as caught:
            read()
        assert str(caught.value).startswith(f"{path}: is not a record of llmsuper (")
        assert str(caught.value).endswith("Move it out of the results folder.")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("below", ["file", "/proc/self"])
def test_a_folder_that_cannot_be_written_is_known_before_anything_is_measured(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    store = ResultStore(tmp_path / below / "heads")
    for write in (store.check_writable, lambda: store.put(record())):
        with pytest.raises(
            LlmsuperError, match=rf"^results folder {store.folder}: cannot be written \(.*--results DIR"
        ):
            write()


def test_looking_whether_a_folder_can_be_written_leaves_nothing_in_it(store: ResultStore) -> None:
    store.check_writable()
    assert files(store) == []


# ---- the frame


def test_a_frame_has_a_row_a_record_and_a_column_a_number(store: ResultStore) -> None:
    store.put(record(0.5))
    store.put(record(0.25, repo="EleutherAI/pythia-31m", width=256, columns=256))
    frame = store.frame()
    assert list(frame["repo"]) == ["EleutherAI/pythia-14m", "EleutherAI/pythia-31m"]
    assert list(frame["overlap.mean_squared_overlap"]) == [0.5, 0.25]
    assert list(frame["columns"]) == [128, 256]
    assert {"width", "commit", "row_class", "norms.mean"} <= set(frame.columns)
    assert not {"statistics", "notes", "made_by", "norms.quantiles", "norms.histogram_counts"} & set(frame.columns)


def test_a_frame_is_over_the_rows_that_were_asked_for() -> None:
    both = {"all": {"overlap": {"x": 1}}, "tokens": {"overlap": {"x": 2}}}
    assert flat(record(statistics=both, row_rule="all", row_class="all"))["overlap.x"] == 1
    assert flat(record(statistics=both))["overlap.x"] == 2


def test_a_store_that_is_not_there_yet_is_empty(store: ResultStore) -> None:
    assert list(store.records()) == []
    assert store.frame().empty
    assert find(store, record()) is None
