"""Reads results of lm-evaluation-harness as losses.

The harness writes one JSON file a model: `results` by task and by "metric,filter" (before its version 0.4 by metric),
`configs` by task, `config` with what the model was, and `model_name`
(EleutherAI/lm-evaluation-harness, lm_eval/loggers/evaluation_tracker.py).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsuper.errors import FitError
from llmsuper.scaling.losses import COUNTS, METRICS, TIDY

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

HARNESS: tuple[tuple[str, str, str, str], ...] = (
    ("bits_per_byte", "bpb", "byte", ""),
    ("byte_perplexity", "ppl", "byte", ""),
    ("word_perplexity", "ppl", "word", ""),
    ("perplexity", "ppl", "target word", "lambada"),
)
"""The harness's name of a metric, ours, its unit, and how the task's name begins; the first that a task has is read.

Bytes come first: they are the same for every tokenizer. `perplexity` is over a task's targets, which are one word each in
LAMBADA only.
"""


def read_lm_eval(path: Path | str, *, unit: str | None = None) -> pd.DataFrame:
    """The losses in a results file of the harness, or in all `results*.json` below a folder: one row a model and task.

    Where a task was measured in several units the row is per byte; `unit` chooses another (`word`). The columns are those
    of `TIDY`, `revision` and `commit`; `d_model` is missing: `join_widths` fills it in.
    Raises `FitError` for a file that is not the harness's, or has no loss among its metrics.
    """
    import pandas as pd

    path = Path(path)
    files = sorted(path.rglob("results*.json")) if path.is_dir() else [path]
    if not files:
        raise FitError(f"{path}: no results*.json is in this folder. Give what lm_eval wrote to its --output_path.")
    rows = [row for file in files for row in _rows(file, unit)]
    frame = pd.DataFrame(rows, columns=[*TIDY, "revision", "commit"])
    for column in frame.columns.intersection(COUNTS):
        frame[column] = frame[column].astype("Int64")
    if (same := frame.duplicated(["model_id", "revision", "commit", "dataset"], keep=False)).any():
        twice = frame[same].iloc[0]
        told = ", ".join(dict.fromkeys(frame.loc[same, "source"]))
        raise FitError(f"{path}: {twice.model_id} on {twice.dataset} is there twice ({told}). Keep one file of a run.")
    return frame


def _rows(file: Path, unit: str | None) -> list[dict[str, Any]]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FitError(
            f"{file}: cannot be read ({error.strerror or error}). Give a results file of lm_eval."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FitError(f"{file}: this is not JSON: {error}. Give a results file of lm_eval.") from error
    results = told.get("results") if isinstance(told, dict) else None
    if not isinstance(results, dict) or not all(isinstance(task, dict) for task in results.values()):
        raise FitError(f"{file}: there is no table `results` of tasks in it. Give a results file of lm_eval.")
    model = _model(file, told)
    found = [(task, loss) for task, metrics in results.items() if (loss := _loss(file, task, metrics, unit))]
    if not found:
        names = [name for metrics in results.values() for name in metrics if name != "alias" and "_stderr" not in name]
        wanted = ", ".join(name for name, _, of, _ in HARNESS if unit in (None, of))
        raise FitError(
            f"{file}: no task has a loss{f' per {unit}' if unit else ''}; the metrics are: "
            f"{', '.join(sorted(set(names))) or 'none'}. Run a task with one of {wanted}, such as wikitext."
        )
    return [model | _split(told, task) | loss | {"dataset": task, "source_detail": file.name} for task, loss in found]


def _model(file: Path, told: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says of the model: the columns that all its rows share."""
    config = told.get("config")
    config = config if isinstance(config, dict) else {}
    arguments = config.get("model_args") or {}
    if isinstance(arguments, str):
        arguments = dict(part.split("=", 1) for part in arguments.split(",") if "=" in part)
    name = told.get("model_name") or arguments.get("pretrained")
    if not isinstance(name, str):
        raise FitError(f"{file}: neither `model_name` nor `pretrained=` says which model it is. Add `model_name`.")
    params = config.get("model_num_parameters")
    blank = dict.fromkeys(("family", "tokenizer", "licence"), "")
    return blank | {
        "model_id": name,
        "n_params": params if type(params) is int and params > 0 else None,
        "source": f"lm-evaluation-harness, {file}",
        "revision": config.get("model_revision") or arguments.get("revision") or "main",
        "commit": config.get("model_sha") or "",
    }


def _split(told: Mapping[str, Any], task: str) -> dict[str, str]:
    """The split that was evaluated: the test set where the task has one, else the validation set."""
    configs = told.get("configs")
    config = configs.get(task) if isinstance(configs, dict) else None
    config = config if isinstance(config, dict) else {}
    return {"split": config.get("test_split") or config.get("validation_split") or ""}


def _loss(file: Path, task: str, metrics: Mapping[str, Any], unit: str | None) -> dict[str, Any] | None:
    """The first metric of `HARNESS` that the task has, as a loss in nats; None where it has none."""
    for name, metric, of, begins in HARNESS:
        key = f"{name},none" if f"{name},none" in metrics else name
        if key not in metrics or unit not in (None, of) or not task.startswith(begins):
            continue
        value = metrics[key]
        if not isinstance(value, (int, float)) or not 0 < value < math.inf or METRICS[metric](value) <= 0:
            raise FitError(f"{file}: {key} of {task} is {value!r}, which is no loss. Run the task again, or remove it.")
        return {"metric": metric, "value": float(value), "loss_nats": METRICS[metric](value), "loss_unit": of}
    return None
