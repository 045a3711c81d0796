"""Fits a scaling law to a DataFrame and returns named parameters with errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llmsuper.errors import FitError, lookup
from llmsuper.scaling.design import make_design
from llmsuper.scaling.laws import LAWS
from llmsuper.scaling.solve import HUBER_DELTA, OBJECTIVES, Solution, solve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from llmsuper.scaling.design import Design
    from llmsuper.scaling.laws import Array


@dataclass(frozen=True, eq=False)
class ScalingLawFit:
    """A fitted law.

    params            shared parameters by name
    group_params      per-group parameters: name → group → value; a group is its columns' values joined by "/"
    stderr            one standard error a name of `names`, from the Jacobian with every parameter free; empty for huber-log,
                      whose errors come from `bootstrap_models`
    covariance        (k, k) of `names`, k parameters; None where stderr is empty
    mse, rmse         mean squared residual, its root: of y, or of log y for the objectives on logarithms
    identified        False where `problems` says why the numbers are not determined by the points
    condition         condition number of the Jacobian with its columns scaled to length 1
    """

    law: str
    formula: str
    objective: str
    params: dict[str, float]
    group_params: dict[str, dict[str, float]]
    names: tuple[str, ...]
    stderr: dict[str, float]
    covariance: Array | None
    n_points: int
    n_parameters: int
    objective_value: float
    mse: float
    rmse: float
    condition: float
    identified: bool
    problems: tuple[str, ...]
    ranges: dict[str, tuple[float, float]]
    groups: tuple[str, ...]
    delta: float
    design: Design = field(repr=False)
    solution: Solution = field(repr=False)

    @property
    def degrees_of_freedom(self) -> int:
        return self.n_points - self.n_parameters

    def predict(self, at: Mapping[str, Any] | pd.DataFrame, group: str | None = None) -> Array:
        """The law's value where `at` gives the columns that were fitted (scalars or equal lengths), shape (rows,).

        `group` is needed where a parameter is per group. Raises `FitError` for a column or a group that is not there.
        """
        missing = [name for name in self.design.x_names if name not in at]
        if missing:
            raise FitError(f"{self.law}: no {missing[0]!r} to predict at; give {', '.join(self.design.x_names)}.")
        x = np.stack(
            np.broadcast_arrays(*(np.asarray(at[n], dtype=np.float64).ravel() for n in self.design.x_names)), 1
        )
        params = dict(self.params)
        for name, by_group in self.group_params.items():
            if group not in by_group:
                raise FitError(
                    f"{self.law}: {name} is per group, and {group!r} is none of them. "
                    f"Name one of: {', '.join(by_group)}."
                )
            params[name] = by_group[group]
        return LAWS[self.law].evaluate(x, params)

    def residuals(self) -> Array:
        """Data minus law, (n,), in the order of the rows."""
        fitted: Array = self.design.y - self.design.basis(self.solution.exponents) @ self.solution.linear
        return fitted

    def to_dict(self) -> dict[str, Any]:
        """Everything but the points, as plain JSON values."""
        return {
            "law": self.law,
            "formula": self.formula,
            "objective": self.objective,
            "params": self.params,
            "group_params": self.group_params,
            "stderr": self.stderr,
            "n_points": self.n_points,
            "n_parameters": self.n_parameters,
            "objective_value": self.objective_value,
            "mse": self.mse,
            "rmse": self.rmse,
            "condition": self.condition if np.isfinite(self.condition) else None,
            "identified": self.identified,
            "problems": list(self.problems),
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
        }

    def __str__(self) -> str:
        parts = [
            f"{name} = {value:.4g}" + (f" ± {self.stderr[name]:.2g}" if name in self.stderr else "")
            for name, value in self.params.items()
        ]
        parts += [f"{name} for {len(values)} groups" for name, values in self.group_params.items()]
        end = "" if self.identified else f"; NOT IDENTIFIED: {'; '.join(self.problems)}"
        return f"{self.law}: {', '.join(parts)}; {self.n_points} points, rmse {self.rmse:.4g}{end}"


def fit_law(
    law: str,
    frame: pd.DataFrame,
    *,
    x: str | Sequence[str],
    y: str = "loss_nats",
    group: str | Sequence[str] = (),
    per_group: Sequence[str] | None = None,
    objective: str = "least-squares",
    weights: str | None = None,
    delta: float = HUBER_DELTA,
) -> ScalingLawFit:
    """Fit the law of that name to the rows of `frame`.

    `x` names the columns of the law's variables, in its order. `group` names the columns whose values make a group, and
    `per_group` the coefficients with one value per group: without it the floor, or in a law without one every coefficient.
    The paper's fit is `fit_law("power-floor", losses, x="d_model", group=("family", "dataset"))`. `weights` names a column,
    proportional to 1/variance, for the objective "weighted". `delta` is the corner of Huber's loss, in nats of log loss.

    Raises `UnknownNameError` for an unknown law or objective, `FitError` for rows that cannot be fitted.
    """
    lookup(OBJECTIVES, objective, "objective")
    if (objective == "weighted") != (weights is not None):
        raise FitError(
            f"objective {objective!r} with weights={weights!r}: a weights column and the objective 'weighted' go together."
        )
    row = lookup(LAWS, law, "scaling law")
    design = make_design(row, frame, x=x, y=y, group=group, per_group=per_group, weights=weights)
    return fit_design(design, objective, delta=delta)


def fit_design(
    design: Design, objective: str = "least-squares", *, delta: float = HUBER_DELTA, start: Array | None = None
) -> ScalingLawFit:
    """Fit what `make_design` checked; with `start` (exponents) the scan for a first guess is left out."""
    solution = solve(design, objective, delta=delta, start=start)
    law, names = design.law, design.names
    values = dict(zip(names, (*solution.exponents.tolist(), *solution.linear.tolist()), strict=True))
    prediction = design.basis(solution.exponents) @ solution.linear
    slope = design.jacobian(solution.exponents, solution.linear) * np.sqrt(design.weights)[:, None]
    if objective in ("log-least-squares", "huber-log"):
        residual = np.log(design.y) - np.log(prediction)
        slope = slope / prediction[:, None]
    else:
        residual = design.y - prediction
    covariance, condition = _covariance(slope, residual * np.sqrt(design.weights), len(names))
    problems = [f"{name} ran to the edge of its range, {values[name]:.3g}" for name in solution.at_edge]
    if not condition < 1e12:
        problems.append("the points do not tell the parameters apart (the Jacobian is singular)")
    if objective == "huber-log" or not condition < 1e12:
        covariance = None
    stderr = {} if covariance is None else dict(zip(names, np.sqrt(np.diag(covariance)).tolist(), strict=True))
    mse = float(np.mean(residual**2))
    return ScalingLawFit(
        law=law.name,
        formula=law.formula,
        objective=objective,
        params={name: values[name] for name in (*law.exponents, *law.coefficients) if name not in design.per_group},
        group_params={c: {g: values[f"{c}[{g}]"] for g in design.groups} for c in design.per_group},
        names=names,
        stderr=stderr,
        covariance=covariance,
        n_points=len(design.y),
        n_parameters=len(names),
        objective_value=solution.objective,
        mse=mse,
        rmse=float(np.sqrt(mse)),
        condition=condition,
        identified=not problems,
        problems=tuple(problems),
        ranges={name: (float(c.min()), float(c.max())) for name, c in zip(design.x_names, design.x.T, strict=True)},
        groups=design.groups,
        delta=delta,
        design=design,
        solution=solution,
    )


def _covariance(slope: Array, residual: Array, parameters: int) -> tuple[Array | None, float]:
    """s² (JᵀJ)⁻¹ with s² = RSS / (n − parameters), by the singular values of J with columns of length 1."""
    scale = np.linalg.norm(slope, axis=0)
    if np.any(scale == 0):
        return None, np.inf
    _, singular, vt = np.linalg.svd(slope / scale, full_matrices=False)
    condition = float(singular[0] / singular[-1]) if singular[-1] > 0 else np.inf
    if not condition < 1e12:
        return None, condition
    variance = float(residual @ residual) / (len(residual) - parameters)
    root = vt.T / singular / scale[:, None]
    return variance * root @ root.T, condition
