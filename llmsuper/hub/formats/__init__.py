"""FORMATS: which index function reads which file name."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import TYPE_CHECKING

from llmsuper.errors import CheckpointError
from llmsuper.hub.formats import gguf, safetensors, torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np

    from llmsuper.hub.source import ByteSource
    from llmsuper.types import TensorInfo

FORMATS: dict[str, Callable[[ByteSource], Mapping[str, TensorInfo]]] = {
    "*.safetensors": safetensors.index,
    "*.bin": torch.index,
    "*.pth": torch.index,
    "*.pt": torch.index,
    "*.gguf": gguf.index,
}
"""Index functions by file-name pattern: the place of every tensor in the file, read from its header alone."""

TOKENIZERS: dict[str, Callable[[ByteSource], np.ndarray | None]] = {"*.gguf": gguf.token_ids}
"""Formats that hold a tokenizer, and the ids, int64 and sorted, that it can emit; None where a file has none."""

UNREADABLE: dict[str, str] = {
    "*.msgpack": "Flax msgpack",
    "*.h5": "Keras HDF5",
    "*.onnx": "ONNX",
}
"""Weight files that are known but not read, and what they are."""

NO_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*", "*.index.json")
"""Files with a weight file's suffix that hold none: what a trainer leaves beside a checkpoint."""


def weight_files(names: Iterable[str]) -> list[str]:
    """Those of `names` that hold weights, readable or not, sorted."""
    patterns = (*FORMATS, *UNREADABLE)
    return sorted(name for name in names if _matches(name, patterns) and not _matches(name, NO_WEIGHTS))


def unreadable(name: str) -> str | None:
    """What the file is, for a weight file in a format that is not read."""
    return next((what for pattern, what in UNREADABLE.items() if fnmatch(name, pattern)), None)


def index_file(source: ByteSource, file: str) -> Mapping[str, TensorInfo]:
    """The place of every tensor in `file`, by name; `CheckpointError` for a format that is not read.

    The places of a torch file are read as they are asked for, so `source` must stay open until then.
    """
    for pattern, index in FORMATS.items():
        if fnmatch(file, pattern):
            return index(source)
    what = unreadable(file) or "no known checkpoint format"
    raise CheckpointError(f"{source.name}: this is {what}, which is not read. Use a file like {', '.join(FORMATS)}.")


def token_ids(source: ByteSource, file: str) -> np.ndarray | None:
    """The ids that the tokenizer inside `file` can emit; None for a format, or a file, without a tokenizer."""
    return next((ids(source) for pattern, ids in TOKENIZERS.items() if fnmatch(file, pattern)), None)


def shapes_of(found: Mapping[str, TensorInfo]) -> Mapping[str, tuple[int, ...]]:
    """The shapes of an index's tensors, for which nothing more is read."""
    return found.shapes if isinstance(found, torch.TorchIndex) else {name: info.shape for name, info in found.items()}


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
