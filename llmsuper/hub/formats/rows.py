"""Turns the stored bytes of rows into a tensor: plain dtypes by a view, block-quantised ones by the `gguf` library.

A quantised row is a whole number of blocks, and a block holds its own scale. So rows stay byte spans: any run of rows
is dequantised without its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from llmsuper.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


@dataclass(frozen=True, slots=True)
class StoredType:
    """How rows of one dtype are stored, and what they become."""

    name: str
    """safetensors' name (`BF16`), or ggml's (`Q8_0`)."""
    block: int
    """Consecutive elements of a row that are stored together; 1 for a plain dtype."""
    block_bytes: int
    decoded: str
    """torch's name of the dtype of decoded rows."""
    decoded_bytes: int
    """Bytes of one element of decoded rows."""
    decode: Callable[[torch.Tensor, int, int], torch.Tensor]
    """(buffer, rows, columns) → (rows, columns); call it through `decode_rows`."""

    @property
    def quantised(self) -> bool:
        return self.block > 1


def _view(dtype: str, buffer: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    import torch

    return buffer.view(getattr(torch, dtype)).view(rows, columns)


def _dequantise(kind: Any, buffer: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    import numpy as np
    import torch
    from gguf.quants import dequantize

    # A scale that is NaN or infinite is named, with its row, by the pass that normalises the rows.
    with np.errstate(over="ignore", invalid="ignore"):
        values = dequantize(buffer.numpy().reshape(rows, -1), kind)
    return torch.from_numpy(values).view(rows, columns)


PLAIN: dict[str, StoredType] = {
    name: StoredType(name, 1, size, dtype, size, partial(_view, dtype))
    for name, size, dtype in (
        ("F64", 8, "float64"),
        ("F32", 4, "float32"),
        ("F16", 2, "float16"),
        ("BF16", 2, "bfloat16"),
    )
}
"""The dtypes that are read as they are stored."""


@cache
def block_types() -> dict[str, StoredType]:
    """The block types that the installed `gguf` dequantises, by ggml's names; none where it is not installed."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
    except ImportError:
        return {}
    # The library has a class, named as the type is, for every type that it can dequantise.
    return {
        kind.name: StoredType(kind.name, *GGML_QUANT_SIZES[kind], "float32", 4, partial(_dequantise, kind))
        for kind in GGMLQuantizationType
        if kind.name not in PLAIN and hasattr(quants, kind.name)
    }


def stored_type(dtype: str, thing: str = "a tensor") -> StoredType:
    """How rows of `dtype` are stored; `CheckpointError`, about `thing`, where a head in it cannot be measured."""
    found = PLAIN.get(dtype) or block_types().get(dtype)
    if found is None:
        also = ", ".join(block_types()) or "GGUF's block types once the package gguf is installed (pip install gguf)"
        raise CheckpointError(
            f"{thing} is stored as {dtype}; a head is measured in {', '.join(PLAIN)}, or dequantised from {also}. "
            "Use a revision or a file in one of these, or name another tensor with --lm-head NAME."
        )
    return found


def row_bytes(dtype: str, columns: int) -> int:
    """Bytes of one stored row; `CheckpointError` for an unknown dtype, or where a row is no whole number of blocks."""
    kind = stored_type(dtype)
    blocks, rest = divmod(columns, kind.block)
    if rest:
        raise CheckpointError(
            f"rows of {columns} columns stored as {dtype}: its blocks hold {kind.block} elements, and {columns} is no "
            "multiple of that. The file is malformed: download it again, or ask its author."
        )
    return blocks * kind.block_bytes


def decode_rows(dtype: str, buffer: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The rows (rows, columns) that `buffer`, uint8 of rows × row_bytes bytes, holds.

    A plain dtype comes back as it is stored, little endian, as a view of the buffer; a block type as new float32,
    after which the buffer is free. Raises `CheckpointError` as `row_bytes` does.
    """
    needed = rows * row_bytes(dtype, columns)
    if buffer.shape != (needed,):
        raise ValueError(f"{rows} rows of {columns} {dtype} are {needed} bytes, the buffer is {tuple(buffer.shape)}")
    return stored_type(dtype).decode(buffer, rows, columns)


def quantisation_note(dtype: str) -> str | None:
    """One sentence that says how the head was quantised and who undid it; None for a plain dtype."""
    kind = stored_type(dtype)
    if not kind.quantised:
        return None
    bits = 8 * kind.block_bytes / kind.block
    return (
        f"The head is quantised: {dtype}, blocks of {kind.block} elements in {kind.block_bytes} bytes "
        f"({bits:.4g} bits an element), dequantised to {kind.decoded} by gguf {version('gguf')}."
    )
