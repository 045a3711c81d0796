"""Reads the published curves of the toy model, which come with the model lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsuper.errors import CatalogError, lookup
from llmsuper.hub.catalog import model_lists_folder

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

TOY_CURVES: dict[str, tuple[str, ...]] = {
    "loss_n10240": ("regime", "weight_decay", "feature_distribution", "m", "loss", "loss_std"),
    "r_squared": ("regime", "feature_distribution", "r_squared_bar", "smallest_m_in_fit", "model_exponent_recomputed"),
    "represented_fraction": ("data_exponent", "weight_decay", "m", "represented_fraction"),
    "represented_fraction_map": ("data_exponent", "weight_decay", "m", "represented_fraction", "half_width"),
    "exponents": ("data_exponent", "weight_decay", "model_exponent", "standard_error"),
    "exponent_map": ("data_exponent", "weight_decay", "model_exponent", "half_width"),
    "uniform_loss": ("data_exponent", "weight_decay", "m", "loss", "unlearned_features", "loss_by_unlearned"),
    "strong_fraction": ("data_exponent", "m", "strongly_represented_fraction"),
    "overlap_range": ("m", "mean_square_overlap_min", "mean_square_overlap_max", "lower_bound_curve"),
    "activation_density": ("weight_decay", "m", "activation_density", "loss"),
}
"""The curves by name, and the columns that each must have; `model_lists/toy/README.md` says which figure each is."""


def load_toy_curve(name: str, lists: Path | None = None) -> pd.DataFrame:
    """The published curve of this name, one row a point, every column but the two of names as float64.

    `lists` is a folder of model lists; None: the one that comes with llmsuper. Raises `UnknownNameError` for a name that is
    not in `TOY_CURVES`, `CatalogError` for a table that is missing or malformed.
    """
    import pandas as pd

    required = lookup(TOY_CURVES, name, "curve of the toy model")
    path = (lists or model_lists_folder()) / "toy" / f"{name}.csv"
    try:
        frame = pd.read_csv(path)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise CatalogError(f"{path}: cannot be read as a table ({error}). Restore the file.") from error
    if missing := [column for column in required if column not in frame]:
        raise CatalogError(f"{path}: {', '.join(missing)} is missing. It has: {', '.join(frame)}. Add the column.")
    for column in frame.columns.difference(["regime", "feature_distribution"]):
        numbers = pd.to_numeric(frame[column], errors="coerce")
        if (bad := numbers.isna()).any():
            line = int(bad.argmax()) + 2
            raise CatalogError(
                f"{path}, line {line}: {column} is not a number ({frame[column][line - 2]!r}). Correct it."
            )
        frame[column] = numbers.astype("float64")
    return frame
