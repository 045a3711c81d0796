"""FORMATS: which index function reads which file name."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import TYPE_CHECKING

from llmsuper.errors import CheckpointError
from llmsuper.hub.formats import safetensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llmsuper.hub.source import ByteSource
    from llmsuper.types import TensorInfo

FORMATS: dict[str, Callable[[ByteSource], dict[str, TensorInfo]]] = {
    "*.safetensors": safetensors.index,
}
"""Index functions by file-name pattern: the place of every tensor in the file, read from its header alone."""

UNREADABLE: dict[str, str] = {
    "pytorch_model*.bin": "a torch pickle",
    "*.pth": "a torch pickle",
    "*.pt": "a torch pickle",
    "*.gguf": "GGUF",
    "*.msgpack": "Flax msgpack",
    "*.h5": "Keras HDF5",
    "*.onnx": "ONNX",
}
"""Weight files that are known but not read yet, and what they are."""


def weight_files(names: Iterable[str]) -> list[str]:
    """Those of `names` that hold weights, readable or not, sorted."""
    return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in (*FORMATS, *UNREADABLE)))


def unreadable(name: str) -> str | None:
    """What the file is, for a weight file in a format that is not read yet."""
    return next((what for pattern, what in UNREADABLE.items() if fnmatch(name, pattern)), None)


def index_file(source: ByteSource, file: str) -> dict[str, TensorInfo]:
    """The place of every tensor in `file`, by name; `CheckpointError` for a format that is not read."""
    for pattern, index in FORMATS.items():
        if fnmatch(file, pattern):
            return index(source)
    what = unreadable(file) or "no known checkpoint format"
    raise CheckpointError(
        f"{source.name}: this is {what}, which is not read yet. Use a revision with one of {', '.join(FORMATS)}."
    )
