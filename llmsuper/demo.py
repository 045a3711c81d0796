"""The whole pipeline on the data in the package, without a network, through to a written report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsuper.errors import LlmsuperError
from llmsuper.geometry.controls import MatrixBlocks, random_head
from llmsuper.kernels import choose_backend, choose_precision
from llmsuper.measure import Settings, measure_head, measure_rows
from llmsuper.store import ResultStore
from llmsuper.types import HeadRecord, ModelEntry
from llmsuper.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEMO_HEAD = Path(__file__).parent / "demo_head"
"""The LM head of stories260K (512 × 64, float32, MIT licence); its README.md says where it is from."""
SEED = 0
STATISTICS = ("norms", "overlap", "centred_overlap", "spectrum", "groups", "anisotropy", "controls")
PUBLISHED = "gpt2"
"""The family whose published numbers are shown beside what the demo measures: the quickest to fit."""

FAMILIES = f"""\
[demo]
title = "The demo's two heads"
heads = ["stories260K", "random"]
note = \"\"\"
The head of stories260K, a model of children's stories with 512 tokens, beside a matrix of independent normal numbers of the \\
same shape (seed {SEED}): what one real head looks like, and what nothing looks like.\"\"\"
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the demo: a matrix and its statistics by name."""

    name: str
    rows: int
    columns: int
    statistics: Mapping[str, Mapping[str, Any]]


def run_demo() -> list[Measured]:
    """stories260K's head, read from its safetensors file like any other, beside a random matrix of the same shape."""
    return as_lines(demo_records())


def as_lines(records: tuple[HeadRecord, ...]) -> list[Measured]:
    """The records as the demo prints them."""
    return [Measured(r.repo, r.rows, r.columns, r.statistics[r.row_class]) for r in records]


def demo_records() -> tuple[HeadRecord, HeadRecord]:
    """The records of both heads, as the store keeps them."""
    import torch

    record = replace(
        measure_head(ModelEntry(str(DEMO_HEAD), local=True), Settings(statistics=STATISTICS)), repo="stories260K"
    )
    generator = torch.Generator().manual_seed(SEED)
    control = MatrixBlocks(random_head(record.rows, record.columns, generator))
    backend = choose_backend(precision=choose_precision(record.rows, record.columns, "F32"))
    random = replace(
        record,
        repo="random",
        commit=f"seed-{SEED}",
        file="",
        tensor="standard normal",
        tied=False,
        statistics=measure_rows(control, STATISTICS, backend),
        row_class="all",
        row_source="every row",
        made_by={
            "tool": "llmsuper",
            "version": __version__,
            "backend": backend.name,
            "device": str(backend.device),
            "precision": backend.precision,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    return record, random


def write_demo(records: tuple[HeadRecord, ...], folder: Path) -> Iterator[Path]:
    """Store the records and write the report on them, and on what is published of one family; each page as it is done.

    Raises `LlmsuperError` where the folder cannot be written.
    """
    from llmsuper.report.build import build_pages
    from llmsuper.report.sources import GROUPS_FILE, gather

    store = ResultStore(folder / "data" / "heads")
    for record in records:
        store.put(record)
    try:
        (store.folder / GROUPS_FILE).write_text(FAMILIES, encoding="utf-8")
    except OSError as error:
        raise LlmsuperError(
            f"{folder}: the report cannot be written ({error.strerror or error}). Name another folder with --report."
        ) from error
    for page in build_pages(("demo", PUBLISHED), gather(store.folder)):
        yield from (path for path in page.write(folder) if path.suffix == ".md")


def draw_demo(lines: list[Measured], path: Path) -> None:
    """Draw what was measured into a .png, .svg or .pdf file. Raises `LlmsuperError` where it cannot be written."""
    from llmsuper.report.figures import FIGURES, save

    try:
        save(FIGURES["one_head"]({line.name: line.statistics for line in lines}), path)
    except (OSError, ValueError) as error:
        raise LlmsuperError(
            f"{path}: the figure cannot be written ({error}). Name another file with --figure."
        ) from error
