"""Indexes a GGUF header.

A file is the magic, a version, the numbers of tensors and of metadata entries; the entries; name, shape, type and
offset of each tensor; and the data, each tensor at a multiple of `general.alignment`: see
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The checks are those of the reference reader
(`gguf_init_from_file` in ggml's gguf.cpp), but holes between tensors pass.

Nothing says how long the header is. Most of it is the vocabulary, 2 to 10 MB, so it is read in steps that double.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn
from weakref import WeakKeyDictionary

from llmsuper.errors import CheckpointError
from llmsuper.hub.formats.safetensors import DISGUISES
from llmsuper.types import TensorInfo

if TYPE_CHECKING:
    import numpy as np

    from llmsuper.hub.source import ByteSource

MAGIC = b"GGUF"
VERSIONS = (2, 3)
"""Version 3 is version 2 but for the byte order that a file may have, and big endian is not read."""
FIRST_READ = 1 << 20
"""Bytes read at once; each further read doubles what is there, so less than twice the header is ever read."""
MAX_HEADER = 20_000_000
"""Bytes, which stay in memory: the longest known, of 450,000 merges and 200,000 tokens, has 13,000,000."""
MOST_ENTRIES = 1 << 16
"""Tensors, and metadata entries: the largest mixtures of experts have 50,000 tensors."""
MOST_LETTERS = 1_000
"""Bytes of a name; of a longer text value only the beginning is kept."""
MOST_DIMENSIONS = 4

SCALARS: dict[int, str] = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Metadata values of a fixed size: the `struct` letter by GGUF's number of the type."""
STRING, ARRAY = 8, 9

ALIGNMENT, TOKENS, TOKEN_TYPES = "general.alignment", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
UNUSED = 5
"""The type of a token that pads the vocabulary, `[PAD151665]`: the tokenizer never emits it."""


@dataclass(frozen=True, eq=False, slots=True)
class Header:
    """What a GGUF file says before its data begins."""

    metadata: dict[str, int | float | bool | str]
    """Single values by key, such as `general.architecture`."""
    lengths: dict[str, int]
    """Lengths of the arrays by key; that of `tokenizer.ggml.tokens` is the vocabulary, its padding included."""
    tensors: dict[str, TensorInfo]
    token_types: np.ndarray | None
    """One integer for each token, or None where the file has none."""


def index(source: ByteSource) -> dict[str, TensorInfo]:
    """The place of every tensor, by name, spans absolute in the file; `CheckpointError` for a malformed header.

    Shapes are (rows, columns), as everywhere; ggml writes the columns first. A type that the installed `gguf` does
    not know is called `ggml type 31`, and its tensor is taken to end where the next begins.
    """
    return read_header(source).tensors


def token_ids(source: ByteSource) -> np.ndarray | None:
    """The ids, int64 and sorted, that the file's tokenizer can emit; None where it holds no tokenizer."""
    import numpy as np

    header = read_header(source)
    if TOKENS not in header.lengths:
        return None
    if header.token_types is None:
        return np.arange(header.lengths[TOKENS], dtype=np.int64)
    if len(header.token_types) != header.lengths[TOKENS]:
        _refuse(source, f"{len(header.token_types):,} token types for {header.lengths[TOKENS]:,} tokens")
    return np.flatnonzero(header.token_types != UNUSED).astype(np.int64)


def read_header(source: ByteSource) -> Header:
    """The metadata and the place of every tensor; `CheckpointError` for a malformed or unsupported header.

    Read once for each source: on the Hub a vocabulary of 10 MB would cross the network again.
    """
    if source not in _HEADERS:
        _HEADERS[source] = _read_header(source)
    return _HEADERS[source]


_HEADERS: WeakKeyDictionary[ByteSource, Header] = WeakKeyDictionary()


def _read_header(source: ByteSource) -> Header:
    cursor = _Cursor(source)
    tensor_count, entry_count = _counts(source, cursor)
    metadata, lengths, token_types = _metadata(source, cursor, entry_count)
    alignment = metadata.get(ALIGNMENT, 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        _refuse(source, f"{ALIGNMENT} is {alignment!r}, which is not a power of two")
    entries = [_entry(source, cursor) for _ in range(tensor_count)]
    base = -(-cursor.at // alignment) * alignment
    return Header(metadata, lengths, _place(source, entries, base, alignment), token_types)


class _Cursor:
    """The place in the header up to which it has been read, and the bytes fetched so far."""

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self.data = bytearray(source.read(0, min(FIRST_READ, source.size)))
        self.at = 0

    def _check(self, end: int) -> None:
        """Refuses a header that claims to reach `end`, where it cannot; reads nothing."""
        if end > self.source.size:
            _refuse(self.source, f"the header goes on to byte {end:,}, the file has {self.source.size:,}")
        if end > MAX_HEADER:
            _refuse(self.source, f"the header goes on to byte {end:,}, at most {MAX_HEADER:,} are allowed")

    def _need(self, end: int) -> None:
        """Fetches what is missing of the bytes before `end`."""
        have = len(self.data)
        if end > have:
            self._check(end)
            self.data += self.source.read(have, min(max(end, 2 * have), self.source.size) - have)

    def skip(self, n: int) -> None:
        self._need(self.at + n)
        self.at += n

    def take(self, n: int) -> bytes:
        self.skip(n)
        return bytes(self.data[self.at - n : self.at])

    def scalar(self, letter: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(f"<{letter}", self.take(struct.calcsize(letter)))[0]
        return value

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def text(self) -> str:
        """A text that is there to be read: its beginning is enough."""
        n = self.u64()
        self._check(self.at + n)
        start = self.take(min(n, MOST_LETTERS))
        self.skip(n - len(start))
        return start.decode("utf-8", "replace")

    def name(self) -> str:
        """A text that others refer to, so every byte of it matters."""
        n = self.u64()
        self._check(self.at + n)
        if n > MOST_LETTERS:
            _refuse(self.source, f"a name has {n:,} bytes, at most {MOST_LETTERS:,} are allowed")
        raw = self.take(n)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            _refuse(self.source, f"the name {raw[:80]!r} is not UTF-8")

    def skip_texts(self, count: int) -> None:
        """Passes over `count` texts: a vocabulary has 300,000, so this loop calls nothing that it can do without."""
        self._check(self.at + 8 * count)
        data, at, length_at = self.data, self.at, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > len(data):
                self._need(at + 8)
            at += 8 + length_at(data, at)[0]
        self._need(at)
        self.at = at


def _counts(source: ByteSource, cursor: _Cursor) -> tuple[int, int]:
    """The numbers of tensors and of metadata entries, of a file that is GGUF of a version and byte order we read."""
    start = bytes(cursor.data[:64])
    if not start.startswith(MAGIC):
        for prefix, what in DISGUISES.items():
            if prefix != MAGIC and start.lstrip().lower().startswith(prefix.lower()):
                raise CheckpointError(f"{source.name}: this is {what}.")
        _refuse(source, f"the file begins with {start[:4]!r}, not with {MAGIC!r}")
    cursor.at = len(MAGIC)
    version = cursor.u32()
    if version not in VERSIONS:
        found = "of big-endian byte order" if version and not version & 0xFFFF else f"version {version}"
        raise CheckpointError(
            f"{source.name}: GGUF {found}; little-endian versions {' and '.join(map(str, VERSIONS))} are read. "
            "Convert the model again with a current llama.cpp, or use another file of the model."
        )
    tensors, entries = cursor.u64(), cursor.u64()
    if max(tensors, entries) > MOST_ENTRIES:
        claim = f"{tensors:,} tensors and {entries:,} metadata entries"
        _refuse(source, f"it claims {claim}, at most {MOST_ENTRIES:,} of each are allowed")
    return tensors, entries


def _metadata(
    source: ByteSource, cursor: _Cursor, count: int
) -> tuple[dict[str, int | float | bool | str], dict[str, int], np.ndarray | None]:
    """`Header.metadata`, `Header.lengths` and `Header.token_types`."""
    import numpy as np

    metadata: dict[str, int | float | bool | str] = {}
    lengths: dict[str, int] = {}
    token_types = None
    for _ in range(count):
        key, kind = cursor.name(), cursor.u32()
        if key in metadata or key in lengths:
            _refuse(source, f"metadata {key[:80]!r} is there twice")
        if kind in SCALARS:
            metadata[key] = cursor.scalar(SCALARS[kind])
        elif kind == STRING:
            metadata[key] = cursor.text()
        elif kind == ARRAY:
            element, lengths[key] = cursor.u32(), cursor.u64()
            if element == STRING:
                cursor.skip_texts(lengths[key])
            elif element in SCALARS:
                size, letter = lengths[key] * struct.calcsize(SCALARS[element]), SCALARS[element]
                if key != TOKEN_TYPES:
                    cursor.skip(size)
                elif letter in "BbHhIiQq":
                    token_types = np.frombuffer(cursor.take(size), f"<{letter}")
                else:
                    _refuse(source, f"{TOKEN_TYPES} are not whole numbers")
            else:
                _refuse(source, f"metadata {key[:80]!r} is an array of values of type {element}")
        else:
            _refuse(source, f"metadata {key[:80]!r} is a value of type {kind}")
    return metadata, lengths, token_types


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor as the header describes it."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _entry(source: ByteSource, cursor: _Cursor) -> _Entry:
    name, dimensions = cursor.name(), cursor.u32()
    if dimensions > MOST_DIMENSIONS:
        _refuse(source, f"{name[:80]!r} has {dimensions:,} dimensions, at most {MOST_DIMENSIONS} are allowed")
    shape = tuple(cursor.u64() for _ in range(dimensions))[::-1]
    if 0 in shape:
        _refuse(source, f"{name[:80]!r} has shape {list(shape)}, of no elements")
    return _Entry(name, shape, cursor.u32(), cursor.u64())


def _place(source: ByteSource, entries: list[_Entry], base: int, alignment: int) -> dict[str, TensorInfo]:
    """The tensors by name, in the order of their spans, which are within the file and apart from each other."""
    types = _ggml_types(source)
    entries = sorted(entries, key=lambda entry: entry.offset)
    found: dict[str, TensorInfo] = {}
    for i, entry in enumerate(entries):
        name, begin = entry.name, base + entry.offset
        limit = base + entries[i + 1].offset if i + 1 < len(entries) else source.size
        dtype, block, block_bytes = types.get(entry.kind, (f"ggml type {entry.kind}", 0, 0))
        columns = entry.shape[-1] if entry.shape else 1
        if name in found:
            _refuse(source, f"tensor {name[:80]!r} is there twice")
        if entry.offset % alignment:
            _refuse(source, f"{name[:80]!r} has offset {entry.offset:,}, which is not a multiple of {alignment}")
        if block and columns % block:
            _refuse(source, f"{name[:80]!r} has {columns:,} columns in {dtype}, whose blocks have {block}")
        end = begin + math.prod(entry.shape) // block * block_bytes if block else max(begin + 1, limit)
        if end > source.size:
            _refuse(source, f"{name[:80]!r} ends at byte {end:,}, the file has {source.size:,}: it is cut short")
        if end > limit:
            _refuse(source, f"{name[:80]!r} overlaps {entries[i + 1].name[:80]!r}, at byte {limit:,}")
        found[name] = TensorInfo(name, dtype, entry.shape, begin, end)
    return found


def _ggml_types(source: ByteSource) -> dict[int, tuple[str, int, int]]:
    """Name, elements in a block and bytes of a block, by ggml's number of the type."""
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError as error:
        raise CheckpointError(
            f"{source.name}: GGUF is read with the package gguf, which cannot be imported ({error}). "
            "Run `pip install gguf`, or use a revision with safetensors."
        ) from error
    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


def _refuse(source: ByteSource, found: str) -> NoReturn:
    raise CheckpointError(f"{source.name}: malformed GGUF: {found}. Download it again, or ask its author.")
