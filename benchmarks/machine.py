"""What machine this is, and where a benchmark's numbers are kept.

Run by the benchmarks only; never imported by the package.
"""

from __future__ import annotations

import csv
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import torch
from threadpoolctl import threadpool_info

import llmsuper
from llmsuper.kernels import usable_cores

RESULTS = Path(__file__).parent / "results"


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def device() -> str:
    """A name for files: the CPU and how many of its cores this process may use."""
    words = re.sub(r"\((R|TM)\)|Processor|CPU", " ", cpu_model())
    return re.sub(r"[^a-z0-9.]+", "-", f"{words} {usable_cores()} cores".lower()).strip("-")


def description() -> dict[str, Any]:
    """CPU, threads, BLAS and versions; as fields of a row of results."""
    numpy.ones((2, 2)) @ numpy.ones((2, 2))  # so that its BLAS is loaded
    blas = next((p for p in threadpool_info() if p["user_api"] == "blas"), None)
    mkl = "MKL" if torch.backends.mkl.is_available() else "no MKL"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "numpy_blas": f"{blas['internal_api']} {blas['version']} {blas.get('architecture', '')}".strip()
        if blas
        else "",
        "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE", ""),
        "torch": f"{torch.__version__} ({mkl}, {torch.backends.cpu.get_cpu_capability()})",
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "llmsuper": llmsuper.__version__,
        "commit": _commit(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def print_description(found: dict[str, Any]) -> None:
    for name, value in found.items():
        print(f"{name:>18}  {value}")
    if found["OPENBLAS_CORETYPE"]:
        print(
            f"warning: OPENBLAS_CORETYPE={found['OPENBLAS_CORETYPE']} is exported and may halve numpy's products: unset it."
        )
    if found["load_before"] > 0.5:
        print(f"warning: the load is {found['load_before']}: others use this machine, and the times vary with them.")


def save_row(file: str, row: dict[str, Any]) -> None:
    """Append to results/`file`, which gets a header if it is new; a file with other columns is refused."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / file
    if path.exists():
        with path.open(newline="") as old:
            header = next(csv.reader(old))
        if header != list(row):
            raise SystemExit(f"error: {path} has other columns than this benchmark gives: move it away first.")
    new = not path.exists()
    with path.open("a", newline="") as out:
        writer = csv.DictWriter(out, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(f"a row was added to {path}")


def _commit() -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or "unknown"
