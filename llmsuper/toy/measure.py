"""Measures a trained toy model with the house's geometry, and says beside it what theories expect.

Equations are those of arXiv:2505.10465v4. Losses are sums over features, means over samples.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from llmsuper.geometry.bounds import isotropic, isotropic_variance, welch_floor
from llmsuper.geometry.norms import NormAccumulator
from llmsuper.geometry.overlap import GramAccumulator
from llmsuper.geometry.passes import one_pass
from llmsuper.kernels import choose_backend
from llmsuper.scaling.theories.superposition import MEAN_V_SQUARED, weak_loss
from llmsuper.types import RowBlock

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from llmsuper.toy.run import ToyRun

    Array = NDArray[np.float64]

PROFILE_BANDS = 48
ROWS_AT_ONCE = 1024
"""Rows of an n × n matrix that are in memory together."""


def measure_rows(W: torch.Tensor) -> dict[str, Any]:
    """The fields of `ToyRecord` that are about the rows of W (n, m) alone. Raises `CheckpointError` where W is not finite."""
    backend = choose_backend("torch", "cpu", "exact")
    n = len(W)
    norms, overlap = one_pass([RowBlock(0, W)], [NormAccumulator(), GramAccumulator()], backend=backend)
    wide = W.double().numpy()
    lengths = np.linalg.norm(wide, axis=1)
    strong = np.flatnonzero(lengths > 1.0)
    strong_overlap = strong_variance = None
    if len(strong) > 1:
        (found,) = one_pass([RowBlock(0, W[strong])], [GramAccumulator()], backend=backend)
        strong_overlap, strong_variance = asdict(found), squared_overlap_variance(wide[strong])
    bands = sorted({*np.geomspace(1, n, PROFILE_BANDS).round().astype(int).tolist()})
    return {
        "norms": asdict(norms),
        "norm_profile": {
            "rank": bands,
            "norm": [float(lengths[low:high].mean()) for low, high in zip([0, *bands[:-1]], bands, strict=True)],
        },
        "phi_half": float(np.mean(lengths > 0.5)),
        "phi_one": len(strong) / n,
        "overlap": asdict(overlap),
        "squared_overlap_variance": squared_overlap_variance(wide),
        "strong_overlap": strong_overlap,
        "strong_squared_overlap_variance": strong_variance,
        "ambiguity": ambiguity(wide),
    }


def squared_overlap_variance(W: Array) -> float:
    """Variance of (ûᵢ·ûⱼ)² over the pairs i ≠ j of the rows of W that are not zero; figure 5c. At least two such rows."""
    lengths = np.linalg.norm(W, axis=1)
    unit = W[lengths > 0] / lengths[lengths > 0, None]
    n = len(unit)
    total = fourth = 0.0
    for start in range(0, n, ROWS_AT_ONCE):
        squares = np.square(unit[start : start + ROWS_AT_ONCE] @ unit.T)
        np.fill_diagonal(squares[:, start:], 0.0)
        total += float(squares.sum())
        fourth += float(np.vdot(squares, squares))
    pairs = n * (n - 1)
    return max(0.0, fourth / pairs - (total / pairs) ** 2)


def ambiguity(W: Array) -> float:
    """‖W Wᵀ − blockdiag(I_m, 0)‖₂ (figure 4b), from a matrix of 2m columns: W Wᵀ − P Pᵀ = [W P] diag(1, −1) [W P]ᵀ."""
    n, m = W.shape
    both = np.concatenate([W, np.eye(n, m)], axis=1)
    signs = np.repeat([1.0, -1.0], m)
    # X S Xᵀ and S Xᵀ X have the same eigenvalues but for zeros
    return float(np.abs(np.linalg.eigvals(signs[:, None] * (both.T @ both))).max())


def theory_values(
    run: ToyRun, W: torch.Tensor, b: torch.Tensor, phi_half: float, strong: int
) -> dict[str, float | None]:
    """What `ToyRecord.theory` lists; `strong` is the number of rows with a norm above 1."""
    p = run.frequencies()
    return {
        "weak_loss": weak_loss(p, round(phi_half * run.n)),
        "weak_loss_m": weak_loss(p, run.m),
        "ceiling": weak_loss(p, 0),
        "one_active_loss": one_active_loss(W.double().numpy(), b.double().numpy(), p),
        "isotropic": isotropic(run.m),
        "isotropic_variance": isotropic_variance(run.m),
        "welch_floor": welch_floor(run.n, run.m),
        "strong_welch_floor": welch_floor(strong, run.m) if strong > 1 else None,
        "phi_one": min(1.0, run.m**2 / (2 * run.n)),
    }


def one_active_loss(W: Array, b: Array, p: Array) -> float:
    """Equation (8): Σᵢ pᵢ times the mean loss of a sample in which feature i alone is active, v ~ U(0, 2).

    Exact in v: ReLU(c v + b) is a straight line where it is not 0. Samples with several active features, and those with
    none, are not in it.
    """
    total = 0.0
    for start in range(0, len(W), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        c = W[rows] @ W.T  # (rows, n): what output j gets of v when feature i is active
        own = np.arange(len(c)), np.arange(start, start + len(c))
        others = _mean_square(c, b)
        others[own] = 0.0
        square, product = _mean_square(c[own], b[rows]), _mean_product(c[own], b[rows])
        total += float(p[rows] @ (others.sum(axis=1) + square - 2 * product + MEAN_V_SQUARED))
    return total


def _mean_square(c: Array, b: Array) -> Array:
    """½ ∫₀² ReLU(c v + b)² dv: from the values y₀ and y₂ at the ends, (y₀² + y₀ y₂ + y₂²)/3 where both are positive."""
    low, high = np.broadcast_arrays(np.maximum(b, 0.0), np.maximum(2 * c + b, 0.0))
    both = (low**2 + low * high + high**2) / 3
    one = (low == 0) != (high == 0)
    both[one] = (high[one] ** 3 - low[one] ** 3) / (6 * c[one])
    mean: Array = both
    return mean


def _mean_product(c: Array, b: Array) -> Array:
    """½ ∫₀² v ReLU(c v + b) dv for c ≥ 0: the line is positive from max(0, −b/c) on."""
    edge = np.divide(-b, c, out=np.where(b > 0, 0.0, 2.0), where=c > 0).clip(0.0, 2.0)
    mean: Array = 0.5 * (c * (8 - edge**3) / 3 + b * (4 - edge**2) / 2)
    return mean
