"""The verbs, one file each: parse, call one public function, print."""

from __future__ import annotations

from typing import Any

import click

from llmsuper.cli.backends import backends
from llmsuper.cli.cache import cache
from llmsuper.cli.check import check
from llmsuper.cli.demo import demo
from llmsuper.cli.fit import fit
from llmsuper.cli.models import models
from llmsuper.cli.overlap import overlap
from llmsuper.cli.plan import plan
from llmsuper.cli.predict import predict
from llmsuper.cli.report import report
from llmsuper.cli.tokens import tokens
from llmsuper.cli.toy import toy
from llmsuper.errors import LlmsuperError
from llmsuper.processes import only_first_speaks, speaks_of
from llmsuper.version import __version__


class Verbs(click.Group):
    """The one place where an error becomes a line on stderr and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with only_first_speaks():
                return super().invoke(ctx)
        except LlmsuperError as error:
            if speaks_of(error):
                click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 done; 1 a check or some models failed; 2 usage; 3 unknown name or wrong model list; 4 Hub; "
    "5 checkpoint; 6 backend; 7 fit.",
)
@click.version_option(__version__, prog_name="llmsuper")
def main() -> None:
    """Measure superposition in language-model heads.

    llmsuper reads just the LM-head matrix W (n vocabulary rows × m columns) of a checkpoint and compares the mean squared
    overlap of its normalised rows with 1/m. `llmsuper overlap PATTERN` is the main job.

    A PATTERN is owner/name, owner/glob*, a family (opt, gpt2, qwen2.5, pythia …), a named list (liu2025), any of these with
    @revision, or a local folder or file.
    """


for verb in (models, plan, overlap, cache, backends, fit, predict, report, check, tokens, toy, demo):
    main.add_command(verb)
