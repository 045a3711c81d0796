"""The GitHub action and this repository's own workflow: their `run:` steps as shell scripts, from a clean checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
import yaml

from llmsuper.cli import main
from tests.checkpoints import pythia_like
from tests.command import weights_requests

if TYPE_CHECKING:
    from tests.fake_hub import FakeHub

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")


@dataclass
class Runner:
    """What GitHub's runner does, for the expressions and the actions that ours use: it refuses any other.

    saved: the caches by key, each a folder.
    """

    checkout: Path
    temp: Path
    summary: Path
    log: list[str] = field(default_factory=list)
    saved: dict[str, Path] = field(default_factory=dict)

    def job(self, steps: list[dict[str, Any]]) -> None:
        """A job of a workflow, without `make test`, which runs this very test."""
        for step in steps:
            if step.get("uses") == "./":
                self.action(step.get("with", {}))
            elif "run" in step:
                assert self.run(step["run"], {}) == 0, self.log[-1]
            else:
                assert step["uses"] == "actions/checkout@v5"

    def action(self, given: dict[str, str]) -> int:
        """Our action with these inputs; the status of the first step that fails."""
        assert set(given) <= set(ACTION["inputs"])
        values = {f"inputs.{name}": str(given.get(name, row["default"])) for name, row in ACTION["inputs"].items()}
        values |= {"runner.temp": str(self.temp), "steps.restored.outputs.cache-matched-key": ""}
        status = 0
        for step in ACTION["runs"]["steps"]:
            condition = step.get("if", "success()")
            if status and not condition.startswith("always()"):
                continue
            options = {name: self.filled(str(text), values) for name, text in step.get("with", {}).items()}
            match step.get("uses"):
                case None:
                    output = self.temp / "output"
                    output.write_text("")
                    environment = {name: self.filled(text, values) for name, text in step.get("env", {}).items()}
                    failed = self.run(step["run"], {**environment, "GITHUB_OUTPUT": str(output)})
                    status = status or failed
                    found = dict(line.split("=", 1) for line in output.read_text().splitlines())
                    values |= {f"steps.{step.get('id')}.outputs.{name}": text for name, text in found.items()}
                case "actions/setup-python@v6":
                    values["steps.python.outputs.python-path"] = sys.executable
                case "actions/cache/restore@v5":
                    for key in [key for key in self.saved if key.startswith(options["restore-keys"])][-1:]:
                        shutil.copytree(self.saved[key], options["path"], dirs_exist_ok=True)
                        values["steps.restored.outputs.cache-matched-key"] = key
                case "actions/cache/save@v5":
                    key = values.get("steps.kept.outputs.key", "")
                    if key and key != values["steps.restored.outputs.cache-matched-key"]:
                        assert key not in self.saved, "a key can be saved once"
                        self.saved[key] = Path(shutil.copytree(options["path"], self.temp / key))
                case other:
                    pytest.fail(f"{other} is not an action that this test knows")
        return status

    def filled(self, text: str, values: dict[str, str]) -> str:
        """The text with its expressions replaced; an input or output that does not exist is a KeyError."""
        return re.sub(
            r"\$\{\{ (\S+) \}\}",
            lambda found: values.get(found[1], "") if "outputs" in found[1] else values[found[1]],
            text,
        )

    def run(self, script: str, environment: dict[str, str]) -> int:
        """A script as `shell: bash` runs it."""
        assert "${{" not in script, "an expression inside a script is an injection: pass it in the environment"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=self.checkout,
            env={
                **os.environ,
                "RUNNER_TEMP": str(self.temp),
                "GITHUB_ACTION_PATH": str(self.checkout),
                "GITHUB_STEP_SUMMARY": str(self.summary),
                # no index is asked: what is installed is this package, on top of the packages of this environment
                "PYTHONPATH": sysconfig.get_path("purelib"),
                "PIP_NO_INDEX": "1",
                "PIP_NO_DEPS": "1",
                "PIP_IGNORE_INSTALLED": "1",
                "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this one backwards: 0 means no isolation
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        self.log.append(done.stdout + done.stderr)
        return done.returncode


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """A runner with a clean checkout: the files that git has or would take, and nothing that was built."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so there is no telling what a clean one would hold")
    checkout = tmp_path_factory.mktemp("checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    return Runner(checkout, tmp_path_factory.mktemp("temp"), tmp_path_factory.mktemp("page") / "summary.md")


def test_the_jobs_of_the_workflow_run(runner: Runner) -> None:
    """Published overlaps, random heads of five widths, and the recorded heads: each with its table on the job page."""
    runner.job(WORKFLOW["jobs"]["check"]["steps"])
    page = runner.summary.read_text(encoding="utf-8")
    verdicts = re.findall(r"^### llmsuper check: (\w+)$", page, re.MULTILINE)
    assert verdicts[:2] == ["pass", "pass"]
    assert len(verdicts) == 3
    published, random, recorded = page.split("### llmsuper check: ")[1:]
    assert "exponent -1.255 ± 0.193" in published
    assert "cannot be told from random ones" in random
    assert len(re.findall(r"^\| random-heads/\d+ \|", random, re.MULTILINE)) == 5
    assert "these heads are told from random ones" in recorded


def test_a_failed_check_fails_the_action(runner: Runner) -> None:
    given = {"args": "--published\n--exclude gpt2*  --json", "upper": "30", "tolerance": "0.1", "form": "overlap"}
    assert runner.action(given) == 1
    found = json.loads(runner.log[-2])  # the last step names the heads that are kept
    assert (found["verdict"], found["upper"], found["tolerance"], found["line"]["heads"]) == ("fail", 30, 0.1, 21)
    assert not runner.saved  # nothing was read from the Hub


def test_heads_are_kept_between_runs(runner: Runner, hub: FakeHub) -> None:
    """The second run, on a fresh machine with what the first has saved, reads no byte of a weight file; nor does it save.

    The first check fails, and keeps its heads all the same.
    """
    for columns in (32, 48, 64):
        hub.add(f"a/random-{columns}", pythia_like(columns=columns, seed=columns, rows=400, tokens=380))
    given = {"patterns": "a/random-32\na/random-48 a/random-64"}
    assert runner.action({**given, "tolerance": "0.0001", "args": "--results first"}) == 1, runner.log
    assert weights_requests(hub)
    (key,) = runner.saved
    hub.take_log()
    shutil.rmtree(runner.temp / "llmsuper-heads")
    assert runner.action({**given, "tolerance": "0.9", "args": "--results second"}) == 0, runner.log
    assert not weights_requests(hub)
    assert list(runner.saved) == [key]


def test_what_runs_is_the_checkout_and_not_this_environment(runner: Runner) -> None:
    code = "import llmsuper; print(llmsuper.__file__)"
    assert runner.run(f'cd / && "$RUNNER_TEMP/llmsuper/bin/python" -P -c "{code}"', {}) == 0
    assert Path(runner.log[-1].strip()).is_relative_to(runner.temp)


def test_the_inputs_are_options_of_the_verb_and_documented() -> None:
    options = {option.name: option for option in main.commands["check"].params if isinstance(option, click.Option)}
    for name in ("tolerance", "form"):
        assert ACTION["inputs"][name]["default"] == str(options[name].default)
    assert all(row["description"] for row in ACTION["inputs"].values())
    assert set(re.findall(r"^\| `([\w-]+)` \|", PAGE.partition("## In GitHub Actions")[2], re.MULTILINE)) == set(
        ACTION["inputs"]
    )


def test_every_step_that_runs_says_its_shell() -> None:
    for step in ACTION["runs"]["steps"]:
        assert ("uses" in step) != (step.get("shell") == "bash")
    assert "make test" in [step.get("run") for step in WORKFLOW["jobs"]["test"]["steps"]]


def test_the_example_in_the_docs_is_a_workflow() -> None:
    (example,) = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
    (job,) = example["jobs"].values()
    uses = [step for step in job["steps"] if "llmsuper" in step.get("uses", "")]
    assert uses
    assert all(set(step["with"]) <= set(ACTION["inputs"]) for step in uses)
