"""Draws samples x, of which a handful of n features are active, as lists of what is active; never as dense vectors.

A feature that is active with probability p independently in every sample is a Poisson process with rate λ = −ln(1 − p) that
hits at least once. So a sample has Poisson(Σ λᵢ) hits, each on feature i with probability λᵢ/Σλ, and a second hit on
the same feature counts for nothing: exactly uᵢ ~ Bernoulli(pᵢ), at a cost that grows with E and not with n. An active
feature's value is v ~ U(0, 2): equation (1) of arXiv:2505.10465.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmsuper.errors import LlmsuperError
from llmsuper.toy.streams import keys, uniform

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from numpy.typing import NDArray

MOST_HITS = 4096
"""Room for hits of one sample in its stretch of the stream."""

CERTAIN = 1e-9
"""A probability of 1 is drawn as 1 − 10⁻⁹: its rate would be infinite."""


@dataclass(frozen=True, slots=True)
class Samples:
    """One training step's samples for G runs. Samples without an active feature are all alike and share one row.

    Entries are the active features, in the order of rows and again in the order of features.
    """

    rows: int
    """R: rows a run, the fullest run's."""
    weight: torch.Tensor
    """(G, R): 1 for a sample; √count for the row that stands for `count` samples with nothing active; 0 for padding."""
    feature: torch.Tensor
    """(K,) int64, run · n + feature."""
    row: torch.Tensor
    """(K,) int64, run · R + row; rising."""
    place: torch.Tensor
    """(K,) int64, where the entry lies in the flattened (G, R, n)."""
    value: torch.Tensor
    """(K,) float32, v."""
    row_starts: torch.Tensor
    """(G · R,) where each row's entries begin."""
    row_by_feature: torch.Tensor
    """(K,) `row` of the entries in the order of `feature`."""
    value_by_feature: torch.Tensor
    """(K,) `value` in that order."""
    feature_starts: torch.Tensor
    """(G · n,) where each feature's entries begin, in that order."""


class Sampler:
    """Samples for G runs with frequencies (G, n), each from its own seed's stream."""

    def __init__(
        self, frequencies: NDArray[np.float64], seeds: Sequence[int], batch: int, stream: str, device: str
    ) -> None:
        import torch

        self.runs, self.n = frequencies.shape
        self.batch, self.device = batch, device
        rates = -np.log1p(-np.minimum(frequencies, 1 - CERTAIN))
        hits = rates.sum(axis=1)
        self._most = int(hits.max() + 12 * np.sqrt(hits.max()) + 40)  # beyond it lies less than 10⁻³⁰
        if self._most > MOST_HITS:
            raise LlmsuperError(
                f"activation density E = {frequencies.sum(axis=1).max():g}: {hits.max():.0f} hits a sample do not fit "
                f"into its {MOST_HITS:,} numbers. These are models of sparse features: lower E."
            )
        each_run = np.arange(self.runs)[:, None]
        # the tables of all runs one behind the other, run g's between g and g + 1: one search serves them all
        shares = np.cumsum(rates, axis=1) / rates.sum(axis=1, keepdims=True)
        shares[:, -1] = 1.0
        self._shares = torch.from_numpy((shares + each_run).ravel()).to(device)
        self._hits = torch.from_numpy((_poisson(hits, self._most) + each_run).ravel()).to(device)
        self._keys = {name: keys(seeds, stream, name, device) for name in ("count", "feature", "value")}
        self.density = float(hits.mean())

    def draw(self, first: int, steps: int) -> Iterator[Samples]:
        """The samples of steps first … first + steps − 1; drawing many at once costs less than one after another."""
        import torch

        T, G, B, n = steps, self.runs, self.batch, self.n
        runs = torch.arange(G, device=self.device)
        # (T, 1, B): a sample's number, the same for all runs, whose keys tell them apart
        number = torch.arange(first * B, (first + T) * B, device=self.device).view(T, 1, B)
        lot = uniform(self._keys["count"][:, None], number)  # (T, G, B)
        hits = torch.searchsorted(self._hits, (lot + runs[:, None]).reshape(-1), right=True).view(T, G, B)
        hits -= self._most * runs[:, None]
        flat_hits = hits.view(-1)
        cell = torch.repeat_interleave(flat_hits)  # (hits,) of the T · G · B samples
        run = runs.view(1, G, 1).expand(T, G, B).reshape(-1)[cell]
        # a hit's number: room for MOST_HITS in every sample
        number = (number * MOST_HITS).expand(T, G, B).reshape(-1) - (flat_hits.cumsum(0) - flat_hits)
        number = number[cell] + torch.arange(len(cell), device=self.device)
        lot = uniform(self._keys["feature"][run], number)
        feature = torch.searchsorted(self._shares, lot + run, right=True).clamp_max_(G * n - 1)
        again = torch.zeros_like(cell, dtype=torch.bool)
        for apart in range(1, int(hits.max())):
            again[apart:] |= (feature[apart:] == feature[:-apart]) & (cell[apart:] == cell[:-apart])
        kept = torch.nonzero(~again)[:, 0]
        cell, feature = cell[kept], feature[kept]
        value = (2 * uniform(self._keys["value"][run[kept]], number[kept])).float()

        active = hits > 0
        filled = active.sum(dim=2)  # (T, G) rows with something active
        row_counts = filled.amax(dim=1) + 1  # (T,) and one for all that have nothing
        rows = (active.cumsum(dim=2) - 1 + runs.view(1, G, 1) * row_counts.view(T, 1, 1)).view(-1)[cell]
        step_starts = torch.arange(T + 1, device=self.device) * (G * B)
        bounds = torch.searchsorted(cell, step_starts).tolist()
        # the same order for rows and, sorted, for features: by step, then by run
        every_row = row_counts * G
        row_starts = _starts(rows + (every_row.cumsum(0) - every_row)[cell // (G * B)], int(every_row.sum()))
        by_step = cell // (G * B) * (G * n) + feature
        by_feature = torch.argsort(by_step, stable=True)
        place, rows_by_feature, values_by_feature = rows * n + feature % n, rows[by_feature], value[by_feature]
        feature_starts = _starts(by_step, T * G * n).view(T, G * n)
        row_end = 0
        for t, R in enumerate(row_counts.tolist()):
            begin, end = bounds[t], bounds[t + 1]
            row_begin, row_end = row_end, row_end + G * R
            index = torch.arange(R, device=self.device)
            empty = (B - filled[t])[:, None]
            yield Samples(
                rows=R,
                weight=(index < filled[t][:, None]) + (index == filled[t][:, None]) * empty.float().sqrt(),
                feature=feature[begin:end],
                row=rows[begin:end],
                place=place[begin:end],
                value=value[begin:end],
                row_starts=row_starts[row_begin:row_end] - begin,
                row_by_feature=rows_by_feature[begin:end],
                value_by_feature=values_by_feature[begin:end],
                feature_starts=feature_starts[t] - begin,
            )


def _starts(index: torch.Tensor, size: int) -> torch.Tensor:
    """(size,) where the entries of each index begin once they are in its order."""
    import torch

    counts = torch.bincount(index, minlength=size)
    return counts.cumsum(0) - counts


def _poisson(means: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """(G, most) P(hits ≤ k), k = 0 …, of Poisson variables with these means; the last is 1."""
    from scipy.special import pdtr

    table: NDArray[np.float64] = pdtr(np.arange(most), means[:, None])
    table[:, -1] = 1.0
    return table
