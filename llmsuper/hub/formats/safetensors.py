"""Indexes a safetensors header.

A file is an 8-byte little-endian length, that many bytes of JSON, and the tensors back to back. The checks are those
of the reference reader, https://github.com/huggingface/safetensors (`SafeTensors::read_metadata`), and duplicate keys
are refused besides: which of two spans a reader takes is then a matter of taste.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard

from llmsuper.errors import CheckpointError
from llmsuper.types import DTYPE_BYTES, TensorInfo

if TYPE_CHECKING:
    from llmsuper.hub.source import ByteSource

MAX_HEADER = 6_000_000
"""Bytes; a tensor takes about 150. The reference reader allows 100,000,000, which may say 2 GB of empty objects."""
MAX_TENSORS = 40_000
"""In one file. A mixture of 128 experts in 48 layers, of six tensors a matrix when quantised, has 28,000 in each of 4 shards."""
MAX_DIMENSIONS = 64
"""torch's own limit; the product of 300,000 large numbers takes minutes."""
MAX_SIZE = 1 << 63
MARKS: dict[bytes, int] = {b"{": 1, b":": 4, b"[": 2, b",": 8}
"""How many of each a tensor needs: what a header will take as objects is known before it is parsed."""
FIRST_READ = 1 << 16
"""Bytes read at once: enough for most headers, and a second read gets exactly the rest."""

DISGUISES: dict[bytes, str] = {
    b"version https://git-lfs": "a Git LFS pointer and not the file itself. Run `git lfs pull`",
    b"<": "an HTML or XML page and not the file itself. Log in to the network or the mirror and download it again",
    b"PK\x03\x04": "a zip archive (such as torch.save writes) under the wrong name. Rename it or convert it",
    b"GGUF": "a GGUF file under the wrong name. Rename it or convert it",
    b"\x1f\x8b": "gzip-compressed. Decompress it",
}
"""What a file that is not safetensors turns out to be, by its first bytes, and what to do."""


def index(source: ByteSource) -> dict[str, TensorInfo]:
    """The place of every tensor, by name, spans absolute in the file; `CheckpointError` for a malformed header."""
    size = source.size
    head = source.read(0, min(FIRST_READ, size))
    length = int.from_bytes(head[:8], "little")
    base = 8 + length
    if not (length <= MAX_HEADER and base <= size and head[8:9] == b"{"):
        _refuse_start(source, head, length)
    if len(head) < base:
        head += source.read(len(head), base - len(head))
    _check_size(source, head[8:base])
    try:
        header = json.loads(head[8:base], object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _refuse(source, f"the header is not valid JSON ({error})")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(source, "__metadata__ is not an object of strings")
    tensors = sorted((_tensor(source, name, entry, base) for name, entry in header.items()), key=_span)
    end = base
    for info in tensors:
        if info.begin != end:
            kind = "a hole" if info.begin > end else "an overlap"
            _refuse(source, f"there is {kind} before {info.name[:80]!r}, at byte {min(info.begin, end):,}")
        end = info.end
    if end != size:
        _refuse(source, f"the header describes {end:,} bytes, the file has {size:,}")
    return {info.name: info for info in tensors}


def _refuse_start(source: ByteSource, head: bytes, length: int) -> NoReturn:
    """Says what a file is that does not begin as a safetensors file does."""
    for prefix, what in DISGUISES.items():
        if head.lstrip().lower().startswith(prefix.lower()):
            raise CheckpointError(f"{source.name}: this is {what}.")
    if source.size < 8:
        _refuse(source, f"the file has {source.size} bytes, fewer than the 8 of a header's length")
    if length > MAX_HEADER:
        _refuse(source, f"the header claims {length:,} bytes, more than the {MAX_HEADER:,} allowed")
    if 8 + length > source.size:
        _refuse(source, f"the header claims {length:,} bytes, the file has {source.size:,}: it is cut short")
    _refuse(source, "the header does not begin with {")


def _check_size(source: ByteSource, header: bytes) -> None:
    """Refuses a header that would take much memory: more values than `MAX_TENSORS` have, or letters of four bytes each."""
    for mark, each in MARKS.items():
        if (found := header.count(mark)) > each * MAX_TENSORS:
            _refuse(source, f"the header has {found:,} times {mark.decode()!r}, more than {MAX_TENSORS:,} tensors need")
    if 4 * len(header) > MAX_HEADER and not header.isascii():
        _refuse(source, f"the header has {len(header):,} bytes, not all of them ASCII, more than {MAX_HEADER // 4:,}")


def _span(info: TensorInfo) -> tuple[int, int]:
    return info.begin, info.end


def _tensor(source: ByteSource, name: str, entry: Any, base: int) -> TensorInfo:
    if not isinstance(entry, dict):
        _refuse(source, f"the entry of {name[:80]!r} is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        _refuse(source, f"{name[:80]!r} has dtype {dtype!r:.100}, which is not a name")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        _refuse(source, f"{name[:80]!r} has shape {shape!r:.100}, which is not a list of non-negative whole numbers")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(source, f"{name[:80]!r} has data_offsets {offsets!r:.100}, which is not a span")
    begin, end = offsets
    # A dtype of which only the name is known (sub-byte ones among them) cannot be checked; `locate` refuses it.
    if dtype in DTYPE_BYTES and math.prod(shape) * DTYPE_BYTES[dtype] != end - begin:
        _refuse(source, f"{name[:80]!r} has {end - begin:,} bytes for shape {shape!s:.100} in {dtype}")
    return TensorInfo(name, dtype, tuple(shape), base + begin, base + end)


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < MAX_SIZE for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r:.100} is there twice")
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse(source: ByteSource, found: str) -> NoReturn:
    raise CheckpointError(f"{source.name}: malformed safetensors: {found}. Download it again, or ask its author.")
