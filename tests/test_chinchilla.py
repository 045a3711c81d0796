"""The Chinchilla cross-check against the published replication, and the additive fit against data whose law is known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from llmsuper.errors import FitError
from llmsuper.scaling.additive import fit_additive
from llmsuper.scaling.chinchilla import (
    chinchilla_summary,
    fit_chinchilla,
    fit_width_data,
    implied_exponent,
    printed_pair,
    width_exponent,
    with_shapes,
    without_highest,
)
from llmsuper.scaling.fit import fit_law
from llmsuper.scaling.losses import load_losses, load_published_fits, load_shapes

if TYPE_CHECKING:
    from llmsuper.scaling.additive import AdditiveFit
    from llmsuper.scaling.chinchilla import ChinchillaSummary

NAMES = ("E", "A", "B", "alpha", "beta")


@pytest.fixture(scope="module")
def points() -> pd.DataFrame:
    return load_losses("chinchilla")


@pytest.fixture(scope="module")
def kept(points: pd.DataFrame) -> pd.DataFrame:
    return points[points["excluded_by_besiroglu2024"] == 0]


@pytest.fixture(scope="module")
def refit(kept: pd.DataFrame) -> AdditiveFit:
    return fit_chinchilla(kept, bootstrap=150, rng=np.random.default_rng(1))


@pytest.fixture(scope="module")
def summary() -> ChinchillaSummary:
    return chinchilla_summary(bootstrap=20, seed=3)


def test_the_240_points_give_the_optimum_of_the_replication(refit: AdditiveFit) -> None:
    # the notebook's own grid of 4,500 starts: epoch-research/analyzing-chinchilla
    assert refit.n_points == 240
    assert refit.objective == pytest.approx(0.00101827, rel=1e-5)
    assert [refit[n] for n in ("E", "alpha", "beta")] == pytest.approx([1.8172, 0.3473, 0.3672], rel=1e-3)
    assert refit["A"] == pytest.approx(477.8, rel=0.01)
    assert refit["B"] == pytest.approx(2143, rel=0.03)


def test_the_general_solver_finds_the_same_minimum(kept: pd.DataFrame, refit: AdditiveFit) -> None:
    fit = fit_law("chinchilla", kept, x=("n_params", "train_tokens"), objective="huber-log")
    assert [fit.params[n] for n in NAMES] == pytest.approx([refit[n] for n in NAMES], rel=1e-5)


def test_bootstrap_errors_are_those_published(refit: AdditiveFit) -> None:
    stderr, interval = refit.stderr(), refit.interval()
    assert stderr is not None
    assert interval is not None
    assert stderr["alpha"] == pytest.approx(0.015, rel=0.25)
    assert stderr["beta"] == pytest.approx(0.021, rel=0.25)
    assert interval["alpha"] == pytest.approx((0.317, 0.373), abs=0.008)  # Besiroglu et al. 2024


def test_the_245_points_move_beta_and_hardly_alpha(points: pd.DataFrame, refit: AdditiveFit) -> None:
    fit = fit_chinchilla(points)
    assert fit.objective == pytest.approx(0.00182601, rel=1e-5)
    assert [fit[n] for n in NAMES] == pytest.approx([1.8913, 495.7, 12846, 0.34931, 0.45305], rel=1e-3)
    assert abs(fit["alpha"] - refit["alpha"]) < 0.005 < abs(fit["beta"] - refit["beta"])
    assert fit.stderr() is None
    assert fit.interval() is None


def test_the_same_seed_gives_the_same_draws(kept: pd.DataFrame) -> None:
    one, two, other = (fit_chinchilla(kept, 3, np.random.default_rng(seed)).draws for seed in (5, 5, 6))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_parameters_grow_as_the_width_to_2_523() -> None:
    line = width_exponent(load_shapes("chinchilla"))
    assert line.n_models == 50
    assert (line.k, line.stderr) == pytest.approx((2.5226, 0.0258), abs=5e-4)
    assert line.width(line.params(2048.0)) == pytest.approx(2048.0)


def test_errors_of_a_product() -> None:
    ours = implied_exponent((2.5226, 0.0258), (0.34731, 0.0150))
    assert (ours.value, ours.quadrature) == pytest.approx((0.876, 0.039), abs=5e-4)
    printed = load_published_fits("liu2025")["paper"]
    paper = implied_exponent(printed_pair(printed, "k"), printed_pair(printed, "alpha_N"))
    assert paper.value == pytest.approx(0.882)
    assert paper.quadrature == pytest.approx(0.051, abs=5e-4)
    assert round(paper.linear, 2) == printed["alpha_m_error"]


def test_every_point_has_one_shape(points: pd.DataFrame) -> None:
    shaped = with_shapes(points, load_shapes("chinchilla"))
    assert len(shaped) == 245
    assert shaped[["d_model", "n_layers"]].drop_duplicates().shape[0] == 43
    assert np.corrcoef(np.log(shaped["d_model"]), np.log(shaped["n_params"].astype(float)))[0, 1] > 0.99


def test_direct_fit_in_the_width(kept: pd.DataFrame) -> None:
    fit = fit_width_data(with_shapes(kept, load_shapes("chinchilla")), bootstrap=150, rng=np.random.default_rng(2))
    stderr = fit.stderr()
    assert stderr is not None
    assert fit["alpha_m"] == pytest.approx(0.846, abs=1e-3)
    assert stderr["alpha_m"] == pytest.approx(0.060, rel=0.25)
    assert fit.objective == pytest.approx(0.00173, abs=5e-6)


def test_runs_of_equal_loss_go_together(points: pd.DataFrame) -> None:
    low = without_highest(points, 40)
    assert len(low) == 203
    assert low["loss_nats"].max() < 2.99868


def test_summary_holds_together(summary: ChinchillaSummary) -> None:
    assert summary.direct.objective > 1.5 * summary.fit.objective
    assert summary.shape.objective < summary.direct.objective
    assert summary.implied.interval is not None
    assert summary.implied.interval[0] < summary.implied.value < summary.implied.interval[1]
    assert (summary.shape.n_points, summary.shape_low.n_points) == (240, 203)
    stderr = summary.shape_low.stderr()
    assert stderr is not None
    assert abs(summary.shape_low["alpha_m"] - 0.9769) < 0.083  # its printed error, arXiv 2602.05970
    assert abs(summary.shape_low["alpha_D"] - 0.2991) < 0.014
    assert abs(summary.shape_low["E"] - 1.7503) < 0.026


def test_summary_prints_what_must_be_shown(summary: ChinchillaSummary) -> None:
    text = summary.text()
    for shown in (
        "1.8172",
        "0.34731",
        "0.36717",
        "k = 2.523 ± 0.026",
        "0.876 ±",
        "± 0.051",
        "± 0.061",
        "1.6934",
        "482.01",
    ):
        assert shown in text
    found = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert found["published"]["hoffmann2022"]["beta"] == pytest.approx(0.28491, abs=1e-5)
    assert found["fit"]["points"] == 240
    assert found["fit"]["draws"] == 20


def test_summary_without_a_bootstrap_has_no_invented_interval() -> None:
    summary = chinchilla_summary(bootstrap=0)
    assert summary.implied.interval is None
    assert summary.to_dict()["fit"]["stderr"] is None
    assert "E 1.8172  A 477.83" in summary.text()


def made(n: int = 60, noise: float = 0.0) -> pd.DataFrame:
    """Points of L = 1.7 + 300/N^0.4 + 900/D^0.35."""
    rng = np.random.default_rng(4)
    N, D = 10 ** rng.uniform(7, 10, n), 10 ** rng.uniform(9, 12, n)
    loss = (1.7 + 300 / N**0.4 + 900 / D**0.35) * np.exp(noise * rng.standard_normal(n))
    return pd.DataFrame({"n_params": N, "train_tokens": D, "loss_nats": loss})


def test_it_recovers_its_own_parameters() -> None:
    fit = fit_chinchilla(made())
    assert [fit[n] for n in NAMES] == pytest.approx([1.7, 300, 900, 0.4, 0.35], rel=2e-3)
    assert fit.predict(1e8, 1e10) == pytest.approx(1.7 + 300 / 1e8**0.4 + 900 / 1e10**0.35, rel=1e-5)


def test_outliers_pull_huber_less_than_squares() -> None:
    frame = made(noise=0.002)
    frame.loc[:4, "loss_nats"] *= 1.2
    robust, squares = (fit_additive(frame, ("n_params", "train_tokens"), NAMES, delta=d) for d in (1e-3, 1.0))
    assert abs(robust["alpha"] - 0.4) < 0.05 < abs(squares["alpha"] - 0.4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="n_params"), r"no column 'n_params'"),
        (lambda f: f.assign(loss_nats=np.nan), r"60 of 60 values of 'loss_nats' are not positive numbers"),
        (lambda f: f.assign(train_tokens=-1.0), r"'train_tokens' are not positive"),
        (lambda f: f.head(5), r"5 points for 5 parameters"),
        (lambda f: f.assign(n_params=1e8), r"'n_params' takes only 1 different values"),
        (lambda f: f.assign(loss_nats=np.exp(0.1 * np.log(f["n_params"]))), r"loses a term"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change: object, message: str) -> None:
    with pytest.raises(FitError, match=message):
        fit_chinchilla(change(made()))  # type: ignore[operator]


def test_shapes_that_cannot_be_used_are_refused() -> None:
    shapes = load_shapes("chinchilla")
    with pytest.raises(FitError, match="2 models of 2 widths"):
        width_exponent(shapes.iloc[[0, 9]])
    with pytest.raises(FitError, match="None of 60 points has the parameters"):
        with_shapes(made().assign(n_params=123.0), shapes)
