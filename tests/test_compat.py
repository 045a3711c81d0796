"""The authors' numbers: their own algorithm, step by step in the storage dtype, and what a zero row does to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llmsuper.geometry import compat
from llmsuper.geometry.controls import MatrixBlocks, random_head
from llmsuper.geometry.suite import measure_rows
from llmsuper.kernels import choose_backend
from tests.test_accumulators import assert_same

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def measured(W: torch.Tensor, **options: Any) -> dict[str, Any]:
    found = measure_rows(MatrixBlocks(W, 90), ["liu2025", "overlap"], choose_backend(), row_rule="tokens", **options)
    return found["tokens" if "mask" in options else "all"]


def as_published(W: torch.Tensor, block: int = 64) -> tuple[float, float]:
    """`mean_over` and `std_over`: rows divided by their norms, blocks multiplied, |c| and c² summed in float64."""
    total = squares = 0.0
    for i in range(0, len(W), block):
        left = W[i : i + block] / W[i : i + block].norm(dim=1, keepdim=True)
        for j in range(i, len(W), block):
            right = W[j : j + block] / W[j : j + block].norm(dim=1, keepdim=True)
            overlaps = torch.abs(left @ right.T)
            if i == j:
                overlaps = torch.triu(overlaps, diagonal=1)
            total += overlaps.to(torch.float64).sum().item()
            squares += (overlaps**2).to(torch.float64).sum().item()
    pairs = len(W) * (len(W) - 1) // 2
    mean = total / pairs
    return mean, (squares / pairs - mean**2) ** 0.5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_the_published_algorithm(dtype: torch.dtype) -> None:
    """To the rounding of products: torch's own order of summation on a CPU is not that of a GPU, nor ours."""
    W = (random_head(300, 32, torch.Generator().manual_seed(1)) + 0.5).to(dtype)
    found = measured(W)["liu2025"]
    mean, std = as_published(W)
    rel = {torch.float16: 1e-5, torch.bfloat16: 1e-4}.get(dtype, 1e-6)
    assert found["mean_absolute_overlap"] == pytest.approx(mean, rel=rel)
    assert found["std_absolute_overlap"] == pytest.approx(std, rel=10 * rel)
    assert found["mean_squared_overlap"] == pytest.approx(mean**2 + std**2, rel=rel)
    assert found["dtype"] == str(dtype).removeprefix("torch.")
    assert found["unusable_rows"] == 0


def test_what_rounding_does_is_said() -> None:
    """bfloat16 moves the mean square by 2e-4 to 1.5e-3, float16 by some 1e-5, float32 hardly."""
    W = random_head(1_500, 64, torch.Generator().manual_seed(2))
    moved = {dtype: abs(measured(W.to(dtype))["liu2025"]["rounding"]) for dtype in DTYPES}
    assert moved[torch.float64] < 1e-6  # ours is in float32
    assert moved[torch.float32] < 1e-6
    assert moved[torch.float16] < 2e-4
    assert 1e-4 < moved[torch.bfloat16] < 3e-3
    assert moved[torch.float16] < moved[torch.bfloat16]


@pytest.mark.parametrize("tile", [64, 100, 2_048])
def test_tiles_make_no_difference(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    W = random_head(333, 8, torch.Generator().manual_seed(3)).half()
    wanted = measured(W)["liu2025"]
    monkeypatch.setattr(compat, "TILE_ROWS", tile)
    found = measured(W)["liu2025"]
    assert {k: v for k, v in found.items() if not isinstance(v, float)} == {
        k: v for k, v in wanted.items() if not isinstance(v, float)
    }
    assert found["mean_squared_overlap"] == pytest.approx(wanted["mean_squared_overlap"], rel=1e-5)


def test_a_zero_row_leaves_the_authors_without_numbers_and_not_us() -> None:
    W = random_head(50, 6, torch.Generator().manual_seed(4))
    W[7] = 0
    assert np.isnan(as_published(W)[0])
    found = measured(W)["liu2025"]
    assert (found["unusable_rows"], found["zero_rows"], found["rows"]) == (1, 1, 50)
    names = ("mean_absolute_overlap", "std_absolute_overlap", "mean_squared_overlap", "ratio_to_isotropic", "rounding")
    assert {found[name] for name in names} == {None}
    assert found["ours_same_rows"] == measured(W)["overlap"]["mean_squared_overlap"]


def test_a_norm_beyond_float16_leaves_none_either() -> None:
    """60,000 in every entry is a float16; its row's norm is not, and everything divided by it is zero."""
    W = random_head(50, 6, torch.Generator().manual_seed(4)).half()
    W[3] = 60_000
    assert torch.isinf(W[3].norm())
    subnormal = W.clone()
    subnormal[3] = 6e-8
    assert measured(subnormal)["liu2025"]["unusable_rows"] == 0
    found, plain = measured(W)["liu2025"], measured(W[torch.arange(50) != 3])["liu2025"]
    assert found["unusable_rows"] == 0
    assert found["mean_absolute_overlap"] == pytest.approx(plain["mean_absolute_overlap"] * 48 / 50, rel=1e-3)


def test_padding_counts_whichever_rows_were_asked_for() -> None:
    W = random_head(120, 10, torch.Generator().manual_seed(5))
    W[100:] = W[100] + 0.01 * W[100:]
    mask = np.arange(120) < 100
    found = measured(W, mask=mask)
    assert found["liu2025"]["rows"] == 120
    assert found["overlap"]["rows"] == 100
    assert_same(found["liu2025"], measured(W)["liu2025"], 1e-6)  # to float32: ours is a sum of two here
    assert found["liu2025"]["mean_squared_overlap"] > 1.1 * found["overlap"]["mean_squared_overlap"]


def test_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "TILE_ROWS", 20)
    heard: list[tuple[str, int, int]] = []
    measured(random_head(60, 4, torch.Generator().manual_seed(6)), progress=lambda *said: heard.append(said))
    assert heard == [("as liu2025", k, 6) for k in range(1, 7)]


def test_a_real_head_against_its_printed_value(weights: Path) -> None:
    (W,) = load_file(weights / "stories260k" / "model.safetensors").values()
    found = measured(W)["liu2025"]
    assert found["mean_squared_overlap"] == pytest.approx(0.315622, abs=0.5e-6)
    mean, std = as_published(W)
    assert (found["mean_absolute_overlap"], found["std_absolute_overlap"]) == pytest.approx((mean, std), rel=1e-6)
