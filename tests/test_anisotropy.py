"""What makes overlaps exceed 1/m: heads that were made anisotropic in a known way, and real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from llmsuper.geometry.controls import MatrixBlocks
from llmsuper.geometry.subsets import crowd_centre, project_out
from llmsuper.geometry.suite import measure_rows
from llmsuper.kernels import choose_backend

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]


def anisotropy(W: Any, mask: Any = None, precision: Any = "float32") -> dict[str, Any]:
    found = measure_rows(
        MatrixBlocks(torch.as_tensor(W), 500),
        ["anisotropy"],
        choose_backend(precision=precision),
        mask=mask,
        row_rule="tokens",
    )
    return found["all" if mask is None else "tokens"]["anisotropy"]


def normal(n: int, m: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((n, m))


def mean_square(W: Matrix) -> float:
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    n = len(W)
    return float((np.square(unit @ unit.T).sum() - n) / (n * (n - 1)))


def test_a_common_vector_is_found_whichever_way_it_is_taken_away() -> None:
    found = anisotropy(normal(2_000, 40) + 3 * normal(1, 40, 1))
    table = found["table"]
    assert table["as_it_is"]["ratio_to_isotropic"] > 20
    assert table["as_it_is"]["share_of_excess"] == 0
    for name in ("mean_row", "mean_direction", "leading_1"):
        assert table[name]["share_of_excess"] == pytest.approx(1, abs=0.02), name
    assert 1 < table["unit_mean"]["share_of_excess"] < 1.1  # what is left of a unit row is shorter than 1
    assert found["mean_direction_share"] > 0.5
    for name in ("early", "late", "without_crowd"):
        assert table[name]["share_of_excess"] == pytest.approx(0, abs=0.05), name


def test_the_three_meanings_of_centring_are_not_the_same() -> None:
    W = normal(600, 12) * np.exp(normal(600, 1, 2)) + 2 * normal(1, 12, 1)
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    s = unit.sum(axis=0)
    table = anisotropy(W, precision="exact")["table"]
    shifted = unit - s / 600
    squares = np.square(shifted @ shifted.T)
    wanted = {
        "mean_row": mean_square(W - W.mean(axis=0)),
        "unit_mean": (squares.sum() - np.trace(squares)) / (600 * 599),
        "mean_direction": mean_square(unit - np.outer(unit @ s, s) / (s @ s)),
    }
    for name, value in wanted.items():
        assert table[name]["mean_squared_overlap"] == pytest.approx(value, rel=1e-10)
    assert len({round(value, 4) for value in wanted.values()}) == 3


def test_two_directions_go_with_two_components() -> None:
    W = normal(3_000, 30) + normal(3_000, 2, 3) @ (10 * normal(2, 30, 4) / np.sqrt(30))
    table = anisotropy(W)["table"]
    assert table["mean_row"]["share_of_excess"] == pytest.approx(0, abs=0.02)  # they point both ways: no mean
    assert table["leading_1"]["share_of_excess"] < 0.5
    assert table["leading_2"]["share_of_excess"] > 0.97
    assert [name for name in table if name.startswith("leading")] == [f"leading_{k}" for k in (1, 2, 4, 8, 16)]


def test_components_that_leave_nothing_are_absent() -> None:
    table = anisotropy(normal(50, 3))["table"]
    assert [name for name in table if name.startswith("leading")] == ["leading_1", "leading_2"]
    flat = np.concatenate([normal(50, 2), np.zeros((50, 4))], axis=1)
    assert [name for name in anisotropy(flat)["table"] if name.startswith("leading")] == ["leading_1"]


def with_crowd(n: int, crowd: int, m: int) -> Matrix:
    W = normal(n, m)
    W[np.random.default_rng(6).choice(n, crowd, replace=False)] = 2 * normal(1, m, 5) + 0.05 * normal(crowd, m, 7)
    return W


@pytest.mark.parametrize(("n", "crowd"), [(1_000, 100), (6_000, 300)])
def test_a_crowd_of_near_duplicates_is_found_wherever_it_is(n: int, crowd: int) -> None:
    """6,000 rows are sampled, 1,000 are not."""
    W = with_crowd(n, crowd, 48)
    table = anisotropy(W)["table"]
    assert table["crowd"]["rows"] == crowd
    assert table["without_crowd"]["rows"] == n - crowd
    assert table["crowd"]["mean_squared_overlap"] > 0.99
    assert table["without_crowd"]["share_of_excess"] == pytest.approx(1, abs=0.1)


def test_random_rows_have_no_crowd_and_no_excess() -> None:
    table = anisotropy(normal(1_500, 64))["table"]
    assert table["crowd"] == {
        "rows": 0,
        "mean_squared_overlap": None,
        "ratio_to_isotropic": None,
        "share_of_excess": None,
    }
    assert table["without_crowd"] == table["as_it_is"]
    assert {removal["share_of_excess"] for removal in table.values()} == {None}


def test_halves_are_of_the_rows_that_count() -> None:
    """Padding between tokens, and before them, moves no row to the other half."""
    W = normal(300, 10) + np.linspace(0, 3, 300)[:, None]
    mask = np.ones(400, bool)
    mask[:60] = mask[200:240] = False
    padded = np.full((400, 10), 7.0)
    padded[mask] = W
    plain, masked = anisotropy(W)["table"], anisotropy(padded, mask)["table"]
    for name in ("early", "late"):
        assert masked[name]["rows"] == 150
        assert masked[name]["mean_squared_overlap"] == pytest.approx(plain[name]["mean_squared_overlap"], rel=1e-6)
    assert plain["early"]["mean_squared_overlap"] == pytest.approx(mean_square(W[:150]), rel=1e-5)
    assert plain["late"]["mean_squared_overlap"] == pytest.approx(mean_square(W[150:]), rel=1e-5)


def test_a_row_within_what_is_projected_out_has_no_direction_left() -> None:
    directions = np.eye(4)[:, :2]
    unit = torch.tensor([[0.6, 0.8, 0, 0], [0, 0.6, 0.8, 0], [0, 0, 0, 0]], dtype=torch.float64)
    rest, lengths = project_out(unit, directions)
    assert lengths.tolist() == pytest.approx([0, 0.8, 0])
    assert rest.tolist() == [[0] * 4, [0, 0, 1, 0], [0] * 4]


def test_the_densest_crowd_wins() -> None:
    angles = np.radians([0, 5, 10, 180, 181, 90])
    centre = crowd_centre(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert centre is not None
    assert np.degrees(np.arctan2(centre[1], centre[0])) == pytest.approx(5)
    assert crowd_centre(np.eye(3)) is None
    assert crowd_centre(np.empty((0, 0))) is None


@pytest.mark.parametrize("name", ["stories260k", "deepseek-r1-distill-qwen-7b-rows16"])
def test_real_heads_by_another_road(weights: Path, name: str) -> None:
    """Plain numpy in float64, and the printed reference values by way of `centred_overlap`."""
    (stored,) = load_file(weights / name / "model.safetensors").values()
    W = stored.astype(np.float64)[:2_000, :512]  # a corner of it: every pair of a whole head takes a minute
    table = anisotropy(W)["table"]
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    vectors = np.linalg.eigh(unit.T @ unit)[1][:, ::-1]
    for k in (1, 8):
        rest = unit - (unit @ vectors[:, :k]) @ vectors[:, :k].T
        assert table[f"leading_{k}"]["mean_squared_overlap"] == pytest.approx(mean_square(rest), rel=1e-4)
    assert table["mean_row"]["mean_squared_overlap"] == pytest.approx(mean_square(W - W.mean(axis=0)), rel=1e-4)
    half = len(W) // 2
    assert table["early"]["mean_squared_overlap"] == pytest.approx(mean_square(W[:half]), rel=1e-5)
