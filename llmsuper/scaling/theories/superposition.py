"""How the toy model's loss falls with width: by the frequencies left out in weak superposition, by overlap in strong.

Liu, Liu and Gore 2025 (arXiv 2505.10465v4). Feature i is present with probability p_i and then has a value v uniform on
[0, 2]; the activation density is E = Σ p_i. Losses are sums over features, means over samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

MEAN_V = 1.0
MEAN_V_SQUARED = 4.0 / 3.0
"""<v> and <v²> of v uniform on [0, 2]."""


def weak_loss(frequencies: ArrayLike, represented: int) -> float:
    """Equation 4: Σ_{i > φn} (<v²> p_i − <v>² p_i²), the variance of the features that have no direction.

    `frequencies` is (n,), most frequent first, each in [0, 1]; `represented` is φn, 0 to n. The represented features are taken
    for perfect and the others for their mean. ValueError for frequencies that are not sorted or not probabilities.
    """
    p = np.asarray(frequencies, dtype=np.float64)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)) or np.any(np.diff(p) > 0) or not 0 <= represented <= len(p):
        raise ValueError(f"(n,) probabilities in falling order and 0 <= represented <= n, not {p.shape}, {represented}")
    left = p[represented:]
    return float((MEAN_V_SQUARED * left - MEAN_V**2 * left**2).sum())


def weak_exponent(alpha: float) -> float:
    """α_m = α − 1 of `weak_loss` with φn = m, p_i ∝ i^−α and m ≪ n. ValueError unless α > 1, below which no power law results."""
    if alpha <= 1:
        raise ValueError(f"weak superposition gives a power law for alpha > 1, not {alpha}")
    return alpha - 1


def strong_exponent_even(alpha: float) -> float:  # noqa: ARG001  the prediction is that it does not matter
    """α_m = 1: in strong superposition the loss follows the squared overlap of directions in m dimensions, 1/m."""
    return 1.0


def strong_exponent_skewed(alpha: float) -> float:
    """α_m = 2(α − 1): about m²/2 features are well represented, and those past them carry Σ_{i > m²/2} p_i ~ m^−2(α−1).

    The limit of strong skew; the paper does not say where it takes over from 1, and neither does this. ValueError unless α > 1.
    """
    if alpha <= 1:
        raise ValueError(f"the skewed limit of strong superposition needs alpha > 1, not {alpha}")
    return 2 * (alpha - 1)
