"""Every row of BACKENDS against `reference`, the choice among them, and threads. What they promise is in test_precision."""

from __future__ import annotations

import importlib.util
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
    BackendRow,
    NonFiniteRowError,
    choose_backend,
    one_thread_per_block,
    usable_cores,
    why_not,
)
from llmsuper.kernels import reference as truth
from llmsuper.kernels.precision import PRECISIONS, PRODUCT_ROWS, half_scale, to_half
from llmsuper.measure import measure_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SHAPES = [(1, 1), (2, 1), (63, 60), (257, 100), (1000, 7)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

HERE = {"cpu": (), "cuda": pytest.mark.gpu}
EVERY_BACKEND = [
    pytest.param(name, device, precision, marks=HERE[device], id=f"{name}-{device}-{precision}")
    for name, row in BACKENDS.items()
    for device in row.devices
    for precision in row.precisions
]
every_backend = pytest.mark.parametrize(("name", "device", "precision"), EVERY_BACKEND)


def backend_or_skip(name: str, device: str, precision: Any) -> Backend:
    """Skips what cannot run in this process. Triton's rows run in a process with its interpreter: see test_triton."""
    reason = why_not(name, device)
    if reason is not None:
        pytest.skip(reason)
    backend = choose_backend(name, device, precision)
    assert (backend.name, backend.device, backend.precision) == (name, device, precision)
    return backend


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


@pytest.fixture
def _uninitialised_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel forgets to write is then seen."""
    empty = torch.empty

    def nan(*shape: Any, **kinds: Any) -> torch.Tensor:
        found = empty(*shape, **kinds)
        return found.fill_(torch.nan if found.is_floating_point() else 1)

    monkeypatch.setattr(torch, "empty", nan)


def rows_of(kind: str, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(shape[0])
    W = torch.randn(shape, generator=generator, dtype=torch.float64).clamp(-4, 4)
    return KINDS[kind](W, dtype).to(dtype)


@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("_uninitialised_memory_is_nan")
def test_unit_rows_and_gram(name: str, device: str, precision: Any, shape: tuple[int, int], dtype: torch.dtype) -> None:
    backend = backend_or_skip(name, device, precision)
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
    return truth.unit_rows(rows_of(kind, shape, dtype), precision="exact", device="cpu", centre=centre)


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
    assert unit.dtype == getattr(torch, backend.dtype)
    assert unit.device.type == backend.device
    assert norms.dtype == np.float64
    assert np.array_equal(norms == 0, true_norms == 0), case
    eps = torch.finfo(unit.dtype).eps
    # subtracting the centre costs the digits that a row and the centre share
    digits = 1.0 if centre is None else 1 + np.linalg.norm(centre) / np.where(true_norms > 0, true_norms, 1)
    largest = np.abs(true_unit.numpy()).max(axis=1)
    rounding = 2.0**-11 * largest if backend.precision == "fast" else 0.0  # half a unit of float16's last place
    assert (np.abs(unit.double().cpu().numpy() - true_unit.numpy()).max(axis=1) <= 4 * eps * digits + rounding).all(), (
        case
    )
    assert (np.abs(norms - true_norms) <= 8 * eps * digits * true_norms).all(), case
    if backend.precision == "fast":
        assert torch.equal(to_half(unit).double() / half_scale(shape[1]), unit.double()), (
            f"{case}: more than float16 holds"
        )

    gram = gram if isinstance(gram, np.ndarray) else gram.cpu().numpy()
    exact = unit.double().cpu().numpy()
    true_gram = exact.T @ exact
    assert gram.shape == true_gram.shape
    assert gram.dtype == np.dtype(backend.dtype)
    assert np.abs(gram - true_gram).max() <= 2 * eps * len(kept) ** 0.5 * max(1.0, true_gram.max()), case


@every_backend
@pytest.mark.parametrize("rows", [1, 50])
def test_unit_rows_go_into_memory_that_is_given(name: str, device: str, precision: Any, rows: int) -> None:
    """Whatever was in it, and whatever lies behind it."""
    backend = backend_or_skip(name, device, precision)
    memory = backend.workspace(63, 60).fill_(torch.nan)
    for k in range(3):  # used again
        W = rows_of("zero rows", (63, 60), torch.float16)[k : k + rows]
        for centre in (None, centre_of((63, 60))):
            unit, norms = backend.unit_rows(W, centre, memory[:rows])
            wanted, wanted_norms = backend.unit_rows(W, centre)
            assert torch.equal(unit, wanted)
            assert np.array_equal(norms, wanted_norms)
            assert memory[rows:].isnan().all()


@every_backend
def test_rows_with_something_between_them(name: str, device: str, precision: Any) -> None:
    """Columns of a wider matrix, every second row, and a transposed matrix: neither touch, nor begin where a word does."""
    backend = backend_or_skip(name, device, precision)
    wide = rows_of("ordinary", (63, 77), torch.bfloat16)
    for rows in (wide[:, 7:67], wide[1::2], wide.T):
        wanted, wanted_norms = backend.unit_rows(rows.contiguous())
        unit, norms = backend.unit_rows(rows)
        assert torch.equal(unit, wanted)
        assert norms == pytest.approx(wanted_norms, rel=1e-6)


@every_backend
def test_a_product_of_many_rows_is_a_sum_of_products(name: str, device: str, precision: Any) -> None:
    """float32 adds up no more than PRODUCT_ROWS rows."""
    if name == "reference":
        pytest.skip("the reference adds up one row at a time")
    backend = backend_or_skip(name, device, precision)
    unit = torch.full((2 * PRODUCT_ROWS + 5, 3), 3**-0.5, dtype=getattr(torch, backend.dtype), device=device)
    gram = backend.gram(unit)
    assert str(gram.dtype).removeprefix("torch.") == "float64"
    assert float(gram[0, 1]) == pytest.approx(len(unit) * float(unit[0, 0]) ** 2, rel=1e-6)


@every_backend
def test_a_row_equal_to_the_centre_has_no_direction(name: str, device: str, precision: Any) -> None:
    for dtype in DTYPES:
        rows = rows_of("ordinary", (63, 60), dtype)
        centre = rows[7].double().numpy()
        unit, norms = backend_or_skip(name, device, precision).unit_rows(rows, centre)
        assert np.flatnonzero(norms == 0).tolist() == [7]
        assert not unit[7].any()
        assert unit.isfinite().all()


@every_backend
@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-20])
def test_a_zero_row_stays_zero_when_centred(name: str, device: str, precision: Any, scale: float) -> None:
    """Zero minus the centre has a direction, but nothing that the matrix put there."""
    rows = (scale * rows_of("ordinary", (63, 60), torch.float64)).to(torch.float32)
    rows[[4, 9]] = 0
    unit, norms = backend_or_skip(name, device, precision).unit_rows(rows, scale * np.ones(60))
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
            backend_or_skip(name, device, precision).unit_rows(rows, centre)
        assert caught.value.index == 41


@every_backend
def test_float16_rows_whose_squares_overflow(name: str, device: str, precision: Any) -> None:
    rows = torch.full((3, 100), 60_000.0, dtype=torch.float16)
    rows[1] = 6e-8  # its square underflows even more
    unit, norms = backend_or_skip(name, device, precision).unit_rows(rows)
    assert norms == pytest.approx([10 * float(row[0]) for row in rows], rel=1e-6)
    assert unit.cpu().numpy() == pytest.approx(np.full((3, 100), 0.1), rel=2.0**-11 if precision == "fast" else 1e-6)


@every_backend
def test_norms_are_taken_after_widening(name: str, device: str, precision: Any) -> None:
    """In bfloat16, 1,500 random rows would have a few dozen distinct norms."""
    rows = random_head(1500, 768, torch.Generator().manual_seed(0)).bfloat16()
    assert len(torch.unique(torch.linalg.vector_norm(rows, dim=1))) < 50
    _, norms = backend_or_skip(name, device, precision).unit_rows(rows)
    assert len(np.unique(norms)) > 1400


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


# which backend, how many threads


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


def test_a_backend_computes_better_than_asked_for_never_worse() -> None:
    for precision in PRECISIONS:
        backend = choose_backend("reference", precision=precision)
        assert (backend.name, backend.device, backend.precision) == ("reference", "cpu", "exact")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, "coarse", BackendRow("llmsuper.kernels.torch_ops", ("cpu",), ("fast",)))
        assert choose_backend("coarse", precision="fast").precision == "fast"
        with pytest.raises(
            BackendError, match=r"'coarse' computes in fast, and 'float32' is called for. Take .*another"
        ):
            choose_backend("coarse")


def test_triton_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        BackendError, match=r"Triton is not installed. Install it \(pip install triton\) or use --backend"
    ):
        choose_backend("triton")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match=r"interpreter alone. Set TRITON_INTERPRET=1"):
        choose_backend("triton", "cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match=r"kept off the GPU by TRITON_INTERPRET=1. Unset it"):
        choose_backend("triton", "cuda")


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
    float32, float64 = choose_backend(device="cpu"), choose_backend(device="cpu", precision="exact")
    assert [b.threads(m) for m in (768, 8192) for b in (float32, float64)] == [64, 64, 16, 8]
    assert float64.threads(1 << 20) == 1
