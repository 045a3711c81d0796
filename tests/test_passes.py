"""One pass over blocks: what goes where, which row is named, when buffers are handed back."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import llmsuper.kernels
from llmsuper.errors import CheckpointError
from llmsuper.geometry import DEFAULT_STATISTICS, STATISTICS
from llmsuper.geometry.controls import MatrixBlocks, random_head
from llmsuper.geometry.norms import NormAccumulator
from llmsuper.geometry.overlap import GramAccumulator, MeanRowAccumulator
from llmsuper.geometry.passes import one_pass
from llmsuper.kernels import choose_backend
from llmsuper.measure import measure_rows
from llmsuper.types import RowBlock
from tests.test_accumulators import assert_same

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmsuper.geometry.blocks import UnitBlock

EXACT = choose_backend(precision="exact")
NAMES = list(DEFAULT_STATISTICS)


def head(rows: int = 60, columns: int = 5) -> torch.Tensor:
    return random_head(rows, columns, torch.Generator().manual_seed(rows)) + 0.5


MASKS = {
    "a tail of padding": np.arange(60) < 50,
    "padding inside": (np.arange(60) < 21) | (np.arange(60) > 24),
    "every other row": np.arange(60) % 2 == 0,
    "a whole block left out": np.arange(60) // 7 != 3,
    "nothing left out": np.ones(60, bool),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("row_rule", ["tokens", "all"])
def test_rows_of_the_mask_and_the_others(mask: Any, row_rule: Any) -> None:
    """Masked statistics are those of the masked rows; both classes together are those of all rows."""
    W = head()
    found = measure_rows(MatrixBlocks(W, 7), NAMES, EXACT, mask=mask, row_rule=row_rule)
    apart = {
        "tokens": measure_rows(MatrixBlocks(W[torch.from_numpy(mask)], 7), NAMES, EXACT)["all"],
        "all": measure_rows(MatrixBlocks(W, 7), NAMES, EXACT)["all"],
    }
    both = {"tokens", "all"}
    assert set(found) == both
    for row_class in both:
        with_centred = row_class == row_rule or mask.all()
        wanted = {k: v for k, v in apart[row_class].items() if with_centred or STATISTICS[k].of_both}
        assert_same({k: found[row_class][k] for k in wanted}, wanted, 1e-12)
        assert set(found[row_class]) == set(wanted)


def test_without_a_mask_there_is_one_class() -> None:
    assert set(measure_rows(MatrixBlocks(head()), ["norms"], EXACT)) == {"all"}


def test_a_mask_that_takes_no_row() -> None:
    with pytest.raises(CheckpointError, match="non-zero norm"):
        measure_rows(MatrixBlocks(head(), 7), ["norms"], EXACT, mask=np.zeros(60, bool))


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
@pytest.mark.parametrize("row", [0, 6, 7, 59])
@pytest.mark.parametrize("mask", [None, *MASKS.values()], ids=["no mask", *MASKS])
def test_a_non_finite_row_is_named(bad: float, row: int, mask: Any) -> None:
    W = head()
    W[row, 4] = bad
    for backend in (EXACT, choose_backend()):
        with pytest.raises(CheckpointError, match=rf"row {row} holds a NaN or an infinity"):
            measure_rows(MatrixBlocks(W, 7), NAMES, backend, mask=mask)


def test_the_first_of_several_non_finite_rows_is_named() -> None:
    W = head()
    W[[55, 24, 26, 58]] = torch.inf
    for _ in range(5):
        with pytest.raises(CheckpointError, match="row 24 holds"):
            measure_rows(MatrixBlocks(W, 4), ["overlap"], EXACT)


def test_a_row_that_is_not_asked_for_may_be_anything() -> None:
    W, mask = head(), MASKS["padding inside"]
    wanted = one_pass(MatrixBlocks(W, 7), [GramAccumulator()], backend=EXACT, mask=mask)
    W[22] = torch.nan
    assert one_pass(MatrixBlocks(W, 7), [GramAccumulator()], backend=EXACT, mask=mask) == wanted


def test_threads_are_restored_when_a_pass_fails() -> None:
    torch.set_num_threads(2)
    W = head()
    W[40] = torch.nan
    before = threading.active_count()
    with pytest.raises(CheckpointError):
        measure_rows(MatrixBlocks(W, 3), NAMES, EXACT)
    assert torch.get_num_threads() == 2
    assert threading.active_count() == before


class Stream:
    """Blocks in a few buffers that are overwritten as soon as they are handed back."""

    def __init__(self, W: torch.Tensor, rows: int, buffers: int) -> None:
        self.W, self.rows = W, rows
        self.free = threading.Semaphore(buffers)
        self.out = self.most = self.released = 0

    def __iter__(self) -> Iterator[RowBlock]:
        for start in range(0, len(self.W), self.rows):
            assert self.free.acquire(timeout=10), "no buffer came back"
            self.out += 1
            self.most = max(self.most, self.out)
            buffer = self.W[start : start + self.rows].clone()
            yield RowBlock(start, buffer, lambda buffer=buffer: self.release(buffer))

    def release(self, buffer: torch.Tensor) -> None:
        buffer.fill_(torch.nan)
        self.out -= 1
        self.released += 1
        self.free.release()


@pytest.mark.parametrize("cores", [1, 2, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_buffers_are_handed_back_and_not_read_afterwards(
    cores: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llmsuper.kernels, "usable_cores", lambda: cores)
    W, mask = head(), MASKS["padding inside"] if masked else None
    wanted = measure_rows(MatrixBlocks(W, 7), NAMES, EXACT, mask=mask)
    stream = Stream(W, 7, buffers=cores + 2)
    assert measure_rows(stream, NAMES, EXACT, mask=mask) == wanted
    assert stream.released == 2 * -(-60 // 7), "two passes, each block once"
    assert stream.most <= cores + 2


def test_blocks_are_asked_for_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one block a thread, and one more, is in flight: memory does not grow with the number of rows."""
    monkeypatch.setattr(llmsuper.kernels, "usable_cores", lambda: 2)
    asked = added = 0

    class Counting(NormAccumulator):
        def add(self, partial: Any) -> None:
            nonlocal added
            assert asked - added <= 3
            added += 1
            super().add(partial)

    def blocks() -> Iterator[RowBlock]:
        nonlocal asked
        for block in MatrixBlocks(head(), 2):
            asked += 1
            yield block

    one_pass(blocks(), [Counting()], backend=EXACT)
    assert (asked, added) == (30, 30)


def test_heavy_work_is_on_threads_and_sums_are_in_order() -> None:
    """`summarize` runs on worker threads, `add` on the caller's, in the order of the rows."""
    seen: list[int] = []
    caller = threading.get_ident()

    class Watching(NormAccumulator):
        def summarize(self, block: UnitBlock) -> Any:
            assert threading.get_ident() != caller
            assert torch.get_num_threads() == 1
            return super().summarize(block)

        def add(self, partial: Any) -> None:
            assert threading.get_ident() == caller
            seen.extend(round(float(norm)) for norm in partial)
            super().add(partial)

    one_pass(MatrixBlocks(torch.arange(1.0, 41.0)[:, None], 3), [Watching()], backend=EXACT)
    assert seen == list(range(1, 41))


def test_the_mean_row_is_that_of_the_rows_that_are_not_zero() -> None:
    W = head().double()
    W[::4] = 0
    for precision, tolerance in (("float32", 1e-6), ("exact", 1e-14)):
        backend = choose_backend(precision=precision)  # type: ignore[arg-type]
        for scale in (1.0, 1e25, 1e-40, 1e-42):
            (found,) = one_pass(MatrixBlocks(scale * W, 7), [MeanRowAccumulator()], backend=backend)
            wanted = scale * W.sum(dim=0).numpy() / 45
            assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_one_pass_without_rows() -> None:
    with pytest.raises(CheckpointError, match="of 0 rows"):
        one_pass([], [NormAccumulator()])
    with pytest.raises(CheckpointError, match="no mean row"):
        one_pass([], [MeanRowAccumulator()])


@pytest.mark.parametrize("rows", [1, 7, 60, 8192])
def test_matrix_blocks(rows: int) -> None:
    blocks = list(MatrixBlocks(head(), rows))
    assert torch.equal(torch.cat([block.rows for block in blocks]), head())
    assert [block.start for block in blocks] == list(range(0, 60, rows))
