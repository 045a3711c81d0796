"""GroupStatistics: how rows of different norms overlap, strong with weak and decile with decile.

With G_a = Σ_{i∈a} ûᵢ ûᵢᵀ over the rows of one group, Σ_{i∈a, j∈b} (ûᵢ·ûⱼ)² = ⟨G_a, G_b⟩_F: so every pair of groups costs one
product of m × m matrices, entry by entry. In a group with itself the n_a pairs i = i are taken away.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from llmsuper.errors import CheckpointError
from llmsuper.geometry.blocks import Request, UnitBlock
from llmsuper.geometry.norms import NORMS
from llmsuper.geometry.overlap import GramAccumulator, mean_squared_overlap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmsuper.geometry.blocks import Rows, Steps

DECILES = 10
STRONG = 0.5
"""Of the root-mean-square norm; longer rows are strong. φ_½ of arXiv:2505.10465 (equation 3), in a head's own unit."""
MEMORY = 8 << 30
"""Bytes that the Gram matrices of all groups may take together."""


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """Mean squared overlaps between groups of rows; null where two groups have no pair of different rows."""

    rows: int
    zero_rows: int
    columns: int
    strong_threshold: float
    """STRONG × root-mean-square norm, in the checkpoint's unit."""
    strong_rows: int
    weak_rows: int
    """Rows of the threshold's norm or less, zero rows not counted."""
    strong_with_strong: float | None
    strong_with_weak: float | None
    weak_with_weak: float | None
    decile_edges: list[float]
    """Norms between one decile and the next: midway between two rows, so that equal norms are in one decile."""
    decile_rows: list[int]
    """From the shortest rows to the longest."""
    decile_mean_squared_overlap: list[list[float | None]]
    """[a][b]: over the rows of decile a with those of decile b."""


@dataclass(frozen=True, slots=True)
class GroupSums:
    """Of g groups of rows, sums over the rows of each and the pairs of every two."""

    rows: NDArray[np.int64]  # (g,)
    traces: NDArray[np.float64]  # (g,) Σ ‖ûᵢ‖²
    squares: NDArray[np.float64]  # (g, g) Σ (ûᵢ·ûⱼ)², pairs i = j among them
    columns: int

    def joined(self, members: NDArray[np.bool_]) -> GroupSums:
        """Of larger groups: members (h, g) says which of these are in each."""
        of = members.astype(np.float64)
        return GroupSums(members @ self.rows, of @ self.traces, of @ self.squares @ of.T, self.columns)

    def mean_square(self, a: int, b: int) -> float | None:
        """Over the pairs i ≠ j of a row of group a and one of b; None where there is none."""
        if self.rows[a] == 0 or self.rows[b] == 0 or (a == b and self.rows[a] < 2):
            return None
        if a == b:
            return mean_squared_overlap(float(self.squares[a, a]), float(self.traces[a]), int(self.rows[a]))
        return float(self.squares[a, b] / (self.traces[a] * self.traces[b]))


class GroupGramAccumulator:
    """One Gram matrix for each group of rows between two norms: 8 m² bytes a group."""

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = np.asarray(edges)  # ascending; group g holds edges[g−1] < ‖wᵢ‖ ≤ edges[g]
        self.groups = [GramAccumulator() for _ in range(len(edges) + 1)]

    @property
    def products(self) -> int:
        return len(self.groups)

    def summarize(self, block: UnitBlock) -> list[tuple[int, Any]]:
        columns = block.unit.shape[1]
        needed = 8 * columns**2 * len(self.groups)
        if needed > MEMORY:
            raise CheckpointError(
                f"groups of rows by norm: {len(self.groups)} matrices of {columns:,} × {columns:,} take {needed / 1e9:.1f} GB, "
                f"and {MEMORY / 1e9:.1f} GB are allowed. Leave `groups` out of --stat."
            )
        labels = np.searchsorted(self.edges, block.norms)
        found = []
        for label in np.unique(labels):
            picked = np.flatnonzero(labels == label)
            part = UnitBlock(block.unit[picked], block.norms[picked], block.backend)
            found.append((int(label), self.groups[label].summarize(part)))
        return found

    def add(self, parts: list[tuple[int, Any]]) -> None:
        for label, of_group in parts:
            self.groups[label].add(of_group)

    def update(self, block: UnitBlock) -> None:
        self.add(self.summarize(block))

    def merge(self, other: GroupGramAccumulator) -> None:
        for mine, theirs in zip(self.groups, other.groups, strict=True):
            mine.merge(theirs)

    def compute(self) -> GroupSums:
        """What is left when the matrices go."""
        matrices = [group.matrix for group in self.groups]
        inner = np.zeros((len(matrices),) * 2)
        for a, left in enumerate(matrices):
            for b, right in enumerate(matrices[: a + 1]):
                if left is not None and right is not None:
                    inner[a, b] = inner[b, a] = float(np.vdot(left, right))
        traces = np.array([0.0 if matrix is None else float(np.trace(matrix)) for matrix in matrices])
        columns = max((len(matrix) for matrix in matrices if matrix is not None), default=0)
        return GroupSums(np.array([group.rows for group in self.groups]), traces, inner, columns)


def groups(_: Rows) -> Steps:
    """The statistic `groups`: one pass for the norms, one for a Gram matrix of each group.

    Raises `CheckpointError` where those matrices take more than MEMORY.
    """
    (found,) = yield (NORMS,)
    summary, norms = found.compute(), found.norms
    decile_edges = [_between(norms, len(norms) * k // DECILES) for k in range(1, DECILES)]
    threshold = STRONG * summary.rms
    edges = sorted({*decile_edges, threshold})
    request = Request("norm groups", partial(GroupGramAccumulator, edges), finish=GroupGramAccumulator.compute)
    (sums,) = yield (request,)

    upper, lower = np.array([*edges, np.inf]), np.array([0.0, *edges])
    decile = np.searchsorted(decile_edges, upper)  # of each group: as many decile edges lie below it
    by_strength = sums.joined(np.stack([lower >= threshold, lower < threshold]))
    by_decile = sums.joined(decile == np.arange(DECILES)[:, None])
    return GroupStatistics(
        rows=summary.rows,
        zero_rows=summary.zero_rows,
        columns=sums.columns,
        strong_threshold=threshold,
        strong_rows=int(by_strength.rows[0]),
        weak_rows=int(by_strength.rows[1]),
        strong_with_strong=by_strength.mean_square(0, 0),
        strong_with_weak=by_strength.mean_square(0, 1),
        weak_with_weak=by_strength.mean_square(1, 1),
        decile_edges=decile_edges,
        decile_rows=[int(count) for count in by_decile.rows],
        decile_mean_squared_overlap=[[by_decile.mean_square(a, b) for b in range(DECILES)] for a in range(DECILES)],
    )


def _between(norms: NDArray[np.float64], k: int) -> float:
    """Midway between the k-th and the next of ascending norms, so that rounding puts no row on the other side."""
    return float((norms[k - 1] if k else 0.0) + norms[k]) / 2
