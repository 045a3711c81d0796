"""README says nothing that the commands do not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmsuper.cli import main
from llmsuper.hub.catalog import load_catalog

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_demo_prints_what_readme_shows(tmp_path: Path) -> None:
    shown = re.search(r"<!-- demo -->\n```\n(.*?)```", README, re.S)
    assert shown is not None
    done = CliRunner().invoke(main, ["demo", "--figure", str(tmp_path / "demo.png")])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(shown[1])


def test_the_worked_example_prints_what_readme_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = re.search(r"```sh\nllmsuper (overlap .+)\n```\n\n<!-- example -->\n```\n(.*?)```", README, re.S)
    assert shown is not None
    monkeypatch.chdir(Path(__file__).parent.parent)
    done = CliRunner().invoke(main, [*shown[1].split(), "--results", str(tmp_path)])
    assert done.exit_code == 0, done.stderr
    assert done.stdout == shown[2]


def test_every_verb_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", README, re.M)) >= set(main.commands)


@pytest.mark.parametrize("kind", ["families", "lists"])
def test_every_family_and_list_is_named(kind: str) -> None:
    for name in getattr(load_catalog(), kind):
        assert f"`{name}`" in README or f"`{name}`:" in README or f"(`{name}`: " in README, name


def test_the_python_example_uses_public_names() -> None:
    import llmsuper

    assert set(re.findall(r"\bls\.(\w+)", README)) <= set(llmsuper.__all__)
