"""Every name in PRECISIONS keeps its promise over sixteen kinds of matrix, and torch's switches are as they were found.

python -m tests.test_precision 50304 768        # prints the errors of all cases at this size; minutes
"""

from __future__ import annotations

import sys
import threading
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from llmsuper.errors import CheckpointError, UnknownNameError
from llmsuper.geometry.controls import MatrixBlocks, random_head
from llmsuper.kernels import BACKENDS, choose_backend, why_not
from llmsuper.kernels.precision import (
    PRECISIONS,
    choose_precision,
    half_scale,
    ieee_products,
    round_to_half_,
    to_half,
)
from llmsuper.measure import measure_rows
from tests.command import json_lines, llmsuper, the_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAMES = ["overlap", "centred_overlap"]


def _common(W: torch.Tensor, mean_cosine: float) -> torch.Tensor:
    """Rows with a direction in common, so that their mean cosine is about this."""
    m = W.shape[1]
    direction = torch.randn(m, generator=torch.Generator().manual_seed(9))
    return W + direction * (m**0.5 / direction.norm()) * (mean_cosine / (1 - mean_cosine)) ** 0.5


def _duplicates(W: torch.Tensor, share: float) -> torch.Tensor:
    """So many of the rows are one row but for a thousandth."""
    return torch.where(torch.arange(len(W))[:, None] % round(1 / share) == 0, W[:1] + 1e-3 * W, W)


def _heavy(W: torch.Tensor) -> torch.Tensor:
    """Norms over three orders of magnitude."""
    return W * torch.exp(1.5 * W[:, :1]).clamp(1e-2, 1e2)


def _zeros(W: torch.Tensor) -> torch.Tensor:
    return W * (torch.arange(len(W))[:, None] % 7 != 3)


CASES: dict[str, tuple[torch.dtype, Callable[[torch.Tensor], torch.Tensor]]] = {
    "isotropic, fp32": (FP32, lambda W: W),
    "isotropic, fp16": (FP16, lambda W: W),
    "isotropic, bf16": (BF16, lambda W: W),
    "mean cos 0.3, fp32": (FP32, lambda W: _common(W, 0.3)),
    "mean cos 0.3, fp16": (FP16, lambda W: _common(W, 0.3)),
    "mean cos 0.3, bf16": (BF16, lambda W: _common(W, 0.3)),
    "mean cos 0.9, fp32": (FP32, lambda W: _common(W, 0.9)),
    "mean cos 0.9, fp16": (FP16, lambda W: _common(W, 0.9)),
    "mean cos 0.9, bf16": (BF16, lambda W: _common(W, 0.9)),
    "1 % near-duplicates, bf16": (BF16, lambda W: _duplicates(W, 0.01)),
    "5 % near-duplicates, fp32": (FP32, lambda W: _duplicates(W, 0.05)),
    "5 % near-duplicates, mean cos 0.3, fp16": (FP16, lambda W: _common(_duplicates(W, 0.05), 0.3)),
    "heavy-tailed norms, fp32": (FP32, _heavy),
    "heavy-tailed norms, mean cos 0.3, fp16": (FP16, lambda W: _heavy(_common(W, 0.3))),
    "zero rows, bf16": (BF16, _zeros),
    "zero rows, heavy-tailed norms, duplicates, mean cos 0.9, fp16": (
        FP16,
        lambda W: _zeros(_heavy(_common(_duplicates(W, 0.02), 0.9))),
    ),
}


@cache
def matrix(case: str, rows: int, columns: int) -> torch.Tensor:
    dtype, change = CASES[case]
    return change(random_head(rows, columns, torch.Generator().manual_seed(4))).to(dtype)


def truth(W: torch.Tensor, *, centred: bool) -> tuple[float, float]:
    """The mean squared overlap and the mean overlap, by their definitions in numpy and float64."""
    x = W.double().numpy()
    x = x[np.abs(x).max(axis=1) > 0]
    x = x - x.mean(axis=0) if centred else x
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    n, gram, total = len(x), x.T @ x, x.sum(axis=0)
    return float(np.square(gram).sum() - n) / (n * (n - 1)), float(total @ total - n) / (n * (n - 1))


@cache
def truths(case: str, rows: int, columns: int) -> dict[str, tuple[float, float]]:
    W = matrix(case, rows, columns)
    return {name: truth(W, centred=name == "centred_overlap") for name in NAMES}


def errors(name: str, device: str, precision: Any, case: str, rows: int, columns: int) -> dict[str, dict[str, float]]:
    """Of each statistic: relative, of the mean squared overlap; absolute, of the mean overlap."""
    blocks = MatrixBlocks(matrix(case, rows, columns), min(8192, rows // 3))
    measured = measure_rows(blocks, NAMES, choose_backend(name, device, precision))["all"]
    return {
        statistic: {
            "square": measured[statistic]["mean_squared_overlap"] / square - 1,
            "mean": measured[statistic]["mean_overlap"] - mean,
        }
        for statistic, (square, mean) in truths(case, rows, columns).items()
    }


EVERY_ROW = [
    pytest.param(name, device, precision, id=f"{name}-{device}-{precision}")
    for name, row in BACKENDS.items()
    for device in row.devices
    for precision in row.precisions
    if name != "reference"  # which has no precision but the one that others are judged by
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "device", "precision"), EVERY_ROW)
def test_the_promise_is_kept(name: str, device: str, precision: Any, case: str) -> None:
    reason = why_not(name, device)
    if reason is not None:
        pytest.skip(reason)
    # Triton's interpreter takes a millisecond for what a GPU does in a microsecond
    size = (600, 96) if (name, device) == ("triton", "cpu") else (4500, 192)
    assert choose_precision(*size, "F32") == "float32"
    for found in errors(name, device, precision, case, *size).values():
        assert abs(found["square"]) <= PRECISIONS[precision].promise
        assert abs(found["mean"]) <= PRECISIONS[precision].promise


def test_promises_differ() -> None:
    """`fast` is not `float32` by another name, nor that `exact`: each is worse than what the one before it promises."""
    (better, worse) = (
        {p: abs(errors("torch", "cpu", p, case, 4500, 192)["overlap"]["square"]) for p in PRECISIONS}
        for case in ("5 % near-duplicates, fp32", "mean cos 0.3, fp32")
    )
    for found in (better, worse):
        assert found["exact"] < 1e-13 < found["float32"]
        assert found["fast"] > found["float32"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_an_error_in_every_precision(precision: Any, bad: float) -> None:
    W = matrix("mean cos 0.3, bf16", 4500, 192).clone()
    W[4321, 7] = bad
    with pytest.raises(CheckpointError, match="row 4321 holds a NaN or an infinity"):
        measure_rows(MatrixBlocks(W, 1000), NAMES, choose_backend("torch", "cpu", precision))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_variance_within_the_promise_is_refused(precision: Any) -> None:
    """Mean square minus squared mean cancels: what is left must be a hundred times the error of the mean square."""
    least = 100 * PRECISIONS[precision].promise
    for factor in (10, 0.1):
        m = 100
        W = torch.ones(1000, m, dtype=torch.float64)
        # rows 1 + ε z have cosines whose variance is about 2 ε⁴ / m
        W += (factor * least * m / 2) ** 0.25 * torch.randn(W.shape, generator=torch.Generator().manual_seed(3))
        found = measure_rows(MatrixBlocks(W), ["overlap"], choose_backend("torch", "cpu", precision))["all"]["overlap"]
        x = (W / W.norm(dim=1, keepdim=True)).numpy()
        overlaps = (x @ x.T)[~np.eye(len(x), dtype=bool)]
        assert 0.1 < overlaps.var() / np.square(overlaps).mean() / least / factor < 10
        if factor > 1:
            assert found["overlap_variance"] == pytest.approx(overlaps.var(), rel=0.01)
        else:
            assert found["overlap_variance"] is None


# rows as float16 × 2ᵏ


@pytest.mark.parametrize("columns", [1, 2, 3, 64, 512, 768, 2048, 4096, 9216, 16384])
def test_half_scale_is_a_power_of_two_near_the_root_of_m(columns: int) -> None:
    scale = half_scale(columns)
    assert np.log2(scale) == round(np.log2(scale))
    assert 2**-0.51 <= scale / columns**0.5 <= 2**0.51
    assert scale < torch.finfo(torch.float16).max  # a unit row with a single entry does not overflow


def test_rows_that_were_rounded_to_half_are_exactly_that() -> None:
    unit = torch.nn.functional.normalize(random_head(50, 300, torch.Generator().manual_seed(1)))
    rounded = round_to_half_(unit.clone())
    assert 0 < float((rounded - unit).abs().max()) <= 2.0**-11 * float(unit.abs().max())
    half = to_half(rounded)
    assert torch.equal(half.float() / half_scale(300), rounded)
    assert to_half(half) is half


# the choice


@pytest.mark.parametrize(
    ("rows", "columns", "dtype", "precision"),
    [
        (50_257, 768, "F32", "float32"),
        (50_257, 768, "BF16", "float32"),
        (50_257, 768, "F64", "exact"),
        (1500, 1000, "F16", "exact"),
        (1501, 1000, "F16", "float32"),
        (4109, 3584, "F16", "exact"),
    ],
)
def test_auto(rows: int, columns: int, dtype: str, precision: str) -> None:
    assert choose_precision(rows, columns, dtype) == precision
    for name in PRECISIONS:  # by name it is that, whatever the head
        assert choose_precision(rows, columns, dtype, name) == name


def test_an_unknown_precision() -> None:
    with pytest.raises(UnknownNameError, match=r"no precision is named 'exakt'; .* Did you mean 'exact'\?"):
        choose_precision(3, 2, "F32", "exakt")


def test_precision_from_the_command_line(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    W = _common(random_head(900, 24, torch.Generator().manual_seed(2)), 0.3)
    save_file({"lm_head.weight": W}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    wanted, _ = truth(W, centred=False)

    def record(*options: str) -> Any:
        (found,) = json_lines("overlap", tmp_path, "--rows", "all", "--results", tmp_path / "".join(options), *options)
        return found

    for name, policy in PRECISIONS.items():
        found = record("--precision", name)
        assert found["made_by"]["precision"] == name
        assert found["statistics"]["all"]["overlap"]["mean_squared_overlap"] == pytest.approx(
            wanted, rel=policy.promise
        )
    assert record()["made_by"]["precision"] == "float32"
    done = llmsuper("overlap", tmp_path, "--precision", "half", "--results", tmp_path)
    assert done.exit_code == 3
    assert the_error(done).startswith("no precision is named 'half'; there are: exact, fast, float32.")


# the switches


def switches() -> list[Any]:
    products = torch.backends.cuda.matmul
    return [
        products.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
        products.allow_fp16_reduced_precision_reduction,
        products.allow_bf16_reduced_precision_reduction,
        products.allow_bf16_reduced_precision_reduction_split_k,
        products.allow_fp16_accumulation,
    ]


OFF = ["ieee", "ieee", False, False, True, False]


def _newer_way() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def _half_ways() -> None:
    products = torch.backends.cuda.matmul
    products.allow_fp16_accumulation = True
    products.allow_bf16_reduced_precision_reduction = (False, False)


@pytest.fixture(
    params=[lambda: None, lambda: torch.set_float32_matmul_precision("medium"), _newer_way, _half_ways],
    ids=["as it comes", "medium", "newer way", "half ways"],
)
def _switched_on(request: pytest.FixtureRequest) -> Any:
    request.param()
    yield
    torch.set_float32_matmul_precision("highest")
    products = torch.backends.cuda.matmul
    products.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
    products.allow_fp16_reduced_precision_reduction = products.allow_bf16_reduced_precision_reduction = True
    products.allow_fp16_accumulation = False


@pytest.mark.usefixtures("_switched_on")
def test_switches_are_off_inside_and_put_back() -> None:
    before = switches()
    with ieee_products():
        assert switches() == OFF
        with ieee_products():
            assert switches() == OFF
        assert switches() == OFF, "the inner one put them back"
        assert torch.get_float32_matmul_precision() == "highest"
    assert switches() == before
    with pytest.raises(KeyError), ieee_products():
        raise KeyError
    assert switches() == before


@pytest.mark.usefixtures("_switched_on")
def test_switches_stay_off_until_the_last_thread_has_left() -> None:
    before = switches()
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with ieee_products():
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(30)
    with ieee_products():
        pass
    assert switches() == OFF, "put back while another thread multiplies"
    leave.set()
    thread.join()
    assert switches() == before


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.usefixtures("_switched_on")
def test_a_pass_is_the_same_whatever_the_switches_are(precision: Any) -> None:
    """`medium` alone would put 2e-3 between them on a CPU with bfloat16 arithmetic."""
    before = switches()
    W = matrix("mean cos 0.3, fp32", 4500, 192)
    found = measure_rows(MatrixBlocks(W, 2000), NAMES, choose_backend("torch", "cpu", precision))
    assert found == _with_switches_off(precision)
    assert switches() == before


@cache
def _with_switches_off(precision: Any) -> Any:
    with ieee_products():
        W = matrix("mean cos 0.3, fp32", 4500, 192)
        return measure_rows(MatrixBlocks(W, 2000), NAMES, choose_backend("torch", "cpu", precision))


def main(rows: int, columns: int) -> None:
    """The table in docs/kernels.md: the errors of every case, at the size of a real head."""
    print(f"{rows:,} × {columns:,}: relative error of the mean squared overlap, raw / centred; promises:")
    print(*(f"{name} {policy.promise:g} ({policy.summary})" for name, policy in PRECISIONS.items()), sep="\n")
    worst = dict.fromkeys(PRECISIONS, 0.0)
    of_mean = dict.fromkeys(PRECISIONS, 0.0)
    for case in CASES:
        line = f"{case:62s}"
        for precision in PRECISIONS:
            found = errors("torch", "auto", precision, case, rows, columns)
            line += "  ".join(f"{found[name]['square']:9.1e}" for name in NAMES) + "   "
            worst[precision] = max(worst[precision], *(abs(f["square"]) for f in found.values()))
            of_mean[precision] = max(of_mean[precision], *(abs(f["mean"]) for f in found.values()))
        print(line, flush=True)
        matrix.cache_clear()
        truths.cache_clear()
    print(f"{'largest':62s}" + "   ".join(f"{worst[p]:9.1e}           " for p in PRECISIONS))
    print(
        f"{'largest of the mean overlap, absolute':62s}"
        + "   ".join(f"{of_mean[p]:9.1e}           " for p in PRECISIONS)
    )
    sys.exit(any(worst[p] > PRECISIONS[p].promise for p in PRECISIONS))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
