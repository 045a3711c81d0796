"""Statistics that are measured together: what they share, how often rows are read, and what is said of each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import llmsuper.geometry.suite as suite
from llmsuper.cli.blocks import BLOCKS, REMOVALS
from llmsuper.errors import UnknownNameError
from llmsuper.geometry import DEFAULT_STATISTICS, STATISTICS
from llmsuper.geometry.controls import MatrixBlocks, random_head
from llmsuper.geometry.overlap import GramAccumulator
from llmsuper.geometry.suite import measure_rows, passes
from llmsuper.kernels import choose_backend
from llmsuper.measure import Settings, measure_head
from llmsuper.store import ResultStore, to_json
from llmsuper.types import ModelEntry
from tests.checkpoints import gpt2_like, pythia_like
from tests.command import succeed
from tests.test_accumulators import assert_same

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llmsuper.types import RowBlock

EXACT = choose_backend(precision="exact")
MASK = np.arange(90) % 10 != 3


def head(rows: int = 90, columns: int = 6) -> torch.Tensor:
    return random_head(rows, columns, torch.Generator().manual_seed(rows)) + 0.5


class Counted:
    """A matrix that counts how often it is read."""

    def __init__(self, W: torch.Tensor) -> None:
        self.W, self.reads = W, 0

    def __iter__(self) -> Iterator[RowBlock]:
        self.reads += 1
        return iter(MatrixBlocks(self.W, 20))


@pytest.mark.parametrize("row_rule", ["tokens", "all"])
@pytest.mark.parametrize("mask", [None, MASK, np.ones(90, bool)], ids=["no mask", "padding", "no padding"])
def test_together_is_the_same_as_one_by_one(mask: Any, row_rule: Any) -> None:
    together = measure_rows(MatrixBlocks(head(), 20), list(STATISTICS), EXACT, mask=mask, row_rule=row_rule)
    for name, row in STATISTICS.items():
        alone = measure_rows(MatrixBlocks(head(), 20), [name], EXACT, mask=mask, row_rule=row_rule)
        classes = {"all"} if mask is None else {"all", "tokens"}
        measured = classes if row.of_both or mask is None or mask.all() else {row_rule}
        assert set(together) == set(alone) == classes
        assert {row_class for row_class in classes if name in together[row_class]} == measured, name
        for row_class in measured:
            assert_same(together[row_class][name], alone[row_class][name], 1e-11, name)


def test_of_the_rows_that_count_and_of_no_others() -> None:
    """But for what is over every stored row, and for the halves, which go by the rows' places."""
    names = [name for name, row in STATISTICS.items() if not row.every_row]
    masked = measure_rows(MatrixBlocks(head(), 20), names, EXACT, mask=MASK, row_rule="tokens")["tokens"]
    apart = measure_rows(MatrixBlocks(head()[torch.from_numpy(MASK)], 20), names, EXACT)["all"]
    places = np.flatnonzero(MASK)
    for pair in apart["pairs"]["closest_pairs"]:
        pair["row"], pair["other"] = int(places[pair["row"]]), int(places[pair["other"]])
    for crowd in apart["pairs"]["largest_crowds"]:
        crowd["rows"] = places[crowd["rows"]].tolist()
    for name in names:
        assert_same(masked[name], apart[name], 1e-11, name)


@pytest.mark.parametrize("name", STATISTICS)
def test_rows_are_read_as_often_as_the_table_says(name: str) -> None:
    blocks = Counted(head())
    measure_rows(blocks, [name], EXACT)
    assert blocks.reads == passes([name]) == STATISTICS[name].passes + STATISTICS[name].reads
    assert Settings((name,)).passes == blocks.reads


def test_passes_are_shared() -> None:
    blocks = Counted(head())
    names = [name for name, row in STATISTICS.items() if not row.reads]
    measure_rows(blocks, names, EXACT)
    assert blocks.reads == passes(names) == max(STATISTICS[name].passes for name in names) == 3
    assert passes(STATISTICS) == 3 + sum(row.reads for row in STATISTICS.values())
    assert passes(DEFAULT_STATISTICS) == 2
    assert DEFAULT_STATISTICS == ("norms", "overlap", "centred_overlap")


def test_one_gram_matrix_for_all_that_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    start = GramAccumulator.__init__
    monkeypatch.setattr(GramAccumulator, "__init__", lambda self: (made.append(self), start(self))[1])
    measure_rows(MatrixBlocks(head()), ["overlap", "spectrum"], EXACT)
    plain = [one for one in made if type(one) is GramAccumulator and one.rows]  # type: ignore[attr-defined]
    assert len(plain) == 1


def test_matrices_that_do_not_fit_together_take_more_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = measure_rows(MatrixBlocks(head()), ["anisotropy"], EXACT)
    monkeypatch.setattr(suite, "PRODUCT_BYTES", 2 * suite.PRODUCTS_IN_FLIGHT * 4 * 6**2)  # two at a time
    blocks = Counted(head())
    assert_same(measure_rows(blocks, ["anisotropy"], EXACT), wanted, 1e-11)
    assert blocks.reads > 3


def test_unknown_names_are_refused_before_anything_is_read() -> None:
    blocks = Counted(head())
    for ask in (lambda: measure_rows(blocks, ["overlaps"], EXACT), lambda: passes(["overlaps"])):
        with pytest.raises(UnknownNameError, match=r"no statistic is named 'overlaps'.*Did you mean 'overlap'"):
            ask()
    assert blocks.reads == 0


# records and the command line


def test_every_further_statistic_has_a_block_for_people() -> None:
    assert set(BLOCKS) == set(STATISTICS) - set(DEFAULT_STATISTICS)
    table = measure_rows(MatrixBlocks(head()), ["anisotropy"], EXACT)["all"]["anisotropy"]["table"]
    assert {name for name in table if not name.startswith("leading_")} == set(REMOVALS)


def test_a_record_holds_them_all_and_comes_back_from_the_store(tmp_path: Path) -> None:
    checkpoint = pythia_like()
    entry = ModelEntry(str(checkpoint.write(tmp_path / "head")), local=True)
    record = measure_head(entry, Settings(tuple(STATISTICS)))
    assert set(record.statistics["tokens"]) == set(STATISTICS)
    store = ResultStore(tmp_path / "records")
    store.put(record)
    (back,) = store.records()
    assert json.loads(to_json(back)) == json.loads(to_json(record))
    assert record.statistic("liu2025")["rows"] == 640
    assert record.statistic("pairs")["rows"] == 600
    for pair in record.statistic("pairs")["closest_pairs"]:
        assert pair["ids"] == [pair["row"], pair["other"]]
        assert pair["tokens"] == [f"t{number}" for number in pair["ids"]] or None not in pair["tokens"]


def test_closest_pairs_without_strings_have_ids(tmp_path: Path) -> None:
    checkpoint = gpt2_like()
    for name in [name for name in checkpoint if "token" in name or "vocab" in name]:
        del checkpoint[name]
    checkpoint["config.json"] = json.dumps(
        json.loads(checkpoint["config.json"]) | {"row_subset": {"start": 1, "stop": 1920, "step": 3}}
    ).encode()
    record = measure_head(ModelEntry(str(checkpoint.write(tmp_path)), local=True), Settings(("pairs",)))
    pairs = record.statistic("pairs")["closest_pairs"]
    assert len(pairs) == 10
    assert all(pair["ids"] == [1 + 3 * pair["row"], 1 + 3 * pair["other"]] for pair in pairs)
    assert {pair["tokens"] for pair in pairs} == {None}


def test_blocks_stand_below_the_line_of_their_head(tmp_path: Path) -> None:
    folder = pythia_like().write(tmp_path / "head")
    arguments = ["overlap", str(folder), "--results", str(tmp_path / "records")]
    title, line = succeed(*arguments).stdout.splitlines()
    full = succeed(*arguments, "--stat", "all", "--compat", "liu2025").stdout
    assert full.splitlines()[:2] == [title, line]
    for words in ("of excess", "participation ratio", "norm decile", "each column shuffled", "closest pairs", "theirs"):
        assert words in full
    assert "theirs are all 640 that are stored, ours the 600 that are tokens" in full
    only = succeed(*arguments, "--stat", "overlap,spectrum").stdout.splitlines()
    assert len(only) == 4
    assert "spectrum" in only[2]
    quiet = succeed(*arguments, "--stat", "all", "-q").stdout.splitlines()
    assert len(quiet) == 1
    held = json.loads(succeed(*arguments, "--json").stdout)["statistics"]["tokens"]
    assert set(held) == set(STATISTICS)
