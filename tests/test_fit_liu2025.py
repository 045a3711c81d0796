"""The published fit to the digit, and what its points can and cannot tell."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from llmsuper.scaling.fit import ScalingLawFit, fit_law
from llmsuper.scaling.intervals import bootstrap_models, jacobian_interval, profile_interval
from llmsuper.scaling.losses import load_losses, load_published_fits
from llmsuper.scaling.model_means import fit_model_means
from llmsuper.scaling.recipes import RECIPES, recipe, rows_of
from llmsuper.scaling.sensitivity import (
    authors_slope_error,
    each_alone,
    exponent_test,
    identifiability,
    leave_one_out,
    moved_widths,
    shared_test,
    window,
)
from llmsuper.scaling.summary import offset_differences

PRINTED = load_published_fits("liu2025")["printed"]


@cache
def published_fit() -> ScalingLawFit:
    return fit_law("power-floor", load_losses("liu2025"), x="d_model", group=("family", "dataset"))


def by_recipe(name: str) -> ScalingLawFit:
    chosen = recipe(name)
    return fit_law(chosen.law, rows_of(chosen), x=chosen.x, group=chosen.group)


def test_the_printed_fit() -> None:
    fit = published_fit()
    assert (fit.n_points, fit.n_parameters) == (108, 18)
    assert fit.params["alpha"] == pytest.approx(PRINTED["alpha"], abs=3e-4)
    assert fit.params["A"] == pytest.approx(476.79, abs=0.05)  # a refit of the recovered losses by others
    assert fit.mse == pytest.approx(PRINTED["mean_squared_error"], abs=5e-8)  # its last digit
    differences = offset_differences(fit, PRINTED)
    assert len(differences) == 16
    assert max(map(abs, differences.values())) < 3e-4


def test_the_authors_slope_error_and_where_it_comes_from() -> None:
    fit = published_fit()
    assert authors_slope_error(fit) == pytest.approx(PRINTED["slope_error"], abs=5e-5)
    assert authors_slope_error(fit, below_floor_as_one=False) == pytest.approx(0.0276, abs=1e-4)
    assert identifiability(fit, None).below_floor == ("Qwen/Qwen2.5-72B on wikitext",)


def test_intervals() -> None:
    fit = published_fit()
    assert fit.stderr["alpha"] == pytest.approx(0.060, abs=1e-3)
    profile, plain = profile_interval(fit), jacobian_interval(fit, "alpha")
    assert (profile.low, profile.high) == pytest.approx((0.787, 1.037), abs=2e-3)
    assert (plain.low, plain.high) == pytest.approx((0.792, 1.028), abs=2e-3)


def test_means_of_models_widen_the_interval() -> None:
    fit = published_fit()
    means = fit_model_means(fit)
    interval = profile_interval(means)
    assert means.params["alpha"] == pytest.approx(fit.params["alpha"], abs=1e-6)
    assert (means.n_points, means.degrees_of_freedom) == (27, 21)
    assert (interval.low, interval.high) == pytest.approx((0.732, 1.10), abs=5e-3)


def test_bootstrap_over_models() -> None:
    drawn = bootstrap_models(published_fit(), draws=400, seed=1)
    assert drawn.sd("alpha") == pytest.approx(0.135, abs=0.015)
    interval = drawn.interval("alpha")
    assert interval.low == pytest.approx(0.55, abs=0.05)
    assert interval.high == pytest.approx(1.08, abs=0.03)
    assert drawn.unusable == 0


@pytest.mark.parametrize(
    ("family", "alpha", "low", "high"),
    [
        ("opt", 0.68, 0.526, 0.853),
        ("qwen2.5", 0.385, 0.057, 0.72),
        ("gpt2", 2.44, 1.60, 3.41),
        ("pythia", 1.066, 0.76, 1.40),
    ],
)
def test_families_alone(family: str, alpha: float, low: float, high: float) -> None:
    found = next(v for v in each_alone(published_fit(), "family") if v.name == family)
    assert found.fit is not None
    assert found.interval is not None
    assert found.fit.params["alpha"] == pytest.approx(alpha, abs=0.01)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), abs=0.015)


def test_what_moves_the_exponent() -> None:
    fit = published_fit()
    moved = moved_widths(fit, {"facebook/opt-350m": 512}, "opt-350m")
    variants = {
        "m ≥ 1024": (window(fit, at_least=1024), 0.41),
        "m ≤ 2560": (window(fit, at_most=2560), 1.26),
        "opt-350m at 512": (moved, 0.60),
        **{
            f"without {v.name}": (v, a)
            for v, a in zip(leave_one_out(fit, "family"), (0.96, 0.955, 0.91, 0.67), strict=True)
        },
    }
    for name, (variant, alpha) in variants.items():
        assert variant.fit is not None, name
        assert variant.fit.params["alpha"] == pytest.approx(alpha, abs=0.01), name
    assert len(leave_one_out(fit, "model_id")) == 27


def test_tests() -> None:
    fit = published_fit()
    assert exponent_test(fit).p_value == pytest.approx(0.16, abs=0.01)
    shared = shared_test(fit)
    assert (shared.restrictions, shared.degrees_of_freedom) == (6, 84)
    assert shared.p_value == pytest.approx(0.014, abs=0.002)


def test_opt_on_wikitext2_trades_floor_for_exponent() -> None:
    fit = by_recipe("opt-wikitext2")
    interval = profile_interval(fit)
    assert fit.params["alpha"] == pytest.approx(0.664, abs=2e-3)
    assert fit.params["E"] == pytest.approx(1.929, abs=2e-3)
    assert (interval.low, interval.high) == pytest.approx((0.51, 0.83), abs=0.01)
    assert exponent_test(fit).p_value == pytest.approx(0.004, abs=5e-4)
    known = identifiability(fit, interval)
    assert known.dfloor_dexponent == pytest.approx(1.0, abs=0.1)
    assert known.floors[0] == pytest.approx(1.74, abs=0.02)
    assert known.floors[2] == pytest.approx(2.05, abs=0.01)


def test_pythia_on_the_pile_is_open() -> None:
    fit = by_recipe("pythia-pile")
    assert profile_interval(fit).high is None
    from_410m = window(fit, at_least=1024)
    assert from_410m.interval is not None
    assert (from_410m.interval.low, from_410m.interval.high) == (None, None)
    assert str(from_410m.interval) == "[open, open]"
    assert from_410m.interval.to_dict() | {"low": None, "high": None, "open": True} == from_410m.interval.to_dict()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_fitted(name: str) -> None:
    fit = by_recipe(name)
    assert fit.n_points > fit.n_parameters
    assert np.isfinite(fit.rmse)
