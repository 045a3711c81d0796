"""The tiles that all pairs of rows are cut into: a list to order, to share out, to go on with, and to sample from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from llmsuper.errors import LlmsuperError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tiles: TypeAlias = "NDArray[np.int64]"
"""(t, 2) pairs of blocks (i, j), i ≤ j. Any order and any part of `every_tile` will do: `tiles[rank::world]`."""

FEWEST_TILES = 8
"""In a sample: the spread between tiles is not known from fewer."""
CONFIDENCE = 0.95
SEED = 0
"""Of the generator that chooses a sample where the caller brings none: the same head has the same sample every time."""


def every_tile(rows: int, block_rows: int) -> Tiles:
    """(t, 2) the tiles that hold each pair of `rows` rows once; a block of one row has no pair with itself."""
    i, j = np.triu_indices(-(-rows // block_rows))
    has_pairs = (i < j) | (np.minimum(rows - i * block_rows, block_rows) > 1)
    return np.stack([i, j], axis=1)[has_pairs].astype(np.int64)


def check_sample(sample: float) -> None:
    """Raises `LlmsuperError` for what is neither a share below 1 nor a whole number."""
    if not 0 < sample < math.inf or (sample >= 1 and sample != int(sample)):
        raise LlmsuperError(
            f"a sample of {sample:g} of the tiles means nothing: give a share below 1, or a whole number."
        )


def sample_tiles(tiles: Tiles, sample: float, generator: np.random.Generator) -> Tiles:
    """A share (below 1) or a number of the tiles, every choice equally likely, in the order of `tiles`.

    Raises `LlmsuperError` for a sample of fewer tiles than an interval needs, unless it is all of them.
    """
    check_sample(sample)
    count = min(len(tiles), round(sample * len(tiles)) if sample < 1 else int(sample))
    if count < min(FEWEST_TILES, len(tiles)):
        raise LlmsuperError(
            f"a sample of {sample:g} takes {count} of {len(tiles):,} tiles, and an interval needs {FEWEST_TILES}: ask for more."
        )
    return tiles[np.sort(generator.choice(len(tiles), count, replace=False))]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over all pairs, as a sample of tiles gives it."""

    value: float
    interval: tuple[float, float]
    """Holds the value of all pairs in CONFIDENCE of the samples."""


def estimate_mean(
    pairs: NDArray[np.float64],
    sums: NDArray[np.float64],
    controls: NDArray[np.float64],
    control_mean: float,
    tiles: int,
) -> Estimate:
    """The mean of a quantity over all pairs, from (t,) `pairs` and (t,) `sums` of the quantity in each tile of a sample.

    controls: (t,) sums of another quantity, whose mean over all pairs, `control_mean`, is known exactly.
    tiles: how many there are to sample from.

    The regression estimator of a ratio (Cochran, Sampling Techniques, 3rd ed., sections 6.3 and 7.3): with x = Σ sums / Σ pairs
    and z the same of the controls, x − β (z − control_mean), where β is the least-squares slope between the residuals that
    the tiles have. The spread is between tiles, never between pairs: pairs of one tile share their rows.
    """
    from scipy.special import stdtrit

    count = len(pairs)
    all_pairs = pairs.sum()
    mean, control = sums.sum() / all_pairs, controls.sum() / all_pairs
    residual, control_residual = sums - mean * pairs, controls - control * pairs
    spread = control_residual @ control_residual
    slope = float(control_residual @ residual / spread) if spread > 0 else 0.0
    value = float(mean - slope * (control - control_mean))
    left = residual - slope * control_residual
    variance: float = (1 - count / tiles) * float(left @ left) / (count - 2) * count / float(all_pairs) ** 2
    half = float(stdtrit(count - 2, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return Estimate(value, (value - half, value + half))
