"""Fits against certified values and an independent fitter.

DanWood is a NIST StRD nonlinear-regression data set (https://www.itl.nist.gov/div898/strd/nls/data/daniel_wood.shtml; E. S.
Keeping, Introduction to Statistical Inference, 1962, p. 354): y = b1·x^b2, which is the law "power" with A = b1, α = −b2.
Norris is one of its linear-regression sets (https://www.itl.nist.gov/div898/strd/lls/data/Norris.shtml), y = B0 + B1·x, which
is the law "inverse-floor" in 1/x with E = B0, A = B1. The other curves of that collection (Misra1a, MGH09, Rat43 …) have forms
that no row of LAWS has, so they would test scipy, not this package; in their place lmfit fits the package's own laws to its
own data.
"""

from __future__ import annotations

import lmfit
import numpy as np
import pandas as pd
import pytest

from llmsuper.scaling.fit import fit_law
from llmsuper.scaling.intervals import profile_interval
from llmsuper.scaling.laws import LAWS
from llmsuper.scaling.losses import load_losses

DANWOOD = pd.DataFrame(
    {
        "y": [2.138, 3.421, 3.597, 4.340, 4.882, 5.660],
        "x": [1.309, 1.471, 1.490, 1.565, 1.611, 1.680],
    }
)

NORRIS = """
0.2 0.1  337.4 338.8  118.2 118.1  884.6 888.0  10.1 9.2  226.5 228.1  666.3 668.5  996.3 998.5  448.6 449.1  777.0 778.9
558.2 559.2  0.4 0.3  0.6 0.1  775.5 778.1  666.9 668.8  338.0 339.3  447.5 448.9  11.6 10.8  556.0 557.7  228.1 228.3
995.8 998.0  887.6 888.8  120.2 119.6  0.3 0.3  0.3 0.6  556.8 557.6  339.1 339.3  887.2 888.0  999.0 998.5  779.0 778.9
11.1 10.2  118.3 117.6  229.2 228.9  669.1 668.4  448.9 449.2  0.5 0.2
"""


def test_norris_to_the_certified_digits() -> None:
    x, y = np.array(NORRIS.split(), dtype=float).reshape(-1, 2).T
    fit = fit_law("inverse-floor", pd.DataFrame({"x": 1 / x, "y": y}), x="x", y="y")
    assert fit.params["E"] == pytest.approx(-0.262323073774029, rel=1e-9)
    assert fit.params["A"] == pytest.approx(1.00211681802045, rel=1e-12)
    assert fit.stderr["E"] == pytest.approx(0.232818234301152, rel=1e-9)
    assert fit.stderr["A"] == pytest.approx(0.429796848199937e-03, rel=1e-9)
    assert fit.objective_value == pytest.approx(26.6173985294224, rel=1e-9)
    assert fit.degrees_of_freedom == 34


def test_danwood_to_the_certified_digits() -> None:
    fit = fit_law("power", DANWOOD, x="x", y="y")
    assert fit.params["A"] == pytest.approx(7.6886226176e-01, rel=1e-9)
    assert -fit.params["alpha"] == pytest.approx(3.8604055871, rel=1e-9)
    assert fit.stderr["A"] == pytest.approx(1.8281973860e-02, rel=1e-9)
    assert fit.stderr["alpha"] == pytest.approx(5.1726610913e-02, rel=1e-9)
    assert fit.objective_value == pytest.approx(4.3173084083e-03, rel=1e-9)
    assert fit.degrees_of_freedom == 4


def test_weights_of_two_are_rows_counted_twice() -> None:
    twice = fit_law("power", DANWOOD.assign(w=[1, 1, 2, 1, 1, 1.0]), x="x", y="y", objective="weighted", weights="w")
    # the second row is moved by less than any digit compared, for rows that repeat one another are refused
    rows = pd.concat([DANWOOD, DANWOOD.iloc[[2]] * (1 + 1e-12)])
    assert twice.params == pytest.approx(fit_law("power", rows, x="x", y="y").params, rel=1e-8)


def lmfit_of(frame: pd.DataFrame, alpha: float) -> tuple[lmfit.Minimizer, lmfit.minimizer.MinimizerResult]:
    """A, alpha and one E for each group, by lmfit's Levenberg-Marquardt over all of them."""
    groups = (frame["family"] + "/" + frame["dataset"]).to_numpy()
    codes = np.unique(groups, return_inverse=True)[1]
    m, y = frame["d_model"].to_numpy(dtype=float), frame["loss_nats"].to_numpy()
    params = lmfit.Parameters()
    params.add("alpha", alpha)
    params.add("logA", np.log(100.0))
    for g in range(codes.max() + 1):
        params.add(f"E{g}", 1.5)

    def residual(p: lmfit.Parameters) -> np.ndarray:
        floors = np.array([p[f"E{g}"].value for g in range(codes.max() + 1)])
        return y - np.exp(p["logA"].value - p["alpha"].value * np.log(m)) - floors[codes]

    fitter = lmfit.Minimizer(residual, params)
    return fitter, fitter.minimize(method="leastsq", ftol=1e-14, xtol=1e-14)


@pytest.mark.parametrize(
    ("table", "family", "dataset"), [("liu2025", None, None), ("fp16_perplexities", "opt", "wikitext2")]
)
def test_lmfit_agrees(table: str, family: str | None, dataset: str | None) -> None:
    frame = load_losses(table)
    if family is not None:
        frame = frame[(frame["family"] == family) & (frame["dataset"] == dataset)]
    ours = fit_law("power-floor", frame, x="d_model", group=("family", "dataset"))
    fitter, theirs = lmfit_of(frame, 0.7)
    assert ours.params["alpha"] == pytest.approx(theirs.params["alpha"].value, abs=1e-6)
    assert np.log(ours.params["A"]) == pytest.approx(theirs.params["logA"].value, abs=1e-5)
    assert ours.objective_value == pytest.approx(theirs.chisqr, rel=1e-9)
    assert ours.stderr["alpha"] == pytest.approx(theirs.params["alpha"].stderr, rel=1e-3)
    ends = lmfit.conf_interval(fitter, theirs, p_names=["alpha"], sigmas=[0.95], maxiter=500)["alpha"]
    interval = profile_interval(ours)
    assert (interval.low, interval.high) == pytest.approx((ends[0][1], ends[-1][1]), abs=1e-3)


def test_two_exponents_agree_with_lmfit() -> None:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"N": np.exp(rng.uniform(17, 25, 80)), "D": np.exp(rng.uniform(21, 27, 80))})
    law = LAWS["chinchilla"]
    true = {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
    frame["loss_nats"] = law.evaluate(frame[["N", "D"]].to_numpy(), true) + rng.normal(0, 0.01, 80)
    ours = fit_law("chinchilla", frame, x=("N", "D"))
    params = lmfit.Parameters()
    for name, start in {"E": 1.7, "a": 6.0, "b": 7.0, "alpha": 0.3, "beta": 0.3}.items():
        params.add(name, start)

    def residual(p: lmfit.Parameters) -> np.ndarray:
        v = p.valuesdict()
        first = np.exp(v["a"] - v["alpha"] * np.log(frame["N"].to_numpy()))
        second = np.exp(v["b"] - v["beta"] * np.log(frame["D"].to_numpy()))
        return frame["loss_nats"].to_numpy() - v["E"] - first - second

    theirs = lmfit.minimize(residual, params, ftol=1e-14, xtol=1e-14)
    for name in ("alpha", "beta", "E"):
        assert ours.params[name] == pytest.approx(theirs.params[name].value, abs=1e-5)
        assert ours.stderr[name] == pytest.approx(theirs.params[name].stderr, rel=1e-3)
