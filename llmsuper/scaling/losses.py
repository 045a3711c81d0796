"""Reads losses into tidy frames: the published tables in model_lists, or a user's CSV; refuses to mix their units.

One row per loss. `loss_nats` is the loss in nats for each `loss_unit`; `value` is the number as it was published, as the
`metric` says. Every reader gives the columns of `TIDY` first and keeps what further columns there are.
"""

from __future__ import annotations

import math
import tomllib
from typing import TYPE_CHECKING, Any

from llmsuper.errors import CatalogError, FitError, lookup
from llmsuper.hub.catalog import model_lists_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pandas as pd

    from llmsuper.hub.catalog import Catalog

UNITS = ("token", "word", "byte", "character", "target word")
"""What a loss may be counted over; a target word is the last word of a LAMBADA passage."""

METRICS: dict[str, Callable[[float], float]] = {
    "nll": lambda value: value,  # nats
    "ppl": math.log,  # perplexity
    "bpb": lambda value: value * math.log(2.0),  # bits per byte
    "bpc": lambda value: value * math.log(2.0),  # bits per character
}
"""`loss_nats` from `value`, by the metric's name."""

COUNTS = ("n_params", "d_model", "n_layers", "train_tokens", "columns", "step")
"""Columns of whole numbers; a count that no source states is missing."""

TIDY = (
    "model_id", "family", "n_params", "d_model", "n_layers", "train_tokens", "dataset", "split", "metric", "value",
    "loss_nats", "loss_unit", "tokenizer", "source", "source_detail", "licence",
)  # fmt: skip
"""The columns of every table of losses, in order."""

NUMBERS = ("value", "loss_nats", "mean_squared_overlap")
TEXTS = (*(column for column in TIDY if column not in (*COUNTS, *NUMBERS)), "note")

OVERLAP_COLUMNS = ("model_id", "family", "d_model", "columns", "mean_squared_overlap", "source", "licence")
SHAPE_COLUMNS = ("model_id", "n_params", "d_model", "n_layers", "source", "licence")


def _files(kind: str, lists: Path | None = None) -> dict[str, Path]:
    """The files of one sub-folder of the model lists by name."""
    folder = (lists or model_lists_folder()) / kind
    return {path.stem: path for path in sorted(folder.glob("*")) if path.suffix in (".csv", ".toml")}


TABLES: tuple[str, ...] = tuple(_files("losses"))
"""Names of the published tables that come with llmsuper; `model_lists/losses/README.md` describes each."""


def load_losses(name: str, lists: Path | None = None) -> pd.DataFrame:
    """The published losses of this name (`liu2025`, `chinchilla`, …), one row each, with the columns of `TIDY` first.

    `lists` is a folder of model lists; None: the one that comes with llmsuper. A count that is not known is missing, a
    text that is not known is blank. Raises `UnknownNameError` for a name that is not in `TABLES`, `CatalogError` for a
    table that is malformed.
    """
    path = lookup(_files("losses", lists), name, "table of losses")
    frame = _read_shipped(path, TIDY)
    for column, known in (("metric", METRICS), ("loss_unit", UNITS)):
        if strange := sorted(set(frame[column]) - set(known)):
            raise CatalogError(f"{path}: {column} holds {strange}. Use one of: {', '.join(known)}.")
    for row, (metric, value, nats) in enumerate(zip(frame.metric, frame.value, frame.loss_nats, strict=True)):
        if not (0 < nats < math.inf and value > 0 and math.isclose(METRICS[metric](value), nats, rel_tol=1e-6)):
            raise CatalogError(f"{path}, line {row + 2}: loss_nats {nats} is not {metric} {value} in nats. Correct it.")
    return frame


def load_overlaps(name: str, lists: Path | None = None) -> pd.DataFrame:
    """Published mean squared overlaps of LM heads by name (`liu2025`): `columns` is m of the head, `d_model` of the model.

    Raises `UnknownNameError`, and `CatalogError` for a table that is malformed.
    """
    return _read_shipped(lookup(_files("overlaps", lists), name, "table of overlaps"), OVERLAP_COLUMNS)


def load_shapes(name: str, lists: Path | None = None) -> pd.DataFrame:
    """Published shapes of models by name (`chinchilla`: table A9 of Hoffmann et al. 2022); raises as `load_overlaps`."""
    return _read_shipped(lookup(_files("shapes", lists), name, "table of shapes"), SHAPE_COLUMNS)


def load_published_fits(name: str, lists: Path | None = None) -> dict[str, dict[str, Any]]:
    """Parameters of laws as their authors print them (`liu2025`, `chinchilla`): by fit, then by parameter.

    Raises `UnknownNameError`, and `CatalogError` for a file that is malformed.
    """
    path = lookup(_files("fits", lists), name, "published fit")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: this is not TOML: {error}. Correct the file.") from error


def _read_shipped(path: Path, required: Sequence[str]) -> pd.DataFrame:
    """A table of model_lists, its counts as whole numbers and its texts without missing values."""
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, "str"))
        if missing := [column for column in required if column not in frame]:
            raise CatalogError(f"{path}: {', '.join(missing)} is missing. It has: {', '.join(frame)}. Add the column.")
        for column in frame.columns.intersection(COUNTS):
            frame[column] = frame[column].astype("Int64")
        for column in frame.columns.intersection(NUMBERS):
            frame[column] = frame[column].astype("float64")
        for column in frame.columns.intersection(TEXTS):
            frame[column] = frame[column].fillna("")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError, TypeError) as error:
        raise CatalogError(f"{path}: this is not a table of model_lists: {error}. Correct the file.") from error
    return frame


def read_csv(path: Path | str, *, x: str = "d_model", y: str = "loss_nats", group: Sequence[str] = ()) -> pd.DataFrame:
    """A user's losses, one row each: the columns `model_id`, `x`, `y` and those of `group` are required, others are kept.

    `x` and `y` are positive and finite. Rows that differ in nothing but the loss are refused: which of them is right, or
    what tells them apart, is not in the file. Raises `FitError`, which names the file, the lines, and what to do.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, "str"))
    except OSError as error:
        raise FitError(f"{path}: cannot be read ({error.strerror or error}). Give the path of a CSV file.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise FitError(
            f"{path}: this is not CSV: {str(error).strip()}. Give a header line and one line a loss."
        ) from error
    asked = {
        "model_id": "name the model of each row there",
        x: "or name another with --x",
        y: "or name another with --y",
    }
    asked |= dict.fromkeys(group, "or name others with --group")
    if missing := [column for column in asked if column not in frame]:
        todo = ", ".join(dict.fromkeys(asked[column] for column in missing))
        raise FitError(f"{path}: no column {', '.join(missing)}. It has: {', '.join(map(str, frame))}. Add it, {todo}.")
    if frame.empty:
        raise FitError(f"{path}: a header and no rows. Add one line a loss.")
    for column in ("model_id", *group):
        if (blank := frame[column].isna()).any():
            raise FitError(f"{path}: {column} is blank in {_lines(blank)}. Fill it in, or remove the rows.")
    for column in (x, y):
        numbers = pd.to_numeric(frame[column], errors="coerce")
        if (bad := ~((numbers > 0) & (numbers < math.inf))).any():
            found = ", ".join(dict.fromkeys(repr(value) for value in frame.loc[bad, column].head(3)))
            raise FitError(
                f"{path}: {column} is not a positive number in {_lines(bad)} ({found}). Correct or remove the rows."
            )
        frame[column] = numbers
    if "loss_unit" in frame and (strange := sorted(set(_texts(frame["loss_unit"])) - set(UNITS))):
        raise FitError(f"{path}: loss_unit holds {strange}. Use one of: {', '.join(UNITS)}.")
    telling = [column for column in frame if column not in (y, "value", "loss_nats")]
    if (same := frame.duplicated(telling, keep=False)).any():
        raise FitError(
            f"{path}: nothing but the loss tells apart {_lines(same)}. "
            "Keep one row of each, or add a column that tells them apart, such as dataset, step or seed."
        )
    return frame


def one_unit(frame: pd.DataFrame, group: Sequence[str] = ()) -> str | None:
    """The unit that all losses of a fit are counted over; None where the frame has no column `loss_unit`.

    `group` names the columns whose every value has parameters of its own. Losses per token are also refused where one
    group holds two known tokenizers: their tokens are of different length. Raises `FitError`.
    """
    if "loss_unit" not in frame:
        return None
    units = _texts(frame["loss_unit"])
    if units.nunique() > 1:
        raise FitError(
            f"the losses are counted over {units.nunique()} units: {_who(frame, units)}. "
            "Fit one unit at a time: keep the rows of one loss_unit or data set."
        )
    unit = str(units.iloc[0])
    if unit == "token" and "tokenizer" in frame:
        known = frame[_texts(frame["tokenizer"]) != ""]
        for key, part in known.groupby(list(group), dropna=False) if group else [(("all rows",), known)]:
            if part["tokenizer"].nunique() > 1:
                here, who = ", ".join(map(str, key)), _who(part, part["tokenizer"])
                raise FitError(
                    f"{here}: the losses are per token of several tokenizers: {who}. "
                    "Give each family parameters of its own with --group family, or take losses per byte."
                )
    return unit


def join_widths(frame: pd.DataFrame, catalog: Catalog) -> pd.DataFrame:
    """The losses with `d_model` filled in from the model lists where it is missing; a model is found by its repository.

    Raises `FitError` for a model that is in no list.
    """
    by_name = {entry.repo.rpartition("/")[2].lower(): entry.width for entry in catalog.entries}
    by_name |= {entry.repo.lower(): entry.width for entry in catalog.entries}
    filled = frame.copy()
    found = frame["model_id"].str.lower().map(by_name).astype("Int64")
    filled["d_model"] = frame["d_model"].astype("Int64").fillna(found) if "d_model" in frame else found
    if (missing := filled["d_model"].isna()).any():
        names = ", ".join(dict.fromkeys(filled.loc[missing, "model_id"]))
        raise FitError(
            f"no width is known of {names}. Add a row for it to a model list (--lists DIR), or a column d_model to a CSV."
        )
    return filled


def join_losses(records: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Losses beside what was measured of the same repository: the columns of both, those of the losses where both have one.

    `records` is the frame of a store. Where both have a `revision` that must agree too. What has no partner is left out
    and named in `attrs`, as `records_without_loss` and `losses_without_record`.
    Raises `FitError` where nothing joins, or one loss has several records.
    """
    keys = ["repo", "revision"] if "revision" in losses and "revision" in records else ["repo"]
    left = losses.assign(_repo=losses["model_id"].str.lower())
    kept = [column for column in records if column not in losses or column in keys]
    right = records[kept].assign(_repo=records["repo"].str.lower())
    on = ["_repo", *keys[1:]]
    if (several := right.duplicated(on, keep=False)).any():
        names = ", ".join(dict.fromkeys(right.loc[several, "repo"]))
        raise FitError(
            f"there are several records of {names}. Keep one of each: choose a revision, a rows rule and a version."
        )
    joined = left.merge(right, on=on, how="inner", validate="many_to_one").drop(columns="_repo")
    if joined.empty:
        some = f"records of {_few(records['repo'])}; losses of {_few(losses['model_id'])}"
        raise FitError(
            f"no record and no loss are of the same model: {some}. Measure these models with `llmsuper overlap`."
        )
    joined.attrs["records_without_loss"] = sorted(set(right["repo"]) - set(joined["repo"]))
    joined.attrs["losses_without_record"] = sorted(set(losses["model_id"]) - set(joined["model_id"]))
    return joined


def _texts(column: pd.Series) -> pd.Series:
    """The column with blanks for what is missing, whatever its dtype."""
    return column.astype("object").where(column.notna(), "")


def _lines(rows: pd.Series) -> str:
    """The lines of a CSV that these rows stand on, the header being line 1."""
    lines = [str(at + 2) for at, here in enumerate(rows) if here]
    return f"line{'s' * (len(lines) > 1)} {', '.join(lines[:8])}{f' and {len(lines) - 8} more' * (len(lines) > 8)}"


def _few(names: pd.Series) -> str:
    """The first three names."""
    known = list(dict.fromkeys(names))
    return ", ".join(known[:3]) + ", …" * (len(known) > 3) or "none"


def _who(frame: pd.DataFrame, kinds: pd.Series) -> str:
    """Each kind with the number of its rows and the first of them."""
    told = []
    for kind in sorted(set(kinds)):
        rows = frame[kinds == kind]
        first = rows.iloc[0]
        where = " on ".join(str(first[column]) for column in ("model_id", "dataset") if column in frame)
        told.append(f"{kind or 'not stated'} ({len(rows)} rows, first row {rows.index[0]}, {where})")
    return "; ".join(told)
