"""The demo: the whole pipeline with no network at all, the same each time, and its figure drawn from its numbers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors.torch
import torch

from llmsuper.demo import DEMO_HEAD, SEED, draw_demo, run_demo
from llmsuper.report.figures import DATES, FIGURES
from llmsuper.store import ResultStore
from tests.command import json_lines, llmsuper, shell, succeed, the_error
from tests.conftest import HOME

if TYPE_CHECKING:
    from pathlib import Path

    from llmsuper.demo import Measured
    from tests.fake_hub import FakeHub

MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def lines() -> list[Measured]:
    return run_demo()


def test_the_demo_needs_no_network(tmp_path: Path) -> None:
    """In a process of its own: no Hub at the endpoint, no cache, no configuration folder."""
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "none")}
    done = shell("llmsuper demo", **nowhere)
    report = tmp_path / "llmsuper-demo"
    assert done.returncode == 0, done.stderr
    title, real, random, *_ = done.stdout.splitlines()
    assert title.split()[:4] == ["matrix", "rows", "m", "norm"]
    assert real.split()[:3] == ["stories260K", "512", "64"]
    assert random.split()[:3] == ["random", "512", "64"]
    assert done.stderr == "report: llmsuper-demo/demo.md\nreport: llmsuper-demo/gpt2.md\n"
    assert not (tmp_path / "none").exists()
    for page in ("demo.md", "gpt2.md"):
        text = (report / page).read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)#]+)\)", text)
        assert any(link.startswith("figures/") for link in links)
        assert all((report / link).is_file() for link in links if not link.startswith("https://"))
    assert (
        "| stories260K | 64 | 0.0156 | 0.0137 | **0.316** | 20.2 | 0.468 | 30.0 |" in (report / "demo.md").read_text()
    )
    assert [record.repo for record in ResultStore(report / "data" / "heads").records()] == ["random", "stories260K"]


def test_the_demo_asks_nothing_of_a_hub_that_is_there(hub: FakeHub, lines: list[Measured]) -> None:
    found = json_lines("demo", "--figure", "demo.svg")
    assert [set(line) for line in found] == [{"matrix", "rows", "columns", "statistics"}] * 2
    assert [line["statistics"] for line in found] == [line.statistics for line in lines]
    assert hub.take_log() == []
    assert not (HOME / "hub").exists()


def test_the_numbers_are_those_of_every_pair(lines: list[Measured]) -> None:
    head = safetensors.torch.load_file(DEMO_HEAD / "model.safetensors")
    control = torch.randn(512, 64, generator=torch.Generator().manual_seed(SEED))
    for line, W in zip(lines, [*head.values(), control], strict=True):
        rows = W.double().numpy()
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        overlaps = (unit @ unit.T)[~np.eye(512, dtype=bool)]  # of every pair of rows
        assert line.statistics["overlap"]["mean_squared_overlap"] == pytest.approx(np.mean(overlaps**2), rel=1e-6)
        assert (line.rows, line.columns) == rows.shape
    assert lines[0].statistics["overlap"]["ratio_to_isotropic"] == pytest.approx(20.2, abs=0.05)
    assert lines[1].statistics["overlap"]["ratio_to_isotropic"] == pytest.approx(1.0, abs=0.02)


def test_the_note_says_what_the_table_says() -> None:
    done = succeed("demo", "--figure", "demo.svg")
    assert done.stderr == "figure: demo.svg\n"
    title, real, random, blank, note = done.stdout.splitlines()
    assert blank == ""
    assert title.split()[4:6] == ["overlap", "x"]
    for line in (real, random):
        ratio = line.split()[5]
        assert re.search(rf"\b{round(float(ratio), 1):.1f}|\b{ratio}", note)
    assert "1/m = 1.5625e-02" in note
    assert f"Welch floor, {(512 - 64) / (64 * 511):.4e}" in note


@pytest.mark.parametrize("suffix", MAGIC)
def test_a_second_run_draws_the_same_bytes(suffix: str, lines: list[Measured], tmp_path: Path) -> None:
    one, two = tmp_path / f"one{suffix}", tmp_path / f"two{suffix}"
    draw_demo(lines, one)
    draw_demo(lines, two)
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes().startswith(MAGIC[suffix])
    assert set(DATES) <= set(MAGIC)


@pytest.mark.parametrize(
    ("figure", "found"),
    [("gone/demo.png", "No such file or directory"), ("demo.docx", "docx")],
)
def test_a_figure_that_cannot_be_written_is_one_error_below_the_table(figure: str, found: str, tmp_path: Path) -> None:
    done = llmsuper("demo", "--figure", figure)
    assert done.exit_code == 1
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["matrix", "stories260K", "random"]
    error = the_error(done)
    assert error.startswith(f"{figure}: the figure cannot be written (")
    assert found in error
    assert error.endswith("Name another file with --figure.")
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_report_that_cannot_be_written_is_one_error_below_the_table(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = llmsuper("demo", "--report", "file/below")
    assert done.exit_code == 1
    assert done.stdout.startswith("matrix")
    assert "cannot be written" in the_error(done)


# ---- the figure


def test_a_figure_is_drawn_from_the_statistics_of_records(lines: list[Measured]) -> None:
    """Its lines and points are the numbers, whatever they are: here those of a record after its trip through JSON."""
    measured = json.loads(json.dumps({line.name: line.statistics for line in lines}))
    left, right = FIGURES["one_head"](measured).axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["stories260K", "random"]
    for patch, name in zip(left.patches, measured, strict=True):
        norms = measured[name]["norms"]
        counts, edges, _ = patch.get_data()
        assert counts == pytest.approx(np.array(norms["histogram_counts"]) / 512)
        assert edges == pytest.approx(np.array(norms["histogram_edges"]) / norms["rms"])
    points = [float(x) for marks in right.collections for x, _ in np.asarray(marks.get_offsets())]
    forms = ("overlap", "centred_overlap")
    assert sorted(points) == sorted(measured[name][f]["mean_squared_overlap"] for name in measured for f in forms)
    dashes = {line.get_xdata()[0] for line in right.lines}
    assert dashes == {1 / 64, lines[0].statistics["overlap"]["welch_floor"]}
    for axes in (left, right):
        assert axes.get_xlabel()
        assert axes.get_title(loc="left")
