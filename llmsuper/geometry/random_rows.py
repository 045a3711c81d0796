"""What the mean squared overlap of random rows is, and how far one draw of them strays from it."""

from __future__ import annotations

import math

from llmsuper.geometry.bounds import isotropic, isotropic_variance


def random_overlap(rows: int, columns: int, form: str = "overlap") -> tuple[float, float]:
    """Mean and standard deviation of the mean squared overlap of n random directions in m dimensions.

    Squared overlaps of different pairs of independent directions are uncorrelated, so the variance of their mean over the
    n(n−1)/2 pairs is that of one of them (Beta(½, (m−1)/2)) divided by the number of pairs. Taking the mean row away gives two
    rows the correlation −1/(n−1), which adds (m−1)/((m+2)(n−1)²) to the mean, to leading order.
    """
    n, m = rows, columns
    expected = isotropic(m) + ((m - 1) / ((m + 2) * (n - 1) ** 2) if form == "centred_overlap" else 0.0)
    return expected, math.sqrt(2 * isotropic_variance(m) / (n * (n - 1)))
