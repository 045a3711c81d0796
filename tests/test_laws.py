"""Laws over every row of LAWS: each recovers its own parameters, and its derivatives are its differences."""

from __future__ import annotations

import zlib

import numpy as np
import pandas as pd
import pytest

from llmsuper.errors import UnknownNameError
from llmsuper.scaling.fit import fit_law
from llmsuper.scaling.laws import LAWS, ScalingLaw

EVERY_LAW = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
SIZES = {"x": (256, 16384), "m": (256, 16384), "N": (1e7, 1e11), "D": (1e9, 1e12), "l": (4, 96)}
TRUE = {"alpha": 0.62, "beta": 0.41, "gamma": 0.93, "E": 1.7}


def points(law: ScalingLaw, count: int = 60) -> tuple[pd.DataFrame, dict[str, float]]:
    """Noiseless points of the law at spread-out sizes, every term about as large as the next, and its parameters."""
    rng = np.random.default_rng(zlib.crc32(law.name.encode()))
    frame = pd.DataFrame({v: np.exp(rng.uniform(*np.log(SIZES[v]), size=count)) for v in law.variables})
    params = {name: TRUE[name] for name in law.exponents}
    for term in law.terms:
        if term.variable is None:
            params[term.coefficient] = TRUE["E"]
        else:
            power = params[term.exponent] if isinstance(term.exponent, str) else term.exponent
            params[term.coefficient] = 1.3 * SIZES[term.variable][0] ** power
    return frame.assign(loss_nats=law.evaluate(frame.to_numpy(), params)), params


@EVERY_LAW
@pytest.mark.parametrize("objective", ["least-squares", "log-least-squares", "huber-log"])
def test_recovers_its_own_parameters(law: ScalingLaw, objective: str) -> None:
    frame, params = points(law)
    fit = fit_law(law.name, frame, x=law.variables, objective=objective)
    # the Huber objective is flat at its minimum, and a quasi-Newton method stops there
    tolerance = 1e-2 if objective == "huber-log" else 1e-6
    assert fit.params == pytest.approx(params, rel=tolerance)
    assert fit.identified
    assert fit.n_parameters == len(params)


@EVERY_LAW
def test_derivatives_are_differences(law: ScalingLaw) -> None:
    frame, params = points(law, 8)
    x, exponents = frame[list(law.variables)].to_numpy(), np.array([params[e] for e in law.exponents])
    for i, name in enumerate(law.exponents):
        step = np.where(np.arange(len(exponents)) == i, 1e-5, 0.0)
        difference = (law.basis(x, exponents + step) - law.basis(x, exponents - step)) / 2e-5
        np.testing.assert_allclose(law.basis_slope(x, exponents, name), difference, rtol=1e-6, atol=1e-12)


@EVERY_LAW
def test_a_row_is_complete(law: ScalingLaw) -> None:
    assert LAWS[law.name] is law
    assert law.variables
    assert law.source
    assert law.exponent_range[0] < law.exponent_range[1]
    assert law.floor is None or law.exponent_range[0] > 0, "beside a floor, an exponent of 0 makes a second floor"


@EVERY_LAW
def test_every_coefficient_may_be_per_group(law: ScalingLaw) -> None:
    """Two groups that differ in all coefficients and share the exponents."""
    frame, params = points(law)
    other = {k: v * (1 if k in law.exponents else 1.5) for k, v in params.items()}
    second = frame.assign(loss_nats=law.evaluate(frame[list(law.variables)].to_numpy(), other))
    both = pd.concat([frame.assign(family="one"), second.assign(family="two")])
    fit = fit_law(law.name, both, x=law.variables, group="family", per_group=law.coefficients)
    assert fit.params == pytest.approx({e: params[e] for e in law.exponents}, rel=1e-6)
    for name in law.coefficients:
        assert fit.group_params[name] == pytest.approx({"one": params[name], "two": other[name]}, rel=1e-5)
    if law.exponents:
        np.testing.assert_allclose(fit.predict(frame, group="two"), second["loss_nats"], rtol=1e-6)


def test_an_unknown_law_names_the_others() -> None:
    frame, _ = points(LAWS["power-floor"])
    with pytest.raises(UnknownNameError, match=r"there are: chinchilla, .*power-floor"):
        fit_law("powerfloor", frame, x="x")
