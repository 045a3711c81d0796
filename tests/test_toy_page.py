"""The toy page: the published curves, averages over seeds, differences, figures, and the page as a whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch

from llmsuper.errors import CatalogError, UnknownNameError
from llmsuper.hub.catalog import model_lists_folder
from llmsuper.report.pages import stale_pages
from llmsuper.report.toy_bench import Bench
from llmsuper.report.toy_cells import agreement, beside, cells, experiment, exponents
from llmsuper.report.toy_page import SECTIONS, page_of
from llmsuper.report.toy_reduction import changed, published_lines, reduction
from llmsuper.report.toy_sections import represented_section
from llmsuper.report.toy_variations import epsilon_section, start_section
from llmsuper.scaling.toy_curves import TOY_CURVES, load_toy_curve
from llmsuper.toy.measure import measure_rows, theory_values
from llmsuper.toy.record import ToyRecord, ToyStore
from llmsuper.toy.run import ToyRun, read_gamma

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmsuper.report.pages import Page

WIDTHS = (10, 15, 25, 39, 63, 100)
GAMMAS = (-1.0, -7 / 9, -5 / 9, 1 / 3)


def toy_run(m: int, gamma: float, **parameters: Any) -> ToyRun:
    regulariser, strength = read_gamma(gamma)
    return ToyRun(m=m, regulariser=regulariser, strength=strength, **parameters)


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """What geometry and theory say of one small W; records below differ in what they are asked to differ in."""
    run = toy_run(10, -1.0, n=40, alpha=1.0)
    W = torch.randn(40, 10, generator=torch.Generator().manual_seed(0))
    rows = measure_rows(W)
    return {**rows, "theory": theory_values(run, W, torch.zeros(40), rows["phi_half"], round(rows["phi_one"] * 40))}


def record(measured: dict[str, Any], run: ToyRun, loss: float, **found: Any) -> ToyRecord:
    made = {"version": "0", "device": "cpu", "seconds": 1.0, "date": "2026-01-02T03:04:05+00:00", "trained_at_once": 1}
    values = {
        "test_loss": loss, "test_loss_stderr": 0.0, "training_loss": 1.1 * loss, "training_loss_std": 0.0,
        "curve": {"step": [1], "loss": [loss]}, "made_by": made, **measured, **found,
    }  # fmt: skip
    return ToyRecord(run=run, **values)


def frame_of(records: Iterable[ToyRecord]) -> pd.DataFrame:
    store = ToyStore("nowhere")
    return pd.DataFrame([store.flat(one) for one in records])


def made_up(measured: dict[str, Any], seeds: int = 3, steps: int = 2000, **fixed: Any) -> list[ToyRecord]:
    """Records whose losses fall as exact powers of m: exponent 1 + seed/100 for γ < 0, α − 1 for γ > 0."""
    records = []
    for alpha in (0.0, 1.0, 1.75):
        for gamma in GAMMAS:
            for m in WIDTHS:
                for seed in range(seeds):
                    power = (1.0 if gamma < 0 else max(alpha - 1, 0.1)) + seed / 100
                    run = toy_run(m, gamma, alpha=alpha, seed=seed, steps=steps, **fixed)
                    records.append(record(measured, run, 3.0 * m**-power, phi_half=min(1.0, 0.02 * m + seed / 1000)))
    return records


# ---- the published curves ----


@pytest.mark.parametrize("name", TOY_CURVES)
def test_a_published_curve_is_as_its_readme_says(name: str) -> None:
    frame = load_toy_curve(name)
    readme = (model_lists_folder() / "toy" / "README.md").read_text(encoding="utf-8")
    (rows,) = re.findall(rf"^\| `{name}\.csv` \| (\d+) \|", readme, re.M)
    assert len(frame) == int(rows)
    assert not frame.isna().any().any()
    key = [
        c
        for c in ("regime", "feature_distribution", "data_exponent", "weight_decay", "m", "activation_density")
        if c in frame
    ]
    # the five points that figures 7a and 7b share are in the file once or agree
    assert not frame.duplicated(key).any()


@pytest.mark.parametrize("name", TOY_CURVES)
def test_a_published_curve_is_the_one_that_was_collected(name: str) -> None:
    collected = Path(__file__).parents[2] / "shared" / "data" / "published" / f"liu2025_toy_{name}.csv"
    if not collected.is_file():
        pytest.skip(f"no {collected.name} beside the checkout: it is not part of the repository")
    assert (model_lists_folder() / "toy" / f"{name}.csv").read_bytes() == collected.read_bytes()


def test_every_file_of_the_folder_is_a_curve() -> None:
    assert {path.stem for path in (model_lists_folder() / "toy").glob("*.csv")} == set(TOY_CURVES)


def test_an_unknown_curve() -> None:
    with pytest.raises(UnknownNameError, match=r"no curve of the toy model is named 'exponent'.*Did you mean"):
        load_toy_curve("exponent")


BAD = {
    "missing file": (None, "cannot be read as a table"),
    "missing column": ("data_exponent,weight_decay\n0,1\n", "model_exponent, standard_error is missing"),
    "not a number": (
        "data_exponent,weight_decay,model_exponent,standard_error\n0,1,1,1\n0,1,x,1\n",
        "line 3: model_exponent",
    ),
    "empty": ("", "cannot be read as a table"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_a_malformed_curve(tmp_path: Path, text: str | None, message: str) -> None:
    (tmp_path / "toy").mkdir()
    if text is not None:
        (tmp_path / "toy" / "exponents.csv").write_text(text, encoding="utf-8")
    with pytest.raises(CatalogError, match=message):
        load_toy_curve("exponents", tmp_path)


def test_our_lines_through_the_published_losses_are_the_published_exponents() -> None:
    """Figures 6e and 5b print exponents and errors; at α = 0 figure 5a has the losses that they were fitted to."""
    losses = load_toy_curve("uniform_loss")
    ours = exponents(losses.assign(test_loss=losses["loss"], seed=0), ["weight_decay"])
    published = load_toy_curve("exponents")
    both = ours.merge(published[published["data_exponent"] == 0], on="weight_decay")
    assert len(both) == 3
    np.testing.assert_allclose(both["exponent"], both["model_exponent"], atol=2e-4)
    np.testing.assert_allclose(both["stderr"], both["standard_error"], atol=2e-4)


NOTEBOOK = {"exponential": 1.00545, "power": 0.98402, "linear": 0.88639}
"""Slopes that the authors' notebook prints for the strong curves of figure 1."""


def test_our_lines_through_the_large_model_are_the_notebook_s() -> None:
    losses = load_toy_curve("loss_n10240").assign(seed=0)
    for row in load_toy_curve("r_squared").itertuples():
        of = losses[(losses["regime"] == row.regime) & (losses["feature_distribution"] == row.feature_distribution)]
        (line,) = exponents(of.assign(test_loss=of["loss"]), ["regime"], int(row.smallest_m_in_fit)).itertuples()
        assert line.r_squared == pytest.approx(row.r_squared_bar, abs=0.0015)
        if row.regime == "strong":
            assert line.exponent == pytest.approx(
                NOTEBOOK[row.feature_distribution], abs=2e-4
            )  # losses of five decimals


# ---- cells and differences ----


def test_cells_and_exponents_over_seeds(measured: dict[str, Any]) -> None:
    frame = frame_of(made_up(measured))
    strong = frame[(frame["gamma"] == -1) & (frame["alpha"] == 0)]
    (cell,) = cells(strong[strong["m"] == 10], ["gamma", "m"], "phi_half").itertuples()
    assert (cell.mean, cell.low, cell.high, cell.seeds) == pytest.approx((0.201, 0.2, 0.202, 3))
    assert cell.sd == pytest.approx(0.001)
    (line,) = exponents(strong, ["alpha", "gamma"]).itertuples()
    assert (line.exponent, line.low, line.high, line.sd) == pytest.approx((1.01, 1.0, 1.02, 0.01))
    assert (line.stderr, line.r_squared) == pytest.approx((0, 1), abs=1e-7)
    assert (line.points, line.seeds) == (6, 3)


def test_a_seed_that_lacks_a_width_is_not_in_the_line(measured: dict[str, Any]) -> None:
    frame = frame_of(made_up(measured))
    strong = frame[(frame["gamma"] == -1) & (frame["alpha"] == 0) & ((frame["m"] != 39) | (frame["seed"] != 2))]
    (line,) = exponents(strong, ["gamma"]).itertuples()
    assert (line.seeds, line.exponent) == (2, pytest.approx(1.005))
    assert exponents(strong[strong["m"] < 20], ["gamma"]).empty, "two widths make no line"


def test_one_seed_has_no_spread(measured: dict[str, Any]) -> None:
    frame = frame_of(made_up(measured, seeds=1))
    assert cells(frame, ["alpha", "gamma", "m"], "test_loss")["sd"].isna().all()
    assert exponents(frame, ["alpha", "gamma"])["sd"].isna().all()


def test_published_cells_are_found_by_their_rounded_parameters() -> None:
    ours = pd.DataFrame({"gamma": [-7 / 9, -0.5, 1.0], "m": [10, 10, 12], "mean": [0.5, 0.5, 0.5]})
    theirs = pd.DataFrame({"weight_decay": [-0.7778, 1.0], "m": [10.0, 10.0], "loss": [0.4, 0.4]})
    (row,) = beside(ours, theirs, {"gamma": "weight_decay", "m": "m"}, "mean", "loss").to_dict("records")
    assert row["gamma"] == -7 / 9
    assert (row["published"], row["difference"]) == (0.4, pytest.approx(0.1))


def test_an_agreement_counts_what_one_more_seed_would_do() -> None:
    both = pd.DataFrame(
        {
            "difference": [0.1, -0.1, 0.3],
            "published": [1.0, 1.0, 2.0],
            "low": [0.9, 0.8, 2.2],
            "high": [1.2, 0.95, 2.4],
            "seeds": [3, 3, 1],
        }
    )
    found = agreement(both, "loss", "1", relative=True)
    assert found is not None
    assert (found.cells, found.inside, found.expected) == (3, 1, 1.0)
    assert (found.bias, found.typical, found.largest) == pytest.approx((0.1, 0.1, 0.15))
    absolute = agreement(both, "loss", "1", relative=False)
    assert absolute is not None
    assert absolute.largest == pytest.approx(0.3)
    assert agreement(both[:0], "loss", "1", relative=True) is None


def test_an_experiment_is_what_was_trained_alike(measured: dict[str, Any]) -> None:
    reduced = made_up(measured)
    one_in_full = record(measured, toy_run(39, -5 / 9, alpha=1.0), 0.2)
    large = record(measured, toy_run(16, -1.0, n=64, distribution="linear"), 0.2)
    dense = record(measured, toy_run(63, -1.0, alpha=1.0, activation_density=2.0, steps=2000), 0.2)
    frame = frame_of([*reduced, one_in_full, large, dense])
    small = experiment(frame, "weight_decay")
    assert small is not None
    assert (len(small.runs), small.setting["steps"]) == (len(reduced), 2000)
    assert changed(small) == ["steps 2,000 instead of 20,000"]
    found = experiment(frame, "large")
    assert found is not None
    assert list(found.runs["distribution"]) == ["linear"]
    density = experiment(frame, "activation_density")
    assert density is not None
    assert len(density.runs) == len(reduced) // 3 + 1
    cost = reduction(Bench(frame, None, "svg"), small)
    (row,) = cost[cost["quantity"] == "test_loss"].to_dict("records")
    mean = np.mean([3.0 * 39**-p for p in (1.0, 1.01, 1.02)])
    assert (row["m"], row["reduced"], row["full"], row["seeds_reduced"]) == (39, pytest.approx(mean), 0.2, 3)
    assert row["published"] == 0.20178  # of activation_density.csv at E = 1, m = 39, γ = −0.5556
    assert experiment(frame[frame["activation_density"] == 1], "activation_density") is None


def test_the_knob_is_shown_where_it_has_the_most_values(measured: dict[str, Any]) -> None:
    few = made_up(measured)
    many = [record(measured, toy_run(10, g, alpha=1.0), 0.7, phi_half=0.5) for g in (*GAMMAS, 7 / 9)]
    bench = Bench(frame_of([*few, *many]), None, "svg")
    most_runs, most_values = bench.small(), bench.small(widest="gamma")
    assert most_runs is not None
    assert most_values is not None
    assert (most_runs.setting["steps"], most_values.setting["steps"]) == (2000, 20_000)
    text = next(section for section in SECTIONS if section.__name__ == "represented_section")(bench).text
    table = text.partition("φ½ at α = 1")[2].partition("</details>")[0]
    assert [row.split(" | ")[2] for row in table.splitlines() if row.startswith("| −")] == ["0.500"] * 3


def test_many_seeds_of_few_cells_are_not_what_the_page_shows(measured: dict[str, Any]) -> None:
    widths = [record(measured, toy_run(m, -5 / 9, alpha=1.0, batch=512), 1 / m) for m in (10, 15, 25)]
    seeds = [record(measured, toy_run(10, -5 / 9, alpha=1.0, seed=s), 0.1) for s in range(5)]
    small = Bench(frame_of([*widths, *seeds]), None, "svg").small()
    assert small is not None
    assert small.setting["batch"] == 512


def test_starts_are_compared_where_nothing_else_differs(measured: dict[str, Any]) -> None:
    normal = [record(measured, toy_run(39, -5 / 9, alpha=1.0, seed=s), 0.22 + s / 100) for s in (0, 1)]
    zero = record(measured, toy_run(39, -5 / 9, alpha=1.0, initialisation="zero-bias"), 0.17)
    other = record(measured, toy_run(25, -5 / 9, alpha=1.0, initialisation="zero-bias"), 0.3)
    text = start_section(Bench(frame_of([*normal, zero, other]), None, "svg")).text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| 39")]
    assert [row[4:] for row in rows] == [
        ["normal", "0.220", "0.220 to 0.220", "1", "0.202"],
        ["zero-bias", "0.170", "0.170 to 0.170", "1", "0.202"],
    ]
    assert "| 25 |" not in text
    assert "No run of it" in start_section(Bench(frame_of(normal), None, "svg")).text


def test_factors_of_the_loss_are_compared_and_not_averaged(measured: dict[str, Any]) -> None:
    runs = [toy_run(10, -3 / 9, alpha=1.0, seed=s, loss_scale=scale) for scale in (1.0, 100.0) for s in (0, 1)]
    records = [record(measured, run, 0.7, phi_half=run.seed / 10 + 7 / run.loss_scale / 10) for run in runs]
    bench = Bench(frame_of(records), None, "svg")
    rows = [
        line.strip("| ").split(" | ") for line in epsilon_section(bench).text.splitlines() if line.startswith("| 10")
    ]
    assert [row[4:] for row in rows] == [
        ["1", "0.750", "0.700 to 0.800", "2", "0.625"],
        ["100", "0.0570", "0.00700 to 0.107", "2", "0.625"],
    ]
    in_full = bench.in_full()
    assert in_full is not None
    assert set(in_full.runs["loss_scale"]) == {1.0}


def test_a_published_share_outside_the_seeds_is_told(measured: dict[str, Any]) -> None:
    runs = [toy_run(10, gamma, alpha=1.0, seed=s) for gamma in (-3 / 9, -1 / 9) for s in (0, 1)]
    records = [record(measured, run, 0.7, phi_half=0.08 + run.seed / 100) for run in runs]
    text = represented_section(Bench(frame_of(records), None, "svg")).text
    assert "Of 2 cells with two seeds or more, the published value lies outside ours in 1." in text
    assert "- γ = −0.333, m = 10: 0.625 published, 0.080 to 0.090 in 2 seeds here, where half of the rows" in text


# ---- the page ----


def published_as_ours(measured: dict[str, Any]) -> pd.DataFrame:
    """Records that hold the published points themselves, trained in full with one seed."""
    records = [
        record(measured, toy_run(int(row.m), row.weight_decay, alpha=0.0), row.loss)
        for row in load_toy_curve("uniform_loss").itertuples()
    ]
    half = {(r.weight_decay, r.m): r.represented_fraction for r in load_toy_curve("represented_fraction").itertuples()}
    for row in load_toy_curve("activation_density").itertuples():
        density = min(row.activation_density, 7.48547)  # the published rounding is above the maximum
        run = toy_run(int(row.m), row.weight_decay, alpha=1.0, activation_density=density)
        records.append(record(measured, run, row.loss, phi_half=half[row.weight_decay, row.m]))
    for row in load_toy_curve("loss_n10240").itertuples():
        law = {"exponential": {"scale": 400.0}, "power": {"alpha": 1.2}, "linear": {}}[row.feature_distribution]
        run = toy_run(int(row.m), row.weight_decay, n=10_240, distribution=row.feature_distribution, warmup=0.05, **law)
        records.append(record(measured, run, row.loss))
    return frame_of(records)


def agreements(page: Page) -> dict[str, list[str]]:
    """The table of differences of a page: the cells of each line by the quantity."""
    table = page.text.partition("## Ours and the published numbers")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]
    return {quantity: rest for quantity, *rest in lines}


def test_the_published_points_agree_with_themselves(measured: dict[str, Any]) -> None:
    found = agreements(page_of(published_as_ours(measured)))
    assert found["loss, strong, α = 0"] == ["5a", "30", "0.0 %", "0.0 %", "0.0 %", "–"]
    assert found["loss, weak, α = 0"][1:5] == ["30", "0.0 %", "0.0 %", "0.0 %"]
    assert found["loss of the large model"][1:5] == ["48", "0.0 %", "0.0 %", "0.0 %"]
    assert found["loss by E"][1:5] == ["115", "0.0 %", "0.0 %", "0.0 %"]
    assert found["exponent by E"][1:5] == ["5", "0.000", "0.000", "0.000"]
    assert found["exponent, strong"][1] == "4"  # α = 0 at three γ, and α = 1 at γ = −0.5556
    size = [abs(float(v.replace("−", "-"))) for v in found["exponent, strong"][2:5]]
    assert size == pytest.approx([0, 0, 0], abs=0.01)  # the runs of figure 7b at E = 1 are not those of 6e: 0.007 apart
    # at α = 1 every m is published for γ = −0.5556 alone, and m = 63 for every γ
    assert found["φ½ at α = 1"][1:5] == ["15", "0.000", "0.000", "0.000"]


def test_a_difference_is_seen(measured: dict[str, Any]) -> None:
    frame = published_as_ours(measured)
    frame["test_loss"] *= 1.1
    found = agreements(page_of(frame))
    assert found["loss, strong, α = 0"][2:5] == ["10.0 %"] * 3
    assert abs(float(found["exponent, strong"][2].replace("−", "-"))) < 0.002, "a factor moves no slope"


@pytest.fixture(scope="module")
def page(measured: dict[str, Any]) -> Page:
    full = record(measured, toy_run(39, -5 / 9, alpha=1.0), 0.25)
    dense = [
        record(measured, toy_run(m, g, alpha=1.0, activation_density=4.2427354, steps=2000), 9.0 / m)
        for m in WIDTHS
        for g in (-1.0, -5 / 9)
    ]
    large = [
        record(
            measured,
            toy_run(m, g, n=256, steps=2000, seed=seed, warmup=0.05, lr=0.02 * (8 / m) ** 0.25, **law),
            4.0 / m,
        )
        for m in (8, 16, 32)
        for g in (-1.0, 0.1)
        for seed in (0, 1)
        for law in ({"distribution": "exponential", "scale": 10.0}, {"alpha": 1.2}, {"distribution": "linear"})
    ]
    zero = record(measured, toy_run(39, -5 / 9, alpha=1.0, initialisation="zero-bias"), 0.2)
    scaled = record(measured, toy_run(39, -5 / 9, alpha=1.0, loss_scale=100.0), 0.2)
    return page_of(frame_of([*made_up(measured), full, zero, scaled, *dense, *large]))


def test_the_page_has_every_figure_and_no_gap(page: Page) -> None:
    assert page.name == "toy"
    for heading in ("Figure 1:", "Figure 3:", "Figure 4:", "Figure 5:", "Figure 6:", "Figure 7:"):
        assert f"\n## {heading}" in page.text
    shown = re.findall(r"!\[([^\]]{20,})\]\(figures/([\w.-]+)\.svg\)", page.text)
    assert [stem for _, stem in shown] == [drawing.stem for drawing in page.drawings]
    assert len(page.drawings) == 7
    assert not re.search(r"\bnan\b|\binf\b|None", page.text)
    assert "No run of it" not in page.text
    assert page.text.count("<details>") == page.text.count("</details>")


def test_the_page_says_what_was_reduced_and_what_that_costs(page: Page) -> None:
    part = page.text.partition("## What was reduced, and what that costs")[2].partition("\n## ")[0]
    assert "steps 2,000 instead of 20,000" in part
    mean = np.mean([3.0 * 39**-p for p in (1.0, 1.01, 1.02)])
    summary, line = [line for line in part.splitlines() if "| loss |" in line]
    change = f"{100 * (mean / 0.25 - 1):.1f}".replace("-", "−")
    assert summary.startswith(f"| loss | 1 | {change} % | {change} to {change} % | 1 |")
    assert f"{100 * (mean / 0.25 - 1):.1f} %".replace("-", "−") in line
    assert line.endswith(f"| 0.202 | {100 * (0.25 / 0.20178 - 1):.1f} % |")


def test_published_exponents_over_our_widths_are_of_the_published_losses(measured: dict[str, Any]) -> None:
    few = [one for one in made_up(measured) if one.run.m <= 39]
    frame = frame_of(few)
    small = experiment(frame, "weight_decay")
    assert small is not None
    assert "so exponents are of other widths" in changed(small)[-1]
    lines = published_lines(Bench(frame, None, "svg"), small).set_index(["alpha", "gamma"])["published"]
    losses = load_toy_curve("activation_density")
    losses = losses[(losses["activation_density"] == 1) & (losses["weight_decay"] == -0.5556) & (losses["m"] <= 39)]
    slope = np.polyfit(np.log(losses["m"]), np.log(losses["loss"]), 1)[0]
    assert lines[1.0, -0.5556] == pytest.approx(-slope)
    assert len(lines) == 11, "ten γ at α = 0 and one at α = 1"


def test_exponents_on_the_page_are_those_of_the_records(page: Page) -> None:
    part = page.text.partition("## Figure 6")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if re.match(r"\| [\d.]+ \| −", line)]
    lines = [row for row in rows if "±" in row[2]]
    assert {row[2] for row in lines} == {"1.01 ± 0.00"}
    assert {row[3] for row in lines} == {"0.01"}
    assert "1.01 in the median" in part


def test_the_page_is_the_same_again_and_notices_a_change(tmp_path: Path, page: Page, measured: dict[str, Any]) -> None:
    paths = list(page.write(tmp_path))
    assert len(paths) == 8
    assert stale_pages([page], tmp_path) == []
    for drawing in (page.drawings[0], page.drawings[2]):  # one of lines, one of cells
        path = tmp_path / "figures" / f"{drawing.stem}.svg"
        first = path.read_bytes()
        drawing.draw(path)
        assert path.read_bytes() == first
    other = page_of(frame_of([*made_up(measured, seeds=2)]))
    assert stale_pages([other], tmp_path)


def test_without_records_the_page_says_so(tmp_path: Path) -> None:
    empty = page_of(ToyStore(tmp_path).frame())
    assert "There are no toy records" in empty.text
    assert empty.drawings == ()


def test_what_was_not_trained_is_said(measured: dict[str, Any]) -> None:
    of_large = [record(measured, toy_run(m, -1.0, n=64, distribution="linear"), 1.0 / m) for m in (8, 16, 32)]
    text = page_of(frame_of(of_large)).text
    assert text.count("No run of it is in the records") == len(SECTIONS) - 1
    assert "`llmsuper toy weight_decay` trains it" in text
    assert "No run here has the parameters of a published point" in text


def test_a_page_of_runs_that_were_trained(tmp_path: Path) -> None:
    """Three runs of four steps, through the store and back: the page takes what the sweeps write."""
    from llmsuper.report.sources import Sources
    from llmsuper.report.toy_page import toy_page
    from llmsuper.toy.train import train_runs

    store = ToyStore(tmp_path / "data" / "toy")
    runs = [toy_run(m, 1 / 3, alpha=1.75, steps=4, batch=16, test_samples=16) for m in (10, 15, 25)]
    assert len(list(train_runs(runs, store, device="cpu"))) == 3
    made = toy_page(Sources(tmp_path / "data" / "heads", model_lists_folder()))
    assert {drawing.stem for drawing in made.drawings} == {"toy-3a-represented", "toy-4b-exponents", "toy-5-weak"}
    assert "| 3 | 1,000 | 3: 10 to 25 | 0.3333 | power 1.75 | 1 | 1 | 4 | 16 | 0.01 |" in made.text
