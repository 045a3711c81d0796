"""A head far inside a file of many gigabytes costs its own bytes and the header's, and a bounded memory."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.big_files import WRITERS, has_holes
from tests.fake_hub import File

if TYPE_CHECKING:
    from tests.fake_hub import FakeHub

ROWS, COLUMNS = 50_272, 2_048
HEADER_BYTES = 1 << 18
"""What may be read besides the head: a header, or a zip archive's list of records and its pickle."""
ALLOWANCE = 32_000_000
"""Memory besides the buffers: threads, TLS, answers of the Hub, and what the allocator keeps."""


@pytest.mark.parametrize("name", WRITERS)
def test_a_head_far_inside_a_file(hub: FakeHub, tmp_path: Path, name: str) -> None:
    if not has_holes(tmp_path):
        pytest.skip(f"the file system of {tmp_path} has no sparse files")
    file, write, gigabytes = WRITERS[name]
    path = tmp_path / file
    write(path, ROWS, COLUMNS, gigabytes)
    assert path.stat().st_size == pytest.approx(gigabytes * 1e9, rel=1e-3)
    etag = hashlib.sha256(name.encode()).hexdigest()  # rather than that of 41.7 GB of zeros
    config = json.dumps({"vocab_size": ROWS, "hidden_size": COLUMNS}).encode()
    hub.add("org/big", {file: File(path, lfs=True, etag=etag), "config.json": config})

    command = [sys.executable, "-m", "tests.big_files", "org/big"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert found["begin"] > 1 << 32, "the head must lie where 32 bits do not reach"
    assert (found["nbytes"], found["rows"]) == (2 * ROWS * COLUMNS, [1.0, 2.0])
    assert found["moved"] == hub.bytes_sent("cdn")
    assert 0 < found["moved"] - found["nbytes"] <= HEADER_BYTES
    added = found["memory_peak"] - found["memory_before"]
    assert added < found["buffers"] + ALLOWANCE < found["nbytes"]
