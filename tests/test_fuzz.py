"""Damaged files of every format raise only our own errors, and bombs stay small; see `fuzz` for many more of them."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from tests.fuzz import BOMBS, DAMAGES, FORMATS, MEMORY, SECONDS, HangError, damaged, fuzz, limited, read

COUNT = 300
"""Of each format; `python -m tests.fuzz --count 10000` when a reader has changed."""


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_raise_our_own_errors_alone(tmp_path: Path, name: str) -> None:
    tracemalloc.start()
    try:
        outcomes = fuzz(name, COUNT, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY
    assert sum(outcomes.values()) == COUNT
    assert min(outcomes["read"], outcomes["CheckpointError"]) > COUNT / 20, "the damage is too great, or too small"


@pytest.mark.parametrize("name", FORMATS)
def test_undamaged_files_are_read(tmp_path: Path, name: str) -> None:
    for content in FORMATS[name].valid():
        path = tmp_path / f"model{FORMATS[name].suffix}"
        path.write_bytes(content)
        assert read(path) == "read"


def test_the_same_number_is_the_same_file() -> None:
    for name in FORMATS:
        made = [damaged(name, 0, number) for number in range(40)]
        assert made == [damaged(name, 0, number) for number in range(40)]
        assert len(set(made)) > 35
        assert made != [damaged(name, 1, number) for number in range(40)]
    assert len(DAMAGES) == 8


APART = """
import sys
from tests.fuzz import FORMATS, main

sys.argv.append("--bombs")
main()
print([content for made in FORMATS.values() for content in made.valid()])
"""


@pytest.fixture(scope="module")
def apart() -> list[str]:
    """The lines that another process prints: the table of its bombs, and its undamaged files."""
    command, root = [sys.executable, "-c", APART], Path(__file__).parent.parent
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()


def test_undamaged_files_are_the_same_in_every_process(apart: list[str]) -> None:
    assert apart[-1] == repr([content for made in FORMATS.values() for content in made.valid()])


def test_a_hang_ends() -> None:
    with pytest.raises(HangError, match="this takes more than"), limited("this", 0.05):
        while True:
            pass


def test_bombs_stay_small(apart: list[str]) -> None:
    """Each in a process of its own, whose growth and processor time are counted."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in apart[2:-1]]
    assert [(row[0], row[1]) for row in rows] == [(name, bomb) for name, bombs in BOMBS.items() for bomb in bombs]
    for row in rows:
        outcome, mib, seconds = row[3:]
        assert outcome in ("CheckpointError", "read"), row
        assert int(mib) << 20 < MEMORY, row
        assert float(seconds) < SECONDS, row
