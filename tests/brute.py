"""Every statistic again, by loops over rows and over pairs of rows in float64: slow, and obviously right.

Nothing here uses the package. A new row in ACCUMULATORS gets its row in BRUTE, and the five laws run on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Brute:
    """A statistic by brute force, and what becomes of its fields when the matrix is multiplied by c > 0."""

    function: Callable[[Matrix], dict[str, Any]]
    scales: tuple[str, ...] = ()
    """Fields that are multiplied by c."""
    absolute: tuple[str, ...] = ()
    """Fields that compare with a fixed length and so change in no simple way. All the others stay as they are."""


def norms(W: Matrix) -> dict[str, Any]:
    lengths = sorted(length for row in W if (length := _length(row)) > 0)
    n, low, high = len(lengths), lengths[0], lengths[-1]
    mean = math.fsum(lengths) / n
    rms = math.sqrt(math.fsum(x * x for x in lengths) / n)
    if high - low <= 1e-6 * high:
        low, high = low * (1 - 1e-6), high * (1 + 1e-6)
    edges = [low + (high - low) * k / 64 for k in range(65)]
    counts = [sum(a <= x < b for x in lengths) for a, b in pairwise(edges)]
    counts[-1] += n - sum(counts)  # the last bin has its upper edge too
    return {
        "rows": n,
        "zero_rows": len(W) - n,
        "mean": mean,
        "std": math.sqrt(math.fsum((x - mean) ** 2 for x in lengths) / n),
        "rms": rms,
        "min": lengths[0],
        "max": lengths[-1],
        "quantiles": {f"{q:g}": _quantile(lengths, q) for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)},
        "histogram_edges": edges,
        "histogram_counts": counts,
        "share_above_half": sum(x > 0.5 for x in lengths) / n,
        "share_above_one": sum(x > 1 for x in lengths) / n,
        "share_above_half_rms": sum(x > rms / 2 for x in lengths) / n,
        "share_above_rms": sum(x > rms for x in lengths) / n,
    }


def overlap(W: Matrix) -> dict[str, Any]:
    unit = [row / length for row in W if (length := _length(row)) > 0]
    n, m = len(unit), W.shape[1]
    pairs = [float(unit[i] @ unit[j]) for i in range(n) for j in range(n) if i != j]
    mean_square = math.fsum(x * x for x in pairs) / len(pairs)
    mean = math.fsum(pairs) / len(pairs)
    variance = math.fsum((x - mean) ** 2 for x in pairs) / len(pairs)
    floor = (n - m) / (m * (n - 1)) if n > m else 0.0
    every = math.fsum(float(a @ b) ** 2 for a in unit for b in unit)  # the Frobenius potential, diagonal included
    return {
        "rows": n,
        "zero_rows": len(W) - n,
        "columns": m,
        "mean_squared_overlap": mean_square,
        "mean_overlap": mean,
        "overlap_variance": variance if variance > 1e-10 * mean_square else None,
        "isotropic": 1 / m,
        "ratio_to_isotropic": mean_square * m,
        "welch_floor": floor,
        "welch_ratio": mean_square / floor if n > m else None,
        "participation_ratio": n * n / every,
    }


def centred_overlap(W: Matrix) -> dict[str, Any]:
    """Of the rows minus the mean of the non-zero rows; zero rows stay out."""
    present = np.array([row for row in W if _length(row) > 0])
    mean_row = np.array([math.fsum(column) / len(present) for column in present.T])
    shifted = present - mean_row
    centreless = np.array([0 if _length(row) <= 1e-13 * _length(mean_row) else 1 for row in shifted])
    padded = np.zeros((len(W), W.shape[1]))
    padded[: len(present)] = shifted * centreless[:, None]
    return overlap(padded)


def _length(row: Matrix) -> float:
    return math.hypot(*row)


def _quantile(ordered: list[float], q: float) -> float:
    """Linear between order statistics."""
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


BRUTE: dict[str, Brute] = {
    "norms": Brute(
        norms,
        scales=("mean", "std", "rms", "min", "max", "quantiles", "histogram_edges"),
        absolute=("share_above_half", "share_above_one"),
    ),
    "overlap": Brute(overlap),
    "centred_overlap": Brute(centred_overlap),
}
