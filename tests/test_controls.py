"""Controls: what is kept of a head, what is not, and that the record says how to make them again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llmsuper.errors import CheckpointError
from llmsuper.geometry import controls
from llmsuper.geometry.controls import MatrixBlocks, RandomBlocks, random_head, shuffle_columns
from llmsuper.geometry.suite import measure_rows
from llmsuper.kernels import choose_backend


def measured(W: torch.Tensor, mask: Any = None) -> dict[str, Any]:
    found = measure_rows(MatrixBlocks(W, 100), ["controls"], choose_backend(), mask=mask, row_rule="tokens")
    return found["all" if mask is None else "tokens"]["controls"]


def anisotropic(n: int = 3_000, m: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    spread = torch.linspace(0.2, 3, n)[:, None]
    return spread * (random_head(n, m, generator) + 2 * random_head(1, m, generator))


def test_a_random_head_keeps_norms_and_nothing_else() -> None:
    W = anisotropic()
    norms = np.sort(W.double().norm(dim=1).numpy())
    blocks = RandomBlocks(norms, 24)
    made = torch.cat([block.rows for block in blocks])
    assert made.norm(dim=1).numpy() == pytest.approx(norms, rel=1e-12)
    assert torch.equal(made, torch.cat([block.rows for block in blocks])), "the same, each time"
    assert not torch.equal(made, torch.cat([block.rows for block in RandomBlocks(norms, 24, seed=1)]))
    assert len({block.rows[0, 0].item() for block in blocks}) == 2, "no two blocks alike"
    found = measured(W)["random"]
    assert found["ratio_to_isotropic"] == pytest.approx(1, abs=0.01)
    assert found["centred_ratio_to_isotropic"] == pytest.approx(1, abs=0.01)


def test_a_shuffled_head_keeps_columns() -> None:
    W = anisotropic(400)
    shuffled = shuffle_columns(W.clone(), torch.Generator().manual_seed(3))
    assert torch.equal(shuffled.sort(dim=0).values, W.sort(dim=0).values)
    orders = {tuple(torch.argsort(torch.argsort(column)).tolist()) for column in shuffled.T}
    assert len(orders) == 24, "each column in an order of its own"
    generator = torch.Generator().manual_seed(8)
    found = measured(random_head(3_000, 24, generator) + 2 * random_head(1, 24, generator))
    assert found["shuffled"]["ratio_to_isotropic"] > 3, "the mean row stays"
    assert found["shuffled"]["centred_ratio_to_isotropic"] == pytest.approx(1, abs=0.02)


def test_the_record_says_what_was_held_and_from_which_seed() -> None:
    W = anisotropic(300).half()
    W[40:60] = 0
    mask = np.arange(300) >= 10
    found = measured(W, mask)
    assert (found["rows"], found["zero_rows"], found["columns"], found["seed"]) == (270, 20, 24, 0)
    assert found["memory_bytes"] == 270 * 24 * 2
    assert found == measured(W, mask)
    kept = W[10:][(W[10:] != 0).any(dim=1)]
    assert found["shuffled"] == measured(kept)["shuffled"]


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls, "MEMORY", 300 * 24 * 4 - 1)
    with pytest.raises(CheckpointError, match=r"300 rows of 24 columns take 0\.0 GB in memory.*Leave out .* controls"):
        measured(anisotropic(300))
