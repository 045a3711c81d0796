"""The five laws, over every row of STATISTICS: split, merge, order, scale, brute force."""

from __future__ import annotations

import pickle
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from llmsuper.errors import CheckpointError
from llmsuper.geometry import STATISTICS
from llmsuper.geometry.blocks import Rows, UnitBlock
from llmsuper.geometry.bounds import isotropic_variance, welch_floor
from llmsuper.geometry.groups import GroupGramAccumulator
from llmsuper.geometry.norms import NormAccumulator
from llmsuper.geometry.overlap import CentredGramAccumulator, GramAccumulator, MeanRowAccumulator
from llmsuper.geometry.passes import View, feed
from llmsuper.geometry.subsets import (
    CrowdGramAccumulator,
    EarlyGramAccumulator,
    ProjectedGramAccumulator,
    SampleAccumulator,
)
from llmsuper.geometry.suite import measure_rows
from llmsuper.kernels import choose_backend
from llmsuper.types import RowBlock
from tests.brute import BRUTE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

TOLERANCE = {"float32": 3e-5, "exact": 1e-9}
"""Relative, and absolute for what should be near 0. Rows with a common direction lose two digits when it is taken away."""

few = settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
every_statistic = pytest.mark.parametrize("name", STATISTICS)
every_precision = pytest.mark.parametrize("precision", TOLERANCE)
every_law = pytest.mark.parametrize(("name", "precision"), [(n, p) for n in STATISTICS for p in BRUTE[n].precisions])

KINDS: dict[str, Callable[[NDArray[np.float64], np.random.Generator], NDArray[np.float64]]] = {
    "ordinary": lambda W, _: W,
    "common direction": lambda W, rng: W + 3 * rng.standard_normal(W.shape[1]),
    "heavy-tailed norms": lambda W, rng: W * 10 ** rng.standard_normal((len(W), 1)),
    "duplicate rows": lambda W, _: W[np.arange(len(W)) % max(3, len(W) // 2)],
    "near duplicates": lambda W, _: W[np.arange(len(W)) % max(3, len(W) // 2)] + 1e-2 * W,
    "zero rows": lambda W, rng: W * (rng.permutation(len(W)) < max(3, len(W) // 2))[:, None],
    "tiny": lambda W, _: W * 1e-30,
    "huge": lambda W, _: W * 1e30,
}


@st.composite
def matrices(draw: st.DrawFn, kinds: Iterable[str] = KINDS) -> NDArray[np.float64]:
    """(n, m) float64 with values that float32 has too; 3 ≤ n ≤ 24, m ≤ 8, at least three rows that are not zero."""
    n, m = draw(st.integers(3, 24)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    W = KINDS[draw(st.sampled_from(list(kinds)))](rng.standard_normal((n, m)), rng)
    return W.astype(np.float32).astype(np.float64)


def blocks_of(W: Matrix, cuts: Iterable[int] = ()) -> list[RowBlock]:
    edges = [0, *sorted(set(cuts) - {0, len(W)}), len(W)]
    return [RowBlock(a, torch.from_numpy(W[a:b])) for a, b in pairwise(edges)]


def statistic(name: str, W: Matrix, precision: Any = "exact", cuts: Iterable[int] = ()) -> dict[str, Any]:
    """The statistic as `llmsuper overlap` takes it, from float64 rows in blocks that end at `cuts`."""
    return measure_rows(blocks_of(W, cuts), [name], choose_backend(precision=precision))["all"][name]


def by_parts(
    name: str, W: Matrix, precision: Any, cuts: Iterable[int], joined: Callable[[list[Any]], Any]
) -> dict[str, Any]:
    """The statistic from accumulators that saw a block each, one of them none, pickled and `joined` in some order."""
    blocks, backend = blocks_of(W, cuts), choose_backend(precision=precision)
    steps = STATISTICS[name].steps(Rows(blocks, backend))
    answers: list[Any] | None = None
    while True:
        try:
            requests = next(steps) if answers is None else steps.send(answers)
        except StopIteration as end:
            return asdict(end.value)
        answers = []
        for request in requests:
            parts = [request.make() for _ in range(len(blocks) + 1)]
            for part, block in zip(parts, blocks, strict=False):
                feed([block], [View([part], centre=request.centre)], backend)
            whole = joined([pickle.loads(pickle.dumps(part)) for part in parts])
            answers.append(request.finish(whole) if request.finish else whole)


def assert_same(found: Any, wanted: Any, tolerance: float, where: str = "") -> None:
    """Equal counts and Nones; floats to the tolerance."""
    if isinstance(wanted, dict):
        assert list(found) == list(wanted), where
        for key, value in wanted.items():
            assert_same(found[key], value, tolerance, f"{where}.{key}")
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted), where
        for k, value in enumerate(wanted):
            assert_same(found[k], value, tolerance, f"{where}[{k}]")
    elif isinstance(wanted, float):
        scale = min(1.0, abs(wanted)) if 0 < abs(wanted) < 1e-20 else 1.0  # norms of tiny rows are tiny
        assert found == pytest.approx(wanted, rel=tolerance, abs=tolerance * scale), where
    else:
        assert found == wanted, where


def without(found: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Without those fields, and those entries of `table`."""
    left = {key: value for key, value in found.items() if key not in names}
    if "table" in left:
        left["table"] = {key: value for key, value in left["table"].items() if key not in names}
    return left


def test_every_statistic_has_a_brute_force() -> None:
    missing = sorted(set(STATISTICS) - set(BRUTE))
    assert not missing, f"add the brute force of {missing} to BRUTE in tests/brute.py, and the five laws run on them"
    assert set(BRUTE) == set(STATISTICS)


# the five laws


@every_law
@few
@given(W=matrices(), cuts=st.sets(st.integers(1, 23)))
def test_split(name: str, precision: str, W: Matrix, cuts: set[int]) -> None:
    """Where the blocks end does not matter."""
    assume(BRUTE[name].clear(W))
    whole = statistic(name, W, precision)
    assert_same(statistic(name, W, precision, {c for c in cuts if c < len(W)}), whole, TOLERANCE[precision])


@every_law
@few
@given(W=matrices(), data=st.data())
def test_merge(name: str, precision: str, W: Matrix, data: st.DataObject) -> None:
    """Accumulators that saw some rows each, merged in any order, hold what one that saw them all would hold."""
    assume(BRUTE[name].clear(W))

    def joined(parts: list[Any]) -> Any:
        while len(parts) > 1:
            k = data.draw(st.integers(0, len(parts) - 2))
            parts[k].merge(parts.pop(k + 1))
        return parts[0]

    cuts = data.draw(st.sets(st.integers(1, len(W) - 1), max_size=3))
    assert_same(by_parts(name, W, precision, cuts, joined), statistic(name, W, precision), TOLERANCE[precision])


@every_law
@few
@given(W=matrices(), data=st.data())
def test_order(name: str, precision: str, W: Matrix, data: st.DataObject) -> None:
    """The order of the rows does not matter."""
    assume(BRUTE[name].clear(W))
    order = data.draw(st.permutations(range(len(W))))
    found, wanted = (without(statistic(name, V, precision, {2}), BRUTE[name].ordered) for V in (W[order], W))
    assert_same(found, wanted, TOLERANCE[precision])


@every_law
@few
@given(W=matrices(kinds=sorted(set(KINDS) - {"tiny", "huge"})), c=st.sampled_from([0.37, 2.0**12, 1e-25, 1e25]))
def test_scale(name: str, precision: str, W: Matrix, c: float) -> None:
    """W → cW: fields that are lengths become c times as large, the others stay."""
    brute = BRUTE[name]
    assume(brute.clear(W))
    wanted, found = statistic(name, W, precision), statistic(name, c * W, precision)
    scaled = {k: _times(v, c) if k in brute.scales else v for k, v in wanted.items() if k not in brute.absolute}
    assert_same({k: found[k] for k in scaled}, scaled, TOLERANCE[precision])


def _times(value: Any, c: float) -> Any:
    if isinstance(value, dict):
        return {k: _times(v, c) for k, v in value.items()}
    return [_times(v, c) for v in value] if isinstance(value, list) else c * value


@every_statistic
@pytest.mark.parametrize("backend", ["torch", "reference"])
@few
@given(W=matrices(), cuts=st.sets(st.integers(1, 23), max_size=3))
def test_brute_force(name: str, backend: str, W: Matrix, cuts: set[int]) -> None:
    """Float64 from end to end, against loops over rows and pairs."""
    assume(BRUTE[name].clear(W))
    chosen = choose_backend(backend, precision="exact")
    found = measure_rows(blocks_of(W, {c for c in cuts if c < len(W)}), [name], chosen)["all"][name]
    assert_same(found, BRUTE[name].function(W), TOLERANCE["exact"])


# what follows from the definitions


@few
@given(W=matrices())
def test_welch(W: NDArray[np.float64]) -> None:
    """m × mean squared overlap ≥ (n − m) / (n − 1), for any rows at all."""
    for name in ("overlap", "centred_overlap"):
        found = statistic(name, W)
        n, m = found["rows"], found["columns"]
        assert m * found["mean_squared_overlap"] >= (n - m) / (n - 1) - 1e-12


@given(m=st.integers(1, 6), copies=st.integers(2, 5), seed=st.integers(0, 2**32))
@few
def test_welch_is_reached_by_a_tight_frame(m: int, copies: int, seed: int) -> None:
    basis, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((m, m)))
    found = statistic("overlap", np.tile(basis, (copies, 1)))
    assert found["mean_squared_overlap"] == pytest.approx(found["welch_floor"], rel=1e-12)
    assert found["welch_ratio"] == pytest.approx(1, rel=1e-12)
    assert found["participation_ratio"] == pytest.approx(m, rel=1e-12)


@few
@given(W=matrices())
def test_participation_ratio_and_frobenius_potential(W: NDArray[np.float64]) -> None:
    """PR × Σᵢⱼ (ûᵢ·ûⱼ)² = n², and so the mean squared overlap is (n/PR − 1) / (n − 1)."""
    found = statistic("overlap", W)
    n, ratio = found["rows"], found["participation_ratio"]
    potential = n + n * (n - 1) * found["mean_squared_overlap"]
    assert ratio * potential == pytest.approx(n * n, rel=1e-11)
    assert 1 - 1e-12 <= ratio <= min(n, found["columns"]) + 1e-9


def test_bounds() -> None:
    assert welch_floor(3, 2) == 0.25
    assert welch_floor(2, 2) == welch_floor(1, 1) == welch_floor(1, 5) == 0
    squares = np.random.default_rng(0).standard_normal((200_000, 5))
    squares = squares[:, 0] ** 2 / np.square(squares).sum(axis=1)
    assert squares.mean() == pytest.approx(1 / 5, rel=0.01)
    assert squares.var() == pytest.approx(isotropic_variance(5), rel=0.02)


@every_precision
@pytest.mark.parametrize("storage", ["float64", "float32", "float16", "bfloat16"])
def test_zero_rows_are_counted_and_left_out(precision: Any, storage: str) -> None:
    W = torch.from_numpy(np.random.default_rng(1).standard_normal((12, 4)) + 1).to(getattr(torch, storage))
    padded = torch.cat([W[:5], torch.zeros(2, 4).to(W), W[5:], torch.zeros(1, 4).to(W)])
    backend = choose_backend(precision=precision)
    names = [name for name, row in STATISTICS.items() if not row.every_row]
    wanted = measure_rows([RowBlock(0, W)], names, backend)["all"]
    found = measure_rows([RowBlock(0, padded[:9]), RowBlock(9, padded[9:])], names, backend)["all"]
    for name in names:
        assert (wanted[name]["zero_rows"], found[name]["zero_rows"]) == (0, 3), name
        left, right = (without(f[name], BRUTE[name].ordered) for f in (found, wanted))
        assert_same(left, right | {"zero_rows": 3}, TOLERANCE[precision], name)


@every_statistic
def test_nothing_to_measure_is_an_error(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"non-zero|not zero"):
        statistic(name, np.zeros((5, 3)))
    with pytest.raises(CheckpointError, match=r"of 0|no row has"):
        measure_rows([], [name], choose_backend())


def test_overlaps_need_two_rows() -> None:
    one_row = np.zeros((5, 3))
    one_row[2] = 1
    with pytest.raises(CheckpointError, match=r"two rows that are not zero; 1 of 5 are\..*--lm-head"):
        statistic("overlap", one_row)
    with pytest.raises(CheckpointError, match=r"not zero after centring; 0 of 5"):
        statistic("centred_overlap", one_row)


@every_precision
def test_variance_is_null_where_it_is_cancelled_away(precision: Any) -> None:
    rng = np.random.default_rng(2)
    spread = np.ones((40, 8)) + 3e-1 * rng.standard_normal((40, 8))
    together = np.ones((40, 8)) + 1e-6 * rng.standard_normal((40, 8))
    found, wanted = statistic("overlap", spread, precision), BRUTE["overlap"].function(spread)
    assert found["overlap_variance"] == pytest.approx(wanted["overlap_variance"], rel=1e-2)
    assert statistic("overlap", together, precision)["overlap_variance"] is None


def test_update_is_summarize_and_add() -> None:
    rng = np.random.default_rng(3)
    backend = choose_backend(precision="exact")
    rows = torch.from_numpy(1 + 0.3 * rng.standard_normal((40, 4)))
    block = UnitBlock(*backend.unit_rows(rows), backend, np.arange(40))
    directions, _ = np.linalg.qr(rng.standard_normal((4, 2)))
    mean, centre = directions[:, :1], np.full(4, 0.5)
    kinds: list[Callable[[], Any]] = [
        NormAccumulator,
        GramAccumulator,
        CentredGramAccumulator,
        MeanRowAccumulator,
        lambda: GroupGramAccumulator([1.5, 2.0]),
        lambda: ProjectedGramAccumulator(mean),
        lambda: EarlyGramAccumulator(4),
        lambda: CrowdGramAccumulator(centre),
        lambda: SampleAccumulator(2),
    ]
    for kind in kinds:
        at_once, by_halves = kind(), kind()
        at_once.update(block)
        by_halves.add(by_halves.summarize(block))
        assert pickle.dumps(at_once.compute()) == pickle.dumps(by_halves.compute())
