"""Options that several verbs share, as decorators."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmsuper.errors import LlmsuperError
    from llmsuper.hub.catalog import Selection

F = TypeVar("F", bound="Callable[..., Any]")

RESULTS = Path("reports/data/heads")


def output_options(function: F) -> F:
    """`output`: human, json or quiet."""

    def or_human(context: click.Context, option: click.Parameter, value: str | None) -> str:  # noqa: ARG001
        # not a default of one of the three: whose default counts has changed from one click to the next
        return value or "human"

    for option in (
        click.option(
            "-q", "--quiet", "output", flag_value="quiet", callback=or_human, help="Short for --format quiet."
        ),
        click.option("--json", "output", flag_value="json", callback=or_human, help="Short for --format json."),
        click.option(
            "--format",
            "output",
            type=click.Choice(["human", "json", "quiet"]),
            show_default="human",
            callback=or_human,
            help="A table, one JSON object a line, or the bare values.",
        ),
    ):
        function = option(function)
    return function


def pattern_options(required: bool) -> Callable[[F], F]:
    """`patterns`, `exclude`, `lists`: which models."""

    def decorate(function: F) -> F:
        for option in (
            click.option(
                "--lists",
                type=click.Path(exists=True, file_okay=False, path_type=Path),
                help="A folder of model lists to use instead of those that come with llmsuper.",
            ),
            click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out models whose id or name matches."),
            click.argument(
                "patterns", nargs=-1, required=required, metavar="PATTERN..." if required else "[PATTERN]..."
            ),
        ):
            function = option(function)
        return function

    return decorate


def measuring_options(function: F) -> F:
    """`row_rule`, `max_bytes`, `keep_heads`, `device`, `backend`: how heads are measured."""
    for option in (
        click.option("--backend", default="auto", show_default=True, help="auto, torch, triton or reference."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
        click.option(
            "--cache/--no-cache", "keep_heads", default=True, help="Keep fetched heads on this machine; see `cache`."
        ),
        click.option(
            "--max-bytes", type=click.IntRange(min=0), help="Refuse a head with more bytes than this to move."
        ),
        click.option(
            "--rows",
            "row_rule",
            type=click.Choice(["tokens", "all"]),
            default="tokens",
            show_default=True,
            help="Rows that the tokenizer can emit, or every stored row, padding included.",
        ),
    ):
        function = option(function)
    return function


def head_options(function: F) -> F:
    """`lm_head`, `file`, `allow_pr`: which tensor."""
    for option in (
        click.option(
            "--allow-pr",
            is_flag=True,
            help="Of a model without safetensors, take the conversion that the Hub's bot offers in a pull request.",
        ),
        click.option("--file", metavar="NAME", help="Take the head from this file of the repository, such as a .gguf."),
        click.option("--lm-head", metavar="NAME", help="Take this two-dimensional tensor, whatever it is."),
    ):
        function = option(function)
    return function


def select(patterns: tuple[str, ...], exclude: tuple[str, ...], lists: Path | None) -> Selection:
    """What the patterns mean, with its warnings said on stderr; no pattern means the whole catalog."""
    from llmsuper.hub.catalog import load_catalog, resolve_patterns

    catalog = load_catalog(lists)
    selection = resolve_patterns(patterns or tuple(catalog.families), catalog, exclude=exclude)
    for warning in selection.warnings:
        warn(warning)
    return selection


def warn(message: str) -> None:
    click.echo(f"warning: {message}", err=True)


class Failures:
    """Says each model's error when it happens, and at the end leaves with the status that the errors call for."""

    def __init__(self, total: int, fail_fast: bool = False) -> None:
        self.total = total
        self.fail_fast = fail_fast
        self.failed: dict[str, LlmsuperError] = {}

    def add(self, name: str, error: LlmsuperError) -> None:
        """Raises the error itself where it is the only thing to say."""
        if self.fail_fast or self.total == 1:
            raise error
        click.echo(f"error: {error}", err=True)
        self.failed[name] = error

    def close(self) -> None:
        if self.failed:
            click.echo(f"{len(self.failed)} of {self.total} models failed: {', '.join(self.failed)}", err=True)
            click.get_current_context().exit(1)
