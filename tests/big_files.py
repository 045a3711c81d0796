"""Checkpoints of many gigabytes that take no room on a disk: holes, but for their headers and two rows of the head.

`python -m tests.big_files REPO` reads the head of one from the Hub and prints what that took, as a line of JSON: it has
to be a process of its own, because the peak of a process's memory never falls.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = "lm_head.weight"
WORKERS = 4


def write_safetensors(path: Path, rows: int, columns: int, gigabytes: float) -> None:
    """A float16 head behind one tensor that fills the file up to `gigabytes`."""
    head, size = 2 * rows * columns, round(gigabytes * 1e9)
    filler = (size - head) // 4096 * 4096
    header = json.dumps({
        "layers.weight": {"dtype": "F16", "shape": [filler // 2], "data_offsets": [0, filler]},
        HEAD: {"dtype": "F16", "shape": [rows, columns], "data_offsets": [filler, filler + head]},
    }).encode()  # fmt: skip
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + filler + head)
    _mark(path, 8 + len(header) + filler, rows, columns)


def write_torch_zip(path: Path, rows: int, columns: int, gigabytes: float) -> None:
    """A float16 head behind the rest in storages of 6.3 GB: what torch itself writes (zip64), without the data."""
    import torch

    rest = round(gigabytes * 1e9) - 2 * rows * columns
    sizes = [min(6_300_000_000, rest - begin) for begin in range(0, rest, 6_300_000_000)] + [2 * rows * columns]
    hole = path.with_name("hole")
    with hole.open("wb") as file:
        file.truncate(max(sizes))
    # mapped, so that no memory is asked for
    parts = [torch.from_file(str(hole), shared=True, size=size // 2, dtype=torch.float16) for size in sizes]
    tensors = {f"layers.{i}.weight": part for i, part in enumerate(parts[:-1])} | {HEAD: parts[-1].view(rows, columns)}
    with torch.serialization.skip_data():
        torch.save(tensors, path)
    hole.unlink()
    with warnings.catch_warnings(action="ignore"):  # torch warns of itself
        placed = torch.load(path, map_location="meta", weights_only=True)
    _mark(path, placed[HEAD].untyped_storage()._checkpoint_offset, rows, columns)


WRITERS: dict[str, tuple[str, Callable[[Path, int, int, float], None], float]] = {
    "torch zip, 5.6 GB": ("pytorch_model.bin", write_torch_zip, 5.6),
    "torch zip, 41.7 GB": ("pytorch_model.bin", write_torch_zip, 41.7),
    "safetensors, 41.7 GB": ("model.safetensors", write_safetensors, 41.7),
}
"""File name, writer and gigabytes of each; 41.7 GB is among the largest shards that the Hub has."""


def has_holes(folder: Path) -> bool:
    """Whether the file system leaves out what was never written."""
    probe = folder / "probe"
    with probe.open("wb") as file:
        file.truncate(64 << 20)
    taken = probe.stat().st_blocks * 512
    probe.unlink()
    return taken < 1 << 20


def _mark(path: Path, begin: int, rows: int, columns: int) -> None:
    """Ones in the first row and twos in the last."""
    with path.open("r+b") as file:
        for row, half in ((0, b"\x00\x3c"), (rows - 1, b"\x00\x40")):  # 1 and 2 in little-endian float16
            file.seek(begin + 2 * row * columns)
            file.write(half * columns)


def read_head(repo: str) -> dict[str, Any]:
    """Streams the head of a repository in blocks of 16 MiB; bytes moved, requests, seconds, and bytes of memory."""
    import torch

    from llmsuper.hub.locate import locate_head
    from llmsuper.hub.repository import open_repository
    from llmsuper.hub.stream import stream_rows
    from llmsuper.types import ModelEntry

    repository = open_repository(ModelEntry(repo))  # imports what there is to import of the Hub's client
    torch.ones(2, 2).half().sum()
    before, began = peak_memory(), time.perf_counter()
    location = locate_head(repository)
    source = repository.open(location.file)
    stream = stream_rows(location, source, workers=WORKERS)
    sums = []
    for block in stream:
        sums += [float(block.rows[0].sum()), float(block.rows[-1].sum())]
        block.release()
    seconds = time.perf_counter() - began
    source.close()
    return {
        "begin": location.tensor.begin,
        "nbytes": location.nbytes,
        "rows": [sums[0] / location.columns, sums[-1] / location.columns],
        "moved": source.moved,
        "requests": source.requests,
        "seconds": seconds,
        "buffers": (stream.workers + 1) * stream.block_rows * stream.stride,
        "memory_before": before,
        "memory_peak": peak_memory(),
    }


def peak_memory() -> int:
    """The most resident memory that this process has had; Linux hands ru_maxrss on from the parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


if __name__ == "__main__":
    print(json.dumps(read_head(sys.argv[1])))
