"""`llmsuper predict`: the loss expected at a width or a compute budget, its interval, and the shape to buy for it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, TypeVar

import click

from llmsuper.cli.options import output_options

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

TAKES: dict[str, tuple[str, ...]] = {
    "chinchilla": ("width", "params", "tokens", "flops", "bootstrap", "seed"),
    "liu2025": ("width", "family", "dataset", "bootstrap", "seed"),
}
"""The options of each law."""
NEEDS: dict[str, tuple[str, ...]] = {"chinchilla": (), "liu2025": ("width", "family", "dataset")}


def _positive(context: click.Context, option: click.Parameter, value: float | None) -> float | None:  # noqa: ARG001
    if value is not None and not (math.isfinite(value) and value > 0):
        raise click.BadParameter(f"{value} is not a positive number. Give one such as 4096 or 1e9.")
    return value


def _number(name: str, text: str) -> Callable[[F], F]:
    return click.option(name, type=float, callback=_positive, metavar="X", help=text)


@click.command(epilog="Example: llmsuper predict chinchilla --flops 1e21")
@click.argument("law", metavar="LAW")
@_number("--width", "Width of the model, m. With chinchilla it stands for the parameters, by N(m).")
@_number("--params", "Parameters, N (chinchilla).")
@_number("--tokens", "Training tokens, D (chinchilla).")
@_number("--flops", "Training compute, C = 6 N D. Alone, it is split between N and D at best (chinchilla).")
@click.option("--family", help="Whose floor: gpt2, opt, pythia, qwen2.5 (liu2025).")
@click.option("--dataset", help="Whose floor: bookcorpus, c4, pile, wikitext (liu2025).")
@click.option(
    "--bootstrap", type=click.IntRange(min=20), help="Resamples for the interval (chinchilla; 200 unless told)."
)
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the resamples (0 unless told).")
@output_options
def predict(law: str, output: str, **options: Any) -> None:
    """Say what loss a fitted law expects, with its interval and how far that lies outside the data.

    LAW is `chinchilla`, L(N, D) fitted to 240 published runs, or `liu2025`, the paper's A/m^alpha + E fitted to its 108 losses.
    """
    from llmsuper.errors import lookup
    from llmsuper.scaling.predict import PREDICTORS

    predictor = lookup(PREDICTORS, law, "law to predict with")
    given = {name: value for name, value in options.items() if value is not None}
    if strange := [name for name in given if name not in TAKES[law]]:
        raise click.UsageError(
            f"{law} does not use --{strange[0]}; it takes {', '.join('--' + name for name in TAKES[law])}."
        )
    if missing := [name for name in NEEDS[law] if name not in given]:
        raise click.UsageError(
            f"{law} needs --{missing[0]}. Give all of {', '.join('--' + name for name in NEEDS[law])}."
        )
    found = predictor(**given)
    if output == "json":
        click.echo(json.dumps(found.to_dict(), allow_nan=False))
    elif output == "quiet":
        click.echo(f"{found.loss.value:.6g}")
    else:
        click.echo(found.text())
