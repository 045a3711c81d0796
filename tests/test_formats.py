"""Every format: what the reference writer wrote is found, and what is malformed is refused by name."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsuper.errors import CheckpointError
from llmsuper.hub.formats import FORMATS, UNREADABLE, index_file, unreadable, weight_files
from llmsuper.hub.formats.safetensors import DISGUISES, FIRST_READ, MAX_HEADER
from llmsuper.hub.source import LocalFile
from llmsuper.types import DTYPE_BYTES, TensorInfo
from tests.checkpoints import safetensors_bytes, torch_bytes

if TYPE_CHECKING:
    from pathlib import Path

FILE = "model.safetensors"


def index_bytes(folder: Path, content: bytes, file: str = FILE) -> dict[str, TensorInfo]:
    (folder / file).write_bytes(content)
    source = LocalFile(folder / file)
    try:
        return index_file(source, file)
    finally:
        source.close()


def packed(header: Any, data: int = 0) -> bytes:
    """A safetensors file with this header (JSON text, or something to make JSON of) and so many bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def tensor(begin: int, end: int, shape: Any = None, dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


# ---- what there is


def test_spans_are_those_of_the_reference_writer(tmp_path: Path) -> None:
    tensors = {
        name: torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype))
        for name, dtype in {
            "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
            "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
            "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
        }.items()
    }  # fmt: skip
    assert tensors.keys() == DTYPE_BYTES.keys()
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 7)}
    content = safetensors_bytes(tensors)
    found = index_bytes(tmp_path, content)
    assert found.keys() == tensors.keys()
    for name, stored in tensors.items():
        info = found[name]
        assert info.shape == tuple(stored.shape)
        assert info.dtype == {"scalar": "F32", "empty": "F32"}.get(name, name)
        data = torch.tensor(list(content[info.begin : info.end]), dtype=torch.uint8)
        assert torch.equal(data.view(stored.dtype), stored.reshape(-1)) or "F8" in name
        assert len(data) == stored.nbytes


@pytest.mark.parametrize("count", [1, 2000])
def test_a_header_of_any_length_is_two_reads_at_most(tmp_path: Path, count: int) -> None:
    content = safetensors_bytes({f"model.layers.{i}.weight": torch.zeros(1) for i in range(count)})
    (tmp_path / FILE).write_bytes(content)

    class Counting(LocalFile):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.spans: list[tuple[int, int]] = []

        def read(self, offset: int, n: int) -> bytes:
            self.spans.append((offset, n))
            return super().read(offset, n)

    source = Counting(tmp_path / FILE)
    assert len(index_file(source, FILE)) == count
    source.close()
    header = 8 + int.from_bytes(content[:8], "little")
    assert source.spans == [(0, min(FIRST_READ, len(content)))] + [(FIRST_READ, header - FIRST_READ)] * (count > 1)
    assert sum(n for _, n in source.spans) <= max(header, FIRST_READ)


def test_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    assert index_bytes(tmp_path, packed({"__metadata__": {"format": "pt"}})) == {}


@pytest.mark.parametrize("prefix", DISGUISES)
def test_a_header_may_be_as_long_as_the_first_bytes_of_something_else(tmp_path: Path, prefix: bytes) -> None:
    length = int.from_bytes(prefix[:2], "little")
    text = json.dumps({"a": tensor(0, 1)}).encode().ljust(length)
    assert set(index_bytes(tmp_path, packed(text, 1))) == {"a"}


def test_a_dtype_that_is_only_a_name_does_not_spoil_the_others(tmp_path: Path) -> None:
    header = {"scale": tensor(0, 3, [6], "F4"), "head": tensor(3, 7)}
    found = index_bytes(tmp_path, packed(header, 7))
    assert {name: info.dtype for name, info in found.items()} == {"scale": "F4", "head": "U8"}


# ---- what is malformed

TRUNCATED = safetensors_bytes({"a": torch.zeros(100)})
TWICE = b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "a": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}'  # noqa: E501

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file has 0 bytes, fewer than the 8"),
    "seven bytes": (bytes(7), "the file has 7 bytes"),
    "no header": (bytes(8), "the header does not begin with {"),
    "a header beyond the limit": (
        struct.pack("<Q", MAX_HEADER + 1) + b"{}",
        "the header claims 6,000,001 bytes, more than the 6,000,000 allowed",
    ),
    "a header of 2^64 - 1 bytes": (b"\xff" * 16, "claims 18,446,744,073,709,551,615 bytes"),
    "cut in the header": (TRUNCATED[:20], r"the header claims \d+ bytes, the file has 20: it is cut short"),
    "cut in the data": (TRUNCATED[:-10], r"the header describes \d+ bytes, the file has \d+"),
    "bytes after the end": (TRUNCATED + b"\n", r"the header describes \d+ bytes, the file has \d+"),
    "not JSON": (packed(b"{]"), "not valid JSON"),
    "not UTF-8": (packed(b'{"\xff": 1}'), "not valid JSON"),
    "a list": (packed([]), "the header does not begin with {"),
    "blanks before the header": (packed(b"  {}"), "the header does not begin with {"),
    "a number": (packed(b"7"), "the header does not begin with {"),
    "nested too deep": (packed(b'{"a":' + b"[" * 50_000), "not valid JSON"),
    "objects without number": (packed(b'{"a":[' + b"{}," * 50_000 + b"{}]}"), r"the header has 50,002 times '\{'"),
    "a long header beyond ASCII": (packed(("{" + "é" * 1_000_000).encode()), r"2,000,001 bytes, not all of them ASCII"),
    "65 dimensions": (packed({"a": tensor(0, 1, [1] * 65)}, 1), r"shape \[1, 1, .*, which is not a list"),
    "an offset of 2^63": (packed({"a": tensor(0, 1 << 63, [1])}, 1), "which is not a span"),
    "a number of 10,000 digits": (packed(b'{"a":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "NaN": (packed(b'{"a": NaN}'), "NaN is not JSON"),
    "a name twice": (packed(TWICE, 1), "'a' is there twice"),
    "a key twice in an entry": (
        packed(b'{"a": {"dtype": "U8", "dtype": "I8", "shape": [0], "data_offsets": [0, 0]}}'),
        "'dtype' is there twice",
    ),
    "metadata of numbers": (packed({"__metadata__": {"a": 1}}), "__metadata__ is not an object of strings"),
    "metadata is a list": (packed({"__metadata__": []}), "__metadata__ is not an object of strings"),
    "an entry is null": (packed({"a": None}), "the entry of 'a' is not an object"),
    "an entry without a dtype": (packed({"a": {"shape": [0], "data_offsets": [0, 0]}}), "dtype None"),
    "a dtype that is no name": (packed({"a": tensor(0, 0, dtype=["U8"])}), "which is not a name"),
    "a negative dimension": (packed({"a": tensor(0, 1, [-1, -1])}, 1), r"shape \[-1, -1\]"),
    "a dimension that is a fraction": (packed({"a": tensor(0, 1, [1.0])}, 1), r"shape \[1\.0\]"),
    "a dimension that is true": (packed({"a": tensor(0, 1, [True])}, 1), r"shape \[True\]"),
    "a shape that is no list": (packed({"a": tensor(0, 1, "1")}, 1), "shape '1'"),
    "a shape that overflows": (packed({"a": tensor(0, 8, [2**32, 2**32 + 1])}, 8), "has 8 bytes for shape"),
    "a span that does not fit the shape": (packed({"a": tensor(0, 5, [2], "F16")}, 5), "'a' has 5 bytes for shape"),
    "a span that ends before it begins": (packed({"a": tensor(4, 0, [4])}, 4), "which is not a span"),
    "a negative offset": (packed({"a": tensor(-4, 0, [4])}, 4), "which is not a span"),
    "three offsets": (packed({"a": {**tensor(0, 0), "data_offsets": [0, 0, 0]}}), "which is not a span"),
    "an offset that is text": (packed({"a": {**tensor(0, 0), "data_offsets": ["0", "0"]}}), "which is not a span"),
    "a hole": (packed({"a": tensor(0, 2), "b": tensor(3, 4)}, 4), "there is a hole before 'b', at byte"),
    "a hole at the start": (packed({"a": tensor(1, 2)}, 2), "there is a hole before 'a'"),
    "an overlap": (packed({"a": tensor(0, 3), "b": tensor(2, 4)}, 4), "there is an overlap before 'b'"),
    "two tensors in one place": (packed({"a": tensor(0, 3), "b": tensor(0, 3)}, 3), "there is an overlap"),
    "a span beyond the end": (packed({"a": tensor(0, 1 << 40)}, 3), "the header describes"),
}
"""Malformed safetensors files, and what is said of each."""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_malformed_file_is_refused(tmp_path: Path, name: str) -> None:
    content, message = HOSTILE[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        index_bytes(tmp_path, content)
    assert str(tmp_path / FILE) in str(caught.value)
    assert "malformed safetensors" in str(caught.value)


OURS_ALONE = {"65 dimensions", "a name twice", "a key twice in an entry", "blanks before the header"}
"""What the reference reader lets pass and we do not; the last is against its own description of the format."""


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - OURS_ALONE))
def test_the_reference_reader_refuses_it_too(name: str) -> None:
    with pytest.raises(safetensors.SafetensorError):
        safetensors.torch.load(HOSTILE[name][0])


@pytest.mark.parametrize("prefix", DISGUISES)
@pytest.mark.parametrize("blank", [b"", b"\n  "])
def test_a_disguise_is_called_by_its_name(tmp_path: Path, prefix: bytes, blank: bytes) -> None:
    with pytest.raises(CheckpointError) as caught:
        index_bytes(tmp_path, blank + prefix + b" is not a length" * 20)
    assert str(caught.value) == f"{tmp_path / FILE}: this is {DISGUISES[prefix]}."


def test_disguises_as_they_occur(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"
    for content, what in (
        (pointer, "Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b'<?xml version="1.0"?><Error/>', "XML"),
        (torch_bytes({"a": torch.zeros(2)}), "zip archive"),
    ):
        with pytest.raises(CheckpointError, match=what):
            index_bytes(tmp_path, content)


WHOLE = safetensors_bytes({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.int8)})
HEADER = 8 + int.from_bytes(WHOLE[:8], "little")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, HEADER - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_changed_header_is_refused_or_read_as_the_reference_reads_it(
    tmp_path: Path, edits: list[tuple[int, int]]
) -> None:
    content = bytearray(WHOLE)
    for at, value in edits:
        content[at] = value
    try:
        found = index_bytes(tmp_path, bytes(content))
    except CheckpointError:
        return
    if any(info.dtype not in DTYPE_BYTES for info in found.values()):
        return  # the name of a dtype was changed, and only `locate` has an opinion on that
    reference = safetensors.torch.load(bytes(content))
    assert {name: info.shape for name, info in found.items()} == {n: tuple(t.shape) for n, t in reference.items()}


# ---- the table


def test_every_weight_file_of_a_checkpoint_is_known() -> None:
    names = ["a.safetensors", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "x.gguf", "tf_model.h5"]
    assert weight_files([*names, "config.json", "training_args.bin", "README.md"]) == sorted(names)
    assert [name for name in names if unreadable(name) is None] == names[:-1]


@pytest.mark.parametrize("pattern", UNREADABLE)
def test_a_format_that_is_not_read_says_so(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(CheckpointError, match=f"this is {UNREADABLE[pattern]}, which is not read. Use a file like"):
        index_bytes(tmp_path, b"", pattern.replace("*", "x"))


def test_an_unknown_format_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="this is no known checkpoint format"):
        index_bytes(tmp_path, b"", "notes.txt")


@pytest.mark.parametrize("pattern", FORMATS)
def test_no_readable_format_is_also_unreadable(pattern: str) -> None:
    assert unreadable(pattern.replace("*", "x")) is None
