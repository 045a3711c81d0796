"""Turns a DataFrame and a law into the arrays of one fit, or says why it cannot be fitted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from llmsuper.errors import FitError
from llmsuper.scaling.losses import one_unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from llmsuper.scaling.laws import Array, ScalingLaw


@dataclass(frozen=True, eq=False)
class Design:
    """The rows of one fit as arrays. n points, v variables, g groups, p linear parameters.

    `x` is (n, v), `y` and `weights` (n,), `codes` (n,) the group of each row. Coefficients in `per_group` have one value per
    group, all other parameters are shared by every row.
    """

    law: ScalingLaw
    frame: pd.DataFrame
    x_names: tuple[str, ...]
    y_name: str
    group_names: tuple[str, ...]
    per_group: tuple[str, ...]
    x: Array
    y: Array
    weights: Array
    codes: np.ndarray[tuple[int], np.dtype[np.intp]]
    groups: tuple[str, ...]

    @cached_property
    def columns(self) -> tuple[tuple[int, int | None], ...]:
        """The linear parameters: (term, group), shared ones first, then by term and group."""
        terms = self.law.coefficients
        shared = [(j, None) for j, name in enumerate(terms) if name not in self.per_group]
        own = [(j, g) for j, name in enumerate(terms) if name in self.per_group for g in range(len(self.groups))]
        return (*shared, *own)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All parameters in the order of the Jacobian: exponents, then `columns`; `E[opt/wikitext]` for one group's."""
        linear = (self.law.coefficients[j] + ("" if g is None else f"[{self.groups[g]}]") for j, g in self.columns)
        return (*self.law.exponents, *linear)

    def spread(self, basis: Array) -> Array:
        """(n, terms) → (n, p): a per-group term becomes one column per group, zero outside it."""
        terms, inside = self._layout
        spread: Array = basis[:, terms] * inside
        return spread

    @cached_property
    def _layout(self) -> tuple[list[int], Array]:
        """The term of each column, and (n, p) whether a row is in the column's group."""
        inside = [np.ones(len(self.y)) if g is None else (self.codes == g).astype(np.float64) for _, g in self.columns]
        return [j for j, _ in self.columns], np.stack(inside, axis=1)

    def basis(self, exponents: Array) -> Array:
        """(n, p): what the linear parameters multiply."""
        return self.spread(self.law.basis(self.x, exponents))

    def jacobian(self, exponents: Array, linear: Array) -> Array:
        """∂ prediction / ∂ every parameter, (n, exponents + p), unweighted."""
        slopes = [self.spread(self.law.basis_slope(self.x, exponents, e)) @ linear for e in self.law.exponents]
        return np.column_stack([*slopes, self.basis(exponents)])

    def weighted(self, weights: Array) -> Design:
        """The same rows with other weights; a weight of 2 counts a row twice, 0 leaves it out."""
        return replace(self, weights=weights)


def make_design(
    law: ScalingLaw,
    frame: pd.DataFrame,
    *,
    x: str | Sequence[str],
    y: str,
    group: str | Sequence[str] = (),
    per_group: Sequence[str] | None = None,
    weights: str | None = None,
) -> Design:
    """Check the rows and take out the arrays. Without `per_group`, the floor is per group, or in a law that has none every
    coefficient. Raises `FitError` for anything that would make the numbers wrong: see the checks below.
    """
    x_names, group_names = _as_tuple(x), _as_tuple(group)
    if len(x_names) != len(law.variables):
        wanted = ", ".join(law.variables)
        raise FitError(
            f"{law.name}: the law is a function of {wanted}; {len(x_names)} columns were given ({', '.join(x_names)}). "
            f"Name one column for each of {wanted}, in this order."
        )
    used = (*x_names, y, *group_names, *((weights,) if weights else ()))
    missing = [name for name in used if name not in frame.columns]
    if missing:
        raise FitError(
            f"the table has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}. "
            "Name the column to use, or add it."
        )
    if per_group is None:
        per_group = () if not group_names else (law.floor,) if law.floor else law.coefficients
    unknown = [name for name in per_group if name not in law.coefficients]
    if unknown:
        raise FitError(
            f"{law.name}: {unknown[0]!r} cannot be per group; its coefficients are {', '.join(law.coefficients)}. "
            "Take one of these; for separate exponents, fit the groups one by one."
        )
    if per_group and not group_names:
        raise FitError(f"{law.name}: {per_group[0]} is to be per group, and no group column is named. Name one.")
    _check_rows(frame, x_names, y, group_names)
    numbers = {name: _numbers(frame, name) for name in (*x_names, y, *((weights,) if weights else ()))}
    values = np.column_stack([numbers[name] for name in x_names])
    for name, column in zip(x_names, values.T, strict=True):
        if column.min() <= 0:
            raise FitError(f"{name}: found {column.min():g} among the {len(frame)} rows; a power needs values above 0.")
        if len(np.unique(column)) < 2:
            raise FitError(
                f"{name}: all {len(frame)} rows have the one value {column[0]:g}; no exponent follows from that. "
                "Add models of other sizes, or use a law without this variable."
            )
    labels = _labels(frame, group_names)
    groups = tuple(dict.fromkeys(labels))
    index = {name: g for g, name in enumerate(groups)}
    weight = numbers[weights] if weights else np.ones(len(frame))
    if weight.min() <= 0:
        raise FitError(f"{weights}: found the weight {weight.min():g}; weights must be above 0. Drop the row instead.")
    design = Design(
        law=law,
        frame=frame.reset_index(drop=True),
        x_names=x_names,
        y_name=y,
        group_names=group_names,
        per_group=tuple(per_group),
        x=values,
        y=numbers[y],
        weights=weight,
        codes=np.array([index[label] for label in labels], dtype=np.intp),
        groups=groups,
    )
    if len(frame) <= len(design.names):
        raise FitError(
            f"{law.name}: {len(frame)} points for {len(design.names)} parameters leave nothing to judge the fit by. "
            "Add points, share more parameters, or take a law with fewer."
        )
    return design


def _as_tuple(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _labels(frame: pd.DataFrame, names: tuple[str, ...]) -> list[str]:
    if not names:
        return ["all"] * len(frame)
    return ["/".join(map(str, key)) for key in zip(*(frame[name] for name in names), strict=True)]


def _check_rows(frame: pd.DataFrame, x_names: tuple[str, ...], y: str, group_names: tuple[str, ...]) -> None:
    if frame.empty:
        raise FitError("the table to fit has no rows. Check what was selected from it.")
    if y.startswith("loss"):
        one_unit(frame, group_names)
    # what makes a row one measurement; without model ids only a row that is repeated as a whole is surely a mistake
    named = "model_id" in frame.columns
    key = (
        [name for name in ("model_id", "dataset", *x_names) if name in frame.columns] if named else list(frame.columns)
    )
    repeated = frame[frame.duplicated(key, keep=False)]
    if len(repeated):
        first = ", ".join(f"{name} {repeated.iloc[0][name]}" for name in key[:3])
        raise FitError(
            f"{len(repeated)} rows repeat one another ({first}). Keep one row for each model and data set "
            "(one checkpoint, one split), or fit what tells them apart: a point that counts twice makes errors too small."
        )


def _numbers(frame: pd.DataFrame, name: str) -> Array:
    import pandas as pd

    values: Array = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        label = frame.iloc[bad[0]]["model_id"] if "model_id" in frame.columns else f"row {bad[0] + 1}"
        raise FitError(
            f"{name}: {len(bad)} of {len(values)} values are no finite numbers, the first at {label}. "
            "Drop these rows, or fill them in."
        )
    return values
