"""Groups of rows by norm: matrices whose groups are known, and the whole as the sum of its groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llmsuper.errors import CheckpointError
from llmsuper.geometry import groups
from llmsuper.geometry.controls import MatrixBlocks
from llmsuper.geometry.suite import measure_rows
from llmsuper.kernels import choose_backend


def measured(W: Any, precision: Any = "exact") -> dict[str, Any]:
    backend = choose_backend(precision=precision)
    return measure_rows(MatrixBlocks(torch.as_tensor(W), 16), ["groups", "overlap"], backend)["all"]


def test_strong_and_weak_rows_of_known_overlaps() -> None:
    """Strong rows along one axis, weak ones along another at 60° to it."""
    strong, weak = np.tile([4.0, 0, 0], (6, 1)), np.tile([0.5, 0.75**0.5, 0], (3, 1))
    found = measured(np.concatenate([strong, weak]))["groups"]
    assert found["strong_threshold"] == pytest.approx(0.5 * np.sqrt((6 * 16 + 3) / 9))
    assert (found["strong_rows"], found["weak_rows"]) == (6, 3)
    assert (found["strong_with_strong"], found["weak_with_weak"]) == (pytest.approx(1), pytest.approx(1))
    assert found["strong_with_weak"] == pytest.approx(0.25)


@pytest.mark.parametrize("precision", ["exact", "float32"])
def test_the_groups_add_up_to_the_whole(precision: str) -> None:
    rng = np.random.default_rng(0)
    W = rng.standard_normal((137, 6)) * np.exp(rng.standard_normal((137, 1))) + 0.3
    both = measured(W, precision)
    found, whole = both["groups"], both["overlap"]["mean_squared_overlap"]
    counts = np.array(found["decile_rows"])
    assert counts.sum() == 137
    assert set(counts) <= {13, 14}
    pairs = np.outer(counts, counts) - np.diag(counts)
    matrix = np.array(found["decile_mean_squared_overlap"])
    assert (matrix == matrix.T).all()
    assert (pairs * matrix).sum() / pairs.sum() == pytest.approx(whole, rel=1e-6)
    s, w = found["strong_rows"], found["weak_rows"]
    three = s * (s - 1) * found["strong_with_strong"] + w * (w - 1) * found["weak_with_weak"]
    assert (three + 2 * s * w * found["strong_with_weak"]) / (137 * 136) == pytest.approx(whole, rel=1e-6)


def test_rows_of_one_norm_are_in_one_decile() -> None:
    basis, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))
    found = measured(np.sign(basis) * 2)["groups"]  # entries ±2: every norm is 4, exactly
    assert sorted(found["decile_rows"]) == [0] * 9 + [4]
    assert sum(value is not None for row in found["decile_mean_squared_overlap"] for value in row) == 1
    assert (found["weak_rows"], found["strong_with_weak"], found["weak_with_weak"]) == (0, None, None)


def test_a_head_too_wide_is_refused_before_anything_is_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "MEMORY", 11 * 8 * 6**2 - 1)
    W = np.random.default_rng(2).standard_normal((50, 6))
    with pytest.raises(CheckpointError, match=r"11 matrices of 6 × 6 take .* GB are allowed\. Leave `groups` out"):
        measured(W)
    monkeypatch.setattr(groups, "MEMORY", 11 * 8 * 6**2)
    measured(W)
