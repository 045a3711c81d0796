"""Overlaps that are known exactly, and those of six real heads."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from llmsuper.errors import CheckpointError
from llmsuper.geometry.controls import MatrixBlocks, random_head
from llmsuper.kernels import choose_backend
from llmsuper.measure import Settings, measure_head, measure_rows
from llmsuper.types import ModelEntry

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from llmsuper.types import HeadRecord

every_precision = pytest.mark.parametrize("precision", ["float32", "exact"])


def overlap(W: NDArray[np.float64], precision: Any = "exact", name: str = "overlap") -> dict[str, Any]:
    backend = choose_backend(precision=precision)
    return measure_rows(MatrixBlocks(torch.from_numpy(W), 3), [name], backend)["all"][name]


def simplex(m: int) -> NDArray[np.float64]:
    """m + 1 directions in m dimensions, each at cosine −1/m from every other."""
    centred = np.eye(m + 1) - 1 / (m + 1)
    return centred @ np.linalg.svd(centred)[2][:m].T


@every_precision
@pytest.mark.parametrize("m", [2, 5, 16])
def test_orthonormal_rows(precision: str, m: int) -> None:
    basis, _ = np.linalg.qr(np.random.default_rng(m).standard_normal((m, m)))
    found = overlap(7 * basis, precision)
    assert found["mean_squared_overlap"] == pytest.approx(0, abs=1e-7)
    assert found["mean_overlap"] == pytest.approx(0, abs=1e-7)
    assert found["participation_ratio"] == pytest.approx(m, rel=1e-6)
    assert (found["welch_floor"], found["welch_ratio"]) == (0, None)


@every_precision
def test_one_row_repeated(precision: str) -> None:
    rows = np.tile(np.random.default_rng(0).standard_normal(12), (9, 1)) * np.arange(1, 10)[:, None]
    found = overlap(rows, precision)
    assert found["mean_squared_overlap"] == pytest.approx(1, rel=1e-6)
    assert found["mean_overlap"] == pytest.approx(1, rel=1e-6)
    assert found["overlap_variance"] is None
    assert found["participation_ratio"] == pytest.approx(1, rel=1e-6)
    same = np.tile(rows[:1], (9, 1))
    with pytest.raises(CheckpointError, match=r"two rows that are not zero after centring; 0 of 9 are"):
        overlap(same, precision, "centred_overlap")


@every_precision
def test_mercedes_benz_frame(precision: str) -> None:
    """Three directions at 120° in the plane: each overlap is −½, and no three can do better (Welch)."""
    angles = 2 * np.pi * np.arange(3) / 3
    found = overlap(np.stack([np.cos(angles), np.sin(angles)], axis=1), precision)
    assert found["mean_squared_overlap"] == pytest.approx(1 / 4, rel=1e-6)
    assert found["welch_floor"] == 1 / 4
    assert found["welch_ratio"] == pytest.approx(1, rel=1e-6)
    assert found["mean_overlap"] == pytest.approx(-1 / 2, rel=1e-6)


@every_precision
@pytest.mark.parametrize("m", [1, 2, 3, 10, 40])
def test_simplex(precision: str, m: int) -> None:
    for name in ("overlap", "centred_overlap"):  # its mean row is zero
        found = overlap(simplex(m), precision, name)
        assert found["rows"] == m + 1
        assert found["mean_squared_overlap"] == pytest.approx(1 / m**2, rel=1e-5)
        assert found["mean_overlap"] == pytest.approx(-1 / m, rel=1e-5)
        assert found["welch_ratio"] == pytest.approx(1, rel=1e-5)


@every_precision
def test_a_basis_and_its_negative(precision: str) -> None:
    """±eᵢ: of the 2m − 1 others, one is opposite and the rest are orthogonal."""
    m = 6
    found = overlap(np.concatenate([np.eye(m), -np.eye(m)]), precision)
    assert found["mean_squared_overlap"] == pytest.approx(1 / (2 * m - 1), rel=1e-6)
    assert found["mean_overlap"] == pytest.approx(-1 / (2 * m - 1), rel=1e-6)
    assert found["welch_ratio"] == pytest.approx(1, rel=1e-6)


def test_random_directions_have_one_over_m() -> None:
    found = measure_rows(
        MatrixBlocks(random_head(4000, 50, torch.Generator().manual_seed(1))), ["overlap"], choose_backend()
    )["all"]["overlap"]
    assert found["ratio_to_isotropic"] == pytest.approx(1, abs=0.005)


# real heads: mean square, mean, and mean square when centred, as printed beside the files

REAL_HEADS: dict[str, tuple[int, int, str, str, str]] = {
    "stories260k": (512, 64, "0.315622", "0.311072", "0.468178"),
    "whisper-tiny.en": (51864, 384, "0.701376", "0.833085", "0.047973"),
    "smollm2-135m-instruct-rows4": (12288, 576, "0.216885", "0.443123", "0.010606"),
    "qwen2.5-coder-0.5b-instruct-rows8": (18992, 896, "0.074712", "0.240593", "0.004442"),
    "qwen2.5-coder-1.5b-instruct-rows16": (9496, 1536, "0.040640", "0.172877", "0.002791"),
    "deepseek-r1-distill-qwen-7b-rows16": (4109, 3584, "0.022688", "0.123964", "0.001779"),
}


@cache
def measured(folder: Path) -> HeadRecord:
    return measure_head(ModelEntry(str(folder), local=True), Settings(row_rule="all"))


def triple(record: HeadRecord) -> tuple[float, float, float]:
    plain, centred = record.statistic("overlap"), record.statistic("centred_overlap")
    return plain["mean_squared_overlap"], plain["mean_overlap"], centred["mean_squared_overlap"]


@pytest.mark.parametrize("name", REAL_HEADS)
def test_real_heads_against_printed_values(weights: Path, name: str) -> None:
    record = measured(weights / name)
    rows, columns, *printed = REAL_HEADS[name]
    assert (record.rows, record.columns) == (rows, columns)
    for found, text in zip(triple(record), printed, strict=True):
        assert found == pytest.approx(float(text), abs=0.5e-6), f"half a unit of the last digit of {text}"


@pytest.mark.parametrize("name", REAL_HEADS)
def test_real_heads_against_float64(weights: Path, name: str) -> None:
    """From the same file by another road: plain numpy in float64."""
    (stored,) = load_file(weights / name / "model.safetensors").values()
    W = stored.astype(np.float64)
    mean_square, mean = by_gram(W)
    centred_square, _ = by_gram(W - W.mean(axis=0))
    assert triple(measured(weights / name)) == pytest.approx((mean_square, mean, centred_square), rel=1e-5)


@pytest.mark.parametrize("name", ["stories260k", "deepseek-r1-distill-qwen-7b-rows16"])
def test_real_heads_against_every_pair(weights: Path, name: str) -> None:
    (stored,) = load_file(weights / name / "model.safetensors").values()
    W = stored.astype(np.float64)
    mean_square, mean = by_pairs(W)
    centred_square, _ = by_pairs(W - W.mean(axis=0))
    assert triple(measured(weights / name)) == pytest.approx((mean_square, mean, centred_square), rel=1e-5)


def by_gram(W: NDArray[np.float64]) -> tuple[float, float]:
    n = len(W)
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    total = unit.sum(axis=0)
    return (np.square(unit.T @ unit).sum() - n) / (n * (n - 1)), (total @ total - n) / (n * (n - 1))


def by_pairs(W: NDArray[np.float64]) -> tuple[float, float]:
    n = len(W)
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    squares = sums = 0.0
    for start in range(0, n, 500):
        overlaps = unit[start : start + 500] @ unit.T
        np.fill_diagonal(overlaps[:, start:], 0)
        squares, sums = squares + float(np.square(overlaps).sum()), sums + float(overlaps.sum())
    return squares / (n * (n - 1)), sums / (n * (n - 1))
