"""LAWS: each scaling law as a sum of terms, every one a coefficient times one power of one variable.

A law that is such a sum is linear in all but its exponents, so given the exponents its coefficients are one linear least
squares (variable projection), and its derivatives are known in closed form. A new law is one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Term:
    """`coefficient` × `variable`^−`exponent`; without a variable, the coefficient alone (the floor E).

    The exponent is the name of a parameter, or a number that the law fixes.
    """

    coefficient: str
    variable: str | None = None
    exponent: str | float = 0.0


@dataclass(frozen=True, slots=True)
class ScalingLaw:
    """One row of `LAWS`.

    `variables` are the law's own letters, in the order in which a fit is given its columns. `exponent_range` is where the
    exponents are searched: beside a floor an exponent near 0 makes its term a second floor, so the range stops short of 0.
    """

    name: str
    formula: str
    terms: tuple[Term, ...]
    source: str
    exponent_range: tuple[float, float] = (0.05, 6.0)

    @property
    def variables(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(t.variable for t in self.terms if t.variable is not None))

    @property
    def exponents(self) -> tuple[str, ...]:
        """The parameters that are not linear."""
        return tuple(dict.fromkeys(t.exponent for t in self.terms if isinstance(t.exponent, str)))

    @property
    def coefficients(self) -> tuple[str, ...]:
        """The parameters that are linear, one a term."""
        return tuple(t.coefficient for t in self.terms)

    @property
    def floor(self) -> str | None:
        """The coefficient without a variable, if the law has one."""
        return next((t.coefficient for t in self.terms if t.variable is None), None)

    def basis(self, x: Array, exponents: Array) -> Array:
        """The terms without their coefficients, shape (points, terms); `x` is (points, variables)."""
        return np.stack([self._power(term, x, exponents) for term in self.terms], axis=1)

    def basis_slope(self, x: Array, exponents: Array, exponent: str) -> Array:
        """∂ basis / ∂ `exponent`, shape (points, terms): −ln(x) x^−α in its terms and 0 in the others."""
        slope = np.zeros((len(x), len(self.terms)))
        for j, term in enumerate(self.terms):
            if term.exponent == exponent and term.variable is not None:
                slope[:, j] = -np.log(x[:, self.variables.index(term.variable)]) * self._power(term, x, exponents)
        return slope

    def evaluate(self, x: Array | Sequence[Sequence[float]], params: Mapping[str, float]) -> Array:
        """The law at `x` (points, variables) with these parameters, shape (points,)."""
        exponents = np.array([params[name] for name in self.exponents])
        coefficients = np.array([params[name] for name in self.coefficients])
        value: Array = self.basis(np.asarray(x, dtype=np.float64), exponents) @ coefficients
        return value

    def _power(self, term: Term, x: Array, exponents: Array) -> Array:
        if term.variable is None:
            return np.ones(len(x))
        value = exponents[self.exponents.index(term.exponent)] if isinstance(term.exponent, str) else term.exponent
        power: Array = x[:, self.variables.index(term.variable)] ** -value
        return power


LAWS: dict[str, ScalingLaw] = {
    law.name: law
    for law in (
        ScalingLaw(
            "power",
            "A·x^−α",
            (Term("A", "x", "alpha"),),
            "Kaplan et al., arXiv:2001.08361, equations (1.1) to (1.3)",
            exponent_range=(-6.0, 6.0),
        ),
        ScalingLaw(
            "power-floor",
            "A·x^−α + E",
            (Term("A", "x", "alpha"), Term("E")),
            "Liu, Liu and Gore, arXiv:2505.10465, equation (6): x is the width m",
        ),
        ScalingLaw(
            "inverse-floor",
            "A/x + E",
            (Term("A", "x", 1.0), Term("E")),
            "the same with α = 1, which strong superposition predicts for even feature frequencies",
        ),
        ScalingLaw(
            "chinchilla",
            "E + A/N^α + B/D^β",
            (Term("E"), Term("A", "N", "alpha"), Term("B", "D", "beta")),
            "Hoffmann et al., arXiv:2203.15556, equation (2): N parameters, D training tokens",
        ),
        ScalingLaw(
            "width-depth",
            "E + A/m^α + B/ℓ^β",
            (Term("E"), Term("A", "m", "alpha"), Term("B", "l", "beta")),
            "Liu, Liu and Gore, arXiv:2505.10465, equation (7): m width, ℓ layers",
        ),
        ScalingLaw(
            "width-data",
            "E + A/m^α + B/D^β",
            (Term("E"), Term("A", "m", "alpha"), Term("B", "D", "beta")),
            "the form of Hoffmann et al., arXiv:2203.15556, with the width m in place of N",
        ),
        ScalingLaw(
            "width-depth-data",
            "E + A/m^α + C/ℓ^γ + B/D^β",
            (Term("E"), Term("A", "m", "alpha"), Term("C", "l", "gamma"), Term("B", "D", "beta")),
            "Liu, Kangaslahti, Liu and Gore, arXiv:2602.05970: m width, ℓ layers, D training tokens",
        ),
    )
}
