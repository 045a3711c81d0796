"""The public names, loaded lazily, so that `import llmsuper` imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmsuper.version import __version__ as __version__

_HOME = {
    "GramAccumulator": "llmsuper.geometry.overlap",
    "HeadLocation": "llmsuper.types",
    "HeadRecord": "llmsuper.types",
    "LlmsuperError": "llmsuper.errors",
    "MatrixBlocks": "llmsuper.geometry.controls",
    "ModelEntry": "llmsuper.types",
    "NormAccumulator": "llmsuper.geometry.norms",
    "ResultStore": "llmsuper.store",
    "RowBlock": "llmsuper.types",
    "Settings": "llmsuper.measure",
    "choose_backend": "llmsuper.kernels",
    "load_catalog": "llmsuper.hub.catalog",
    "locate_head": "llmsuper.hub.locate",
    "measure_head": "llmsuper.measure",
    "measure_heads": "llmsuper.measure",
    "measure_rows": "llmsuper.geometry.suite",
    "one_pass": "llmsuper.geometry.passes",
    "open_repository": "llmsuper.hub.repository",
    "plan_head": "llmsuper.measure",
    "read_vocabulary": "llmsuper.hub.vocabulary",
    "resolve_patterns": "llmsuper.hub.catalog",
    "stream_rows": "llmsuper.hub.stream",
}

if TYPE_CHECKING:
    from llmsuper.errors import LlmsuperError
    from llmsuper.geometry.controls import MatrixBlocks
    from llmsuper.geometry.norms import NormAccumulator
    from llmsuper.geometry.overlap import GramAccumulator
    from llmsuper.geometry.passes import one_pass
    from llmsuper.geometry.suite import measure_rows
    from llmsuper.hub.catalog import load_catalog, resolve_patterns
    from llmsuper.hub.locate import locate_head
    from llmsuper.hub.repository import open_repository
    from llmsuper.hub.stream import stream_rows
    from llmsuper.hub.vocabulary import read_vocabulary
    from llmsuper.kernels import choose_backend
    from llmsuper.measure import Settings, measure_head, measure_heads, plan_head
    from llmsuper.store import ResultStore
    from llmsuper.types import HeadLocation, HeadRecord, ModelEntry, RowBlock

__all__ = [
    "GramAccumulator",
    "HeadLocation",
    "HeadRecord",
    "LlmsuperError",
    "MatrixBlocks",
    "ModelEntry",
    "NormAccumulator",
    "ResultStore",
    "RowBlock",
    "Settings",
    "choose_backend",
    "load_catalog",
    "locate_head",
    "measure_head",
    "measure_heads",
    "measure_rows",
    "one_pass",
    "open_repository",
    "plan_head",
    "read_vocabulary",
    "resolve_patterns",
    "stream_rows",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'llmsuper' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
