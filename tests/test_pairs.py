"""All pairs of rows: each tile against a loop over pairs, the whole against brute force, and what a sample promises."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, replace
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import llmsuper.geometry.closest
import llmsuper.geometry.pairs
import llmsuper.kernels
from llmsuper.errors import BackendError, CheckpointError, LlmsuperError
from llmsuper.geometry.closest import find_closest
from llmsuper.geometry.controls import MatrixBlocks, random_head
from llmsuper.geometry.overlap import GramAccumulator
from llmsuper.geometry.pair_sums import BINS, PairSums
from llmsuper.geometry.pairs import PairStatistics, all_pairs, pair_statistics, sum_tiles
from llmsuper.geometry.passes import one_pass
from llmsuper.geometry.resident import ResidentRows, UnitRows
from llmsuper.geometry.tile_list import estimate_mean, every_tile, sample_tiles
from llmsuper.kernels import BACKENDS, Backend, choose_backend, cpu_tiles, torch_ops
from tests import brute
from tests.launched import run, tiles_compiled_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmsuper.kernels.tiles import RowSums, TileSums

HERE = {"cpu": (), "cuda": pytest.mark.gpu}
EVERY_BACKEND = [
    pytest.param(name, device, precision, marks=HERE[device], id=f"{name}-{device}-{precision}")
    for name, row in BACKENDS.items()
    for device in row.devices
    for precision in row.precisions
]
every_backend = pytest.mark.parametrize(("name", "device", "precision"), EVERY_BACKEND)


def _backend(name: str, device: str, precision: Any) -> Backend:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    try:
        return choose_backend(name, device, precision)
    except BackendError as error:
        pytest.skip(str(error))


def _with_equal_rows(W: torch.Tensor) -> torch.Tensor:
    for k in range(1, min(9, len(W)), 2):
        W[k] = (-1) ** (k // 2) * k * W[0]
    return W


def _with_zero_rows(W: torch.Tensor) -> torch.Tensor:
    W[1::4] = 0
    W[5:][-1:] = 0
    return W


KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "random": lambda W: W,
    "anisotropic": lambda W: W * torch.logspace(0, -2, W.shape[1], dtype=W.dtype) + 0.2,
    "equal rows": _with_equal_rows,
    "zero rows": _with_zero_rows,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def matrix(kind: str, rows: int, columns: int) -> torch.Tensor:
    """(n, m) float64."""
    return KINDS[kind](torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows), dtype=torch.float64))


def unit_rows(kind: str, rows: int, columns: int, backend: Backend) -> torch.Tensor:
    return backend.unit_rows(matrix(kind, rows, columns))[0].clone()


def error_of(backend: Backend, columns: int) -> float:
    """Of one overlap: of its sum, and of what rows were rounded to."""
    if backend.precision == "exact":
        return 1e-14
    return 1e-6 if backend.precision == "float32" else 4e-3 / columns**0.5 + 1e-6


# one tile

TILES = [(1, 1, 1), (2, 3, 2), (31, 17, 5), (64, 130, 33), (129, 65, 48), (257, 40, 7)]
DIAGONALS = [(2, 1), (3, 2), (16, 5), (47, 48), (131, 33)]


@every_backend
@pytest.mark.parametrize("shape", TILES, ids=str)
def test_a_tile(name: str, device: str, precision: Any, shape: tuple[int, int, int]) -> None:
    backend = _backend(name, device, precision)
    a, b, m = shape
    for kind in KINDS:
        left, right = unit_rows(kind, a, m, backend), unit_rows("random", b, m, backend)
        right[: min(a, b) : 3] = left[: min(a, b) : 3]
        check_tile(backend.overlap_sums(left, right, bins=BINS, diagonal=False), left, right, error_of(backend, m))


@every_backend
@pytest.mark.parametrize("shape", DIAGONALS, ids=str)
def test_a_tile_on_the_diagonal(name: str, device: str, precision: Any, shape: tuple[int, int]) -> None:
    backend = _backend(name, device, precision)
    for kind in KINDS:
        rows = unit_rows(kind, *shape, backend)
        found = backend.overlap_sums(rows, rows, bins=BINS, diagonal=True)
        check_tile(found, rows, rows, error_of(backend, shape[1]), diagonal=True)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1 / 64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_both_ways_on_a_cpu(diagonal: bool, scale: float, dtype: torch.dtype) -> None:
    """The compiled walk of a CPU, and torch's operations alone, as a GPU without Triton runs them."""
    error = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 2e-3}[dtype]
    exact = choose_backend("reference")
    for kind in KINDS:
        rows, others = ((unit_rows(kind, n, 33, exact) * scale**-0.5).to(dtype) for n in (150, 70))
        right = rows if diagonal else others
        true_rows, true_right = (x.double() * scale**0.5 for x in (rows, right))
        for sums in (torch_ops.overlap_sums, torch_ops.overlap_sums_anywhere):
            found = sums(rows, right, bins=BINS, diagonal=diagonal, scale=scale)
            check_tile(found, true_rows, true_right, error, diagonal=diagonal)


def test_a_tile_of_more_rows_than_are_summed_at_once() -> None:
    backend = choose_backend("torch", "cpu", "exact")
    for kind in KINDS:
        left, right = (
            unit_rows(kind, 3 * cpu_tiles.FLUSH_ROWS + 11, 9, backend),
            unit_rows("anisotropic", 90, 9, backend),
        )
        check_tile(backend.overlap_sums(left, right, bins=BINS, diagonal=False), left, right, 1e-14)
        check_tile(backend.overlap_sums(left, left, bins=BINS, diagonal=True), left, left, 1e-14, diagonal=True)


def test_a_walk_from_the_disk_is_the_walk_that_was_compiled(tmp_path: Path) -> None:
    """Otherwise the first run after an installation would differ from all later ones."""
    (compiled, kept), (read, still) = (run(1, tiles_compiled_in, tmp_path)[0] for _ in range(2))
    assert kept
    assert kept == still
    assert read == compiled


def check_tile(
    found: TileSums, left: torch.Tensor, right: torch.Tensor, error: float, *, diagonal: bool = False
) -> None:
    """Against what the pairs of these unit rows come to one by one, `error` being allowed for each overlap."""
    c = np.einsum("ik,jk->ij", left.double().cpu().numpy(), right.double().cpu().numpy())
    every = c[np.triu_indices(len(c), 1)] if diagonal else c.ravel()
    many = len(every)
    assert found.pairs == many == found.histogram.sum()
    assert found.histogram.dtype == np.int64
    assert found.total == pytest.approx(every.sum(), abs=many * error)
    assert found.absolute == pytest.approx(np.abs(every).sum(), abs=many * error)
    assert found.squares == pytest.approx(np.square(every).sum(), abs=many * 2 * error)
    edges = np.linspace(-1, 1, BINS + 1)[1:-1]
    below, ordered = np.cumsum(found.histogram)[:-1], np.sort(every.clip(-1, 1))
    assert (np.searchsorted(ordered, edges - error) <= below).all()
    assert (below <= np.searchsorted(ordered, edges + error)).all()
    if diagonal:
        np.fill_diagonal(c, np.nan)
    check_rows(found.left, c, error)
    check_rows(found.right, c.T, error)


def check_rows(found: RowSums, c: np.ndarray[Any, Any], error: float) -> None:
    """c is NaN where two rows are one."""
    assert found.partner.dtype == np.int64
    assert found.overlap.dtype == found.squares.dtype == np.float64
    assert (np.abs(found.squares - np.nansum(c**2, axis=1)) <= c.shape[1] * 2 * error).all()
    assert (np.abs(found.overlap) <= 1).all()
    of_partner = c[np.arange(len(c)), found.partner]
    assert (np.abs(found.overlap - of_partner) <= error).all()
    largest = np.nanmax(np.abs(c).clip(max=1), axis=1)
    assert (np.abs(of_partner) >= largest - 2 * error).all()


@every_backend
def test_of_equal_overlaps_the_first_partner(name: str, device: str, precision: Any) -> None:
    """Rows of ±1 in one place overlap by exactly 0 or ±1, whatever the precision."""
    backend = _backend(name, device, precision)
    axes = [2, 0, 1, 0, 2, 2, 0, 3]
    rows = torch.zeros(len(axes), 4)
    rows[range(len(axes)), axes] = torch.tensor([1.0, 1, 1, -1, -1, 1, 1, 1])
    unit = backend.unit_rows(rows)[0].clone()
    diagonal = backend.overlap_sums(unit, unit, bins=BINS, diagonal=True)
    assert diagonal.left.partner.tolist() == [4, 3, 0, 1, 0, 0, 1, 0]
    assert diagonal.left.overlap.tolist() == [-1, -1, 0, -1, -1, 1, 1, 0]
    assert diagonal.right.partner.tolist() == diagonal.left.partner.tolist()
    assert np.flatnonzero(diagonal.histogram).tolist() == [0, 256, 511]
    assert diagonal.histogram[[0, 256, 511]].tolist() == [4, 22, 2]
    tile = backend.overlap_sums(unit[:5].clone(), unit[3:].clone(), bins=BINS, diagonal=False)
    assert tile.left.partner.tolist() == [1, 0, 0, 0, 1]
    assert tile.left.overlap.tolist() == [-1, -1, 0, 1, 1]
    assert tile.right.partner.tolist() == [1, 0, 0, 1, 0]
    assert tile.right.overlap.tolist() == [-1, -1, 1, 1, 0]


# all pairs

SHAPES = [(3, 1), (40, 40), (61, 7), (90, 24)]


@every_kind
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("name", "precision", "tile_rows"),
    [("reference", "exact", 1024), ("torch", "exact", 7), ("torch", "exact", 1024), ("torch", "float32", 16)],
)
def test_all_pairs_by_brute_force(kind: str, shape: tuple[int, int], name: str, precision: Any, tile_rows: int) -> None:
    W = matrix(kind, *shape)
    found = asdict(all_pairs(MatrixBlocks(W, 9), choose_backend(name, "cpu", precision), tile_rows=tile_rows))
    check_statistics(found, brute_pairs(kind, *shape), 1e-12 if precision == "exact" else 1e-6)


@cache
def brute_pairs(kind: str, rows: int, columns: int) -> dict[str, Any]:
    return brute.pairs(matrix(kind, rows, columns).numpy())


def check_statistics(found: dict[str, Any], wanted: dict[str, Any], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    exact = tolerance < 1e-9
    for field, value in wanted.items():
        if field == "closest_pairs":
            places = [[(p["row"], p["other"]) for p in s[field]] for s in (found, wanted)]
            assert places[0] == places[1]
            assert [p["overlap"] for p in found[field]] == pytest.approx([p["overlap"] for p in value], abs=tolerance)
        elif field == "histogram_counts" and not exact:
            assert sum(found[field]) == sum(value)
            assert np.abs(np.cumsum(found[field]) - np.cumsum(value)).max() <= 3
        elif field in ("mean_overlap", "std_absolute_overlap"):  # the one cancels, the other may
            assert found[field] == pytest.approx(value, abs=tolerance)
        elif field == "row_mean_square_quantiles":
            assert found[field] == pytest.approx(value, rel=tolerance, abs=tolerance)
        elif value is None or isinstance(value, list):
            assert found[field] == value, field
        else:
            assert found[field] == pytest.approx(value, rel=tolerance), field


def unit_rows_of(W: torch.Tensor, backend: Backend, tile_rows: int) -> UnitRows:
    rows: UnitRows = one_pass(MatrixBlocks(W, 100), [ResidentRows(tile_rows)], backend=backend)[0]
    return rows


@pytest.mark.parametrize("precision", ["exact", "float32"])
def test_order_shards_and_threads_change_nothing(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    W = random_head(210, 24, torch.Generator().manual_seed(1)) + 0.3
    W[[5, 90, 200]] = 0
    backend = choose_backend("torch", "cpu", precision)
    rows = unit_rows_of(W, backend, 32)
    tiles = every_tile(len(rows), 32)
    wanted = asdict(pair_statistics(rows, sum_tiles(rows, tiles, backend)))
    orders = {
        "reversed": [tiles[::-1]],
        "shuffled": [np.random.default_rng(2).permutation(tiles)],
        "two shards": [tiles[rank::2] for rank in (1, 0)],
        "five shards": [tiles[rank::5] for rank in range(5)],
    }
    for name, shards in orders.items():
        for cores in (1, 3):
            monkeypatch.setattr(llmsuper.kernels, "usable_cores", lambda cores=cores: cores)
            sums, *others = (sum_tiles(rows, shard, backend) for shard in shards)
            for other in others:
                sums.merge(other)
            found = asdict(pair_statistics(rows, sums))
            quantiles = found.pop("row_mean_square_quantiles")
            assert quantiles == pytest.approx(wanted["row_mean_square_quantiles"], rel=1e-12), name
            assert found == {key: value for key, value in wanted.items() if key in found}, name


class NotYetError(Exception):
    """Other processes have not summed up their tiles."""


class OneOf:
    """A share of the work for one of several processes, which take turns here."""

    def __init__(self, rank: int, everyone: list[bytes | None]) -> None:
        self.rank, self.count, self._everyone = rank, len(everyone), everyone

    def total(self, sums: PairSums) -> PairSums:
        self._everyone[self.rank] = pickle.dumps(sums)
        there = [pickle.loads(kept) for kept in self._everyone if kept is not None]
        if len(there) < self.count:
            raise NotYetError
        whole, *others = there
        for other in others:
            whole.merge(other)
        return whole


@pytest.mark.parametrize("sample", [None, 15])
def test_processes_share_the_tiles(tmp_path: Path, sample: int | None) -> None:
    W = matrix("equal rows", 150, 20)
    backend = choose_backend("torch", "cpu", "exact")
    wanted = all_pairs(MatrixBlocks(W), backend, tile_rows=16, sample=sample)
    everyone: list[bytes | None] = [None] * 3

    def one_of(rank: int) -> PairStatistics:
        share, kept = OneOf(rank, everyone), tmp_path / "W.npz"
        return all_pairs(MatrixBlocks(W), backend, tile_rows=16, sample=sample, partial=kept, share=share)

    for rank in (1, 0):
        with pytest.raises(NotYetError):
            one_of(rank)
    found = [one_of(rank) for rank in (2, 0, 1)]
    assert found[0] == found[1] == found[2]
    assert replace(found[0], row_mean_square_quantiles=None) == replace(wanted, row_mean_square_quantiles=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"W-{rank}-of-3.npz" for rank in range(3)]
    assert sum(len(PairSums.load(path).tiles) for path in tmp_path.iterdir()) == (sample or 55)


def test_the_size_of_tiles_changes_nothing() -> None:
    W = matrix("anisotropic", 300, 20)
    backend = choose_backend("torch", "cpu", "exact")
    wanted = asdict(all_pairs(MatrixBlocks(W), backend))
    for tile_rows in (13, 100, 299, 300, 301):
        check_statistics(asdict(all_pairs(MatrixBlocks(W), backend, tile_rows=tile_rows)), wanted, 1e-12)
    few = asdict(all_pairs(MatrixBlocks(W[:40]), backend))
    check_statistics(asdict(all_pairs(MatrixBlocks(W[:40]), backend, tile_rows=1)), few, 1e-12)


@every_kind
@pytest.mark.parametrize(("precision", "tolerance"), [("exact", 1e-12), ("float32", 1e-6), ("fast", 1e-4)])
def test_the_pairs_agree_with_the_gram_matrix(kind: str, precision: Any, tolerance: float) -> None:
    W = matrix(kind, 900, 60).float()
    backend = choose_backend("torch", "cpu", precision)
    gram = one_pass(MatrixBlocks(W), [GramAccumulator()], backend=backend)[0]
    found = all_pairs(MatrixBlocks(W), backend, tile_rows=256)
    assert found.mean_squared_overlap == pytest.approx(gram.mean_squared_overlap, rel=tolerance)
    assert found.mean_overlap == pytest.approx(gram.mean_overlap, abs=max(tolerance / 10, 1e-13))
    assert (found.rows, found.zero_rows, found.columns) == (gram.rows, gram.zero_rows, gram.columns)


def test_a_mask_and_a_centre() -> None:
    W = matrix("zero rows", 80, 9)
    mask = np.random.default_rng(3).random(80) < 0.6
    centre = np.full(9, 0.1)
    found = asdict(all_pairs(MatrixBlocks(W, 11), choose_backend("torch", "cpu", "exact"), mask=mask, centre=centre))
    chosen = W.numpy()[mask]
    shifted = np.where(np.linalg.norm(chosen, axis=1)[:, None] > 0, chosen - centre, 0)
    wanted = brute.pairs(shifted)
    numbers = np.flatnonzero(mask)
    for pair in wanted["closest_pairs"]:
        pair["row"], pair["other"] = int(numbers[pair["row"]]), int(numbers[pair["other"]])
    for crowd in wanted["largest_crowds"]:
        crowd["rows"] = numbers[crowd["rows"]].tolist()
    check_statistics(found, wanted, 1e-12)


def test_the_result_is_json() -> None:
    for sample in (None, 12):
        found = asdict(all_pairs(MatrixBlocks(matrix("random", 90, 24)), tile_rows=16, sample=sample))
        assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    all_pairs(MatrixBlocks(matrix("random", 90, 24)), tile_rows=30, progress=lambda *said: told.append(said))
    assert told == [("pairs", done, 6) for done in range(1, 7)]


# the closest pairs


def test_crowds_are_the_same_however_many_rows_are_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is told how far that is, where any row is to be looked at."""
    W = random_head(400, 20, torch.Generator().manual_seed(1))
    for first in range(0, 240, 12):  # twenty crowds, and as many pairs that are none
        W[first : first + 5] = W[first] + 0.1 * W[first : first + 5]
        W[first + 5] = W[first + 6] + 0.1 * W[first + 7]
    said: list[tuple[str, int, int]] = []
    found = []
    for together in (1, 7, 64, 1000):
        monkeypatch.setattr(llmsuper.geometry.closest, "TOGETHER", together)
        said.clear()
        found.append(all_pairs(MatrixBlocks(W), tile_rows=50, progress=lambda *step: said.append(step)))
        name, done, there = said[-1]
        assert (name, done) == ("rows close to others", there)
        assert 140 <= there < 400
    assert found[0].crowds == 20
    assert len(found[0].closest_pairs) == 10
    assert all(other == found[0] for other in found)


@pytest.mark.parametrize("many", [3, 40, 250])
@pytest.mark.parametrize("tile_rows", [19, 64])
def test_the_closest_pairs_among_many_equal_rows(many: int, tile_rows: int) -> None:
    """Rows that are all alike, as tokens that were never trained are, and pairs that are nearly so."""
    rng = np.random.default_rng(many)
    W = rng.standard_normal((260, 12))
    alike = sorted(rng.permutation(260)[:many].tolist())
    W[alike] = W[7]
    for k in range(6):
        W[2 * k + 100] = W[2 * k + 101] * (-1) ** k + 0.03 * k * W[2 * k + 102]
    rows = unit_rows_of(torch.from_numpy(W), choose_backend("torch", "cpu", "exact"), tile_rows)
    sums = sum_tiles(rows, every_tile(260, tile_rows), choose_backend("torch", "cpu", "exact"))
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    c = np.round(np.abs(unit @ unit.T), 6)
    found = find_closest(rows, sums)
    crowded = {row for crowd in _crowds_one_by_one(c) for row in crowd}
    assert sum(crowd.size for crowd in found.crowds) == len(crowded) >= many
    wanted = sorted(
        (pair for pair in combinations(range(260), 2) if crowded.isdisjoint(pair)), key=lambda pair: (-c[pair], pair)
    )
    assert [(p.row, p.other) for p in found.pairs] == wanted[:10]


def _crowds_one_by_one(c: np.ndarray[Any, Any]) -> list[set[int]]:
    taken: set[int] = set()
    crowds = []
    for row in range(len(c)):
        around = {int(k) for k in np.flatnonzero(c[row] > 0.95)} - taken  # the row itself among them
        if row not in taken and len(around) > 2:
            taken |= around
            crowds.append(around)
    return crowds


@pytest.mark.parametrize("precision", ["exact", "float32", "fast"])
def test_crowds_are_listed_and_pairs_are_of_other_rows(precision: Any) -> None:
    """A crowd of 60 in two blocks or more, one of opposite rows, and two rows that are a pair: close as they are, no crowd."""
    W = random_head(150, 300, torch.Generator().manual_seed(0))
    W[3:120:2] = W[3] + 0.1 * W[3:120:2]
    W[[130, 140, 145]] = torch.outer(torch.tensor([1.0, -2.0, 0.5]), W[130])
    W[2] = W[0] + 0.01 * W[2]
    W[[10, 12]] = W[10] + 0.5 * W[[10, 12]]
    backend = choose_backend("torch", "cpu", precision)
    found = all_pairs(MatrixBlocks(W), backend, tile_rows=40)
    assert (found.crowds, found.crowded_rows) == (2, 62)
    assert [asdict(crowd) for crowd in found.largest_crowds] == [
        {"size": 59, "rows": [3, 5, 7, 9, 11]},
        {"size": 3, "rows": [130, 140, 145]},
    ]
    assert found.maximum_overlap == pytest.approx(1, abs=1e-3)
    assert [(p.row, p.other) for p in found.closest_pairs[:2]] == [(0, 2), (10, 12)]
    assert found.closest_pairs[0].overlap == pytest.approx(1, abs=1e-3)
    assert all(abs(pair.overlap) < 0.5 for pair in found.closest_pairs[2:])
    sums = all_pairs(MatrixBlocks(W), backend, tile_rows=7)
    assert (sums.largest_crowds, len(sums.closest_pairs)) == (found.largest_crowds, 10)
    assert [(p.row, p.other) for p in sums.closest_pairs] == [(p.row, p.other) for p in found.closest_pairs]


def test_one_direction_alone_has_a_crowd_and_no_pairs() -> None:
    found = all_pairs(MatrixBlocks(torch.outer(torch.arange(1.0, 41), torch.ones(6))), tile_rows=16)
    assert (found.crowds, found.crowded_rows, found.closest_pairs) == (1, 40, [])
    twins = all_pairs(MatrixBlocks(torch.eye(30).repeat(2, 1)), tile_rows=16)
    assert (twins.crowds, twins.crowded_rows) == (0, 0)
    assert [(p.row, p.other, p.overlap) for p in twins.closest_pairs] == [(k, k + 30, 1.0) for k in range(10)]


def test_a_row_between_two_crowds_is_in_the_first() -> None:
    """Row 0 is near to one row, which is near to three: a pair for itself, it is in the crowd of that one."""
    angles = torch.tensor([0.0, 15.0, 30.0, 32.0, 90.0, 91.0]).deg2rad()
    found = all_pairs(MatrixBlocks(torch.stack([angles.cos(), angles.sin()], dim=1)))
    assert [crowd.rows for crowd in found.largest_crowds] == [[1, 0, 2, 3]]
    assert [(p.row, p.other) for p in found.closest_pairs] == [(4, 5)]


def test_the_closest_pairs_of_a_sample_are_in_it() -> None:
    W = matrix("random", 200, 5)
    rows = unit_rows_of(W, choose_backend("torch", "cpu", "exact"), 20)
    tiles = every_tile(200, 20)[[0, 3, 17, 40]]
    sums = sum_tiles(rows, tiles, choose_backend("torch", "cpu", "exact"))
    allowed = {(int(i), int(j)) for i, j in tiles}
    unit = W / W.norm(dim=1, keepdim=True)
    c = (unit @ unit.T).numpy()
    every = [(i, j) for i in range(200) for j in range(i + 1, 200) if (i // 20, j // 20) in allowed]
    alike = torch.zeros(200, 200)
    for i, j in every:
        alike[i, j] = alike[j, i] = abs(float(c[i, j]))
    crowded = {row for crowd in _crowds_one_by_one((alike + torch.eye(200)).numpy()) for row in crowd}
    wanted = sorted((p for p in every if crowded.isdisjoint(p)), key=lambda p: -abs(c[p]))[:10]
    assert [(p.row, p.other) for p in find_closest(rows, sums).pairs] == wanted


# going on


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    W = matrix("anisotropic", 200, 12)
    kept = tmp_path / "partial" / "pairs.npz"
    wanted = all_pairs(MatrixBlocks(W), tile_rows=32)

    def stop(_: str, done: int, __: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        all_pairs(MatrixBlocks(W), tile_rows=32, partial=kept, label="W", progress=stop)
    assert len(PairSums.load(kept).tiles) == 9
    told: list[tuple[str, int]] = []
    again = all_pairs(
        MatrixBlocks(W), tile_rows=32, partial=kept, label="W", progress=lambda what, done, _: told.append((what, done))
    )
    assert [done for what, done in told if what == "pairs"] == list(range(10, 29))
    assert replace(again, row_mean_square_quantiles=None) == replace(wanted, row_mean_square_quantiles=None)
    assert again.row_mean_square_quantiles == pytest.approx(wanted.row_mean_square_quantiles, rel=1e-12)
    assert [path.name for path in kept.parent.iterdir()] == ["pairs.npz"]

    with pytest.raises(
        LlmsuperError, match=r"pairs.npz: holds sums over other rows or tiles .*'W', 32, 200.*delete it"
    ):
        all_pairs(MatrixBlocks(W), tile_rows=32, partial=kept, label="V")
    with pytest.raises(LlmsuperError, match="other rows or tiles"):
        all_pairs(MatrixBlocks(W), tile_rows=32, partial=kept, label="W", sample=10)


def test_sums_are_saved_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmsuper.geometry.pairs, "SAVE_SECONDS", 0.0)
    kept, seen = tmp_path / "pairs.npz", []
    all_pairs(
        MatrixBlocks(matrix("random", 90, 24)),
        tile_rows=30,
        partial=kept,
        progress=lambda *_: seen.append(len(PairSums.load(kept).tiles) if kept.exists() else 0),
    )
    assert seen == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other arrays"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "pairs.npz"
    PairSums.none(5, 2).save(path)
    if damage == "other arrays":
        np.savez(path, label=np.array("x"))
    else:
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not an archive"}[damage])
    with pytest.raises(LlmsuperError, match=r"pairs.npz: no sums of pairs are in it .* Delete it to begin again"):
        PairSums.load(path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LlmsuperError, match="sums of pairs cannot be written"):
        PairSums.none(5, 2).save(tmp_path / "file" / "pairs.npz")


def test_what_does_not_belong_together_is_not_merged() -> None:
    backend = choose_backend("torch", "cpu", "exact")
    rows = unit_rows_of(matrix("random", 90, 24), backend, 30)
    sums = sum_tiles(rows, np.array([[0, 1]]), backend)
    with pytest.raises(ValueError, match=r"tile \(0, 1\) is in both"):
        sums.merge(sum_tiles(rows, np.array([[0, 1], [1, 1]]), backend))
    with pytest.raises(ValueError, match="do not belong"):
        sums.merge(PairSums.none(91, 30))
    with pytest.raises(ValueError, match="1 of 6 tiles are a sample"):
        pair_statistics(rows, sums)


# sampling


def test_the_intervals_of_samples_hold_the_truth() -> None:
    """Of 300 samples of a tenth of the tiles about 95 % do; fewer than 90 % would be a chance of 1 in 10,000."""
    W = matrix("anisotropic", 640, 24)
    backend = choose_backend("torch", "cpu", "exact")
    rows = unit_rows_of(W, backend, 16)
    tiles = every_tile(640, 16)
    sums = sum_tiles(rows, tiles, backend)
    of_tile = dict(zip(sorted(sums.tiles), sums.per_tile().T, strict=True))
    truth = pair_statistics(rows, sums)
    held, plain_widths, widths = 0, [], []
    for seed in range(300):
        chosen = sample_tiles(tiles, 0.1, np.random.default_rng(seed))
        pairs, _, absolutes, squares = np.array([of_tile[i, j] for i, j in chosen.tolist()]).T
        found = estimate_mean(pairs, absolutes, squares, truth.mean_squared_overlap, len(tiles))
        plain = estimate_mean(pairs, absolutes, pairs, 1.0, len(tiles))
        held += found.interval[0] <= truth.mean_absolute_overlap <= found.interval[1]
        widths.append(found.interval[1] - found.interval[0])
        plain_widths.append(plain.interval[1] - plain.interval[0])
    assert 0.90 <= held / 300 <= 0.99
    assert np.mean(widths) < 0.5 * np.mean(plain_widths)  # what the control variate is for


def test_a_sample_says_that_it_is_one() -> None:
    W = matrix("random", 640, 24)
    whole = all_pairs(MatrixBlocks(W))
    found = all_pairs(MatrixBlocks(W), tile_rows=32, sample=0.2)
    assert whole.sampled is None
    assert (whole.crowds, found.crowds, found.crowded_rows) == (0, None, None)
    assert found.sampled is not None
    assert (found.sampled.tiles, found.sampled.tiles_in_all, found.sampled.tile_rows) == (42, 210, 32)
    assert found.sampled.pairs == sum(found.histogram_counts) < found.pairs == whole.pairs
    low, high = found.sampled.mean_absolute_overlap_interval
    assert low < found.mean_absolute_overlap < high
    assert found.mean_squared_overlap == pytest.approx(whole.mean_squared_overlap, rel=1e-6)
    assert found.mean_overlap == pytest.approx(whole.mean_overlap, abs=1e-7)
    assert found.maximum_overlap <= whole.maximum_overlap
    assert found.row_maximum_quantiles is None
    assert found.row_mean_square_quantiles is None
    assert found.sampled.seed == 0
    again = all_pairs(MatrixBlocks(W), tile_rows=32, sample=42)
    assert again == found
    other = all_pairs(MatrixBlocks(W), tile_rows=32, sample=42, generator=np.random.default_rng(1))
    assert other.histogram_counts != found.histogram_counts
    assert other.sampled is not None
    assert other.sampled.seed is None


def test_a_sample_of_every_tile_is_no_sample() -> None:
    W = matrix("equal rows", 64, 8)
    wanted = all_pairs(MatrixBlocks(W), tile_rows=16)
    assert all_pairs(MatrixBlocks(W), tile_rows=16, sample=10) == wanted
    assert all_pairs(MatrixBlocks(W), tile_rows=16, sample=99) == wanted


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        (0, "means nothing"),
        (-3, "means nothing"),
        (2.5, "means nothing"),
        (4, "takes 4 of 210"),
        (0.01, "takes 2 of 210"),
    ],
)
def test_a_sample_that_is_refused(sample: float, says: str) -> None:
    with pytest.raises(LlmsuperError, match=says):
        sample_tiles(every_tile(640, 32), sample, np.random.default_rng(0))


def test_every_choice_of_tiles_is_equally_likely() -> None:
    tiles = every_tile(64, 16)
    places = {(i, j): k for k, (i, j) in enumerate(tiles.tolist())}
    samples = [sample_tiles(tiles, 8, np.random.default_rng(seed)).tolist() for seed in range(2000)]
    counts = np.bincount([places[i, j] for chosen in samples for i, j in chosen], minlength=10)
    assert counts.sum() == 16_000
    assert np.abs(counts - 1600).max() < 5 * (2000 * 0.8 * 0.2) ** 0.5


# the list of tiles


@pytest.mark.parametrize(("rows", "block_rows"), [(2, 1), (2, 2), (10, 3), (10, 9), (9, 3), (5, 100)])
def test_every_pair_is_in_one_tile(rows: int, block_rows: int) -> None:
    seen = np.zeros((rows, rows), int)
    for i, j in every_tile(rows, block_rows).tolist():
        left = slice(i * block_rows, min(rows, (i + 1) * block_rows))
        right = slice(j * block_rows, min(rows, (j + 1) * block_rows))
        block = np.ones((left.stop - left.start, right.stop - right.start), int)
        tile = np.triu(block, 1) if i == j else block
        assert tile.any()
        seen[left, right] += tile
    assert np.array_equal(seen, np.triu(np.ones((rows, rows), int), 1))


# what stops


def test_rows_that_do_not_fit_into_memory() -> None:
    W = matrix("random", 200, 16)
    backend = choose_backend("torch", "cpu", "float32")
    room = 200 * 16 * 4
    assert all_pairs(MatrixBlocks(W), backend, tile_rows=50, memory=room).rows == 200
    with pytest.raises(BackendError, match=r"row 150 of 16 columns in float32 .*--sample 64.*--precision fast"):
        all_pairs(MatrixBlocks(W), backend, tile_rows=50, memory=room - 1)
    half = choose_backend("torch", "cpu", "fast")
    assert all_pairs(MatrixBlocks(W), half, tile_rows=50, memory=room // 2).rows == 200
    sampled = all_pairs(MatrixBlocks(W), backend, tile_rows=4, memory=room // 2, sample=8)
    assert sampled.sampled is not None


def test_a_non_finite_row_is_named() -> None:
    W = matrix("random", 60, 8).clone()
    W[47, 3] = torch.nan
    with pytest.raises(CheckpointError, match="row 47 holds a NaN"):
        all_pairs(MatrixBlocks(W, 20))


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("sample", [None, 8])
def test_fewer_than_two_rows(rows: int, sample: float | None) -> None:
    W = torch.zeros(5, 3)
    W[:rows] = 1
    with pytest.raises(CheckpointError, match=rf"two rows that are not zero.* {rows} of 5 are"):
        all_pairs(MatrixBlocks(W), sample=sample)


def test_statistics_have_a_brute_force_of_every_field() -> None:
    wanted = brute.pairs(matrix("random", 5, 3).numpy())
    assert list(wanted) == list(PairStatistics.__dataclass_fields__)
