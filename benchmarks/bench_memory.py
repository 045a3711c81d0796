"""Measures the peak memory of measuring heads of growing numbers of rows: it does not grow with them.

    python benchmarks/bench_memory.py                               # 151,936 × 896 and 152,064 × 3,584, bfloat16
    python benchmarks/bench_memory.py --hub --shape 151936x896      # through a Hub on loopback, in a process of its own

Each shape is measured with all, half and a quarter of its rows. Heads of random numbers are written to a folder on disk,
piece by piece, and removed afterwards. Every case runs in a fresh process, which reports the peak of its resident memory
beside what it had after importing everything (torch, numpy, huggingface_hub, llmsuper) and before reading a row.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPES = ("151936x896", "152064x3584")
FRACTIONS = (1.0, 0.5, 0.25)
PIECE = 4_096
REPO = "benchmark/head"
ROOT = Path(__file__).parents[1]


def write_head(folder: Path, rows: int, columns: int) -> None:
    """A checkpoint of one bfloat16 tensor, (rows, columns) normal entries with a common mean, a piece in memory at a time."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"vocab_size": rows, "hidden_size": columns}))
    nbytes = 2 * rows * columns
    tensor = {"lm_head.weight": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, nbytes]}}
    header = json.dumps(tensor).encode()
    header += b" " * (-len(header) % 8)
    rng = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, rows, PIECE):
            piece = rng.standard_normal((min(PIECE, rows - start), columns), dtype=np.float32) + np.float32(0.2)
            file.write((piece.view(np.uint32) >> 16).astype("<u2").tobytes())  # a bfloat16 is a float32's upper half


def peak_bytes() -> int:
    """The most resident memory that this process has had.

    Linux hands ru_maxrss on from the parent that started a process, so its own high-water mark is read instead.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(name: str, *, local: bool) -> dict[str, Any]:
    """What the fresh process does."""
    import huggingface_hub  # noqa: F401  part of the baseline
    import safetensors  # noqa: F401
    import torch

    from llmsuper.measure import measure_head
    from llmsuper.types import ModelEntry

    torch.ones(64, 64) @ torch.ones(64, 64)  # so that BLAS has its own buffers
    before = peak_bytes()
    began = time.perf_counter()
    record = measure_head(ModelEntry(name, local=local))
    return {
        "before": before,
        "peak": peak_bytes(),
        "seconds": time.perf_counter() - began,
        "moved": record.made_by["bytes_moved"],
        "requests": record.made_by["requests"],
        "mean_squared_overlap": record.statistic("overlap")["mean_squared_overlap"],
    }


@contextlib.contextmanager
def hub(folder: Path) -> Iterator[str]:
    """The URL of a Hub that serves `folder`."""
    command = [sys.executable, "-m", "tests.fake_hub", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split()[0]
        finally:
            server.terminate()


def in_fresh_process(name: str, local: bool, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", name, *(["--local"] if local else [])]
    asked = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise SystemExit(f"error: measuring {name} failed:\n{asked.stderr}")
    found: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    return found


def run_case(rows: int, columns: int, folder: Path, *, through_hub: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="llmsuper-bench-", dir=folder) as name:
        root = Path(name)
        write_head(root / "served" / REPO, rows, columns)
        if not through_hub:
            return in_fresh_process(str(root / "served" / REPO), True, {})
        with hub(root / "served") as url:
            environment = {"HF_ENDPOINT": url, "HF_HOME": str(root / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
            return in_fresh_process(REPO, False, environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", action="append", help=f"rows x columns, may be given again [{' and '.join(SHAPES)}]")
    parser.add_argument("--hub", action="store_true", help="through a Hub on loopback instead of a local file")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on a disk, not in memory")
    parser.add_argument("--save", action="store_true", help="add rows to results/memory-<device>.csv")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--local", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, local=options.local)))
        return

    machine_row = machine.description()
    machine.print_description(machine_row)
    way = "hub" if options.hub else "local"
    print(f"\nnorms, overlap and centred overlap (two passes), {way}; MB = 10⁶ bytes\n")
    print(
        f"{'rows':>9} {'columns':>7} {'head MB':>8} {'imports MB':>10} {'peak MB':>8} {'added MB':>8} {'8m² MB':>7}",
        end=" ",
    )
    print(f"{'moved MB':>9} {'requests':>8} {'seconds':>8}")
    for shape in options.shape or SHAPES:
        all_rows, columns = map(int, shape.split("x"))
        for fraction in FRACTIONS:
            rows = int(all_rows * fraction)
            found = run_case(rows, columns, options.folder, through_hub=options.hub)
            megabytes = {
                "head_mb": 2 * rows * columns / 1e6,
                "imports_mb": found["before"] / 1e6,
                "peak_mb": found["peak"] / 1e6,
                "added_mb": (found["peak"] - found["before"]) / 1e6,
                "gram_mb": 8 * columns**2 / 1e6,
                "moved_mb": found["moved"] / 1e6,
            }
            head, imports, peak, added, gram, moved = megabytes.values()
            print(f"{rows:9,} {columns:7,} {head:8.1f} {imports:10.1f} {peak:8.1f} {added:8.1f} {gram:7.1f}", end=" ")
            print(f"{moved:9.1f} {found['requests']:8} {found['seconds']:8.1f}", flush=True)
            if options.save:
                case = {"way": way, "dtype": "bfloat16", "rows": rows, "columns": columns}
                times = {"requests": found["requests"], "seconds": round(found["seconds"], 2)}
                rounded = {name: round(value, 1) for name, value in megabytes.items()}
                machine.save_row(f"memory-{machine.device()}.csv", machine_row | case | rounded | times)


if __name__ == "__main__":
    main()
