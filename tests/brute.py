"""Every statistic again, by loops over rows and over pairs of rows in float64: slow, and obviously right.

Nothing here uses the package. A new row in STATISTICS gets its row in BRUTE, and the five laws run on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

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
    ordered: tuple[str, ...] = ()
    """Fields, or entries of `table`, that depend on the order of the rows, or on where zero rows stand among them."""
    precisions: tuple[str, ...] = ("exact", "float32")
    """Those in which it does not jump: a count of overlaps in bins does, as soon as there is rounding to speak of."""
    clear: Callable[[Matrix], bool] = lambda _: True
    """False for a matrix at, or next to, which the statistic jumps: where rounding may decide."""


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


def pairs(W: Matrix) -> dict[str, Any]:
    """Row numbers in `largest_crowds` and `closest_pairs` are places in W."""
    places = [i for i, row in enumerate(W) if _length(row) > 0]
    unit = {i: W[i] / _length(W[i]) for i in places}
    n, m = len(places), W.shape[1]
    found = [(i, j, min(1.0, max(-1.0, float(unit[i] @ unit[j])))) for i, j in combinations(places, 2)]
    every = [c for _, _, c in found]
    mean_square, mean_absolute = (math.fsum(abs(c) ** k for c in every) / len(every) for k in (2, 1))
    counts = [0] * 512
    for c in every:
        counts[min(511, math.floor((c + 1) * 256))] += 1
    largest, squares = dict.fromkeys(places, 0.0), dict.fromkeys(places, 0.0)
    for i, j, c in found:
        for row in (i, j):
            largest[row] = max(largest[row], abs(c))
            squares[row] += c * c
    kappa = math.sqrt((n - m) / (m * (n - 1))) if n > m else 0.0
    quantiles = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    maxima, means = sorted(largest.values()), sorted(s / (n - 1) for s in squares.values())
    crowds = _crowds(found)
    crowded = {row for crowd in crowds for row in crowd}
    others = [(i, j, c) for i, j, c in found if i not in crowded and j not in crowded]
    closest = sorted(others, key=lambda pair: (-round(abs(pair[2]), 6), pair[0], pair[1]))[:10]
    return {
        "rows": n,
        "zero_rows": len(W) - n,
        "columns": m,
        "pairs": len(every),
        "mean_overlap": math.fsum(every) / len(every),
        "mean_absolute_overlap": mean_absolute,
        "std_absolute_overlap": math.sqrt(math.fsum((abs(c) - mean_absolute) ** 2 for c in every) / len(every)),
        "mean_squared_overlap": mean_square,
        "histogram_edges": [k / 256 - 1 for k in range(513)],
        "histogram_counts": counts,
        "maximum_overlap": max(maxima),
        "welch_bound": kappa,
        "maximum_to_welch": max(maxima) / kappa if n > m else None,
        "row_maximum_quantiles": {f"{q:g}": _quantile(maxima, q) for q in quantiles},
        "row_mean_square_quantiles": {f"{q:g}": _quantile(means, q) for q in quantiles},
        "crowds": len(crowds),
        "crowded_rows": len(crowded),
        "largest_crowds": [
            {"size": len(crowd), "rows": crowd[:5]} for crowd in sorted(crowds, key=lambda c: (-len(c), c[0]))[:10]
        ],
        "closest_pairs": [{"row": i, "other": j, "overlap": c} for i, j, c in closest],
        "sampled": None,
    }


def _crowds(pairs: list[tuple[int, int, float]]) -> list[list[int]]:
    """Each row in turn with all that overlap it above 0.95 and are in no crowd yet, where these are two or more."""
    near: dict[int, set[int]] = {}
    for i, j, c in pairs:
        if round(abs(c), 6) > 0.95:
            near.setdefault(i, set()).add(j)
            near.setdefault(j, set()).add(i)
    crowds: list[list[int]] = []
    for row in sorted(near):
        taken = {one for crowd in crowds for one in crowd}
        around = sorted(near[row] - taken)
        if row not in taken and len(around) > 1:
            crowds.append([row, *around])
    return crowds


def _length(row: Matrix) -> float:
    return math.hypot(*row)


def _quantile(ordered: list[float], q: float) -> float:
    """Linear between order statistics."""
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def spectrum(W: Matrix) -> dict[str, Any]:
    U = _unit(W)
    values = sorted((max(0.0, float(x)) for x in np.linalg.eigvals(U.T @ U).real), reverse=True)
    total = math.fsum(values)
    shares = [x / total for x in values]
    sums = [math.fsum(shares[: k + 1]) for k in range(len(shares))]
    return {
        "rows": len(U),
        "zero_rows": len(W) - len(U),
        "columns": W.shape[1],
        "participation_ratio": total**2 / math.fsum(x * x for x in values),
        "leading_share": shares[0],
        "leading_shares": shares[:32],
        "directions_for_half": next(k for k, x in enumerate(sums, 1) if x >= 0.5 - 1e-9),
        "directions_for_90_percent": next(k for k, x in enumerate(sums, 1) if x >= 0.9 - 1e-9),
    }


def groups(W: Matrix) -> dict[str, Any]:
    rows = sorted((row for row in W if _length(row) > 0), key=_length)
    lengths = [_length(row) for row in rows]
    n = len(rows)
    cuts = [n * k // 10 for k in range(1, 10)]
    edges = [((lengths[c - 1] if c else 0.0) + lengths[c]) / 2 for c in cuts]
    threshold = 0.5 * math.sqrt(math.fsum(x * x for x in lengths) / n)

    def mean(a: list[int], b: list[int]) -> float | None:
        """Over the pairs of different rows, one of `a` and one of `b`."""
        squares = [(float(rows[i] @ rows[j]) / (lengths[i] * lengths[j])) ** 2 for i in a for j in b if i != j]
        return math.fsum(squares) / len(squares) if squares else None

    strong = [i for i in range(n) if lengths[i] > threshold]
    weak = [i for i in range(n) if lengths[i] <= threshold]
    deciles: list[list[int]] = [[] for _ in range(10)]
    for i in range(n):
        deciles[sum(edge < lengths[i] for edge in edges)].append(i)
    return {
        "rows": n,
        "zero_rows": len(W) - n,
        "columns": W.shape[1],
        "strong_threshold": threshold,
        "strong_rows": len(strong),
        "weak_rows": len(weak),
        "strong_with_strong": mean(strong, strong),
        "strong_with_weak": mean(strong, weak),
        "weak_with_weak": mean(weak, weak),
        "decile_edges": edges,
        "decile_rows": [len(decile) for decile in deciles],
        "decile_mean_squared_overlap": [[mean(a, b) for b in deciles] for a in deciles],
    }


def anisotropy(W: Matrix) -> dict[str, Any]:
    m, U = W.shape[1], _unit(W)
    n, present = len(U), [i for i, row in enumerate(W) if _length(row) > 0]
    mean = U.sum(axis=0) / n
    centred = centred_overlap(W)
    shifted = U - mean
    fourth = [float(shifted[i] @ shifted[j]) ** 2 for i in range(n) for j in range(n) if i != j]
    along = _mean_direction(U)
    values, vectors = np.linalg.eigh(U.T @ U)
    there = sum(float(x) > 1e-5 * float(values[-1]) for x in values)
    parts = {
        "as_it_is": _square(U),
        "mean_row": (centred["rows"], centred["mean_squared_overlap"]),
        "unit_mean": (n, math.fsum(fourth) / len(fourth)),
        "mean_direction": _square(_without(U, along)),
    }
    for k in (1, 2, 4, 8, 16):
        if k < there:
            parts[f"leading_{k}"] = _square(_without(U, vectors[:, m - k :]))
    early = [k for k in range(n) if present[k] < len(W) // 2]
    crowd = _crowd(U)
    for name, some in (("early", early), ("crowd", crowd)):
        others = [k for k in range(n) if k not in some]
        parts[name] = _square(U[some])
        parts["late" if name == "early" else "without_crowd"] = _square(U[others])
    before = parts["as_it_is"][1]
    return {
        "rows": n,
        "zero_rows": len(W) - n,
        "columns": m,
        "isotropic": 1 / m,
        "mean_direction_share": float(mean @ mean),
        "table": {
            name: {
                "rows": count,
                "mean_squared_overlap": square,
                "ratio_to_isotropic": None if square is None else m * square,
                "share_of_excess": None
                if square is None or before - 1 / m <= 0.01 / m
                else (before - square) / (before - 1 / m),
            }
            for name, (count, square) in parts.items()
        },
    }


def _clear_anisotropy(W: Matrix) -> bool:
    """Leading eigenvalues apart from the next, no row nearly within what is projected out, no overlap near 0.95, one crowd."""
    m, U = W.shape[1], _unit(W)
    values, vectors = np.linalg.eigh(U.T @ U)
    relative = values[::-1] / values[-1]
    along = _mean_direction(U)
    taken = [along, *(vectors[:, m - k :] for k in (1, 2, 4) if k < m and relative[k] > 1e-5)]
    left = [x for directions in taken for x in np.linalg.norm(U - (U @ directions) @ directions.T, axis=1)]
    overlaps = U @ U.T - np.eye(len(U))
    near = np.clip(overlaps - 0.95, 0, None).sum(axis=1)
    best = np.flatnonzero(near > near.max() - 1e-4)
    crowds = {tuple(np.flatnonzero((overlaps[i] > 0.95) | (np.arange(len(U)) == i))) for i in best}
    centre = U[list(next(iter(crowds)))].sum(axis=0)
    excess = overlap(W)["mean_squared_overlap"] * m - 1
    return bool(
        all(relative[k - 1] - relative[k] > 0.02 for k in (1, 2, 4) if k < m and relative[k] > 1e-5)
        and all(x > 1e-2 or x < 1e-8 for x in relative)
        and all(x > 0.1 or x < 1e-9 for x in left)
        and np.linalg.norm(U.sum(axis=0)) / len(U) > 1e-2
        and (np.abs(overlaps - 0.95) > 1e-4).all()
        and (np.abs(U @ centre / np.linalg.norm(centre) - 0.95) > 1e-4).all()
        and (len(crowds) == 1 or near.max() == 0)
        and not -0.2 < excess < 0.2
    )


def _crowd(U: Matrix) -> list[int]:
    """Places of the rows that overlap the middle of the densest crowd by more than 0.95."""
    every = range(len(U))
    score = [math.fsum(max(0.0, float(U[i] @ U[j]) - 0.95) for j in every if j != i) for i in every]
    if not any(score):
        return []
    seed = max(every, key=lambda i: score[i])
    centre = sum((U[j] for j in every if j == seed or float(U[seed] @ U[j]) > 0.95), np.zeros(U.shape[1]))
    return [i for i in every if float(U[i] @ centre) > 0.95 * _length(centre)]


def _mean_direction(U: Matrix) -> Matrix:
    total = U.sum(axis=0)
    length = _length(total)
    return total[:, None] / length if length > 1e-5 * len(U) else np.empty((U.shape[1], 0))


def _without(U: Matrix, directions: Matrix) -> Matrix:
    """Unit rows without their parts along orthonormal columns, normalised again; zeros where nothing is left."""
    rest = np.array([row - sum((row @ d) * d for d in directions.T) for row in U]).reshape(U.shape)
    return np.array([row / _length(row) if _length(row) > 1e-12 else 0 * row for row in rest]).reshape(U.shape)


def _square(U: Matrix) -> tuple[int, float | None]:
    """How many rows are not zero, and the mean squared overlap of these."""
    unit = [row for row in U if _length(row) > 0]
    squares = [float(a @ b) ** 2 for a, b in combinations(unit, 2)]
    return len(unit), math.fsum(squares) / len(squares) if squares else None


def controls(W: Matrix) -> dict[str, Any]:
    """Draws the numbers that the statistic says it draws."""
    present = np.array([row for row in W if _length(row) > 0])
    n, m = present.shape
    norms = sorted(_length(row) for row in present)
    normal = torch.randn(n, m, generator=torch.Generator().manual_seed(0)).double().numpy()
    random = np.array([row / _length(row) * norm for row, norm in zip(normal, norms, strict=True)])
    shuffled, generator = present.copy(), torch.Generator().manual_seed(0)
    for j in range(m):
        shuffled[:, j] = present[torch.randperm(n, generator=generator).numpy(), j]
    return {
        "rows": n,
        "zero_rows": len(W) - n,
        "columns": m,
        "seed": 0,
        "memory_bytes": 8 * n * m,
        "random": _control(random),
        "shuffled": _control(shuffled),
    }


def _control(W: Matrix) -> dict[str, Any]:
    plain, centred = overlap(W), centred_overlap(W)
    names = ("rows", "mean_squared_overlap", "ratio_to_isotropic", "mean_overlap", "participation_ratio")
    return {name: plain[name] for name in names} | {
        f"centred_{name}": centred[name] for name in ("mean_squared_overlap", "ratio_to_isotropic")
    }


def liu2025(W: Matrix) -> dict[str, Any]:
    """Of a matrix stored in float64, where nothing is rounded on the way."""
    zero_rows = sum(_length(row) == 0 for row in W)
    ours, m = overlap(W)["mean_squared_overlap"], W.shape[1]
    absolute = deviation = square = None
    if not zero_rows:
        found = [abs(float(a @ b)) / (_length(a) * _length(b)) for a, b in combinations(W, 2)]
        absolute, square = math.fsum(found) / len(found), math.fsum(x * x for x in found) / len(found)
        deviation = math.sqrt(math.fsum((x - absolute) ** 2 for x in found) / len(found))
    return {
        "rows": len(W),
        "zero_rows": zero_rows,
        "columns": m,
        "dtype": "float64",
        "mean_absolute_overlap": absolute,
        "std_absolute_overlap": deviation,
        "mean_squared_overlap": square,
        "ratio_to_isotropic": None if square is None else m * square,
        "unusable_rows": zero_rows,
        "ours_same_rows": ours,
        "rounding": None if square is None else 0.0,
    }


def _unit(W: Matrix) -> Matrix:
    return np.array([row / _length(row) for row in W if _length(row) > 0])


BRUTE: dict[str, Brute] = {
    "norms": Brute(
        norms,
        scales=("mean", "std", "rms", "min", "max", "quantiles", "histogram_edges"),
        absolute=("share_above_half", "share_above_one"),
    ),
    "overlap": Brute(overlap),
    "centred_overlap": Brute(centred_overlap),
    "spectrum": Brute(spectrum),
    "groups": Brute(groups, scales=("strong_threshold", "decile_edges")),
    "anisotropy": Brute(anisotropy, ordered=("early", "late"), clear=_clear_anisotropy),
    "controls": Brute(controls, ordered=("shuffled",)),
    "pairs": Brute(pairs, ordered=("crowds", "crowded_rows", "largest_crowds", "closest_pairs"), precisions=("exact",)),
    "liu2025": Brute(liu2025),
}
