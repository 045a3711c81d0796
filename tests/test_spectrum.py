"""The spectrum of matrices whose eigenvalues are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llmsuper.geometry.controls import MatrixBlocks, random_head
from llmsuper.geometry.suite import measure_rows
from llmsuper.kernels import choose_backend


def spectrum(W: Any) -> dict[str, Any]:
    found = measure_rows(
        MatrixBlocks(torch.as_tensor(W), 7), ["spectrum", "overlap"], choose_backend(precision="exact")
    )
    both = found["all"]
    n = both["overlap"]["rows"]
    from_ratio = (n / both["spectrum"]["participation_ratio"] - 1) / (n - 1)
    assert from_ratio == pytest.approx(both["overlap"]["mean_squared_overlap"], rel=1e-9, abs=1e-12)
    return both["spectrum"]


@pytest.mark.parametrize("m", [1, 2, 7, 40])
def test_an_even_spectrum(m: int) -> None:
    """Orthonormal rows, each with its negative: every direction has the same share."""
    basis, _ = np.linalg.qr(np.random.default_rng(m).standard_normal((m, m)))
    found = spectrum(np.concatenate([basis, -3 * basis]))
    assert found["leading_shares"] == pytest.approx([1 / m] * min(m, 32))
    assert found["participation_ratio"] == pytest.approx(m)
    assert found["directions_for_half"] == -(-m // 2)
    assert found["directions_for_90_percent"] == -(-9 * m // 10)


def test_one_direction() -> None:
    found = spectrum(np.outer([1.0, -2, 3, 4], [3.0, 4, 0]))
    assert found["leading_shares"] == pytest.approx([1, 0, 0], abs=1e-12)
    assert (found["directions_for_half"], found["directions_for_90_percent"]) == (1, 1)
    assert found["leading_share"] == found["leading_shares"][0]


def test_unequal_shares() -> None:
    """Seven rows along one axis, two along the next, one along the last."""
    found = spectrum(np.eye(5)[[0] * 7 + [1] * 2 + [2]])
    assert found["leading_shares"] == pytest.approx([0.7, 0.2, 0.1, 0, 0], abs=1e-12)
    assert (found["directions_for_half"], found["directions_for_90_percent"]) == (1, 2)
    assert found["participation_ratio"] == pytest.approx(1 / (0.49 + 0.04 + 0.01))


def test_random_rows_follow_marchenko_and_pastur() -> None:
    """λ_max / mean λ = (1 + √(m/n))², of independent rows in the limit of many; a row's length fluctuates, not its share."""
    n, m = 6_000, 60
    found = spectrum(random_head(n, m, torch.Generator().manual_seed(5)))
    assert found["leading_share"] * m == pytest.approx((1 + (m / n) ** 0.5) ** 2, rel=0.03)
    assert len(found["leading_shares"]) == 32
