"""Feature frequencies by name, and their normalisation to an activation density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmsuper.errors import LlmsuperError, lookup

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Frequencies:
    """A row of FREQUENCIES: weights of the ranks, most frequent first, before normalisation; and the parameter they need."""

    weights: Callable[[NDArray[np.float64], float], NDArray[np.float64]]
    """(ranks 1 … n, parameter) → (n,)."""
    parameter: str | None = None


FREQUENCIES: dict[str, Frequencies] = {
    "power": Frequencies(lambda i, alpha: i**-alpha, "alpha"),
    # normalisation cancels what counting from 0, as the authors' code does, would change
    "exponential": Frequencies(lambda i, scale: np.exp(-i / scale), "scale"),
    "linear": Frequencies(lambda i, _: len(i) + 1 - i),  # n … 1: the code's n − i, counted from 0
}
"""Feature frequencies of arXiv:2505.10465: section 2 and appendix B."""


def feature_frequencies(
    distribution: str, n: int, activation_density: float, *, alpha: float | None = None, scale: float | None = None
) -> NDArray[np.float64]:
    """(n,) probabilities pᵢ, falling, with Σ pᵢ = E.

    Raises `UnknownNameError` for a distribution in no row, `LlmsuperError` for a parameter that it lacks or does not have, and
    for an E that is not in (0, Σᵢ wᵢ/w₁], above which p₁ would exceed 1.
    """
    row = lookup(FREQUENCIES, distribution, "feature distribution")
    given = {name: value for name, value in (("alpha", alpha), ("scale", scale)) if value is not None}
    if set(given) != ({row.parameter} if row.parameter else set()):
        raise LlmsuperError(
            f"feature distribution {distribution!r}: needs {row.parameter or 'no parameter'}, was given "
            f"{', '.join(given) or 'none'}. Correct it in the sweep."
        )
    parameter = given.get(row.parameter or "", 0.0)
    if not np.isfinite(parameter) or (row.parameter and parameter < 0) or (row.parameter == "scale" and parameter == 0):
        raise LlmsuperError(
            f"feature distribution {distribution!r}: {row.parameter} = {parameter:g} makes no falling frequencies. "
            f"Give {'a positive number' if row.parameter == 'scale' else 'a number that is not negative'}."
        )
    weights = row.weights(np.arange(1, n + 1, dtype=np.float64), parameter)
    highest = float(weights.sum() / weights[0])
    # a maximum that was computed elsewhere and printed is allowed to be a rounding above
    if not 0 < activation_density <= highest * (1 + 1e-9):
        raise LlmsuperError(
            f"activation density E = {activation_density:g}: {distribution} frequencies of {n} features allow E up to "
            f"{highest:.6g}, where the first is always active. Lower it."
        )
    frequencies: NDArray[np.float64] = np.minimum(activation_density * (weights / weights.sum()), 1.0)
    return frequencies
