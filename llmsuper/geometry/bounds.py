"""The values to compare with: 1/m, the Welch floor, random directions."""

from __future__ import annotations


def isotropic(columns: int) -> float:
    """1/m: the mean squared overlap of independent random directions in m dimensions (arXiv:2505.10465, section 3.2)."""
    return 1.0 / columns


def isotropic_variance(columns: int) -> float:
    """2(m−1) / (m²(m+2)): the variance of one *squared* overlap of random directions, Beta(½, (m−1)/2)."""
    m = columns
    return 2 * (m - 1) / (m * m * (m + 2))


def welch_floor(rows: int, columns: int) -> float:
    """(n−m) / (m(n−1)): the least mean squared overlap that n unit vectors in m dimensions can have; 0 for n ≤ m.

    Welch (1974), IEEE Trans. Inf. Theory 20, the bound of order one; equation (5) of arXiv:2505.10465 is its root.
    """
    n, m = rows, columns
    return (n - m) / (m * (n - 1)) if n > m else 0.0
