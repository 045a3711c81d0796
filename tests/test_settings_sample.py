"""`--sample`: pairs of a sample of tiles from the command line, which never pass for all pairs, nor take their place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmsuper.errors import LlmsuperError
from llmsuper.measure import Settings, measure_head, measure_heads
from llmsuper.report.head_sections import pairs_text
from llmsuper.report.heads import family_of
from llmsuper.report.sources import SINGLE, gather
from llmsuper.store import ResultStore
from llmsuper.types import ModelEntry
from tests.checkpoints import pythia_like
from tests.command import json_lines, llmsuper, succeed
from tests.launched import command, run

if TYPE_CHECKING:
    from llmsuper.types import HeadRecord

ROOT = Path(__file__).parents[1]
SMOLLM = ROOT.parent / "shared" / "data" / "weights" / "smollm2-135m-instruct-rows4"
TILES, ALL_TILES = 12, 36
"""Tiles of 256 × 256 overlaps among the 2,000 rows of `folder`: 8 blocks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pythia_like(rows=2100, columns=24, tokens=2000).write(tmp_path_factory.mktemp("heads") / "head")


def files(results: Path) -> list[str]:
    return sorted(path.name.split(".weight.")[1] for path in results.glob("*.json"))


def kept(results: Path) -> dict[str, Any]:
    """The `pairs` of each record, by what the file name says after the tensor."""
    return {
        path.name.split(".weight.")[1]: json.loads(path.read_text())["statistics"]["tokens"]["pairs"]
        for path in results.glob("*.json")
    }


def test_a_sample_is_said_wherever_it_is_shown(folder: Path, tmp_path: Path) -> None:
    arguments = ["overlap", folder, "--stat", "overlap,pairs", "--sample", TILES, "--results", tmp_path]
    text = succeed(*arguments).stdout
    (record,) = json_lines(*arguments)
    found = record["statistics"]["tokens"]["pairs"]
    seen = sum(found["histogram_counts"])
    assert f"1,999,000 pairs, a sample of {seen:,} of them: {TILES} of {ALL_TILES} tiles" in text
    low, high = found["sampled"]["mean_absolute_overlap_interval"]
    assert f"mean |overlap| {found['mean_absolute_overlap']:.4e} (95% interval {low:.4e} to {high:.4e})" in text
    assert "largest in the sample" in text
    assert "closest pairs in the sample" in text
    assert (record["made_by"]["sample"], found["sampled"]["seed"]) == (TILES, 0)
    compared = succeed(*arguments, "--compat", "liu2025").stdout
    assert "our mean |overlap| and its std are estimates from a sample of pairs" in compared


def test_all_pairs_and_samples_of_them_have_records_of_their_own(folder: Path, tmp_path: Path) -> None:
    def overlap(*options: object) -> tuple[Any, bool]:
        """The pairs that were shown, and whether they were measured for that."""
        before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
        (record,) = json_lines("overlap", folder, "--stat", "pairs", "--results", tmp_path, *options)
        after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
        return record["statistics"]["tokens"]["pairs"], before != after

    dozen, measured = overlap("--sample", TILES)
    assert measured
    assert overlap("--sample", TILES) == (dozen, False)
    assert files(tmp_path) == ["sample-12.tokens.json"]
    half, measured = overlap("--sample", "0.5")
    assert measured
    assert half["sampled"]["tiles"] == ALL_TILES // 2
    whole, measured = overlap()
    assert measured
    assert whole["sampled"] is None
    names = ["sample-0.5.tokens.json", "sample-12.tokens.json", "tokens.json"]
    assert kept(tmp_path) == dict(zip(names, (half, dozen, whole), strict=True))
    assert overlap() == (whole, False)
    assert overlap("--sample", "9") == (whole, False)  # better than what was asked for, and there
    again, measured = overlap("--sample", "9", "--force")
    assert measured
    assert again["sampled"]["tiles"] == 9
    assert files(tmp_path) == [*names[:2], "sample-9.tokens.json", names[2]]


def test_a_record_without_pairs_is_not_measured_again_for_a_sample(folder: Path, tmp_path: Path) -> None:
    succeed("overlap", folder, "--results", tmp_path)
    (before,) = tmp_path.glob("*.json")
    text = before.read_text()
    succeed("overlap", folder, "--stat", "norms,pairs", "--sample", TILES, "--results", tmp_path)
    assert before.read_text() == text
    assert files(tmp_path) == ["sample-12.tokens.json", "tokens.json"]
    store = ResultStore(tmp_path)
    frame = store.frame()  # what fits are made of has each head once
    assert frame["sample"].tolist() == [None]
    before.unlink()
    assert store.frame()["sample"].tolist() == [TILES]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sample", "0.1"], r"--sample 0.1 is a sample of pairs, and --stat asks for norms, overlap, .*Add pairs"),
        (
            ["--stat", "norms,spectrum", "--sample", "20"],
            r"--sample 20 .* asks for norms, spectrum\. .*leave --sample out",
        ),
        (["--stat", "pairs", "--sample", "0"], "x>0"),
        (["--stat", "pairs", "--sample", "some"], "'some' is not a valid float"),
    ],
)
def test_a_sample_that_is_a_wrong_usage(options: list[str], says: str, folder: Path, tmp_path: Path) -> None:
    done = llmsuper("overlap", folder, "--results", tmp_path, *options)
    assert done.exit_code == 2
    assert re.search(says, " ".join(done.stderr.split()))
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("sample", "says"), [("2.5", "means nothing"), ("inf", "means nothing"), ("0.01", "takes 0 of 36")]
)
def test_a_sample_that_is_refused(sample: str, says: str, folder: Path, tmp_path: Path) -> None:
    done = llmsuper("overlap", folder, "--stat", "pairs", "--sample", sample, "--results", tmp_path)
    assert done.exit_code == 1
    assert says in done.stderr
    assert files(tmp_path) == []


def test_settings_refuse_a_sample_of_nothing() -> None:
    with pytest.raises(LlmsuperError, match=r"a sample of 0.1 is one of pairs, and norms need none. Ask for .*`pairs`"):
        Settings(("norms",), sample=0.1)
    with pytest.raises(LlmsuperError, match="means nothing"):
        Settings(("pairs",), sample=-1)
    assert Settings(("pairs",), sample=0.1).passes == Settings(("pairs",)).passes + 1


def test_the_interval_is_about_what_all_pairs_have(folder: Path) -> None:
    entry = ModelEntry(str(folder), local=True)
    whole = measure_head(entry, Settings(("pairs",))).statistic("pairs")
    record = measure_head(entry, Settings(("pairs",), sample=0.5))
    assert record.made_by["sample"] == 0.5
    found = record.statistic("pairs")
    low, high = found["sampled"]["mean_absolute_overlap_interval"]
    assert high - low < 0.01 * whole["mean_absolute_overlap"]
    assert low - (high - low) < whole["mean_absolute_overlap"] < high + (high - low)
    for name in ("mean_overlap", "mean_squared_overlap"):
        assert found[name] == pytest.approx(whole[name], rel=1e-5)


def test_a_real_head() -> None:
    """Against what all of its 75 million pairs came to, in the record that is in the repository."""
    if not SMOLLM.is_dir():
        pytest.skip(f"{SMOLLM.name} is not on this machine")
    (record,) = ROOT.glob("reports/data/heads/smollm2-135m-instruct-rows4@*.json")
    whole = json.loads(record.read_text())["statistics"]["all"]["pairs"]
    settings = Settings(("pairs",), sample=60, keep_heads=False)
    found = measure_head(ModelEntry(str(SMOLLM), local=True), settings).statistic("pairs")
    assert whole["sampled"] is None
    low, high = found["sampled"]["mean_absolute_overlap_interval"]
    assert high - low < 0.02 * whole["mean_absolute_overlap"]
    assert low < whole["mean_absolute_overlap"] < high
    assert found["mean_squared_overlap"] == pytest.approx(whole["mean_squared_overlap"], rel=2e-6)


def test_a_sampled_run_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    """One head measured, the other not yet: the second run measures that alone."""
    other = pythia_like(rows=1700, columns=16, tokens=1600).write(tmp_path / "other")
    store, settings = ResultStore(tmp_path / "records"), Settings(("pairs",), sample=10)
    entries = [ModelEntry(str(path), local=True) for path in (folder, other)]
    list(measure_heads(entries[:1], store, settings))
    outcomes = list(measure_heads(entries, store, settings))
    assert {outcome.entry.repo: outcome.stored for outcome in outcomes} == {str(folder): True, str(other): False}
    assert all(outcome.record and outcome.record.statistic("pairs")["sampled"]["tiles"] == 10 for outcome in outcomes)


def test_processes_share_a_sample(tmp_path: Path) -> None:
    head = pythia_like(rows=9_000, columns=24, tokens=8_900, kind="anisotropic").write(tmp_path / "head")
    arguments = (
        "overlap",
        str(head),
        "--stat",
        "norms,pairs",
        "--sample",
        "40",
        "--json",
        "--shard",
        "rows",
        "--results",
    )
    (alone,) = (json.loads(line) for line in succeed(*arguments, tmp_path / "alone").stdout.splitlines())
    (status, out, err), (other_status, nothing, _) = run(2, command, (*arguments, str(tmp_path / "two")))
    assert (status, other_status, nothing) == (0, 0, ""), err
    found = json.loads(out)
    made = found.pop("made_by")
    assert len(made["bytes_moved_by_process"]) == 2
    assert alone.pop("made_by")["sample"] == made["sample"] == 40
    assert found == alone


def test_a_page_says_that_pairs_are_a_sample(folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "heads"
    store = ResultStore(results)
    arguments = ["overlap", folder, "--results", results, "--stat"]
    succeed(*arguments, "norms,overlap,pairs", "--sample", TILES)
    (record,) = store.records()
    found = record.statistic("pairs")
    low, high = found["sampled"]["mean_absolute_overlap_interval"]
    text = pairs_text(family_of(SINGLE, gather(results)))
    assert f"{sum(found['histogram_counts']):,} sampled" in text
    assert f"| {found['mean_absolute_overlap']:.3g} ± {(high - low) / 2:.2g} |" in text
    assert "its 95 % interval" in text
    succeed(*arguments, "norms,overlap,pairs")
    assert len(list(store.records())) == 2
    text = pairs_text(family_of(SINGLE, gather(results)))
    assert "sample" not in text
    assert "1,999,000" in text


def test_pages_count_crowds_and_read_records_that_do_not(folder: Path, tmp_path: Path) -> None:
    def page(record: HeadRecord) -> str:
        results = tmp_path / f"heads-{len(list(tmp_path.iterdir()))}"
        ResultStore(results).put(record)
        text = succeed("overlap", folder, "--stat", "pairs", "--results", results).stdout
        return text + pairs_text(family_of(SINGLE, gather(results)))

    record = measure_head(ModelEntry(str(folder), local=True), Settings(("norms", "overlap", "pairs")))
    pairs = record.statistic("pairs")
    crowd = {"size": 70, "rows": [7, 9, 12, 30, 31], "ids": [7, 9, 12, 30, 31], "tokens": None}
    pairs |= {"crowds": 2, "crowded_rows": 73, "largest_crowds": [crowd]}
    text = page(record)
    assert "head has 73 in 2." in text
    assert "above 0.95), 73 in 2; the largest crowds, by token id" in text
    assert "       70  7 9 12 30 31 …\n" in text
    for name in ("crowds", "crowded_rows", "largest_crowds"):
        del pairs[name]
    text = page(record)
    assert "crowd" not in text
    assert "closest pairs, by token id" in text
