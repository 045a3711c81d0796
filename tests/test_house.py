"""The house rules that can be checked by looking: duties, ceilings, public names, the floors, and what imports what."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import llmsuper
from llmsuper import errors
from llmsuper.errors import LlmsuperError, UnknownNameError, lookup, near_matches

ROOT = Path(__file__).parent.parent
ROOMS = sorted(path for path in (ROOT / "llmsuper").rglob("*.py"))
CEILING = 300


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def duty(path: Path) -> str:
    """The first line of the module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_a_room_says_its_duty_in_one_sentence_and_stays_small(path: Path) -> None:
    first = duty(path)
    assert first.endswith((".", "`", "!")), f"{name_of(path)} opens with {first!r}, not with a sentence"
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= CEILING, f"{name_of(path)} has {lines} lines: look for a seam to split at"


def test_no_room_for_odds_and_ends() -> None:
    assert not [name_of(p) for p in ROOMS if p.stem in {"utils", "util", "helpers", "common", "misc"}]


def test_the_table_of_rooms_is_the_docstrings() -> None:
    table = dict(
        re.findall(r"^\| `(llmsuper/[^`]+)` \| (.+?) \|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)
    )
    assert table == {name_of(path): duty(path) for path in ROOMS}


def test_public_names_are_sorted_few_and_there() -> None:
    assert llmsuper.__all__ == sorted(llmsuper.__all__)
    assert len(llmsuper.__all__) <= 25
    for name in llmsuper.__all__:
        assert getattr(llmsuper, name).__name__ == name
    assert set(llmsuper.__all__) <= set(dir(llmsuper))
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        _ = llmsuper.nothing_of_ours


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_public_functions_and_classes_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = [
        node
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    # the frozen tables of single-line helpers explain themselves by their names
    bare = [node.name for node in public if not ast.get_docstring(node) and len(node.body) > 1]
    assert not bare, f"{name_of(path)}: no docstring on {', '.join(bare)}"


def test_the_floors_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_floors_contract_is_exhaustive() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        (contract,) = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    assert contract["exhaustive"] is True
    named = {room.strip() for layer in contract["layers"] for room in layer.split("|")}
    there = {p.stem if p.is_file() else p.name for p in (ROOT / "llmsuper").iterdir()}
    assert named == {
        n for n in there if (ROOT / "llmsuper" / f"{n}.py").exists() or (ROOT / "llmsuper" / n / "__init__.py").exists()
    } - {"__init__"}


def test_the_nine_packages_have_floors_and_no_pins() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        needs = tomllib.load(file)["project"]["dependencies"]
    names = {re.match(r"[\w-]+", need)[0] for need in needs}  # type: ignore[index]
    nine = {
        "transformers",
        "torch",
        "safetensors",
        "huggingface_hub",
        "accelerate",
        "numpy",
        "pandas",
        "seaborn",
        "click",
    }
    assert nine | {"scipy"} <= names
    assert all(">=" in need and "==" not in need for need in needs)


@pytest.mark.parametrize("statement", ["import llmsuper", "import llmsuper.cli", "from llmsuper import load_catalog"])
def test_the_door_is_light(statement: str) -> None:
    heavy = {"torch", "transformers", "matplotlib", "pandas", "scipy"}
    code = f"import sys; {statement}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_error_kind_has_its_exit_status() -> None:
    kinds = {cls.__name__: cls.exit_code for cls in LlmsuperError.__subclasses__()}
    assert kinds == {
        "UnknownNameError": 3,
        "CatalogError": 3,
        "HubError": 4,
        "CheckpointError": 5,
        "BackendError": 6,
        "FitError": 7,
    }
    assert LlmsuperError.exit_code == 1
    for name, code in kinds.items():  # the tree drawn in the docstring
        assert re.search(rf"{name} +{code}\b", errors.__doc__ or "")


def test_lookup_lists_what_there_is() -> None:
    table = {"norms": 1, "overlap": 2}
    assert lookup(table, "norms", "statistic") == 1
    with pytest.raises(
        UnknownNameError,
        match=r"no statistic is named 'overlaps'; there are: norms, overlap\. Did you mean 'overlap'\?",
    ):
        lookup(table, "overlaps", "statistic")
    assert near_matches("PYTHIA", ["pythia", "opt"]) == ["pythia"]


def test_nothing_in_the_repository_speaks_of_another_place() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in tracked.stdout.split("\0") if name]
    inside = [
        p
        for p in files
        if p.is_file()
        and p.suffix not in {".safetensors", ".png", ".svg"}
        and p.parts[len(ROOT.parts)] not in {"tests", ".ci"}
    ]
    assert inside
    for path in inside:
        text = path.read_text(encoding="utf-8")
        assert "../shared" not in text, f"{name_of(path)} leans on a folder beside the checkout"
        assert not re.search(r"(^|[\s'\"(=])/(home|root|work|tmp)/", text), (
            f"{name_of(path)} names a path of some machine"
        )
