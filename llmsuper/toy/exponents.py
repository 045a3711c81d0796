"""How the loss of toy models falls with m: one exponent for each γ and frequency law, by the fits of `scaling`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmsuper.scaling.fit import fit_law

if TYPE_CHECKING:
    import pandas as pd

GROUP: tuple[str, ...] = ("n", "distribution", "alpha", "scale", "activation_density", "gamma", "steps", "batch")
"""Parameters that the points of one line share; m and the seed vary."""

LEAST_WIDTHS = 3


def loss_exponents(records: pd.DataFrame, *, y: str = "test_loss") -> pd.DataFrame:
    """α_m of loss ∝ m^−α_m for every group of `ToyStore.frame()` with at least three m, one row each.

    Columns: those of `GROUP`, then `exponent`, `stderr` (of the straight line through all points, seeds included, in
    logarithms: what the paper's ± is), `r_squared`, `points`, `widths`. Empty where no group has enough widths.
    """
    import pandas as pd

    found = []
    for values, rows in records.groupby(list(GROUP), dropna=False, sort=True) if len(records) else ():
        widths = rows["m"].nunique()
        if widths < LEAST_WIDTHS:
            continue
        fit = fit_law("power", rows, x="m", y=y, objective="log-least-squares")
        found.append(
            {
                **dict(zip(GROUP, values, strict=True)),
                "exponent": fit.params["alpha"],
                "stderr": fit.stderr["alpha"],
                "r_squared": 1 - fit.mse / float(np.log(fit.design.y).var()),
                "points": fit.n_points,
                "widths": widths,
            }
        )
    return pd.DataFrame(found, columns=[*GROUP, "exponent", "stderr", "r_squared", "points", "widths"])
