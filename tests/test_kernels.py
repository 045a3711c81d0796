"""Every row of BACKENDS against `reference`, and the promises of the precision policy."""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

import llmsuper.kernels
from llmsuper.errors import BackendError, UnknownNameError
from llmsuper.geometry.controls import MatrixBlocks, random_head
from llmsuper.kernels import (
    BACKENDS,
    Backend,
    NonFiniteRowError,
    choose_backend,
    choose_precision,
    one_thread_per_block,
    usable_cores,
)
from llmsuper.kernels import reference as truth
from llmsuper.measure import measure_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SHAPES = [(1, 1), (2, 1), (63, 60), (257, 100), (1000, 7)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

HERE = {"cpu": (), "cuda": pytest.mark.gpu}
EVERY_BACKEND = [
    pytest.param(name, device, precision, marks=HERE[device])
    for name, row in BACKENDS.items()
    for device in row.devices
    for precision in row.precisions
]
every_backend = pytest.mark.parametrize(("name", "device", "precision"), EVERY_BACKEND)


def _each(W: torch.Tensor, factor: float, step: int = 3) -> torch.Tensor:
    """Every third row times a factor."""
    W[::step] *= factor
    return W


KINDS: dict[str, Callable[[torch.Tensor, torch.dtype], torch.Tensor]] = {
    "ordinary": lambda W, _: W,
    "zero rows": lambda W, _: _each(W, 0.0),
    "only zero rows": lambda W, _: W * 0,
    "tiny rows": lambda W, dtype: _each(W, max(1e-30, torch.finfo(dtype).tiny)),
    "huge rows": lambda W, dtype: _each(W, min(1e30, torch.finfo(dtype).max / 8)),
    "subnormal rows": lambda W, dtype: _each(W.sign() * (1 + W.abs()), torch.finfo(dtype).tiny / 16),
    "float32 subnormals": lambda W, _: _each(W, 1e-40),
}
"""Rows (n, m) float64 into a kind of rows; what is then rounded to zero by the storage dtype is a zero row."""


@pytest.fixture(autouse=True)
def _gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def rows_of(kind: str, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(shape[0])
    W = torch.randn(shape, generator=generator, dtype=torch.float64).clamp(-4, 4)
    return KINDS[kind](W, dtype).to(dtype)


@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unit_rows_and_gram(name: str, device: str, precision: Any, shape: tuple[int, int], dtype: torch.dtype) -> None:
    backend = choose_backend(name, device, precision)
    for kind in KINDS:
        for centre in (None, centre_of(shape)):
            check_against_reference(backend, kind, shape, dtype, centre)


def centre_of(shape: tuple[int, int]) -> NDArray[np.float64]:
    return 0.3 * np.random.default_rng(5).standard_normal(shape[1])


@cache
def truth_of(
    kind: str, shape: tuple[int, int], dtype: torch.dtype, centred: bool
) -> tuple[torch.Tensor, NDArray[np.float64]]:
    centre = centre_of(shape) if centred else None
    return truth.unit_rows(rows_of(kind, shape, dtype), dtype="float64", device="cpu", centre=centre)


def check_against_reference(
    backend: Backend, kind: str, shape: tuple[int, int], dtype: torch.dtype, centre: NDArray[np.float64] | None
) -> None:
    case = f"{kind}, centre {centre}"
    rows, kept_centre = rows_of(kind, shape, dtype), None if centre is None else centre.copy()
    kept = rows.clone()
    unit, norms = backend.unit_rows(rows, centre)
    gram = backend.gram(unit)
    assert torch.equal(rows, kept), f"{case}: the rows were changed"
    assert centre is None or np.array_equal(centre, kept_centre), f"{case}: the centre was changed"
    rows.fill_(torch.nan)  # as a buffer is overwritten when it is used again

    true_unit, true_norms = truth_of(kind, shape, dtype, centre is not None)
    assert unit.dtype == getattr(torch, backend.precision)
    assert unit.device.type == backend.device
    assert norms.dtype == np.float64
    assert np.array_equal(norms == 0, true_norms == 0), case
    eps = torch.finfo(unit.dtype).eps
    # subtracting the centre costs the digits that a row and the centre share
    digits = 1.0 if centre is None else 1 + np.linalg.norm(centre) / np.where(true_norms > 0, true_norms, 1)
    assert (np.abs(unit.double().cpu().numpy() - true_unit.numpy()).max(axis=1) <= 4 * eps * digits).all(), case
    assert (np.abs(norms - true_norms) <= 8 * eps * digits * true_norms).all(), case

    gram = gram if isinstance(gram, np.ndarray) else gram.cpu().numpy()
    exact = unit.double().cpu().numpy()
    true_gram = exact.T @ exact
    assert gram.shape == true_gram.shape
    assert gram.dtype == np.dtype(backend.precision)
    assert np.abs(gram - true_gram).max() <= 2 * eps * len(kept) ** 0.5 * max(1.0, true_gram.max()), case


@every_backend
def test_a_row_equal_to_the_centre_has_no_direction(name: str, device: str, precision: Any) -> None:
    for dtype in DTYPES:
        rows = rows_of("ordinary", (63, 60), dtype)
        centre = rows[7].double().numpy()
        unit, norms = choose_backend(name, device, precision).unit_rows(rows, centre)
        assert np.flatnonzero(norms == 0).tolist() == [7]
        assert not unit[7].any()
        assert unit.isfinite().all()


@every_backend
@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-20])
def test_a_zero_row_stays_zero_when_centred(name: str, device: str, precision: Any, scale: float) -> None:
    """Zero minus the centre has a direction, but nothing that the matrix put there."""
    rows = (scale * rows_of("ordinary", (63, 60), torch.float64)).to(torch.float32)
    rows[[4, 9]] = 0
    unit, norms = choose_backend(name, device, precision).unit_rows(rows, scale * np.ones(60))
    assert np.flatnonzero(norms == 0).tolist() == [4, 9]
    assert not unit[[4, 9]].any()


@every_backend
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_non_finite_row_is_named(name: str, device: str, precision: Any, bad: float, dtype: torch.dtype) -> None:
    for centre in (None, np.ones(60)):
        rows = rows_of("zero rows", (63, 60), dtype)
        rows[41, 59] = rows[50, 0] = bad
        with pytest.raises(NonFiniteRowError) as caught:
            choose_backend(name, device, precision).unit_rows(rows, centre)
        assert caught.value.index == 41


@every_backend
def test_float16_rows_whose_squares_overflow(name: str, device: str, precision: Any) -> None:
    rows = torch.full((3, 100), 60_000.0, dtype=torch.float16)
    rows[1] = 6e-8  # its square underflows even more
    unit, norms = choose_backend(name, device, precision).unit_rows(rows)
    assert norms == pytest.approx([10 * float(row[0]) for row in rows], rel=1e-6)
    assert unit.cpu().numpy() == pytest.approx(np.full((3, 100), 0.1), rel=1e-6)


@every_backend
def test_norms_are_taken_after_widening(name: str, device: str, precision: Any) -> None:
    """In bfloat16, 1,500 random rows would have a few dozen distinct norms."""
    rows = random_head(1500, 768, torch.Generator().manual_seed(0)).bfloat16()
    assert len(torch.unique(torch.linalg.vector_norm(rows, dim=1))) < 50
    _, norms = choose_backend(name, device, precision).unit_rows(rows)
    assert len(np.unique(norms)) > 1400


# the promise: float32 is good to 1e-6


def _with_common_direction(W: torch.Tensor, mean_cos: float) -> torch.Tensor:
    """Rows whose mean cosine is about `mean_cos`."""
    m = W.shape[1]
    direction = torch.randn(m, generator=torch.Generator().manual_seed(9))
    return W + direction * (m**0.5 / direction.norm()) * (mean_cos / (1 - mean_cos)) ** 0.5


MATRICES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "isotropic": lambda W: W,
    "mean cos 0.3": lambda W: _with_common_direction(W, 0.3),
    "mean cos 0.9": lambda W: _with_common_direction(W, 0.9),
    "near duplicates": lambda W: torch.where(torch.arange(len(W))[:, None] % 20 == 0, W[:1] + 1e-3 * W, W),
    "heavy-tailed norms": lambda W: W * torch.exp(1.5 * W[:, :1]),
}


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_float32_keeps_the_promise(kind: str, dtype: torch.dtype) -> None:
    W = MATRICES[kind](random_head(6000, 192, torch.Generator().manual_seed(4))).to(dtype)
    assert choose_precision(*W.shape, "F32") == "float32"
    names = ["overlap", "centred_overlap"]
    blocks = MatrixBlocks(W, 2048)
    found = measure_rows(blocks, names, choose_backend(precision="float32"))["all"]
    wanted = measure_rows(blocks, names, choose_backend(precision="float64"))["all"]
    for name in names:
        exact = _mean_square(W, centred=name == "centred_overlap")
        assert wanted[name]["mean_squared_overlap"] == pytest.approx(exact, rel=1e-12)
        assert found[name]["mean_squared_overlap"] == pytest.approx(exact, rel=1e-6)
        assert found[name]["mean_overlap"] == pytest.approx(wanted[name]["mean_overlap"], abs=1e-7)
        if found[name]["overlap_variance"] is not None:
            assert found[name]["overlap_variance"] == pytest.approx(wanted[name]["overlap_variance"], rel=1e-2)


def _mean_square(W: torch.Tensor, *, centred: bool) -> float:
    """In numpy and float64."""
    x = W.double().numpy()
    x = x - x.mean(axis=0) if centred else x
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    n = len(x)
    return float(np.square(x.T @ x).sum() - n) / (n * (n - 1))


def test_the_result_does_not_depend_on_threads_or_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    W = random_head(3000, 96, torch.Generator().manual_seed(2)) + 1
    mask = np.random.default_rng(3).random(3000) < 0.9

    def everything() -> Any:
        backend = choose_backend()
        return measure_rows(MatrixBlocks(W, 256), ["norms", "overlap", "centred_overlap"], backend, mask=mask)

    wanted = everything()
    for cores in (1, 2, 3, 3):
        monkeypatch.setattr(llmsuper.kernels, "usable_cores", lambda cores=cores: cores)
        assert choose_backend(device="cpu").threads(768) == cores
        assert everything() == wanted


# which backend, which precision, how many threads


@pytest.mark.parametrize(
    ("rows", "columns", "dtype", "precision"),
    [
        (50_257, 768, "F32", "float32"),
        (50_257, 768, "BF16", "float32"),
        (50_257, 768, "F64", "float64"),
        (1500, 1000, "F16", "float64"),
        (1501, 1000, "F16", "float32"),
        (4109, 3584, "F16", "float64"),
    ],
)
def test_choose_precision(rows: int, columns: int, dtype: str, precision: str) -> None:
    assert choose_precision(rows, columns, dtype) == precision


def test_an_unknown_backend() -> None:
    with pytest.raises(UnknownNameError, match=r"no backend is named 'toch'; .* Did you mean 'torch'\?") as caught:
        choose_backend("toch")
    assert caught.value.exit_code == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(BackendError, match=r"'cuda' is not on this machine.*Use --device cpu") as caught:
        choose_backend("auto", "cuda")
    assert caught.value.exit_code == 6
    assert choose_backend("auto", "auto").device == "cpu"


def test_a_device_that_the_backend_does_not_run_on() -> None:
    with pytest.raises(BackendError, match=r"'reference' runs on cpu, not on 'cuda'"):
        choose_backend("reference", "cuda")
    with pytest.raises(BackendError, match=r"'torch' runs on cuda or cpu, not on 'tpu'"):
        choose_backend("torch", "tpu")


def test_reference_has_one_precision() -> None:
    backend = choose_backend("reference", precision="float32")
    assert (backend.name, backend.device, backend.precision) == ("reference", "cpu", "float64")


@pytest.mark.gpu
@pytest.mark.parametrize("before", [False, True])
def test_the_product_on_a_gpu_is_never_tf32(before: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = before
    backend = choose_backend("torch", "cuda")
    unit, _ = backend.unit_rows(random_head(4096, 256, torch.Generator().manual_seed(6)))
    exact = unit.double().T @ unit.double()
    assert float((backend.gram(unit).double() - exact).abs().max()) < 2e-5
    assert torch.backends.cuda.matmul.allow_tf32 is before


def test_usable_cores() -> None:
    assert usable_cores() >= 1
    assert choose_backend(device="cpu").threads(768) == usable_cores()


def test_one_thread_per_block_restores_what_it_found() -> None:
    def threads() -> tuple[int, list[int]]:
        return torch.get_num_threads(), [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]

    torch.set_num_threads(2)
    before = threads()
    with one_thread_per_block():
        inside, blas = threads()
    assert (inside, set(blas)) == (1, {1})
    assert threads() == before
    with pytest.raises(KeyError), one_thread_per_block():
        raise KeyError
    assert threads() == before


def test_gram_leaves_other_threads_alone() -> None:
    """Two blocks at once, on two threads, give what each gives alone."""
    backend = choose_backend(device="cpu")
    blocks = [backend.unit_rows(random_head(500, 40, torch.Generator().manual_seed(k)))[0] for k in range(4)]
    alone = [backend.gram(unit) for unit in blocks]
    found: dict[int, NDArray[np.float32]] = {}
    workers = [threading.Thread(target=lambda k=k: found.update({k: backend.gram(blocks[k])})) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for k, gram in enumerate(alone):
        assert found[k] == pytest.approx(gram, abs=1e-5)


def test_wide_heads_get_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 cores would hold 64 products of 268 MB each."""
    monkeypatch.setattr(llmsuper.kernels, "usable_cores", lambda: 64)
    float32, float64 = choose_backend(device="cpu"), choose_backend(device="cpu", precision="float64")
    assert [b.threads(m) for m in (768, 8192) for b in (float32, float64)] == [64, 64, 16, 8]
    assert float64.threads(1 << 20) == 1
