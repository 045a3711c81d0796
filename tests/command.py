"""The command line as a test calls it: in this process, or in one of its own."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from llmsuper.cli import main

if TYPE_CHECKING:
    from click.testing import Result

    from tests.fake_hub import FakeHub, Request

PROGRAM = Path(sys.executable).with_name("llmsuper")
APART = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}  # click before 8.2


def llmsuper(*arguments: object) -> Result:
    """`llmsuper …` in this process; an exception that the command line lets through fails the test that caused it."""
    return CliRunner(**APART).invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def succeed(*arguments: object) -> Result:
    """The same for a command that must end well."""
    done = llmsuper(*arguments)
    assert done.exit_code == 0, done.output
    return done


def json_lines(*arguments: object) -> list[dict[str, Any]]:
    """What `llmsuper … --json` prints; NaN and Infinity, which are not JSON, fail the test."""
    return [json.loads(line, parse_constant=_refuse) for line in succeed(*arguments, "--json").stdout.splitlines()]


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def the_error(done: Result) -> str:
    """The one line on stderr, without its `error: `; more than that, or less, fails the test."""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.stderr
    return lines[0].removeprefix("error: ")


def shell(script: str, program: str = "sh", **environment: str) -> subprocess.CompletedProcess[str]:
    """A script in a shell that finds the `llmsuper` of this environment, below the present directory."""
    path = f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [program, "-c", script],
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def weights_requests(hub: FakeHub, etag: str = "") -> list[Request]:
    """The requests in the log that were for bytes of weight files, or of the one with this ETag."""
    with hub.lock:
        return [request for request in hub.log if request.origin == "cdn" and etag in request.path]


def model_list(folder: Path, family: str, *repos: str, **claims: object) -> Path:
    """A folder with the one model list FAMILY.toml, which claims the same of each repository; returns the folder."""
    folder.mkdir(exist_ok=True)
    rows = [f'    {{ repo = "{repo}" }},' for repo in repos]
    said = [f"{key} = {json.dumps(value)}" for key, value in {"family": family, **claims}.items()]
    text = "\n".join([*said, "models = [", *rows, "]", "[sources]", 'width = "made up"', ""])
    (folder / f"{family}.toml").write_text(text)
    return folder
