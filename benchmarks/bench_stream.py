"""Measures how fast a head is streamed from a Hub on loopback, beside `curl` of the same bytes in the same run.

    python benchmarks/bench_stream.py                  # plain and TLS, unthrottled and at 50 MB/s per connection
    python benchmarks/bench_stream.py --case tls --mib 256 --rounds 5
    python benchmarks/bench_stream.py --big            # heads far inside files of 5.6 and 41.7 GB, which are mostly holes

Every way reads all bytes and compares their CRC-32 with the file's once; then the ways take turns, and the best of all
rounds counts. CPU seconds are those of the client alone (of `curl`, or of this process with all its threads).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import origin  # noqa: E402  after its folder is known

if TYPE_CHECKING:
    from llmsuper.hub.source import HubFile
    from llmsuper.types import HeadLocation

COLUMNS = 4_096
CASES: dict[str, tuple[bool, float | None]] = {
    "plain": (False, None),
    "tls": (True, None),
    "plain-50": (False, 50e6),
    "tls-50": (True, 50e6),
}
"""Whether over TLS, and bytes per second and connection."""
Digest = Callable[[memoryview], None]


# ---- the client's process, for which HF_ENDPOINT and SSL_CERT_FILE are set


class Client:
    """The ways to read the head; each is fed a function that looks at the bytes, or None where only speed counts."""

    def __init__(self, folder: Path) -> None:
        from llmsuper.hub.locate import locate_head
        from llmsuper.hub.repository import open_repository
        from llmsuper.types import ModelEntry

        self.folder = folder
        repository = open_repository(ModelEntry(origin.REPO))
        self.location: HeadLocation = locate_head(repository)
        self.source: HubFile = repository.open(self.location.file)  # type: ignore[assignment]
        self.ways: dict[tuple[str, int], Callable[[Digest | None], None]] = {
            ("curl", 1): self.curl,
            ("Hub client", 1): partial(self.stream, 1, direct=False),
            ("Hub client", 8): partial(self.stream, 8, direct=False),
            ("llmsuper", 1): partial(self.stream, 1),
            ("llmsuper", 8): partial(self.stream, 8),
            ("llmsuper, head cache filled", 8): partial(self.stream, 8, keep="new"),
            ("llmsuper, head cache read", 8): partial(self.stream, 8, keep="whole"),
        }
        """By name and workers. The cache is filled by one way and read by the next."""

    def curl(self, look: Digest | None) -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        place = get_hf_file_metadata(hf_hub_url(origin.REPO, origin.FILE)).location
        span = f"{self.location.tensor.begin}-{self.location.tensor.end - 1}"
        command = ["curl", "-sS", "--fail", "--cacert", os.environ["SSL_CERT_FILE"], "-r", span, place]
        if look is None:
            subprocess.run([*command, "-o", os.devnull], check=True)
        else:
            look(memoryview(subprocess.run(command, check=True, capture_output=True).stdout))

    def stream(self, workers: int, look: Digest | None, *, direct: bool = True, keep: str = "") -> None:
        from huggingface_hub import set_client_factory
        from huggingface_hub.utils._http import default_client_factory

        from llmsuper.hub.rowcache import RowCache
        from llmsuper.hub.stream import stream_rows

        cache, before = RowCache(self.folder / "cache"), self.source.moved
        if keep == "new":
            cache.clear()
        # one that the user has set, which is always used
        set_client_factory(default_client_factory if direct else lambda: default_client_factory())
        copy = cache.head(self.location, origin.ETAG) if keep else None
        for block in stream_rows(self.location, self.source, copy=copy, workers=workers):
            if look is not None:
                look(block.rows.view(-1).view(dtype=_uint8()).numpy().data)
            block.release()
        moved = self.source.moved - before
        assert moved == (0 if keep == "whole" else self.location.nbytes), moved


def _uint8() -> Any:
    import torch

    return torch.uint8


def client(rounds: int, folder: Path) -> list[dict[str, Any]]:
    """What every way took at best: seconds and CPU seconds, in all rounds, which take turns."""
    found = Client(folder)
    checksums: dict[str, int] = {}
    for (name, workers), way in found.ways.items():
        checksum = 0

        def look(part: memoryview) -> None:
            nonlocal checksum
            checksum = zlib.crc32(part, checksum)

        way(look)
        checksums[f"{name} × {workers}"] = checksum
    if len(set(checksums.values())) > 1:
        raise SystemExit(f"error: the ways do not read the same bytes: {checksums}")
    took: dict[tuple[str, int], list[tuple[float, float]]] = {way: [] for way in found.ways}
    for _ in range(rounds):
        for (name, workers), way in found.ways.items():
            whose = resource.RUSAGE_CHILDREN if name == "curl" else resource.RUSAGE_SELF
            before, began = resource.getrusage(whose), time.perf_counter()
            way(None)
            seconds, after = time.perf_counter() - began, resource.getrusage(whose)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            took[name, workers].append((seconds, cpu))
    return [
        {
            "way": name,
            "workers": workers,
            "bytes": found.location.nbytes,
            "seconds": min(seconds for seconds, _ in times),
            "cpu_seconds": min(cpu for _, cpu in times),
            "all_seconds": [round(seconds, 2) for seconds, _ in times],
        }
        for (name, workers), times in took.items()
    ]


# ---- the benchmark


def write_head(path: Path, mib: int) -> None:
    """A checkpoint of one bfloat16 tensor of random bytes."""
    rows = (mib << 20) // (2 * COLUMNS)
    tensor = {"lm_head.weight": {"dtype": "BF16", "shape": [rows, COLUMNS], "data_offsets": [0, 2 * rows * COLUMNS]}}
    header = json.dumps(tensor).encode()
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(0, rows, 2_048):
            file.write(rng.bytes(2 * 2_048 * COLUMNS))


def in_fresh_process(module: list[str], place: str, folder: Path, **more: str) -> Any:
    environment = {"HF_ENDPOINT": place, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", **more}
    plain = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    asked = subprocess.run(
        [sys.executable, *module], cwd=ROOT, env=plain | environment, capture_output=True, text=True, check=False
    )
    if asked.returncode:
        raise SystemExit(f"error: {' '.join(module)} failed:\n{asked.stderr}")
    return json.loads(asked.stdout.splitlines()[-1])


def run_case(name: str, path: Path, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Prints a table of the ways, and returns its rows."""
    tls, rate = CASES[name]
    with origin.serving(folder, path, tls=tls, rate=rate) as place:
        command = [__file__, "--client", str(folder), "--rounds", str(rounds if rate is None else 1)]
        found = in_fresh_process(command, place.endpoint, folder, SSL_CERT_FILE=str(place.certificate))
    load = os.getloadavg()[0]
    how = f"{rate / 1e6:.0f} MB/s per connection" if rate else "unthrottled"
    print(f"\n{'TLS' if tls else 'plain HTTP'}, {how}, {place.server}, load {load:.1f}\n")
    print(f"{'way':28} {'workers':>7} {'MB/s':>7} {'÷ curl':>7} {'CPU s/GB':>9}   seconds of every round")
    curl, rows = found[0], []
    for way in found:
        case = {
            "server": place.server,
            "tls": tls,
            "rate_mb_s": None if rate is None else rate / 1e6,
            "way": way["way"],
            "workers": way["workers"],
            "mb_s": round(way["bytes"] / way["seconds"] / 1e6, 1),
            "ratio_to_curl": round(curl["seconds"] / way["seconds"], 2),
            "cpu_s_per_gb": round(way["cpu_seconds"] / way["bytes"] * 1e9, 2),
            "load_after": round(load, 2),
        }
        print(
            f"{way['way']:28} {way['workers']:7} {case['mb_s']:7.0f} {case['ratio_to_curl']:7.2f} {case['cpu_s_per_gb']:9.2f}"
            f"   {way['all_seconds']}",
            flush=True,
        )
        rows.append(case)
    return rows


def run_big(folder: Path) -> None:
    from tests.big_files import WRITERS

    rows, columns = 50_272, 9_216  # opt-66b
    print(f"\na head of {rows:,} × {columns:,} float16 at the end of a file that is mostly holes; MB = 10⁶ bytes\n")
    print(f"{'file':22} {'offset GB':>9} {'head MB':>8} {'beside MB':>9} {'requests':>8}", end=" ")
    print(f"{'seconds':>7} {'imports MB':>10} {'peak MB':>8} {'added MB':>8}")
    for name, (file, write, gigabytes) in WRITERS.items():
        served = folder / name / "served" / "benchmark" / "head"
        served.mkdir(parents=True)
        write(served / file, rows, columns, gigabytes)
        command = [sys.executable, "-m", "tests.fake_hub", str(served.parents[1])]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as hub:
            try:
                assert hub.stdout is not None
                url = hub.stdout.readline().split()[0]
                found = in_fresh_process(["-m", "tests.big_files", "benchmark/head"], url, folder)
            finally:
                hub.terminate()
        (served / file).unlink()
        beside = (found["moved"] - found["nbytes"]) / 1e6
        memory = [found["memory_before"] / 1e6, found["memory_peak"] / 1e6]
        print(
            f"{name:22} {found['begin'] / 1e9:9.2f} {found['nbytes'] / 1e6:8.1f} {beside:9.3f} {found['requests']:8}",
            end=" ",
        )
        print(f"{found['seconds']:7.2f} {memory[0]:10.1f} {memory[1]:8.1f} {memory[1] - memory[0]:8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", action="append", choices=list(CASES), help="may be given again [all]")
    parser.add_argument("--mib", type=int, default=512, help="size of the head [512]")
    parser.add_argument("--rounds", type=int, default=3, help="of the unthrottled cases [3]; the others take one")
    parser.add_argument("--big", action="store_true", help="heads far inside large files instead")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on a disk with sparse files")
    parser.add_argument("--save", action="store_true", help="add rows to results/stream-<device>.csv")
    parser.add_argument("--client", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(client(options.rounds, options.client)))
        return

    row = machine.description()
    machine.print_description(row)
    if not options.big and origin.server() == "standard library":
        print(
            "warning: there is no nginx here; the standard library's server limits the rates below: compare ratios only."
        )
    with tempfile.TemporaryDirectory(prefix="llmsuper-bench-", dir=options.folder) as name:
        folder = Path(name)
        if options.big:
            run_big(folder)
            return
        write_head(folder / origin.FILE, options.mib)
        cases = [run_case(case, folder / origin.FILE, folder, options.rounds) for case in options.case or CASES]
    if options.save:
        for case in [case for rows in cases for case in rows]:
            machine.save_row(f"stream-{machine.device()}.csv", row | case)


if __name__ == "__main__":
    main()
