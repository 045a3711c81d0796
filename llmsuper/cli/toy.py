"""`llmsuper toy`: trains the toy models of a sweep, and says how their loss falls with width."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmsuper.cli.options import output_options
from llmsuper.cli.table import Column, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmsuper.toy.record import ToyRecord, ToyStore
    from llmsuper.toy.run import ToyRun

RESULTS = Path("reports/data/toy")
LINE_SECONDS = 30.0
"""Between two lines of progress where stderr is no terminal."""


@click.command(
    epilog="Example: llmsuper toy weight_decay --reduced --list --only m=10\n\nWithout --reduced a sweep is the paper's own, "
    "which is work for a GPU. SWEEP is a name or the path of a .toml file."
)
@click.argument("sweep", required=False)
@click.option("--reduced", is_flag=True, help="The smaller version, meant for two cores.")
@click.option(
    "--only", multiple=True, metavar="KEY=VALUE", help="Just the runs with this parameter: m=10,15 or gamma=-1."
)
@click.option("--list", "listing", is_flag=True, help="Say which runs there are and which are stored; train nothing.")
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    show_default=True,
    help="Folder of records; runs that have one are not trained again.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@output_options
def toy(
    sweep: str | None,
    reduced: bool,
    only: tuple[str, ...],
    listing: bool,
    results: Path,
    device: str,
    output: str,
) -> None:
    """Train the toy models of a sweep that are not stored yet, print one line each, and fit their exponents.

    "loss" is the test loss on fresh samples, a sum over features; "above 1/2" and "above 1" are shares of the rows of W by
    their norm; "x m" is m times the mean squared overlap of the rows above 1, 1.00 for random directions. Without SWEEP
    the sweeps are listed. A run that is killed goes on from its last checkpoint, at most a minute old.
    """
    from llmsuper.toy.record import ToyStore
    from llmsuper.toy.sweep import choose, load_sweep, sweep_files

    if sweep is None:
        if only or reduced:
            raise click.UsageError("--only and --reduced choose among the runs of a SWEEP: name one.")
        _list_sweeps(output, list(sweep_files()))
        return
    found = load_sweep(sweep)
    version = "reduced" if reduced else "full"
    if version not in found.versions:
        raise click.UsageError(f"{sweep} has no {version} version.")
    runs = choose(found.versions[version], only)
    store = ToyStore(results)
    if listing:
        _list_runs(output, runs, store)
    else:
        _train(output, runs, store, device)


def _list_sweeps(output: str, names: Sequence[str]) -> None:
    from llmsuper.toy.sweep import Sweep, load_sweep

    columns: list[Column[Sweep]] = [
        Column("sweep", 20, lambda s: s.name, left=True),
        Column("runs", 6, lambda s: str(len(s.versions.get("full", ())))),
        Column("reduced", 7, lambda s: str(len(s.versions.get("reduced", ())))),
        Column("about", 10, lambda s: s.title, left=True),
    ]
    table = Table(
        output,
        columns,
        lambda s: {"sweep": s.name, "title": s.title, "runs": {v: len(r) for v, r in s.versions.items()}},
        lambda s: s.name,
    )
    for name in names:
        table.row(load_sweep(name))


def _list_runs(output: str, runs: Sequence[ToyRun], store: ToyStore) -> None:
    from dataclasses import asdict

    columns: list[Column[ToyRun]] = [*_parameters(), Column("stored", 6, lambda r: "yes" if store.has(r) else "no")]
    table = Table(output, columns, lambda r: {**asdict(r), "gamma": r.gamma, "stored": store.has(r)}, lambda r: r.key)
    for run in runs:
        table.row(run)
    stored = sum(map(store.has, runs))
    table.note(f"{len(runs)} runs, {stored} of them stored in {store.folder}")


def _train(output: str, runs: Sequence[ToyRun], store: ToyStore, device: str) -> None:
    from llmsuper.store import to_json
    from llmsuper.toy.train import train_runs, work_of

    missing = [run for run in runs if not store.has(run)]
    table = Table(output, _columns(), lambda r: json.loads(to_json(r)), lambda r: f"{r.run.key}\t{r.test_loss:.17g}")
    for run in runs:
        if store.has(run):
            table.row(store.get(run))
    progress = _Progress(len(missing), sum(map(work_of, missing)))
    try:
        for record in train_runs(missing, store, device=device, watch=progress.advance):
            progress.done += 1
            progress.clear()
            table.row(record)
    finally:
        progress.clear()
    if output == "human":
        _print_exponents([store.get(run) for run in runs], store)


def _print_exponents(records: Sequence[ToyRecord], store: ToyStore) -> None:
    import pandas as pd

    from llmsuper.toy.exponents import loss_exponents

    lines = loss_exponents(pd.DataFrame([store.flat(record) for record in records]))
    if lines.empty:
        return
    click.echo("\nloss = A / m^exponent; the error is that of the straight line in logarithms")
    for row in lines.itertuples():
        law = row.distribution + ("" if pd.isna(row.alpha) else f" {row.alpha:g}")
        click.echo(
            f"  gamma {row.gamma:7.3f}  {law:<12}  E {row.activation_density:5.2f}  exponent {row.exponent:6.3f} ± "
            f"{row.stderr:.3f}  R² {row.r_squared:.3f}  {row.points} runs, {row.widths} widths"
        )


class _Progress:
    """How much is done and how much time is left: one line that is rewritten on a terminal, else a line now and then."""

    def __init__(self, runs: int, work: float) -> None:
        self.runs, self.work = runs, work
        self.done, self.worked = 0, 0.0
        self.began = self.said = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def advance(self, work: float) -> None:
        self.worked += work
        now = time.monotonic()
        if now - self.said < (0.5 if self.terminal else LINE_SECONDS):
            return
        self.said = now
        left = (self.work - self.worked) * (now - self.began) / self.worked if self.worked else 0.0
        text = f"toy: {self.done} of {self.runs} runs, {100 * self.worked / self.work:.0f} % of the work, {_span(left)} left"
        click.echo(f"\r\033[K{text}" if self.terminal else text, err=True, nl=not self.terminal)

    def clear(self) -> None:
        if self.terminal:
            click.echo("\r\033[K", err=True, nl=False)


def _span(seconds: float) -> str:
    minutes, hours = round(seconds / 60), round(seconds / 3600, 1)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{hours} h"


def _parameters() -> list[Column[ToyRun]]:
    return [
        Column("m", 5, lambda r: str(r.m)),
        Column("gamma", 7, lambda r: f"{r.gamma:.3f}"),
        Column("law", 11, lambda r: r.distribution, left=True),
        Column("alpha", 6, lambda r: "–" if r.alpha is None else f"{r.alpha:g}"),
        Column("E", 5, lambda r: f"{r.activation_density:.2f}"),
        Column("seed", 4, lambda r: str(r.seed)),
    ]


def _columns() -> list[Column[ToyRecord]]:
    return [
        *(Column(c.title, c.width, lambda r, c=c: c.text(r.run), c.left) for c in _parameters()),  # type: ignore[misc]
        Column("loss", 8, lambda r: f"{r.test_loss:.4g}"),
        Column("±", 8, lambda r: f"{r.test_loss_stderr:.1g}"),
        Column("above 1/2", 9, lambda r: f"{r.phi_half:.3f}"),
        Column("above 1", 7, lambda r: f"{r.phi_one:.3f}"),
        Column("x m", 6, lambda r: f"{r.strong_overlap['ratio_to_isotropic']:.2f}" if r.strong_overlap else "–"),
        Column("s", 6, lambda r: f"{r.made_by['seconds']:.1f}"),
    ]
