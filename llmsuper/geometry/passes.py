"""Drives blocks of rows through accumulators."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from llmsuper.errors import CheckpointError
from llmsuper.geometry.blocks import UnitBlock
from llmsuper.kernels import PRODUCT_BYTES, NonFiniteRowError, choose_backend, worker_threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future

    import torch
    from numpy.typing import NDArray

    from llmsuper.geometry.blocks import Accumulator
    from llmsuper.kernels import Backend
    from llmsuper.types import RowBlock


@dataclass(frozen=True, slots=True)
class View:
    """The rows minus `centre`, normalised, and the accumulators that are fed with them."""

    accumulators: Sequence[Accumulator]
    """Fed with the rows of the mask."""
    others: Sequence[Accumulator] = ()
    """Fed with the rest."""
    centre: NDArray[np.float64] | None = None
    """(m,)"""


def one_pass(
    blocks: Iterable[RowBlock],
    accumulators: Sequence[Accumulator],
    *,
    backend: Backend | None = None,
    centre: NDArray[np.float64] | None = None,
    mask: NDArray[np.bool_] | None = None,
    others: Sequence[Accumulator] = (),
) -> list[Any]:
    """Feed every row to the accumulators, once, and return what each computes.

    blocks: consecutive rows (b, m) in storage dtype; each is released as soon as it has been normalised.
    centre: (m,) subtracted from each row before it is normalised.
    mask: (n,) True for rows that go to `accumulators`; the rest go to `others`, whose `compute` is left to the caller.

    Blocks are normalised and multiplied on several threads; partial results are added in the order of the rows.
    Raises `CheckpointError` for the first row that is NaN or infinite, naming its number.
    """
    feed(blocks, [View(accumulators, others, centre)], backend or choose_backend(), mask)
    return [accumulator.compute() for accumulator in accumulators]


def feed(
    blocks: Iterable[RowBlock], views: Sequence[View], backend: Backend, mask: NDArray[np.bool_] | None = None
) -> int:
    """Feed every row to the accumulators of every view, once, and return the number of columns. See `one_pass`."""
    seen = 0
    for columns, partials in _summaries(blocks, views, backend, mask):
        seen = columns
        for accumulator, partial in partials:
            accumulator.add(partial)
    return seen


def threads_for(products: int, columns: int, backend: Backend) -> int:
    """Blocks to work on at once where each makes that many m × m products: fewer than the backend's where memory says so."""
    threads = backend.threads(columns)
    if products > 1:
        product = backend.workspace(1, 1).element_size() * columns**2
        threads = min(threads, PRODUCT_BYTES // (products * product))
    return max(1, threads)


def _summaries(
    blocks: Iterable[RowBlock], views: Sequence[View], backend: Backend, mask: NDArray[np.bool_] | None
) -> Iterator[tuple[int, list[tuple[Accumulator, Any]]]]:
    """The columns, and what the accumulators make of each block, in order.

    At most one block a thread, and one more, is in flight.
    """

    own = (
        threading.local()
    )  # each thread's memory for unit rows: fresh pages for every block would cost a tenth of the time

    def work(block: RowBlock) -> list[tuple[Accumulator, Any]]:
        chosen = np.ones(len(block.rows), bool) if mask is None else mask[block.start : block.start + len(block.rows)]
        groups = [
            (targets, view.centre, np.flatnonzero(wanted))
            for view in views
            for targets, wanted in ((view.accumulators, chosen), (view.others, ~chosen))
            if targets and wanted.any()
        ]
        if not groups:
            block.release()
        found: list[tuple[Accumulator, Any]] = []
        for left, (targets, centre, picked) in zip(reversed(range(len(groups))), groups, strict=True):
            if len(getattr(own, "unit", ())) < len(picked):
                own.unit = backend.workspace(*block.rows.shape)
            try:
                unit, norms = backend.unit_rows(_pick(block.rows, picked), centre, own.unit[: len(picked)])
            except NonFiniteRowError as error:
                row = block.start + int(picked[error.index])
                raise CheckpointError(f"row {row} holds a NaN or an infinity, so no statistic over it exists") from None
            if not left:
                block.release()
            unit_block = UnitBlock(unit, norms, backend, block.start + picked)
            found += [(target, target.summarize(unit_block)) for target in targets]
        return found

    waiting: deque[Future[list[tuple[Accumulator, Any]]]] = deque()
    blocks = iter(blocks)
    first = next(blocks, None)
    if first is None:
        return
    products = sum(accumulator.products for view in views for accumulator in view.accumulators)
    columns = first.rows.shape[1]
    threads = threads_for(products, columns, backend)
    with worker_threads(threads, "rows") as pool:
        try:
            for block in chain([first], blocks):
                waiting.append(pool.submit(work, block))
                if len(waiting) > threads:
                    yield columns, waiting.popleft().result()
            while waiting:
                yield columns, waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _pick(rows: torch.Tensor, picked: NDArray[np.int64]) -> torch.Tensor:
    """Those rows (k, m): a view when they are consecutive, as they are everywhere but around padding inside a vocabulary."""
    import torch

    first, last = int(picked[0]), int(picked[-1])
    return rows[first : last + 1] if last - first + 1 == len(picked) else rows[torch.from_numpy(picked)]
