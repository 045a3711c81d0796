"""`llmsuper report`: pages of markdown and figures from records and published tables, or a check that they are not stale."""

from __future__ import annotations

from pathlib import Path

import click

from llmsuper.cli.options import RESULTS

REPORTS = Path("reports")


@click.command(epilog="Example: llmsuper report gpt2 --reports my-report")
@click.argument("families", nargs=-1, metavar="[FAMILY]...")
@click.option(
    "--check", is_flag=True, help="Write nothing; leave with 1 if a page or figure is not what it would be now."
)
@click.option(
    "--reports",
    type=click.Path(file_okay=False, path_type=Path),
    default=REPORTS,
    show_default=True,
    help="Folder of the pages; figures go into its sub-folder figures.",
)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    show_default=True,
    help="Folder of records.",
)
@click.option("--lists", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A folder of model lists.")
@click.option(
    "--format",
    "figure_format",
    type=click.Choice(["svg", "png"]),
    default="svg",
    show_default=True,
    help="Of the figures.",
)
def report(
    families: tuple[str, ...], check: bool, reports: Path, results: Path, lists: Path | None, figure_format: str
) -> None:
    """Write REPORTS/FAMILY.md for each family, its figures, and the index REPORTS/README.md.

    A family is one with published overlaps (opt, gpt2, qwen2.5, pythia), one with stored records, `single-heads` for records
    of no family, or `chinchilla` for the cross-check. Without FAMILY: all there are. Published numbers are marked as such.
    """
    from llmsuper.report.build import build_pages, page_names
    from llmsuper.report.sources import gather

    sources = gather(results, lists, reports)
    names = page_names(families, sources)
    stale: list[str] = []
    for at, page in enumerate(build_pages(names, sources, figure_format), 1):
        if check:
            stale += page.stale(reports)
        else:
            for path in page.write(reports):
                if path.suffix == ".md":
                    click.echo(path)
        click.echo(f"{at} of {len(names)}: {page.name}", err=True)
    for sentence in stale:
        click.echo(f"stale: {sentence}", err=True)
    if stale:
        click.echo(f"{len(stale)} stale. Run `llmsuper report` and look at the difference.", err=True)
        click.get_current_context().exit(1)
