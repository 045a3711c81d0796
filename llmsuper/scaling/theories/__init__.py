"""THEORIES: what each theory predicts, of which variable, from which paper.

A theory has a row here only where its paper's own text has been read, and its module is tested against published values only.
Two theories that are often named beside superposition have none: of their texts no more than the abstract and the opening
could be read, and what follows is from there.

- Redundancy (Bi and Calhoun 2025, arXiv 2509.20721): the excess risk of kernel regression falls as a power of the data with
  exponent 2s/(2s + 1/β). Whether the covariance spectrum falls as i^−β or as i^−1/β is in the part that could not be read,
  and accounts of the paper disagree. A copy of its arXiv page says: withdrawn by Yuda Bi, version 2 of 22 March 2026.
- In-context learning (Mehta and Gupta 2025, arXiv 2511.06232): power laws in depth, width, context length and data, with
  exponents that the task sets; the abstract does not give them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmsuper.scaling.theories import superposition

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Theory:
    """One row: what is predicted of which variable. `variable` keeps exponents of data and of width apart."""

    name: str
    variable: Literal["width", "params", "data"]
    predicts: str
    source: str
    exponent: Callable[[float], float]
    """The loss falls as variable^−exponent; the argument is α of the feature frequencies p_i ∝ i^−α."""


THEORIES: dict[str, Theory] = {
    row.name: row
    for row in (
        Theory(
            "superposition-weak",
            "width",
            "alpha_m = alpha - 1: the loss is what the features without a direction of their own carry (alpha > 1)",
            "arXiv 2505.10465v4, section 3.1, result 1",
            superposition.weak_exponent,
        ),
        Theory(
            "superposition-strong-even",
            "width",
            "alpha_m = 1 whatever alpha, while frequencies are even enough: the loss is the mean squared overlap, 1/m",
            "arXiv 2505.10465v4, section 3.2, result 2",
            superposition.strong_exponent_even,
        ),
        Theory(
            "superposition-strong-skewed",
            "width",
            "alpha_m about 2 (alpha - 1) for strongly skewed frequencies: the loss is what lies past feature m^2/2",
            "arXiv 2505.10465v4, section 3.2, result 2 (a conjecture, not derived)",
            superposition.strong_exponent_skewed,
        ),
    )
}
"""The theories by name."""
