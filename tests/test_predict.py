"""Predictions against the closed forms, a numerical minimum, and the data's own range; the verb against its promises."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.optimize import minimize_scalar

from llmsuper.cli import main
from llmsuper.cli.predict import NEEDS, TAKES, predict
from llmsuper.errors import FitError, UnknownNameError
from llmsuper.scaling.fit import fit_law
from llmsuper.scaling.intervals import bootstrap_models
from llmsuper.scaling.losses import load_losses
from llmsuper.scaling.predict import (
    PREDICTORS,
    Prediction,
    Reach,
    compute_optimal,
    predict_chinchilla,
    predict_liu2025,
    shared_power_draws,
)

HOFFMANN = (406.40102, 410.72283, 0.33917084, 0.2849083)
REFIT = (477.826, 2143.417, 0.347311, 0.367172)
DRAWS = 20


@pytest.fixture(scope="module")
def optimal() -> Prediction:
    return predict_chinchilla(flops=5.76e23, bootstrap=DRAWS)


@pytest.mark.parametrize("parameters", [HOFFMANN, REFIT])
@pytest.mark.parametrize("flops", [1e18, 5.76e23])
def test_the_closed_form_is_the_minimum(parameters: tuple[float, ...], flops: float) -> None:
    A, B, alpha, beta = parameters

    def loss(log_n: float) -> float:
        n = np.exp(log_n)
        return float(A / n**alpha + B / (flops / (6 * n)) ** beta)

    found = minimize_scalar(loss, bounds=(np.log(1e5), np.log(1e14)), method="bounded", options={"xatol": 1e-10})
    N, D = compute_optimal(A, B, alpha, beta, flops)
    assert float(N) == pytest.approx(np.exp(found.x), rel=1e-5)
    assert float(6 * N * D) == pytest.approx(flops)


def test_the_budget_of_chinchilla_buys_about_70_billion_parameters(optimal: Prediction) -> None:
    # Besiroglu et al. 2024: about 20 tokens per parameter, as Chinchilla (70B, 1.4T) was trained
    assert optimal.shape["n_params"].value == pytest.approx(7e10, rel=0.1)
    assert optimal.shape["train_tokens"].value / optimal.shape["n_params"].value == pytest.approx(18, abs=3)
    assert optimal.shape["d_model"].value == pytest.approx(9457, rel=0.01)  # N(m); Chinchilla itself is 8192 wide
    for estimate in (optimal.loss, *optimal.shape.values()):
        assert estimate.low < estimate.value < estimate.high


def test_how_far_outside_is_part_of_the_answer(optimal: Prediction) -> None:
    factors = {reach.variable: reach.factor for reach in optimal.reaches}
    assert factors["train_flop"] == pytest.approx(5.76e23 / 1.2956e22, rel=1e-3)
    assert min(factors.values()) > 1.5
    assert optimal.text().count("EXTRAPOLATES") == 4
    assert optimal.to_dict()["extrapolates"] is True
    inside = predict_chinchilla(flops=1e20, bootstrap=DRAWS)
    assert inside.text().count("inside the data's") == 4
    assert inside.to_dict()["extrapolates"] is False


@pytest.mark.parametrize(
    ("value", "factor", "side"), [(5.0, 2.0, "below"), (40.0, 2.0, "above"), (15.0, 1.0, "inside")]
)
def test_reach(value: float, factor: float, side: str) -> None:
    reach = Reach("x", value, 10.0, 20.0)
    assert reach.factor == factor
    assert side in str(reach)


@pytest.mark.parametrize(
    "asked",
    [
        {"params": 1e9, "tokens": 2e10},
        {"params": 1e9, "flops": 1.2e20},
        {"tokens": 2e10, "flops": 1.2e20},
    ],
)
def test_two_of_size_tokens_and_compute_fix_the_third(asked: dict[str, float]) -> None:
    found = predict_chinchilla(**asked, bootstrap=DRAWS)
    E, (A, B, alpha, beta) = 1.817218, REFIT
    assert found.loss.value == pytest.approx(E + A / 1e9**alpha + B / 2e10**beta, rel=1e-5)
    assert found.shape == {}
    assert {r.variable: r.value for r in found.reaches}["train_flop"] == pytest.approx(1.2e20)


def test_a_width_stands_for_the_parameters_that_the_line_gives_it() -> None:
    found = predict_chinchilla(width=2048, tokens=2e10, bootstrap=DRAWS)
    reaches = {r.variable: r for r in found.reaches}
    assert (reaches["d_model"].low, reaches["d_model"].high) == (512, 5120)
    assert 1.2e9 < reaches["n_params"].value < 1.7e9  # Table A9 has 1.27e9 to 1.59e9 at 2048


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"params": 1e9},
        {"tokens": 1e9},
        {"width": 1024.0},
        {"params": 1e9, "width": 1024.0, "tokens": 1e10},
        {"params": 1e9, "tokens": 1e10, "flops": 1e20},
    ],
)
def test_too_little_or_too_much_is_refused(asked: dict[str, float]) -> None:
    with pytest.raises(FitError, match="do not fix one N and one D"):
        predict_chinchilla(**asked, bootstrap=DRAWS)


def test_liu2025_is_the_printed_law() -> None:
    found = predict_liu2025(width=4096, family="pythia", dataset="pile")
    assert found.loss.value == pytest.approx(1.5203 + 476.0763 / 4096**0.9098, abs=2e-3)
    half = (found.loss.high - found.loss.low) / 2
    assert half == pytest.approx(1.96 * 0.0367, rel=0.15)  # 200 refits with weights by `solve` have this deviation
    assert found.scatter == pytest.approx(0.0721, abs=1e-3)
    wide = predict_liu2025(width=20480, family="pythia", dataset="pile")
    assert [r.factor for r in wide.reaches] == pytest.approx([4.0, 20480 / 9216])
    assert wide.loss.high - wide.loss.low > 2 * half


def test_draws_of_the_paper_s_law_are_those_of_the_bootstrap_over_models() -> None:
    losses = load_losses("liu2025")
    alpha, A, E = shared_power_draws(losses, "opt", "c4", 400, np.random.default_rng(0))
    fit = fit_law("power-floor", losses, x="d_model", group=("family", "dataset"))
    theirs = bootstrap_models(fit, draws=400, seed=1)
    assert np.std(alpha) == pytest.approx(theirs.sd("alpha"), rel=0.2)
    assert np.median(alpha) == pytest.approx(np.median(theirs.samples["alpha"]), abs=0.03)
    assert np.median(A) == pytest.approx(np.median(theirs.samples["A"]), rel=0.2)
    assert np.median(E) == pytest.approx(fit.group_params["E"]["opt/c4"], abs=0.03)


def test_liu2025_has_floors_for_its_own_families_and_texts_only() -> None:
    with pytest.raises(UnknownNameError, match=r"no family in liu2025 is named 'llama'; there are: gpt2, opt"):
        predict_liu2025(width=4096, family="llama", dataset="pile")
    with pytest.raises(UnknownNameError, match="no data set in liu2025 is named 'piles'"):
        predict_liu2025(width=4096, family="opt", dataset="piles")


def verb(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["predict", *arguments])


def test_every_law_says_which_options_it_takes() -> None:
    assert set(TAKES) == set(NEEDS) == set(PREDICTORS)
    options = {parameter.name for parameter in predict.params} - {"law", "output"}
    assert set().union(*TAKES.values()) <= options


def test_the_verb_prints_people_json_and_the_bare_loss() -> None:
    asked = ("liu2025", "--width", "4096", "--family", "opt", "--dataset", "c4")
    human, found, quiet = (verb(*asked, *how) for how in ((), ("--json",), ("-q",)))
    assert human.exit_code == 0, human.output
    assert "resamples of the models" in human.stdout
    assert "inside the data's 768 to 9216" in human.stdout
    row = json.loads(found.stdout)
    assert row["interval"][0] < row["loss_nats"] < row["interval"][1]
    assert row["reach"][0]["factor_outside"] == 1
    assert float(quiet.stdout) == pytest.approx(row["loss_nats"], rel=1e-5)


def test_the_example_of_the_help_page_runs() -> None:
    done = verb("chinchilla", "--flops", "1e21", "--bootstrap", str(DRAWS))
    assert done.exit_code == 0, done.output
    assert "compute-optimal d_model" in done.stdout
    assert "bootstrap resamples of 240 points" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("liu2025", "--width", "4096", "--family", "opt"), "liu2025 needs --dataset"),
        (("liu2025", "--flops", "1e21"), "liu2025 does not use --flops"),
        (("chinchilla", "--family", "opt"), "chinchilla does not use --family"),
        (("chinchilla", "--flops", "nan"), "not a positive number"),
        (("chinchilla", "--flops", "-1"), "not a positive number"),
        (("chinchilla", "--flops", "many"), "not a valid float"),
    ],
)
def test_usage_errors_name_the_option(arguments: tuple[str, ...], message: str) -> None:
    done = verb(*arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_an_unknown_law_lists_those_there_are() -> None:
    done = verb("kaplan", "--flops", "1e20")
    assert done.exit_code == UnknownNameError.exit_code
    assert "there are: chinchilla, liu2025" in done.stderr
