"""Fits f ∝ rank^−α to token frequencies: by the paper's line through log-log points, and by maximum likelihood."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmsuper.errors import FitError, lookup

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from llmsuper.tokens.counts import TokenCounts

POINTS = 1000
"""Points of the line, uniform in the logarithm of the rank: as many as in Liu, Liu and Gore 2025, appendix C.3."""
MIN_RANKS = 3


@dataclass(frozen=True, slots=True)
class RankFit:
    """A power law f(r) = scale · r^−exponent over the ranks first … last.

    stderr, interval    of `maximum-likelihood` alone: from the observed information, and where twice the log likelihood falls by
                        the 95 % point of χ²₁. Both hold for tokens drawn independently, which those of a text are not.
    jackknife           standard error over texts: groups of texts left out in turn, each time ranked anew. None for a corpus
                        of fewer than two groups.
    misfit              largest distance between the cumulative shares of the counts and of the law, 0 to 1
    """

    method: str
    exponent: float
    scale: float
    first: int
    last: int
    misfit: float
    stderr: float | None = None
    interval: tuple[float, float] | None = None
    jackknife: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def fit_ranks(counts: TokenCounts, method: str, *, first: int = 1, last: int | None = None) -> RankFit:
    """Fit the exponent over the ranks `first` … `last` (None: the last one that occurs), by a row of `METHODS`.

    Raises `UnknownNameError` for an unknown method, `FitError` for fewer than three ranks in the window.
    """
    one_fit = lookup(METHODS, method, "method for the exponent")
    frequencies = counts.frequencies
    fitted = one_fit(_window(frequencies, first, last, counts.corpus), first)
    last = fitted.last
    others = [part for part in counts.without_each_group() if len(part) - first + 1 >= MIN_RANKS]
    found = np.array([one_fit(_window(part, first, min(last, len(part)), ""), first).exponent for part in others])
    # the delete-a-group jackknife: Efron and Tibshirani 1993, equation 11.5, with groups of texts in the place of points
    spread = (
        float(np.sqrt((len(found) - 1) / len(found) * np.sum((found - found.mean()) ** 2))) if len(found) > 1 else None
    )
    return RankFit(**{**asdict(fitted), "jackknife": spread})


def _window(frequencies: NDArray[np.int64], first: int, last: int | None, name: str) -> NDArray[np.float64]:
    there = len(frequencies)
    end = there if last is None else last
    if first < 1 or end > there or end - first + 1 < MIN_RANKS:
        raise FitError(
            f"{name}: a power law needs at least {MIN_RANKS} ranks, and the ranks {first} to {end} were asked for of the "
            f"{there:,} different tokens that occur. Give a longer corpus, or other --ranks."
        )
    return frequencies[first - 1 : end].astype(np.float64)


def fit_line(frequencies: NDArray[np.float64], first: int = 1) -> RankFit:
    """The paper's method: least squares on (ln rank, ln frequency) at `POINTS` ranks uniform in ln rank.

    `frequencies` is that of the ranks first, first + 1, …, largest first, none zero. A low rank is met by many points and a
    high one by few or none, which is the method: every decade of ranks weighs the same. No error is given, for that of
    a line through a thousand readings of one curve says nothing; see `jackknife`.
    """
    last = first + len(frequencies) - 1
    ranks = np.rint(np.geomspace(first, last, POINTS)).astype(np.int64)
    x, y = np.log(ranks), np.log(frequencies[ranks - first])
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    scale = float(np.exp(y.mean() - slope * x.mean()))
    return RankFit("least-squares", -slope, scale, first, last, _misfit(frequencies, first, -slope))


def fit_likelihood(frequencies: NDArray[np.float64], first: int = 1) -> RankFit:
    """Maximum likelihood of P(r) = r^−α / Σ_{s=first}^{last} s^−α, the discrete power law on a finite support.

    It is an exponential family in ln r, so the estimate is where the mean of ln r under the law is that of the tokens, and
    the observed information is N Var(ln r). Every token weighs the same, so the frequent ranks decide. As ranks are given by
    the same counts, the rare end is a little too steep (Piantadosi 2014, Psychonomic Bulletin & Review 21, 1112).
    """
    from scipy.optimize import brentq
    from scipy.stats import chi2

    last = first + len(frequencies) - 1
    log_rank = np.log(np.arange(first, last + 1))
    n = float(frequencies.sum())
    mean = float(frequencies @ log_rank) / n

    def law(alpha: float) -> tuple[float, NDArray[np.float64]]:
        """The logarithm of the sum that normalises, and the probabilities."""
        power = -alpha * log_rank
        weight = np.exp(power - power.max())
        return float(np.log(weight.sum()) + power.max()), weight / weight.sum()

    def log_likelihood(alpha: float) -> float:
        return n * (-alpha * mean - law(alpha)[0])

    def excess(alpha: float) -> float:
        return float(law(alpha)[1] @ log_rank) - mean

    upper = _until(lambda alpha: excess(alpha) < 0, 2.0)
    exponent = float(brentq(excess, -1.0, upper, xtol=1e-12))
    drop = float(chi2.ppf(0.95, 1)) / 2
    best = log_likelihood(exponent)

    def beyond(alpha: float) -> float:
        return best - log_likelihood(alpha) - drop

    low = exponent - _until(lambda step: beyond(exponent - step) > 0, 1e-3)
    high = exponent + _until(lambda step: beyond(exponent + step) > 0, 1e-3)
    interval = tuple(float(brentq(beyond, *ends, xtol=1e-12)) for ends in ((low, exponent), (exponent, high)))
    log_sum, p = law(exponent)
    variance = float(p @ log_rank**2) - float(p @ log_rank) ** 2
    return RankFit(
        "maximum-likelihood",
        exponent,
        float(n * np.exp(-log_sum)),
        first,
        last,
        _misfit(frequencies, first, exponent),
        stderr=float((n * variance) ** -0.5),
        interval=(interval[0], interval[1]),
    )


def _until(there: Callable[[float], bool], step: float) -> float:
    """The first of step, 2 step, 4 step, … for which it is true; every caller asks for what must come."""
    while not there(step):
        step *= 2
    return step


def _misfit(frequencies: NDArray[np.float64], first: int, exponent: float) -> float:
    law = np.arange(first, first + len(frequencies), dtype=np.float64) ** -exponent
    return float(np.abs(np.cumsum(frequencies) / frequencies.sum() - np.cumsum(law) / law.sum()).max())


METHODS: dict[str, Callable[[NDArray[np.float64], int], RankFit]] = {
    "least-squares": fit_line,
    "maximum-likelihood": fit_likelihood,
}
"""The ways to an exponent, by name."""
