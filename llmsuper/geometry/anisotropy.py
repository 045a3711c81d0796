"""AnisotropyStatistics: what makes the overlap exceed 1/m, as a table of how much of the excess goes with each thing.

The mean row can be taken away in three ways, which are not the same and have their own names here:

    mean_row        wᵢ − µ, normalised again; µ is the mean of the rows as stored. Cosines of centred rows: the default.
    unit_mean       ûᵢ − s/n, not normalised again; s = Σ ûᵢ. These are not cosines: rows have lengths below 1.
    mean_direction  ûᵢ − (ûᵢ·ŝ) ŝ, normalised again; ŝ = s/‖s‖

leading_k: the k leading eigenvectors of G = Σ ûᵢ ûᵢᵀ (not centred, so the first is close to ŝ) are projected out of each unit
row, and what is left is normalised again.

early, late: the first and the second half of the rows, each half alone. Tokenizers give early ids to frequent tokens.

crowd: the rows that training has hardly touched share one direction (Land and Bartolo, arXiv:2405.05417, find them by it).
The crowd is the rows that overlap its centre by more than 0.95, and the centre is found in an evenly spaced sample of at most
SAMPLE rows: the sampled row whose overlaps above 0.95 add up to most, and all that overlap it by as much, in the mean. The
rule looks for many rows of one direction, not for bad training: what else is crowded like that is found as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from llmsuper.geometry.blocks import Request
from llmsuper.geometry.bounds import isotropic
from llmsuper.geometry.overlap import GRAM, MEAN_ROW, centred_gram, mean_squared_overlap
from llmsuper.geometry.subsets import (
    CrowdGramAccumulator,
    EarlyGramAccumulator,
    ProjectedGramAccumulator,
    SampleAccumulator,
    crowd_centre,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmsuper.geometry.blocks import Rows, Steps
    from llmsuper.geometry.overlap import GramAccumulator

LEADING = (1, 2, 4, 8, 16)
SAMPLE = 2_048
NO_MEAN = 1e-5
"""Length of s/n below which rows have no mean direction; that of random rows is 1/√n."""
NO_MORE = 1e-5
"""Eigenvalue, relative to the largest, below which there is no further direction."""
NO_EXCESS = 0.01
"""Excess over 1/m, relative to 1/m, below which there is nothing to explain."""

Part = tuple[int, float | None]  # rows, and their mean squared overlap where there are two


@dataclass(frozen=True, slots=True)
class Removal:
    """What is left of the overlap when something is taken away."""

    rows: int
    """Rows that have a direction then."""
    mean_squared_overlap: float | None
    """Null where fewer than two rows have one."""
    ratio_to_isotropic: float | None
    """m × mean_squared_overlap; of all m columns, also where directions were removed."""
    share_of_excess: float | None
    """Of the excess over 1/m of the rows as they are: how much is gone. 1: all of it; below 0: there is more than before;
    null: there was none."""


@dataclass(frozen=True, slots=True)
class AnisotropyStatistics:
    """Mean squared overlaps of what is left when one thing is taken away from the rows; see the top of this file."""

    rows: int
    zero_rows: int
    columns: int
    isotropic: float
    """1/m."""
    mean_direction_share: float
    """‖s/n‖²: the share of a unit row's squared length along the mean direction, in the mean; about the squared mean overlap."""
    table: dict[str, Removal]
    """`as_it_is` and, by name, what was taken away or which rows are left. `leading_k` is absent where k directions leave
    nothing."""


def anisotropy(rows: Rows) -> Steps:
    """The statistic `anisotropy`: three passes, eight Gram matrices and the leading eigenvectors of one."""
    found, mean_row = yield (GRAM, MEAN_ROW)
    gram, n = found.gram, found.rows
    mean = found.direction / n
    along = _mean_direction(mean)
    components = _leading(gram)
    total = n + found.zero_rows
    half = total // 2 if rows.mask is None else int(np.flatnonzero(rows.mask)[total // 2])
    split = partial(_split, found)

    projected = {"mean_direction": along} | {f"leading_{k}": vectors for k, vectors in components.items()}
    answers = yield (
        centred_gram(mean_row),
        Request("early rows", partial(EarlyGramAccumulator, half), finish=split),
        Request("sample of rows", partial(SampleAccumulator, max(1, -(-total // SAMPLE))), finish=_centre),
        *(
            Request(f"without {name}", partial(ProjectedGramAccumulator, directions), finish=_part)
            for name, directions in projected.items()
        ),
    )
    centred, (early, late), centre, *without = answers
    parts: dict[str, Part] = {
        "as_it_is": _part(found),
        "mean_row": (centred.rows, centred.mean_squared_overlap),
        "unit_mean": (n, _centred_without_norms(gram, mean, n)),
        **dict(zip(projected, without, strict=True)),
        "early": early,
        "late": late,
        "crowd": (0, None),
        "without_crowd": _part(found),
    }
    if centre is not None:
        request = Request("crowd", partial(CrowdGramAccumulator, centre), finish=split)
        ((parts["crowd"], parts["without_crowd"]),) = yield (request,)
    return AnisotropyStatistics(
        rows=n,
        zero_rows=found.zero_rows,
        columns=len(gram),
        isotropic=isotropic(len(gram)),
        mean_direction_share=float(mean @ mean),
        table={name: _removal(part, parts["as_it_is"], len(gram)) for name, part in parts.items()},
    )


def _mean_direction(mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """(m, 1) s/‖s‖, or (m, 0) where the rows have no mean direction."""
    length = float(np.linalg.norm(mean))
    return mean[:, None] / length if length > NO_MEAN else np.empty((len(mean), 0))


def _leading(gram: NDArray[np.float64]) -> dict[int, NDArray[np.float64]]:
    """(m, k) the k leading eigenvectors, for each k of LEADING that leaves a direction."""
    from scipy.linalg import eigh
    from threadpoolctl import threadpool_limits

    m = len(gram)
    fewest = max(0, m - max(LEADING) - 1)
    with threadpool_limits(1, user_api="blas"):  # scipy's own BLAS, whose threads would spin against the others'
        values, vectors = eigh(gram, subset_by_index=(fewest, m - 1))
    there = int(np.count_nonzero(values > NO_MORE * values[-1]))
    descending = vectors[:, ::-1].copy()  # torch has no negative strides
    return {k: descending[:, :k] for k in LEADING if k < there}


def _part(found: GramAccumulator) -> Part:
    return _mean_square(found.matrix, found.rows)


def _split(every: GramAccumulator, some: GramAccumulator) -> tuple[Part, Part]:
    """Of some of the rows, and of the others, whose Gram matrix is what is left of that of every row."""
    others = every.gram if some.matrix is None else every.gram - some.matrix
    return _part(some), _mean_square(others, every.rows - some.rows)


def _mean_square(gram: NDArray[np.float64] | None, rows: int) -> Part:
    if gram is None or rows < 2:
        return rows, None
    return rows, mean_squared_overlap(float(np.vdot(gram, gram)), float(np.trace(gram)), rows)


def _centre(sample: SampleAccumulator) -> NDArray[np.float64] | None:
    return crowd_centre(sample.compute())


def _centred_without_norms(gram: NDArray[np.float64], mean: NDArray[np.float64], n: int) -> float:
    """The mean of (vᵢ·vⱼ)² over i ≠ j for vᵢ = ûᵢ − c with c = s/n, which G and s tell without another pass.

    Σᵢⱼ (vᵢ·vⱼ)² = ‖G − n c cᵀ‖²_F, and ‖vᵢ‖² = 1 + ‖c‖² − 2 ûᵢ·c with Σ ûᵢ·c = n ‖c‖² and Σ (ûᵢ·c)² = cᵀ G c.
    """
    centred = gram - n * np.outer(mean, mean)
    square = float(mean @ mean)
    fourth = n * (1 + square) ** 2 - 4 * (1 + square) * n * square + 4 * float(mean @ gram @ mean)  # Σ ‖vᵢ‖⁴
    return max(0.0, (float(np.vdot(centred, centred)) - fourth) / (n * (n - 1)))


def _removal(part: Part, as_it_is: Part, columns: int) -> Removal:
    rows, square = part
    before, floor = as_it_is[1], isotropic(columns)
    share = None
    if square is not None and before is not None and before - floor > NO_EXCESS * floor:
        share = (before - square) / (before - floor)
    return Removal(rows, square, None if square is None else columns * square, share)
