"""The notebooks: thin, without outputs, and each runs in a kernel of its own from start to end."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from nbclient import NotebookClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbformat import NotebookNode

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def text(cell: Any) -> str:
    """What a cell has printed or shown as text."""
    return "".join(o.get("text", o.get("data", {}).get("text/plain", "")) for o in cell.outputs)


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["01_one_head", "02_overlap_against_width", "03_loss_law"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_thin_and_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    for node in ast.walk(ast.parse("\n".join(code(notebook)))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            assert (node.end_lineno or 0) - node.lineno < 3, f"{node.name} belongs in a room of the package"
    # a cell of code is introduced by words, and is no longer than can be read at a glance
    assert notebook.cells[0].cell_type == notebook.cells[-1].cell_type == "markdown"
    assert all(source.count("\n") < 15 for source in code(notebook))


@pytest.fixture(scope="module")
def _nobodys_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels find no history and no configuration of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name)))
        yield


def run(path: Path, folder: Path) -> NotebookNode:
    """The notebook, executed in a kernel of its own with this folder as its own."""
    notebook = read(path)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


@pytest.mark.usefixtures("_nobodys_settings")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = run(path, tmp_path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert not [o.text for cell in cells for o in cell.outputs if o.get("name") == "stderr"]
    assert any("image/png" in o.get("data", {}) for cell in cells for o in cell.outputs), "no figure"
    said = "\n".join(map(text, cells))
    for expected in SAID[path.stem]:
        assert re.search(expected, said), f"{expected!r} is not in\n{said}"
    assert json.loads(path.read_text(encoding="utf-8"))["cells"], "the file itself is as it was"


SAID = {
    # of the README beside the head in the package, by other code: 0.315622, and centred 0.468178
    "01_one_head": [
        r"mean squared overlap +0\.3156",
        r"random directions +0\.0156",
        r"random +m x overlap = 1\.0",
        r"centred 30\.0",
    ],
    # through 25 points, −1.26 ± 0.19
    "02_overlap_against_width": [
        r"all heads +alpha +1\.255 ± 0\.193",
        r"within 0\.25 of -1: undecided",
        r"within 0\.7 of -1: pass",
        r"pass exponent -(1\.00|0\.99)\d+ told from random: False",
    ],
    # the authors print 0.91 ± 0.04
    "03_loss_law": [
        r"alpha = 0\.91 ± 0\.059",
        r"as printed +± 0\.0(3[5-9]|4[0-4])",
        r"without family",
        r"6 sizes of Pythia: alpha",
    ],
}
"""What the outputs of a notebook hold, as regular expressions."""
