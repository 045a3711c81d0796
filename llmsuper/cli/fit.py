"""`llmsuper fit`: what losses say about a scaling law, and what they do not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmsuper.cli.options import RESULTS, warn

if TYPE_CHECKING:
    import pandas as pd

OBJECTIVES = (
    "least-squares",
    "weighted",
    "log-least-squares",
    "huber-log",
)  # as in scaling.solve, without importing scipy


def _pairs(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:  # noqa: ARG001
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"{value!r} is not COLUMN=VALUE")
    return dict(value.split("=", 1) for value in values)


def _names(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:  # noqa: ARG001
    return None if value is None else tuple(name.strip() for name in value.split(",") if name.strip())


@click.command(epilog="Example: llmsuper fit opt-wikitext2 --bootstrap 0")
@click.argument("name", required=False)
@click.option("--csv", type=click.Path(dir_okay=False, path_type=Path), help="Fit the rows of this file.")
@click.option(
    "--lm-eval", type=click.Path(path_type=Path), help="Fit results of lm-evaluation-harness: a file or folder."
)
@click.option("--law", help="power, power-floor, inverse-floor, chinchilla, width-depth, width-data, width-depth-data.")
@click.option("--x", metavar="COLUMNS", callback=_names, help="Columns of the law's variables, comma-separated.")
@click.option("--y", metavar="COLUMN", default="loss_nats", show_default=True, help="Column to fit.")
@click.option("--group", metavar="COLUMNS", callback=_names, help="Columns whose values make a group.")
@click.option(
    "--per-group", metavar="NAMES", callback=_names, help="Coefficients with one value per group. Default: the floor E."
)
@click.option("--where", multiple=True, callback=_pairs, metavar="COLUMN=VALUE", help="Only these rows; repeatable.")
@click.option(
    "--objective", type=click.Choice(OBJECTIVES), default="least-squares", show_default=True, help="What is minimised."
)
@click.option("--weights", metavar="COLUMN", help="1/variance of each row, for --objective weighted.")
@click.option("--bootstrap", type=click.IntRange(min=0), help="Draws of models. Default: 1000, or 500 for chinchilla.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the draws.")
@click.option("--published", is_flag=True, help="For `overlaps`: the published overlaps instead of stored records.")
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    show_default=True,
    help="Folder of records, for `overlaps` and --records.",
)
@click.option(
    "--records",
    is_flag=True,
    help="Only models with a record, whose columns can then be fitted too, such as --x overlap.mean_squared_overlap.",
)
@click.option("--lists", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A folder of model lists.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as one JSON object.")
def fit(name: str | None, published: bool, results: Path, records: bool, as_json: bool, **asked: Any) -> None:
    """Fit a scaling law and say how far it can be trusted.

    NAME is a fit of published losses (liu2025, opt-wikitext2, bloom-wikitext2, pythia-pile, gpt2-openwebtext), a table of
    them (see model_lists/losses), `chinchilla` for the cross-check, or `overlaps` for measured overlaps against 1/m.
    Without NAME, --csv or --lm-eval gives the losses.
    """
    request = _Request(**asked)
    if sum((name is not None, request.csv is not None, request.lm_eval is not None)) != 1:
        raise click.UsageError("Give one of NAME, --csv FILE and --lm-eval PATH.")
    draws, seed = request.bootstrap, request.seed
    summary: Any
    if name == "chinchilla" and not records and not request.names_a_fit:
        from llmsuper.scaling.chinchilla import chinchilla_summary

        summary = chinchilla_summary(bootstrap=500 if draws is None else draws, seed=seed)
    elif name == "overlaps":
        from llmsuper.scaling.overlap_fits import overlap_summary

        summary = overlap_summary(_overlaps(published, results, request.lists))
    else:
        summary = _summary(name, request, results if records else None)
    click.echo(json.dumps(summary.to_dict(), allow_nan=False) if as_json else summary.text())


@dataclass(frozen=True, slots=True)
class _Request:
    """The options that say what is fitted, to what, and how."""

    csv: Path | None
    lm_eval: Path | None
    law: str | None
    x: tuple[str, ...] | None
    y: str
    group: tuple[str, ...] | None
    per_group: tuple[str, ...] | None
    where: dict[str, str]
    objective: str
    weights: str | None
    bootstrap: int | None
    seed: int
    lists: Path | None

    @property
    def names_a_fit(self) -> bool:
        """Whether it asks for anything but what a name stands for."""
        named = (self.law, self.x, self.group, self.per_group, self.where, self.weights)
        return any(named) or self.objective != "least-squares" or self.y != "loss_nats"


def _summary(name: str | None, asked: _Request, records: Path | None) -> Any:
    from llmsuper.hub.catalog import load_catalog
    from llmsuper.scaling.fit import fit_law
    from llmsuper.scaling.lm_eval import read_lm_eval
    from llmsuper.scaling.losses import join_widths, load_published_fits, read_csv
    from llmsuper.scaling.recipes import Recipe, recipe, rows_of, select
    from llmsuper.scaling.summary import summarise

    x_names = asked.x or ("d_model",)
    if asked.csv is not None:
        chosen = Recipe(str(asked.csv), "", f"{asked.csv}")
        frame = read_csv(asked.csv, x=x_names[0], y=asked.y, group=asked.group or ())
    elif asked.lm_eval is not None:
        chosen, frame = Recipe(str(asked.lm_eval), "", f"{asked.lm_eval}"), read_lm_eval(asked.lm_eval)
        frame = join_widths(frame, load_catalog(asked.lists)) if "d_model" in x_names else frame
    else:
        chosen = recipe(name or "")
        frame = rows_of(chosen, asked.lists)
    rows = select(frame, asked.where)
    if records is not None:
        rows = _with_records(rows, records)
    fitted = fit_law(
        asked.law or chosen.law,
        rows,
        x=asked.x or chosen.x,
        y=asked.y,
        group=chosen.group if asked.group is None else asked.group,
        per_group=asked.per_group,
        objective=asked.objective,
        weights=asked.weights,
    )
    as_the_authors = chosen.name == "liu2025" and fitted.n_points == 108 and fitted.n_parameters == 18
    by_width = fitted.design.x_names == ("d_model",)
    return summarise(
        f"{chosen.name}: {chosen.about}" if chosen.table else chosen.name,
        fitted,
        draws=1000 if asked.bootstrap is None else asked.bootstrap,
        seed=asked.seed,
        moved={m: w for m, w in chosen.moved.items() if by_width and m in set(rows["model_id"])},
        published=load_published_fits("liu2025", asked.lists)["printed"] if as_the_authors else None,
    )


def _with_records(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The losses of models that have a record, with the record's columns beside them."""
    from llmsuper.errors import FitError
    from llmsuper.scaling.losses import join_losses
    from llmsuper.store import ResultStore

    stored = ResultStore(folder).frame()
    if stored.empty:
        raise FitError(
            f"{folder}: there is no record in it. Measure models with `llmsuper overlap`, or name another --results."
        )
    joined = join_losses(stored, rows)
    for what in ("records_without_loss", "losses_without_record"):
        if joined.attrs[what]:
            warn(f"{what.replace('_', ' ')}: {', '.join(joined.attrs[what])}")
    return joined


def _overlaps(published: bool, results: Path, lists: Path | None) -> pd.DataFrame:
    """Overlaps by model, with the column names that `overlap_summary` takes."""
    from llmsuper.scaling.losses import load_overlaps
    from llmsuper.scaling.overlap_fits import overlaps_of_records
    from llmsuper.store import ResultStore

    return load_overlaps("liu2025", lists) if published else overlaps_of_records(ResultStore(results).frame())
