"""Fits each model's mean over its data sets, so that errors which a model's losses share are counted once.

With the same data sets for every model of a family the estimate is that of all the losses, for the floors absorb the
means over data sets. The scatter is now between models, which are what was sampled: profile and Jacobian intervals of this
fit hold whether or not a model errs alike on all texts, where those of the single losses need it not to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmsuper.errors import FitError
from llmsuper.scaling.design import make_design
from llmsuper.scaling.fit import fit_design

if TYPE_CHECKING:
    from llmsuper.scaling.fit import ScalingLawFit


def fit_model_means(fit: ScalingLawFit, unit: str = "model_id", within: str = "dataset") -> ScalingLawFit:
    """The same law on the means over `within` of each `unit`, whose floors are now per group without `within`.

    Raises `FitError` where units of one group are measured on different data sets, where parameters other than the floor
    are per group, for weights or another objective than least squares, and where there is nothing to average.
    """
    design = fit.design
    floor = design.law.floor
    groups = tuple(name for name in design.group_names if name != within)
    if (
        fit.objective != "least-squares"
        or floor is None
        or design.per_group != (floor,)
        or within not in design.group_names
    ):
        raise FitError(
            f"{fit.law}: means over {within} say the same as the single losses only by least squares with one floor for each "
            f"{within}. Fit with group ({', '.join((*groups, within))}), or use the bootstrap."
        )
    if unit not in design.frame.columns:
        raise FitError(f"{fit.law}: no column {unit!r} says which losses are of one model. Add it.")
    frame = design.frame[[unit, *groups, within, *design.x_names, design.y_name]]
    together = frame.groupby([unit, *groups], sort=False)
    sets = together[within].agg(lambda column: "/".join(sorted(map(str, column))))
    kinds = sets.groupby(list(groups)).nunique() if groups else np.array([sets.nunique()])
    if np.max(kinds) > 1:
        raise FitError(
            f"{fit.law}: models of one group are measured on different {within}s, so their means do not compare. "
            "Keep the data sets that all have, or use the bootstrap."
        )
    means = together[[*design.x_names, design.y_name]].mean().reset_index()
    per_group = (floor,) if groups else ()
    return fit_design(
        make_design(design.law, means, x=design.x_names, y=design.y_name, group=groups, per_group=per_group)
    )
