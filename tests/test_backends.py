"""`llmsuper backends`: a line for every row, device and precision, and an exit status that can be relied on."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llmsuper.kernels import BACKENDS, torch_ops, why_not
from llmsuper.kernels.precision import PRECISIONS
from tests.command import json_lines, llmsuper, succeed, the_error

EVERY_LINE = [(name, d, p) for name, row in BACKENDS.items() for d in row.devices for p in row.precisions]


def line_of(line: dict[str, Any]) -> tuple[str, str, str]:
    return line["backend"], line["device"], line["precision"]


def test_a_line_for_everything_there_is() -> None:
    lines = json_lines("backends")
    assert [line_of(line) for line in lines] == EVERY_LINE
    for line in lines:
        name, device, precision = line_of(line)
        assert line["missing"] == why_not(name, device)
        assert line["promise"] == PRECISIONS[precision].promise
        assert line["gflops"] is None
        if line["missing"] is None:
            assert line["agrees"] is True
            assert 0 <= line["error"] <= line["promise"]
        else:
            assert line["agrees"] is line["error"] is None
    measured = {line["precision"]: line["error"] for line in lines if line["backend"] == "torch" and line["agrees"]}
    assert measured["exact"] < 1e-13 < measured["float32"] < measured["fast"], "the precisions do not differ"


def test_for_people_and_for_scripts() -> None:
    title, *lines = succeed("backends").stdout.splitlines()
    assert title.split() == ["backend", "device", "precision", "promise", "error"]
    assert len(lines) == len(EVERY_LINE)
    assert lines[0].split()[:4] == ["reference", "cpu", "exact", "1e-12"]
    assert lines[0].endswith("agrees")
    if not torch.cuda.is_available():
        assert any(line.startswith("torch") and "torch finds no GPU" in line for line in lines)
    if importlib.util.find_spec("triton") is None:
        assert any("Triton is not installed" in line for line in lines)
    quiet = succeed("backends", "--quiet").stdout.splitlines()
    assert quiet[0] == "reference\tcpu\texact\tagrees"
    assert len(quiet) == len(EVERY_LINE)


def test_a_backend_that_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product that is off by one part in 10⁴ in a single place."""
    right = torch_ops.gram

    def wrong(unit: torch.Tensor, **options: Any) -> Any:
        found = right(unit, **options)
        found[3, 3] *= 1.0001
        return found

    monkeypatch.setattr(torch_ops, "gram", wrong)
    done = llmsuper("backends")
    assert done.exit_code == 1
    assert done.stderr == (
        "torch on cpu in exact, torch on cpu in float32: off by more than promised. Do not measure with that here.\n"
    )
    assert "DISAGREES" in done.stdout
    assert [line.endswith("agrees") for line in done.stdout.splitlines() if line.startswith("reference")] == [True]


def test_rates_stand_beside_what_this_machine_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmsuper.cli import backends

    for name, small in (("TIMED", (300, 40)), ("PEAK_SIZE", 64), ("COPY_BYTES", 1 << 16), ("ROUNDS", 1)):
        monkeypatch.setattr(sys.modules[backends.callback.__module__], name, small)  # type: ignore[union-attr]
    for line in json_lines("backends", "--bench"):
        timed = line["missing"] is None and line["backend"] == "torch"
        for rate in ("gflops", "gflops_share", "gb_per_s", "gb_per_s_share"):
            assert (line[rate] is not None) is timed
            assert not timed or line[rate] > 0
    titles = succeed("backends", "--bench").stdout.splitlines()[0]
    assert titles.split("error")[1].split() == ["GFLOP/s", "of", "product", "GB/s", "of", "copy"]


def test_two_reports_at_once_are_refused() -> None:
    done = llmsuper("backends", "--bench", "--compile")
    assert done.exit_code == 2
    assert "ask for one of them" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="Triton is installed")
def test_compiling_without_triton() -> None:
    done = llmsuper("backends", "--compile")
    assert done.exit_code == 6
    assert the_error(done) == "kernels are compiled by Triton, which is not installed. Install it (pip install triton)."


def test_the_benchmark_runs_small_on_a_cpu() -> None:
    """What is to run on a GPU for a day must at least start, compare, and come to an end."""
    script = Path(__file__).parents[1] / "benchmarks" / "bench_kernels.py"
    done = subprocess.run(
        [sys.executable, script, "--cpu", "--sizes", "100x24", "--tile", "40"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    words = [line.split() for line in done.stdout.splitlines()]
    timed = {(w[0], w[1], w[3]) for w in words if w and w[0] in ("rows", "gram", "pairs") and len(w) > 3}
    assert {(what, "torch", p) for what in ("rows", "gram", "pairs") for p in PRECISIONS} <= timed
    assert any(w[:4] == ["tf32", "truncated", "by", "us,"] for w in words)
    assert "DISAGREES" not in done.stdout
