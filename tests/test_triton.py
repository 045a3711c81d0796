"""Triton's kernels: in its interpreter against the laws of every backend, and compiled for GPUs that are not here.

The interpreter has to be chosen before Triton is imported, and the compiler needs it off: each gets a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmsuper.errors import BackendError
from llmsuper.kernels import aot
from llmsuper.kernels.aot import Compiled, compile_kernels
from tests.command import json_lines, llmsuper, the_error

ROOT = Path(__file__).parents[1]

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

LAWS = ["tests/test_kernels.py", "tests/test_precision.py", "tests/test_pairs.py"]
"""Files whose tests run over every row of BACKENDS."""


def in_a_process_of_its_own(*command: str, interpret: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


CHOSEN = "triton-cpu and not (test_the_promise_is_kept and not (zero and bf16))"
"""All of them, but for the most of the sixteen kinds of head: minutes in the interpreter."""


INTERPRET = """
import sys
import pytest
from llmsuper.kernels import triton_ops

row_shape = triton_ops.row_shape

def few_programs(columns):
    shape = row_shape(columns)
    return shape | {"ROWS": max(128, shape["ROWS"])}

triton_ops.row_shape = few_programs
sys.exit(pytest.main(sys.argv[1:]))
"""
"""What the interpreter takes is so much a program, whatever its size: wide rows get more of them than registers would hold."""


@needs_triton
def test_the_laws_hold_in_the_interpreter() -> None:
    done = in_a_process_of_its_own("-c", INTERPRET, "-q", "-p", "no:cacheprovider", *LAWS, "-k", CHOSEN)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    ran = re.search(r"(\d+) passed", done.stdout)
    assert ran is not None
    assert int(ran[1]) >= 100, "the rows of triton on the cpu were not run"
    assert "skipped" not in done.stdout, done.stdout[-5000:]


@needs_triton
def test_the_kernels_make_the_same_bits_each_time_and_see_no_garbage() -> None:
    """On tiles of several programs: each twice, in fresh memory that holds something else."""
    done = in_a_process_of_its_own(
        "-c",
        """
import torch
from dataclasses import astuple
from llmsuper.geometry.controls import random_head
from llmsuper.kernels import choose_backend

def flat(found):
    for value in found:
        yield from flat(value) if isinstance(value, tuple) else [torch.as_tensor(value)]

for precision in ("float32", "fast"):
    backend = choose_backend("triton", "cpu", precision)
    W = random_head(150, 70, torch.Generator().manual_seed(1)).bfloat16()
    units = [backend.unit_rows(W)[0] for _ in range(2)]
    assert torch.equal(*units)
    for diagonal in (True, False):
        first, second = (
            list(flat(astuple(backend.overlap_sums(u, u if diagonal else u[:140], bins=33, diagonal=diagonal)))) for u in units
        )
        assert len(first) == len(second) == 11
        assert all(torch.equal(a, b) for a, b in zip(first, second))
print("the same")
""",
    )
    assert done.stdout == "the same\n", done.stderr[-3000:]


def test_tiles_cover_every_pair_once() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from llmsuper.kernels.triton_ops import tile_list

    for rows, size in ((1, (2, 2)), (2, (4, 2)), (37, (4, 2)), (37, (2, 4)), (129, (16, 8))):
        down, across = -(-rows // size[0]), -(-rows // size[1])
        for triangle in (None, size):
            met = torch.zeros(down * size[0], across * size[1], dtype=torch.int64)
            for code in tile_list(down, across, triangle).tolist():
                i, j = (code >> 16) * size[0], (code & 0xFFFF) * size[1]
                met[i : i + size[0], j : j + size[1]] += 1
            assert int(met.max()) <= 1, "a tile twice"
            upper = met[:rows, :rows].triu(1)
            assert torch.equal(upper, torch.ones(rows, rows, dtype=torch.int64).triu(1))
            assert triangle is None or int(met.sum()) <= (rows + sum(size)) ** 2 // 2 + rows * sum(size)


# ahead of time


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Compiled]:
    """One variant of each kernel for every GPU; `llmsuper backends --compile` has more of them, and takes minutes."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
        return list(compile_kernels(variants=QUICK))


QUICK = (aot.Variant("unit_rows", "bf16", 4096), aot.Variant("overlap_sums", "fp16", 4096, bins=64, diagonal=True))


def test_no_kernel_spills_and_products_use_tensor_cores(compiled: list[Compiled]) -> None:
    assert [(c.kernel, c.capability) for c in compiled] == [
        (v.kernel, capability) for capability in (80, 89, 90) for v in QUICK
    ]
    for kernel in compiled:
        assert kernel.fault is None, f"{kernel.kernel} for sm_{kernel.capability}: {kernel.fault}"
        assert kernel.spilled == 0
        assert 0 < kernel.registers <= 255
        assert kernel.registers * kernel.threads <= 65_536, "more registers than a multiprocessor has"
        assert kernel.shared <= {80: 166_912, 89: 101_376, 90: 232_448}[kernel.capability]  # CUDA C++ guide, table 27
        assert (kernel.tensor_core > 0) is (kernel.kernel == "overlap_sums")


def test_a_kernel_that_spills_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A row of 8,192 in one warp is 256 numbers a thread, all of them needed once its norm is known, in 255 registers."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from llmsuper.kernels import triton_ops

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    shape = triton_ops.row_shape(8192) | {"num_warps": 1}
    monkeypatch.setattr(triton_ops, "row_shape", lambda _: shape)
    (found,) = compile_kernels((80,), (aot.Variant("unit_rows", "fp32", 8192),))
    assert found.spilled > 0
    assert found.fault == f"spills {found.spilled} bytes"


def test_a_product_without_tensor_cores_is_a_fault() -> None:
    plain = Compiled("overlap_sums", "fp16", 90, 128, 0, 65536, 256, 1000, tensor_core=0, multiplies=True)
    assert plain.fault == "no HGMMA"


def test_nothing_is_compiled_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match=r"interprets and compiles nothing. Unset it"):
        next(compile_kernels())
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BackendError, match=r"not installed. Install it"):
        next(compile_kernels())


@needs_triton
def test_the_report_from_the_command_line(monkeypatch: pytest.MonkeyPatch, compiled: list[Compiled]) -> None:
    monkeypatch.setattr(aot, "compile_kernels", lambda: iter(compiled))
    lines = json_lines("backends", "--compile")
    assert [(line["kernel"], line["capability"], line["fault"]) for line in lines] == [
        (c.kernel, c.capability, None) for c in compiled
    ]
    spilt = Compiled("overlap_sums", "fp16", 90, 255, 64, 65536, 256, 1000, tensor_core=4, multiplies=True)
    monkeypatch.setattr(aot, "compile_kernels", lambda: iter([*compiled, spilt]))
    done = llmsuper("backends", "--compile")
    assert done.exit_code == 6
    assert "1 of 7 kernels" in the_error(done)
    assert "spills 64 bytes" in done.stdout
