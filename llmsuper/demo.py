"""The whole pipeline on the data in the package, without a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsuper.errors import LlmsuperError
from llmsuper.geometry.controls import MatrixBlocks, random_head
from llmsuper.kernels import choose_backend, choose_precision
from llmsuper.measure import Settings, measure_head, measure_rows
from llmsuper.types import ModelEntry

if TYPE_CHECKING:
    from collections.abc import Mapping

DEMO_HEAD = Path(__file__).parent / "demo_head"
"""The LM head of stories260K (512 × 64, float32, MIT licence); its README.md says where it is from."""
SEED = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the demo: a matrix and its statistics by name."""

    name: str
    rows: int
    columns: int
    statistics: Mapping[str, Mapping[str, Any]]


def run_demo() -> list[Measured]:
    """stories260K's head, read from its safetensors file like any other, beside a random matrix of the same shape."""
    import torch

    record = measure_head(ModelEntry(str(DEMO_HEAD), local=True))
    generator = torch.Generator().manual_seed(SEED)
    control = MatrixBlocks(random_head(record.rows, record.columns, generator))
    backend = choose_backend(precision=choose_precision(record.rows, record.columns, "F32"))
    control_statistics = measure_rows(control, Settings().statistics, backend)["all"]
    return [
        Measured("stories260K", record.rows, record.columns, record.statistics[record.row_class]),
        Measured("random", record.rows, record.columns, control_statistics),
    ]


def draw_demo(lines: list[Measured], path: Path) -> None:
    """Draw what was measured into a .png, .svg or .pdf file. Raises `LlmsuperError` where it cannot be written."""
    from llmsuper.report.figures import FIGURES, save

    try:
        save(FIGURES["one_head"]({line.name: line.statistics for line in lines}), path)
    except (OSError, ValueError) as error:
        raise LlmsuperError(
            f"{path}: the figure cannot be written ({error}). Name another file with --figure."
        ) from error
