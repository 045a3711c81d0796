"""`llmsuper demo`: the whole pipeline on a head that is in the package, through to a written report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmsuper.cli.options import output_options
from llmsuper.cli.table import Column, Table, count

if TYPE_CHECKING:
    from llmsuper.demo import Measured


@click.command(epilog="Example: llmsuper demo --figure demo.svg")
@click.option(
    "--report",
    type=click.Path(file_okay=False, path_type=Path),
    default="llmsuper-demo",
    show_default=True,
    help="Folder for the report and the records it is made from.",
)
@click.option(
    "--figure",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Only draw both heads into this file, whose suffix says the format, and write no report.",
)
@output_options
def demo(report: Path, figure: Path | None, output: str) -> None:
    """Measure a small real LM head and a random one of the same shape, and write a report, without a network.

    The head is that of stories260K, a model of children's stories with 512 tokens and width 64. Beside it the report has the
    page of gpt2, whose published overlaps and losses come with llmsuper.
    """
    from llmsuper.demo import as_lines, demo_records, draw_demo, write_demo

    records = demo_records()
    lines = as_lines(records)
    table: Table[Measured] = Table(output, _columns(), lambda line: _as_json(line), _as_value)
    for line in lines:
        table.row(line)
    if figure is not None:
        draw_demo(lines, figure)
    head, control = (line.statistics["overlap"] for line in lines)
    table.note(
        f"\nRandom directions overlap by 1/m = {head['isotropic']:.4e}. The rows of this head overlap "
        f"{head['ratio_to_isotropic']:.1f} times as much, the random ones {control['ratio_to_isotropic']:.2f} times; "
        f"nothing can go below the Welch floor, {head['welch_floor']:.4e}."
    )
    if figure is not None:
        click.echo(f"figure: {figure}", err=True)
        return
    for path in write_demo(records, report):
        click.echo(f"report: {path}", err=True)


def _number(line: Measured, statistic: str, field: str, form: str) -> str:
    value = line.statistics[statistic][field]
    return "–" if value is None else format(value, form)


def _columns() -> list[Column[Measured]]:
    return [
        Column("matrix", 12, lambda x: x.name, left=True),
        Column("rows", 6, lambda x: count(x.rows)),
        Column("m", 4, lambda x: count(x.columns)),
        Column("norm", 8, lambda x: _number(x, "norms", "mean", ".4g")),
        Column("overlap", 10, lambda x: _number(x, "overlap", "mean_squared_overlap", ".4e")),
        Column("x m", 8, lambda x: _number(x, "overlap", "ratio_to_isotropic", ".2f")),
        Column("floor", 8, lambda x: _number(x, "overlap", "welch_ratio", ".2f")),
        Column("centred", 10, lambda x: _number(x, "centred_overlap", "mean_squared_overlap", ".4e")),
        Column("x m", 8, lambda x: _number(x, "centred_overlap", "ratio_to_isotropic", ".2f")),
    ]


def _as_json(line: Measured) -> dict[str, object]:
    return {"matrix": line.name, "rows": line.rows, "columns": line.columns, "statistics": line.statistics}


def _as_value(line: Measured) -> str:
    return f"{line.name}\t{_number(line, 'overlap', 'mean_squared_overlap', '.17g')}"
