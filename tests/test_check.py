"""The gate: what passes, what fails, what it cannot decide, and whether random heads would have passed it too."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from llmsuper.check import FORMS, TOLERANCE, MeasuredHead, check_heads, heads_of_records
from llmsuper.cli import main
from llmsuper.errors import FitError, LlmsuperError, UnknownNameError
from llmsuper.geometry.bounds import welch_floor
from llmsuper.geometry.controls import MatrixBlocks, random_head
from llmsuper.geometry.random_rows import random_overlap
from llmsuper.kernels import choose_backend
from llmsuper.measure import measure_rows
from llmsuper.store import ResultStore
from tests.checkpoints import Checkpoint, pythia_like, weight_files
from tests.command import json_lines, succeed, the_error, weights_requests
from tests.command import llmsuper as run

if TYPE_CHECKING:
    from pathlib import Path

    from llmsuper.types import HeadRecord
    from tests.fake_hub import FakeHub

WIDTHS = (32, 48, 64, 96, 128)


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made_up(exponent: float, amplitude: float = 1.0, noise: float = 0.0, widths: tuple[int, ...] = WIDTHS) -> list[Any]:
    """Heads whose overlap is amplitude · m^exponent, with scatter in its logarithm."""
    rng = np.random.default_rng(0)
    return [
        MeasuredHead(f"h{m}", None, 5000, m, float(amplitude * m**exponent * np.exp(rng.normal(0, noise))))
        for m in widths
    ]


def random_heads(form: str, widths: tuple[int, ...] = WIDTHS, rows: int = 400, seed: int = 0) -> list[MeasuredHead]:
    """Heads of random numbers, measured by the house's own code."""
    generator, backend = torch.Generator().manual_seed(seed), choose_backend(precision="exact")
    heads = []
    for m in widths:
        blocks = MatrixBlocks(random_head(rows, m, generator))
        found = measure_rows(blocks, ("overlap", "centred_overlap"), backend)["all"][form]
        heads.append(MeasuredHead(f"random {m}", None, found["rows"], m, found["mean_squared_overlap"]))
    return heads


def drawn_overlap(form: str, rows: int, m: int, rng: np.random.Generator) -> float:
    """The mean squared overlap of random rows, pair by pair."""
    w = rng.standard_normal((rows, m))
    w -= w.mean(axis=0) if form == "centred_overlap" else 0
    unit = w / np.linalg.norm(w, axis=1, keepdims=True)
    return float(np.mean((unit @ unit.T)[np.triu_indices(rows, 1)] ** 2))


# ---- the verdict


@pytest.mark.parametrize("form", FORMS)
def test_random_heads_pass_and_are_called_random(form: str) -> None:
    result = check_heads(random_heads(form), form=form, upper=1.05)
    assert result.verdict == "pass"
    assert result.passed()
    assert result.control.indistinguishable is True
    assert result.control.passes is True
    assert result.exponent == pytest.approx(-1, abs=5 * (result.control.exponent_sd or 0))


def test_a_flat_overlap_fails() -> None:
    result = check_heads(made_up(0.0, 0.05, noise=0.02))
    assert result.verdict == "fail"
    assert not result.passed(undecided="pass")
    assert "outside [-1.25, -0.75]" in result.reasons[0]


@pytest.mark.parametrize(
    ("exponent", "noise", "verdict"),
    [(-1.0, 0.02, "pass"), (-1.2, 0.01, "pass"), (-1.5, 0.02, "fail"), (-0.5, 0.02, "fail"), (1.0, 0.01, "fail"),
     (-1.0, 1.0, "undecided"), (-1.2, 0.05, "undecided")],
)  # fmt: skip
def test_the_interval_decides(exponent: float, noise: float, verdict: str) -> None:
    result = check_heads(made_up(exponent, 3.0, noise))
    low, high = result.interval
    assert low <= result.exponent <= high
    assert result.verdict == verdict
    inside, outside = low >= -1.25 and high <= -0.75, high < -1.25 or low > -0.75
    assert (inside, outside) == (verdict == "pass", verdict == "fail")


def test_undecided_fails_unless_asked_otherwise() -> None:
    result = check_heads(made_up(-1.0, 3.0, noise=1.0))
    assert (result.passed(), result.passed("fail"), result.passed("pass")) == (False, False, True)


def test_the_interval_is_that_of_a_straight_line() -> None:
    from scipy import stats

    heads = made_up(-1.0, 3.0, noise=0.1)
    line = stats.linregress(np.log([h.columns for h in heads]), np.log([h.mean_squared_overlap for h in heads]))
    half = stats.t.ppf(0.975, len(heads) - 2) * line.stderr
    result = check_heads(heads)
    assert result.exponent == pytest.approx(line.slope, rel=1e-7)
    assert result.interval == pytest.approx((line.slope - half, line.slope + half), rel=1e-6)


def test_the_excess_over_one_over_m_is_not_what_the_slope_judges() -> None:
    """Forty times 1/m at every width scales as 1/m; only --upper says no, and random heads are told apart."""
    heads = made_up(-1.0, 40.0, noise=0.01)
    assert check_heads(heads).verdict == "pass"
    assert check_heads(heads).control.indistinguishable is False
    limited = check_heads(heads, upper=30)
    assert limited.verdict == "fail"
    assert sum("above 30" in reason for reason in limited.reasons) == len(WIDTHS)
    assert limited.control.passes is True
    assert check_heads(heads, upper=0.9).control.passes is False


def test_nothing_is_below_the_welch_floor() -> None:
    heads = [replace(h, rows=200, mean_squared_overlap=welch_floor(200, h.columns)) for h in made_up(-1.0)]
    assert check_heads(heads, tolerance=2).verdict == "pass"
    heads[2] = replace(heads[2], mean_squared_overlap=heads[2].mean_squared_overlap * 0.999)
    result = check_heads(heads, tolerance=2)
    assert result.verdict == "fail"
    assert [head.name for head in result.heads if head.broken] == ["h64"]
    assert result.reasons[1].startswith("h64: ")


@pytest.mark.parametrize("widths", [(), (64,), (32, 64), (32, 64, 64, 32)])
def test_fewer_than_three_widths_is_an_error(widths: tuple[int, ...]) -> None:
    heads = [replace(head, name=f"{i}") for i, head in enumerate(made_up(-1.0, widths=widths))]
    with pytest.raises(FitError, match=f"heads of 3 widths; {len(heads)} heads of {len(set(widths))} were found"):
        check_heads(heads)


def test_what_has_no_logarithm_is_an_error() -> None:
    heads = made_up(-1.0)
    heads[1] = replace(heads[1], mean_squared_overlap=0.0)
    with pytest.raises(FitError, match="h48: its mean squared overlap is 0, which has no logarithm"):
        check_heads(heads)
    with pytest.raises(UnknownNameError, match="form of overlap"):
        check_heads(made_up(-1.0), form="cosine")


def test_a_level_for_each_family() -> None:
    """Two families, each exactly 1/m, at levels that make one line through all of them steep."""
    a = [replace(h, family="a") for h in made_up(-1.0, 30.0, 0.01, (32, 48, 64))]
    b = [replace(h, family="b", name=f"b{h.columns}") for h in made_up(-1.0, 3.0, 0.01, (128, 192, 256))]
    assert check_heads([*a, *b]).verdict == "fail"
    result = check_heads([*a, *b], by_family=True)
    assert result.verdict == "pass"
    assert result.exponent == pytest.approx(-1, abs=0.1)
    assert [line.name for line in result.others] == ["all heads", "a", "b"]
    # a family that has no line of its own is said to have none; and what is judged needs three widths too
    lone = replace(a[0], family="c", name="c")
    assert any("c, 1 heads of 1 widths" in note for note in check_heads([*a, *b, lone], by_family=True).notes)
    two = [
        replace(h, family=family, name=f"{family}{h.columns}{level}")
        for family, level in (("a", 1.0), ("a", 1.1), ("b", 1.2), ("b", 1.4))
        for h in made_up(-1.0, level, 0.1, (32, 64))
    ]
    with pytest.raises(FitError, match="8 heads of 2 were found"):
        check_heads([*two, replace(lone, columns=99)], by_family=True)


# ---- what random heads would have given


@pytest.mark.parametrize("form", FORMS)
def test_random_overlap_is_what_random_heads_have(form: str) -> None:
    """Mean and standard deviation over 300 random heads, within five standard errors of each."""
    rows, m, draws = 60, 24, 300
    rng = np.random.default_rng(1)
    found = np.array([drawn_overlap(form, rows, m, rng) for _ in range(draws)])
    mean, sd = random_overlap(rows, m, form)
    assert found.mean() == pytest.approx(mean, abs=5 * sd / draws**0.5)
    assert found.std(ddof=1) == pytest.approx(sd, rel=5 / (2 * draws) ** 0.5)


def test_the_slope_of_random_heads_strays_as_said() -> None:
    rng = np.random.default_rng(2)
    results = [
        check_heads([MeasuredHead(f"{m}", None, 60, m, drawn_overlap("overlap", 60, m, rng)) for m in WIDTHS])
        for _ in range(60)
    ]
    slopes = np.array([result.exponent for result in results])
    sd = results[0].control.exponent_sd
    assert sd is not None
    assert slopes.mean() == pytest.approx(-1, abs=5 * sd / 60**0.5)
    assert slopes.std(ddof=1) == pytest.approx(sd, rel=5 / 120**0.5)
    assert sum(result.control.indistinguishable is False for result in results) <= 1


def test_one_percent_is_told_from_random() -> None:
    heads = made_up(-1.0, 1.01, noise=1e-4)
    result = check_heads(heads, upper=1.02)
    assert (result.verdict, result.control.indistinguishable) == ("pass", False)


def test_without_rows_the_control_says_that_it_does_not_know() -> None:
    result = check_heads([replace(head, rows=None) for head in made_up(-1.0)])
    assert result.control.exponent == -1
    assert (result.control.passes, result.control.p_value, result.control.indistinguishable) == (None, None, None)
    assert {(head.welch_floor, head.deviations_from_random) for head in result.heads} == {(None, None)}


@pytest.mark.parametrize(("kind", "expected"), [("random", -1.0), ("flat", 0.0)])
def test_shuffled_columns_are_said_where_records_have_them(kind: str, expected: float, tmp_path: Path) -> None:
    """A shared direction survives the shuffle of columns, so heads that are flat because of one stay flat."""
    made = {"random": checkpoint, "flat": flat_checkpoint}[kind]
    paths = [str(made(m).write(tmp_path / f"{kind}-{m}")) for m in WIDTHS]
    succeed("overlap", *paths, "--stat", "norms,overlap,controls", "-q")
    done = run("check", "--json")
    assert json.loads(done.stdout)["control"]["shuffled_exponent"] == pytest.approx(expected, abs=0.1)
    assert "with each of their columns shuffled these heads have exponent" in run("check").stdout
    done = run("check", *paths, "--form", "centred_overlap", "--json")  # the mean row is gone, and the slope is 1/m
    assert json.loads(done.stdout)["control"]["shuffled_exponent"] == pytest.approx(-1.0, abs=0.1)


# ---- published overlaps and real heads


def test_the_published_overlaps_have_the_pooled_slope_of_the_notes() -> None:
    """−1.26 ± 0.19 through the 25 points of figure 6a of arXiv:2505.10465: neither 1/m within ¼, nor not."""
    done = run("check", "--published", "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["verdict"] == "undecided"
    assert found["line"]["heads"] == 25
    assert found["line"]["exponent"] == pytest.approx(-1.26, abs=0.005)
    assert found["line"]["stderr"] == pytest.approx(0.19, abs=0.005)
    assert found["control"]["indistinguishable"] is False
    ratios = sorted(head["ratio_to_isotropic"] for head in found["heads"])
    assert (round(ratios[0]), round(ratios[-1]), round(ratios[12])) == (5, 99, 23)
    assert all(head["rows"] for head in found["heads"])
    assert run("check", "--published", "--undecided", "pass").exit_code == 0
    assert run("check", "--published", "--tolerance", "0.7").exit_code == 0
    assert run("check", "--published", "--tolerance", "0.7", "--upper", "50").exit_code == 1


def test_three_real_heads_give_their_exponent(weights: Path) -> None:
    """Overlaps of weights/README.md, made by other code; the slope by numpy."""
    reference = {
        "qwen2.5-coder-0.5b-instruct-rows8": (896, 0.074712, 0.004442),
        "qwen2.5-coder-1.5b-instruct-rows16": (1536, 0.040640, 0.002791),
        "deepseek-r1-distill-qwen-7b-rows16": (3584, 0.022688, 0.001779),
    }
    paths = [str(weights / name) for name in reference]
    m, *overlaps = np.array(list(reference.values())).T
    for form, expected in reversed(list(zip(FORMS, overlaps, strict=True))):  # the centred form measures the other too
        found = json.loads(run("check", *paths, "--form", form, "--json").stdout)
        assert found["line"]["exponent"] == pytest.approx(np.polyfit(np.log(m), np.log(expected), 1)[0], abs=2e-3)
        assert found["control"]["indistinguishable"] is False


# ---- the verb


def checkpoint(columns: int, *, kind: str = "gaussian", seed: int = 0) -> Checkpoint:
    return pythia_like(columns=columns, seed=seed + columns, kind=kind, rows=400, tokens=380)


def flat_checkpoint(columns: int) -> Checkpoint:
    """Rows that share a mean direction as strongly at every width, so that their overlap does not fall with it."""
    made = checkpoint(columns)
    head = torch.randn(400, columns, generator=torch.Generator().manual_seed(columns)) / columns**0.5 + columns**-0.5
    made.update(weight_files({**made.tensors, "embed_out.weight": head}))
    return made


@pytest.fixture
def family(tmp_path: Path) -> list[str]:
    """Five local checkpoints of random heads, one a width."""
    return [str(checkpoint(m).write(tmp_path / f"random-{m}")) for m in WIDTHS]


def test_random_checkpoints_pass_and_are_called_random(family: list[str]) -> None:
    done = succeed("check", *family, "--upper", "1.1")
    title, *lines = done.stdout.splitlines()
    assert title.split() == ["model", "rows", "m", "overlap", "x", "m", "floor", "off", "random"]
    assert [line.split()[1:3] for line in lines[:5]] == [["380", str(m)] for m in WIDTHS]
    assert "cannot be told from random ones, so this gate has tested arithmetic and no model" in done.stdout
    assert re.search(
        r"^PASS: the interval \[-[\d.]+, -[\d.]+\] of the exponent lies inside \[-1.25, -0.75\]$", lines[-1]
    )
    # and the heads are records now: the same gate without reading any of them again
    again = succeed("check", "--upper", "1.1")
    assert again.stdout == done.stdout
    assert again.stderr == ""


def test_checkpoints_whose_overlap_is_flat_fail(tmp_path: Path) -> None:
    paths = [str(flat_checkpoint(m).write(tmp_path / f"flat-{m}")) for m in WIDTHS]
    done = run("check", *paths)
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1].startswith("FAIL: the interval [")
    assert "these heads are told from random ones" in done.stdout
    assert not [line for line in done.stderr.splitlines() if not line.startswith("reading ")]


def test_heads_of_the_hub_are_read_once(hub: FakeHub) -> None:
    for m in WIDTHS[:3]:
        hub.add(f"a/random-{m}", checkpoint(m))
    repos = [f"a/random-{m}" for m in WIDTHS[:3]]
    succeed("check", *repos, "--tolerance", "1")
    assert weights_requests(hub)
    hub.take_log()
    assert json_lines("check", *repos, "--tolerance", "1")[0]["verdict"] == "pass"
    assert not weights_requests(hub)


def test_two_widths_are_an_error_with_its_own_status(family: list[str]) -> None:
    done = run("check", *family[:2], "-q")
    assert done.exit_code == 7
    assert "heads of 3 widths; 2 heads of 2 were found (m = 32, 48)" in done.stderr.splitlines()[-1]


def test_a_head_that_fails_fails_the_gate(family: list[str]) -> None:
    done = run("check", *family, "./gone/model.safetensors")
    assert done.exit_code != 0
    assert "PASS" not in done.stdout


def test_an_empty_folder_of_records_says_so() -> None:
    done = run("check", "--results", "nothing")
    assert (done.exit_code, the_error(done)) == (
        7,
        "nothing: no record to judge. Name heads by PATTERN, or another folder by --results.",
    )


def test_exclude_works_on_records_and_published_alike(family: list[str]) -> None:
    succeed("check", *family)
    (found,) = json_lines("check", "--exclude", "*-128")
    assert found["line"]["heads"] == 4
    (found,) = json_lines("check", "--published", "--exclude", "gpt2*", "--tolerance", "1")
    assert found["line"]["heads"] == 21


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--published", "a/b"], "exclude each other"),
        (["--published", "--device", "cpu"], "--device means nothing with --published"),
        (["--published", "--results", "x"], "--results means nothing with --published"),
        (["--lm-head", "x"], "--lm-head means nothing without PATTERN"),
        (["--max-bytes", "1"], "--max-bytes means nothing without PATTERN"),
        (["--tolerance", "0"], "tolerance"),
        (["--form", "cosine"], "form"),
    ],
)
def test_options_that_would_be_ignored_are_refused(arguments: list[str], said: str) -> None:
    done = run("check", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_published_centred_overlaps_do_not_exist() -> None:
    done = run("check", "--published", "--form", "centred_overlap")
    assert done.exit_code == 7
    assert "only raw ones" in the_error(done)


def test_the_summary_is_appended_for_a_job_page(family: list[str], tmp_path: Path) -> None:
    page = tmp_path / "summary.md"
    page.write_text("before\n")
    printed = succeed("check", *family, "--summary", page).stdout
    text = page.read_text()
    assert text.startswith("before\n### llmsuper check: pass\n\n**PASS: ")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(WIDTHS)
    assert len({row.count("|") for row in rows}) == 1
    assert printed.splitlines()[-1] in text
    succeed("check", *family, "--summary", page)
    assert page.read_text().count("### llmsuper check") == 2
    done = run("check", *family, "--summary", tmp_path)
    assert done.exit_code in (1, 2)
    done = run("check", *family, "--summary", tmp_path / "no" / "where.md")
    assert done.exit_code == 1
    assert "Name another file by --summary" in done.stderr


SCHEMA: dict[str, Any] = {
    "schema_version": int, "llmsuper": str, "verdict": str, "passed": bool, "undecided": str, "reasons": list, "form": str,
    "tolerance": float, "band": list, "upper": (float, type(None)), "line": dict, "other_lines": list, "control": dict,
    "heads": list, "notes": list,
}  # fmt: skip
LINE = {"name", "exponent", "stderr", "interval", "level", "amplitude", "heads", "rms_of_logs"}
CONTROL = {"exponent", "exponent_sd", "passes", "p_value", "indistinguishable", "shuffled_exponent"}
HEAD = {"name", "family", "rows", "columns", "mean_squared_overlap", "shuffled", "ratio_to_isotropic", "welch_floor",
        "deviations_from_random", "broken"}  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [["--published", "--tolerance", "0.7"], ["--published", "--tolerance", "0.7", "--by-family"]]
)
def test_json_is_the_documented_schema(arguments: list[str]) -> None:
    """A change here is a new `schema_version`, and a change of docs/check.md."""
    (found,) = json_lines("check", *arguments)
    assert found["schema_version"] == 1
    assert set(found) == set(SCHEMA)
    for name, kind in SCHEMA.items():
        assert isinstance(found[name], kind), name
    assert set(found["line"]) == LINE | {"widths"}
    assert all(set(line) == LINE for line in found["other_lines"])
    assert set(found["control"]) == CONTROL
    assert all(set(head) == HEAD for head in found["heads"])


def test_quiet_is_the_verdict_and_the_exponent(family: list[str]) -> None:
    verdict, exponent = succeed("check", *family, "-q").stdout.split()
    assert verdict == "pass"
    assert float(exponent) == json_lines("check")[0]["line"]["exponent"]


def test_the_defaults_of_the_verb_are_those_of_the_function() -> None:
    options = {option.name: option for option in main.commands["check"].params}
    assert options["tolerance"].default == TOLERANCE
    assert list(options["form"].type.choices) == list(FORMS)


# ---- records


@pytest.fixture
def records(family: list[str]) -> list[HeadRecord]:
    succeed("overlap", *family, "-q")
    return list(ResultStore("reports/data/heads").records())


def test_a_head_with_several_records_counts_once(records: list[HeadRecord]) -> None:
    older = replace(records[0], made_by={**records[0].made_by, "date": "2020-01-01T00:00:00+00:00"})
    older.statistics["all"]["overlap"]["mean_squared_overlap"] *= 1  # the same numbers: what counts is the date
    heads, notes = heads_of_records([*records, older])
    assert len(heads) == len(WIDTHS)
    assert notes == ["1 older records of the same heads are left out"]


def test_what_is_left_out_is_said(records: list[HeadRecord]) -> None:
    other = replace(records[0], row_rule="all")
    heads, notes = heads_of_records([other, *records[1:]])
    assert len(heads) == len(WIDTHS) - 1
    assert notes == [f"{other.repo}: left out, its record is over the rows 'all'"]
    bare = replace(records[1], statistics={"tokens": {}, "all": {}})
    heads, notes = heads_of_records([bare, *records[2:]])
    assert notes == [f"{bare.repo}: left out, its record has no overlap"]
    with pytest.raises(FitError, match=re.escape(notes[0])):
        check_heads(heads[:2], notes=notes)


def test_two_commits_of_a_model_are_two_heads(records: list[HeadRecord]) -> None:
    heads, notes = heads_of_records([*records, replace(records[0], commit="f" * 40)])
    assert len(heads) == len({head.name for head in heads}) == len(WIDTHS) + 1
    assert notes == []


@pytest.mark.usefixtures("records")
def test_a_broken_record_is_not_judged() -> None:
    path = next(iter(ResultStore("reports/data/heads").folder.glob("*.json")))
    path.write_text("{}")
    with pytest.raises(LlmsuperError, match="is not a record"):
        list(ResultStore("reports/data/heads").records())
    assert run("check").exit_code == 1
