"""Fits: bad input, fits that are not identified, intervals and resampling, and the verb `fit`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from llmsuper.cli import main
from llmsuper.cli.fit import OBJECTIVES as OFFERED
from llmsuper.errors import FitError, UnknownNameError
from llmsuper.scaling.fit import ScalingLawFit, fit_law
from llmsuper.scaling.intervals import bootstrap_models, jacobian_interval, profile_interval
from llmsuper.scaling.losses import load_losses, load_overlaps
from llmsuper.scaling.model_means import fit_model_means
from llmsuper.scaling.overlap_fits import overlap_summary, overlaps_of_records
from llmsuper.scaling.recipes import recipe, rows_of, select
from llmsuper.scaling.sensitivity import authors_slope_error, exponent_test, refit, shared_test, window
from llmsuper.scaling.solve import OBJECTIVES, solve
from llmsuper.scaling.summary import summarise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

WIDTHS = (512, 768, 1024, 2048, 2560, 4096, 5120)


def losses(noise: float = 0.02, seed: int = 0, alpha: float = 0.8) -> pd.DataFrame:
    """Two families of seven widths on two data sets, loss = 150 m^−alpha + E."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "model_id": f"{family}-{m}",
            "family": family,
            "dataset": dataset,
            "d_model": m,
            "loss_nats": 150 * m**-alpha + floor + rng.normal(0, noise),
            "loss_unit": "token",
        }
        for family, base in (("a", 1.9), ("b", 2.1))
        for dataset, floor in (("c4", base), ("pile", base - 0.5))
        for m in WIDTHS
    ]
    return pd.DataFrame(rows)


def floor_fit(frame: pd.DataFrame, **options: Any) -> ScalingLawFit:
    return fit_law("power-floor", frame, x="d_model", **({"group": ("family", "dataset")} | options))


BAD: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], dict[str, Any], str]] = {
    "fewer points than parameters": (lambda f: f.iloc[[0, 1, 7, 8, 14, 21]], {}, r"6 points for 6 parameters"),
    "one width only": (lambda f: f[f.d_model == 512], {"group": ()}, r"d_model: all 4 rows have the one value 512"),
    "NaN": (
        lambda f: f.assign(loss_nats=f.loss_nats.where(f.index != 3)),
        {},
        r"loss_nats: 1 of 28 values are no finite numbers, the first at a-2048",
    ),
    "infinity": (lambda f: f.assign(d_model=f.d_model.astype(float).replace(768, np.inf)), {}, r"d_model: 4 of 28"),
    "text": (lambda f: f.assign(d_model="wide"), {}, r"d_model: 28 of 28 values are no finite numbers"),
    "duplicate rows": (lambda f: pd.concat([f, f.iloc[[4]]]), {}, r"2 rows repeat one another \(model_id a-2560"),
    "duplicate rows without ids": (
        lambda f: pd.concat([f, f.iloc[[4]]]).drop(columns="model_id"),
        {},
        r"2 rows repeat one another",
    ),
    "a missing column": (lambda f: f.drop(columns="d_model"), {}, r"no column 'd_model'; it has model_id, family"),
    "mixed units": (lambda f: f.assign(loss_unit=["byte"] + ["token"] * 27), {}, r"counted over 2 units"),
    "no rows": (lambda f: f.iloc[:0], {}, r"no rows"),
    "a width of zero": (lambda f: f.assign(d_model=f.d_model.replace(512, 0)), {}, r"d_model: found 0 among"),
    "two columns for one variable": (lambda f: f, {"x": ("d_model", "loss_nats")}, r"a function of x; 2 columns"),
    "an exponent per group": (lambda f: f, {"per_group": ("alpha",)}, r"'alpha' cannot be per group"),
    "per group without a group": (lambda f: f, {"group": (), "per_group": ("E",)}, r"no group column is named"),
    "weights without their objective": (lambda f: f, {"weights": "d_model"}, r"go together"),
    "a negative weight": (
        lambda f: f.assign(w=-1.0),
        {"weights": "w", "objective": "weighted"},
        r"found the weight -1",
    ),
    "a logarithm of a negative loss": (
        lambda f: f.assign(loss_nats=f.loss_nats - 2),
        {"objective": "log-least-squares"},
        r"log-least-squares needs values above 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str) -> None:
    change, options, message = BAD[case]
    with pytest.raises(FitError, match=message) as raised:
        fit_law(
            **(
                {"law": "power-floor", "frame": change(losses()), "x": "d_model", "group": ("family", "dataset")}
                | options
            )
        )
    assert "\n" not in str(raised.value)


def test_an_unknown_objective_is_named() -> None:
    with pytest.raises(UnknownNameError, match="huber-log"):
        floor_fit(losses(), objective="huber")


def test_a_fit_says_what_it_is() -> None:
    fit = floor_fit(losses())
    assert (fit.n_points, fit.n_parameters, fit.degrees_of_freedom) == (28, 6, 22)
    assert str(fit).startswith("power-floor: alpha = 0.")
    assert fit.ranges == {"d_model": (512.0, 5120.0)}
    assert fit.mse == pytest.approx(np.mean(fit.residuals() ** 2))
    row = fit.design.frame.iloc[3]
    predicted = fit.predict({"d_model": row.d_model}, group="a/c4")
    assert predicted == pytest.approx([row.loss_nats - fit.residuals()[3]])
    assert fit.covariance is not None
    assert np.sqrt(np.diag(fit.covariance)) == pytest.approx(list(fit.stderr.values()))
    with pytest.raises(FitError, match="Name one of: a/c4, a/pile"):
        fit.predict({"d_model": 1024})
    with pytest.raises(FitError, match="no 'd_model'"):
        fit.predict({"width": 1024}, group="a/c4")


def test_an_exponent_at_the_edge_is_not_identified() -> None:
    frame = losses(noise=0).assign(loss_nats=lambda f: 3 - 0.1 * np.log(f.d_model) + 0.01 * np.log(f.d_model) ** 2)
    fit = fit_law("power-floor", frame[frame.family == "a"], x="d_model", group="dataset")
    assert not fit.identified
    assert "alpha ran to the edge of its range" in str(fit)
    assert profile_interval(fit).open


def test_scale_of_the_points_does_not_matter() -> None:
    frame = losses()
    one, other = floor_fit(frame), floor_fit(frame.assign(d_model=frame.d_model * 1e6, loss_nats=frame.loss_nats * 1e3))
    assert one.params["alpha"] == pytest.approx(other.params["alpha"], rel=1e-8)
    assert one.condition == pytest.approx(other.condition, rel=0.9)
    assert one.stderr["alpha"] == pytest.approx(other.stderr["alpha"], rel=1e-6)


@pytest.mark.parametrize("objective", ["least-squares", "weighted", "log-least-squares", "huber-log"])
def test_order_of_the_rows_does_not_matter(objective: str) -> None:
    frame = losses().assign(w=1.0)
    options = {"objective": objective} | ({"weights": "w"} if objective == "weighted" else {})
    one, other = floor_fit(frame, **options), floor_fit(frame.iloc[::-1], **options)
    assert one.params["alpha"] == pytest.approx(other.params["alpha"], rel=1e-3 if objective == "huber-log" else 1e-7)


def test_huber_is_not_moved_by_one_wild_point() -> None:
    frame = losses(noise=0.002)
    wild = frame.assign(loss_nats=frame.loss_nats.where(frame.index != 0, frame.loss_nats + 3))
    assert floor_fit(wild, objective="huber-log").params["alpha"] == pytest.approx(0.8, abs=0.03)
    assert floor_fit(wild).params["alpha"] > 1.5
    with pytest.raises(FitError, match="bootstrap_models"):
        profile_interval(floor_fit(wild, objective="huber-log"))
    with pytest.raises(FitError, match="no standard error"):
        jacobian_interval(floor_fit(wild, objective="huber-log"), "alpha")


def test_the_profile_ends_where_the_f_bound_is_met() -> None:
    from scipy import stats

    fit = floor_fit(losses())
    interval = profile_interval(fit, level=0.9)
    for end in (interval.low, interval.high):
        assert end is not None
        held = solve(fit.design, fit.objective, fixed={"alpha": end}).objective
        statistic = (held / fit.solution.objective - 1) * fit.degrees_of_freedom
        assert stats.f.cdf(statistic, 1, fit.degrees_of_freedom) == pytest.approx(0.9, abs=1e-4)
        assert exponent_test(fit, end).p_value == pytest.approx(0.1, abs=1e-4)
    wider = profile_interval(fit, level=0.99)
    assert wider.low is not None
    assert wider.low < interval.low


def test_a_line_in_logarithms_is_least_squares_of_a_line() -> None:
    frame = losses().query("family == 'a' and dataset == 'c4'")
    fit = fit_law("power", frame, x="d_model", objective="log-least-squares")
    (slope, level), covariance = np.polyfit(np.log(frame.d_model), np.log(frame.loss_nats), 1, cov=True)
    assert fit.params == pytest.approx({"alpha": -slope, "A": np.exp(level)}, rel=1e-8)
    assert fit.stderr["alpha"] == pytest.approx(np.sqrt(covariance[0, 0]), rel=1e-6)
    profile, plain = profile_interval(fit), jacobian_interval(fit, "alpha")
    assert (profile.low, profile.high) == pytest.approx((plain.low, plain.high), abs=1e-5)


def test_bootstrap_draws_are_refits_and_repeat() -> None:
    fit = floor_fit(losses())
    drawn = bootstrap_models(fit, draws=60, seed=5)
    assert drawn.samples["alpha"] == pytest.approx(bootstrap_models(fit, draws=60, seed=5).samples["alpha"])
    assert not np.allclose(drawn.samples["alpha"], bootstrap_models(fit, draws=60, seed=6).samples["alpha"])
    # the same draws, each refitted from nothing
    rng, counts = np.random.default_rng(5), np.zeros((60, 14))
    for family in (slice(0, 7), slice(7, 14)):
        counts[:, family] = rng.multinomial(7, np.full(7, 1 / 7), size=60)
    order = sorted(fit.design.frame.model_id.unique())
    for k in (0, 17, 59):
        weights = fit.design.frame.model_id.map(dict(zip(order, counts[k], strict=True))).to_numpy(dtype=float)
        exact = solve(fit.design.weighted(weights), "least-squares").exponents[0]
        assert drawn.samples["alpha"][k] == pytest.approx(exact, abs=2e-4)


def test_bootstrap_by_the_general_route_agrees() -> None:
    frame = losses(noise=0.005).assign(w=1.0)
    fast = bootstrap_models(floor_fit(frame), draws=40, seed=2)
    slow = bootstrap_models(floor_fit(frame, objective="log-least-squares"), draws=40, seed=2)
    assert slow.sd("alpha") == pytest.approx(fast.sd("alpha"), rel=0.5)
    assert slow.samples["alpha"] == pytest.approx(fast.samples["alpha"], abs=0.1)


def test_bootstrap_of_three_models_is_refused() -> None:
    frame = losses().query("family == 'a' and d_model <= 1024")
    fit = floor_fit(frame, group="dataset")
    with pytest.raises(FitError, match="too few models to resample"):
        bootstrap_models(fit, draws=50)


def test_means_of_models_give_the_same_estimate_and_honest_errors() -> None:
    rng = np.random.default_rng(4)
    frame = losses(noise=0)
    shared = dict(zip(frame.model_id.unique(), rng.normal(0, 0.03, 14), strict=True))
    fit = floor_fit(frame.assign(loss_nats=frame.loss_nats + frame.model_id.map(shared)))
    means = fit_model_means(fit)
    assert means.params == pytest.approx(fit.params, rel=1e-6)
    assert (means.n_points, means.n_parameters) == (14, 4)
    # the data sets only repeat the models' errors, so two of them make the plain error too small by about √2
    assert means.stderr["alpha"] / fit.stderr["alpha"] == pytest.approx(np.sqrt(2 * 22 / 20), rel=0.1)
    with pytest.raises(FitError, match="different datasets"):
        fit_model_means(floor_fit(frame.iloc[1:]))
    with pytest.raises(FitError, match="say the same as the single losses only"):
        fit_model_means(floor_fit(frame, group="family"))


def test_shared_and_separate_laws() -> None:
    alike = shared_test(floor_fit(losses()))
    unlike = pd.concat([losses(alpha=0.8).query("family == 'a'"), losses(alpha=0.6).query("family == 'b'")])
    assert alike.p_value > 0.01
    assert shared_test(floor_fit(unlike)).p_value < 1e-6
    assert alike.restrictions == 2


def test_a_variant_that_cannot_be_fitted_says_why() -> None:
    fit = floor_fit(losses())
    refused = window(fit, at_most=600)
    assert refused.fit is None
    assert "all 4 rows have the one value 512" in str(refused.refused)
    assert refused.to_dict()["identified"] is False
    weighted = floor_fit(losses().assign(w=np.arange(1.0, 29)), objective="weighted", weights="w")
    again = refit(weighted, weighted.design.frame, "same", "rows").fit
    assert again is not None
    assert again.params == pytest.approx(weighted.params)


def test_the_slope_error_is_of_one_law() -> None:
    with pytest.raises(FitError, match="Fit that law"):
        authors_slope_error(fit_law("power", losses(), x="d_model"))


def test_a_summary_is_json_and_text() -> None:
    summary = summarise("made up", floor_fit(losses()), draws=50)
    told = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert told["profile"]["alpha"]["open"] is False
    assert {v["kind"] for v in told["variants"]} >= {"without model_id", "without family", "one family", "one dataset"}
    assert told["published"] is None
    assert "95 % profile interval" in summary.text()
    assert summarise("no draws", floor_fit(losses()), draws=0).bootstrap is None


def test_overlaps_that_fall_as_one_over_m() -> None:
    heads = pd.DataFrame(
        {
            "model_id": [f"{f}-{m}" for f in "ab" for m in WIDTHS],
            "family": [f for f in "ab" for _ in WIDTHS],
            "columns": [m for _ in "ab" for m in WIDTHS],
            "mean_squared_overlap": [a / m for a in (1.0, 3.0) for m in WIDTHS],
            "centred_mean_squared_overlap": [m**-0.9 for _ in "ab" for m in WIDTHS],
        }
    )
    rng = np.random.default_rng(0)
    for name in ("mean_squared_overlap", "centred_mean_squared_overlap"):
        heads[name] *= np.exp(rng.normal(0, 0.01, 14))
    fits = {(f.kind, f.name): f.fit.params["alpha"] for f in overlap_summary(heads).fits}
    assert fits["raw", "one slope, a level a family"] == pytest.approx(1, abs=0.02)
    assert fits["centred", "all heads"] == pytest.approx(0.9, abs=0.02)
    assert {"a", "b"} <= {name for _, name in fits}
    with pytest.raises(FitError, match="hold no overlaps"):
        overlaps_of_records(pd.DataFrame())


def test_published_overlaps() -> None:
    found = overlap_summary(load_overlaps("liu2025"))
    pooled = next(f for f in found.fits if f.name == "all heads")
    assert pooled.fit.n_points == 25
    assert pooled.fit.params["alpha"] == pytest.approx(1.255, abs=0.005)
    assert any("centred" in line for line in found.not_done)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["fit", *map(str, arguments)])


def test_the_verb_offers_every_objective() -> None:
    assert tuple(OBJECTIVES) == OFFERED


def test_the_verb_on_the_published_fit() -> None:
    told = run("liu2025", "--bootstrap", 50)
    assert told.exit_code == 0, told.output
    for expected in (
        "0.9098     0.9100",
        "0.0360",
        "largest difference of the 16 floors",
        "opt-350m at width 512",
        "Take care",
    ):
        assert expected in told.output
    as_json = json.loads(run("liu2025", "--bootstrap", 50, "--json").output)
    assert as_json["fit"]["params"]["alpha"] == pytest.approx(0.91, abs=1e-3)
    assert as_json["bootstrap"]["draws"] == 50


def test_the_verb_on_an_open_series() -> None:
    told = json.loads(run("pythia-pile", "--bootstrap", 0, "--json").output)
    assert told["profile"]["alpha"]["high"] is None
    assert told["profile"]["alpha"]["open"] is True
    assert any("do not quote it" in line for line in told["warnings"])


def test_the_verb_on_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    losses().to_csv(path, index=False)
    arguments = (
        "--csv",
        path,
        "--law",
        "power-floor",
        "--x",
        "d_model",
        "--group",
        "family,dataset",
        "--per-group",
        "E",
    )
    told = json.loads(run(*arguments, "--bootstrap", 20, "--json").output)
    assert told["fit"]["params"] == pytest.approx(floor_fit(losses()).params)
    one = json.loads(run(*arguments, "--where", "family=a", "--bootstrap", 0, "--json").output)
    assert one["fit"]["n_points"] == 14
    wrong = run("--csv", path, "--x", "width")
    assert wrong.exit_code == FitError.exit_code
    assert "width" in wrong.stderr
    assert run(*arguments, "--where", "family=z").exit_code == FitError.exit_code
    assert run(*arguments, "--where", "colour=z").exit_code == FitError.exit_code


def test_the_verb_on_overlaps(tmp_path: Path) -> None:
    told = json.loads(run("overlaps", "--published", "--json").output)
    assert told["fits"][0]["name"] == "all heads"
    assert run("overlaps", "--results", tmp_path).exit_code == FitError.exit_code


def test_usage() -> None:
    assert run().exit_code == 2
    assert run("liu2025", "--csv", "x.csv").exit_code == 2
    assert run("liu2025", "--where", "family").exit_code == 2
    assert run("liu2026").exit_code == UnknownNameError.exit_code


def test_a_table_of_several_units_asks_for_one() -> None:
    with pytest.raises(FitError, match="units"):
        fit_law("power-floor", rows_of(recipe("gpt2_gpt3")), x="d_model", group=("family", "dataset"))
    kept = select(load_losses("gpt2_gpt3"), {"dataset": "lambada", "family": "gpt3"})
    assert fit_law("power-floor", kept, x="d_model").n_points == len(kept)
