"""Runs the statistics asked for over the rows, in as few passes as they need.

A statistic asks for accumulators, is answered when a pass has filled them, and may ask for more (`blocks.Steps`). All that
were asked for go over the rows together here, so statistics that read the same accumulator share it: `overlap`,
`spectrum` and `anisotropy` read one Gram matrix.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llmsuper.errors import lookup
from llmsuper.geometry import STATISTICS
from llmsuper.geometry.blocks import Rows
from llmsuper.geometry.passes import View, feed
from llmsuper.kernels import PRODUCT_BYTES, one_thread_per_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from llmsuper.geometry.blocks import Accumulator, Request, Share, Steps
    from llmsuper.kernels import Backend
    from llmsuper.types import RowBlock, RowRule

    Answers = dict[str, dict[str, Any]]  # by row class, then by key

PRODUCTS_IN_FLIGHT = 16
"""Products of blocks that PRODUCT_BYTES has room for at once. The same on every machine, so that the processes of one run
make the same passes."""


def passes(statistics: Iterable[str]) -> int:
    """How often the rows are read for these statistics, and more often where their m × m matrices need more memory.

    Raises `UnknownNameError` for a name that is not in STATISTICS.
    """
    rows = [lookup(STATISTICS, name, "statistic") for name in statistics]
    return max((row.passes for row in rows), default=0) + sum(row.reads for row in rows)


def measure_rows(
    blocks: Iterable[RowBlock],
    statistics: Sequence[str],
    backend: Backend,
    *,
    mask: NDArray[np.bool_] | None = None,
    row_rule: RowRule = "all",
    reduce: Callable[[Sequence[Accumulator]], None] | None = None,
    every_block: Iterable[RowBlock] | None = None,
    share: Share | None = None,
    sample: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Statistics by row class (`tokens`, `all`), then by name. `blocks` is iterated once a pass; see `passes`.

    mask: (n,) True for the rows that are tokens; None when that is not known, and then there is the class `all` alone.
    reduce: called after each pass with its accumulators, to merge in what other processes have seen.
    every_block: all blocks, for statistics that read the rows themselves, where `blocks` is the share of one process.
    share: that process, for statistics that share out what they make of the rows.
    sample: of `pairs` the share (below 1) or number of tiles to look at, which takes one more pass; None: all.
    progress: called with a name, how much is done, and how much there is, by what takes n² m operations.

    A statistic of one pass is measured for both classes in that pass. One of more passes needs something of its own class
    first, such as the mean row, and is measured for the class asked for by `row_rule` alone; unless no row is padding and
    the classes are the same.
    """
    if mask is not None and mask.all():
        found = measure_rows(
            blocks,
            statistics,
            backend,
            reduce=reduce,
            every_block=every_block,
            share=share,
            sample=sample,
            progress=progress,
        )
        return found | {"tokens": found["all"]}
    masks: dict[str, NDArray[np.bool_] | None] = {"all": None} if mask is None else {"tokens": mask, "all": None}
    for name in statistics:
        lookup(STATISTICS, name, "statistic")
    chosen = {name: row for name, row in STATISTICS.items() if name in statistics}
    with one_thread_per_block():  # what lies between passes too: two pools of threads spin against each other
        whole = blocks if every_block is None else every_block
        runs = [
            _Run(
                name,
                row_class,
                "all" if row.every_row else row_class,
                row.steps(Rows(whole, backend, of, progress, share, sample)),
            )
            for row_class in masks
            for name, row in chosen.items()
            if row.of_both or row_class == row_rule or mask is None
            for of in [None if row.every_row else masks[row_class]]
        ]
        columns = 0
        while waiting := [run for run in runs if run.requests]:
            answers: Answers = defaultdict(dict)
            columns = _answer(waiting, answers, columns, blocks, backend, mask, reduce)
            for run in waiting:
                run.advance([answers[run.over][request.key] for request in run.requests])
            del answers  # what no statistic has kept is let go before the next pass
    return {
        row_class: {run.name: asdict(run.result) for run in runs if run.row_class == row_class}
        for row_class in reversed(masks)
    }


class _Run:
    """One statistic of one class of rows, at work: what it asks for next, or its result."""

    def __init__(self, name: str, row_class: str, over: str, steps: Steps) -> None:
        self.name, self.row_class = name, row_class
        self.over = over  # the class whose rows it is fed with
        self.requests: tuple[Request, ...] = ()
        self.result: Any = None
        self._steps = steps
        self._go(lambda: next(steps))

    def advance(self, answers: list[Any]) -> None:
        self._go(lambda: self._steps.send(answers))

    def _go(self, step: Callable[[], tuple[Request, ...]]) -> None:
        try:
            self.requests = step()
        except StopIteration as end:
            self.requests, self.result = (), end.value


def _answer(
    runs: Sequence[_Run],
    answers: Answers,
    columns: int,
    blocks: Iterable[RowBlock],
    backend: Backend,
    mask: NDArray[np.bool_] | None,
    reduce: Callable[[Sequence[Accumulator]], None] | None,
) -> int:
    """Fill the accumulators that the runs ask for, and put what is made of each into `answers`. The number of columns."""
    tokens, every = ({r.key: r for run in runs if run.over == c for r in run.requests} for c in ("tokens", "all"))
    both = {**tokens, **every}
    for bundle in _bundles(both.values(), columns):
        counted = {r.key: r.make() for r in bundle}
        padding = {r.key: r.make() for r in bundle if tokens and r.key in every}
        centres = {id(r.centre): r.centre for r in bundle}
        views = [
            View(
                [counted[r.key] for r in bundle if id(r.centre) == of],
                [padding[r.key] for r in bundle if id(r.centre) == of and r.key in padding],
                centre,
            )
            for of, centre in centres.items()
        ]
        columns = max(columns, feed(blocks, views, backend, mask if tokens else None))
        if reduce is not None:
            reduce([*counted.values(), *padding.values()])
        for request in bundle:
            finish = request.finish or (lambda accumulator: accumulator)
            if request.key in tokens:
                answers["tokens"][request.key] = finish(counted[request.key])
            if request.key in every:
                total = counted[request.key]
                if request.key in padding:
                    total = padding[request.key]
                    total.merge(counted[request.key])
                answers["all"][request.key] = finish(total)
    return columns


def _bundles(requests: Iterable[Request], columns: int) -> Iterator[list[Request]]:
    """The requests in lots, one a pass, of as many m × m products as there is room for; one lot before m is known."""
    most = max(1, PRODUCT_BYTES // (PRODUCTS_IN_FLIGHT * 4 * columns**2)) if columns else None
    lot: list[Request] = []
    made = 0
    for request in requests:
        products = request.make().products
        if lot and products and most is not None and made + products > most:
            yield lot
            lot, made = [], 0
        lot.append(request)
        made += products
    yield lot
