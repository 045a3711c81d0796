"""Both layouts of torch.save: spans are torch's own, few bytes are read for them, and what is malformed is refused."""

from __future__ import annotations

import gzip
import io
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llmsuper.errors import CheckpointError
from llmsuper.hub.formats import torch as torch_format
from llmsuper.hub.formats.torch import DISGUISES, TorchIndex
from llmsuper.hub.formats.torch_legacy import FIRST_READ
from llmsuper.hub.formats.torch_zip import TAIL
from llmsuper.hub.locate import locate_head
from llmsuper.hub.repository import open_repository
from llmsuper.hub.source import LocalFile
from llmsuper.hub.stream import stream_rows
from llmsuper.types import DTYPE_BYTES, HeadLocation, ModelEntry, TensorInfo
from tests.checkpoints import safetensors_bytes, torch_bytes, weight_files
from tests.hostile_pickles import HEAD, LAYOUTS, STORAGE, legacy_file, state_dict, tensor, text, zip_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fake_hub import FakeHub

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
LEGACY = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


class Counting(LocalFile):
    """A file that remembers what was read of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.spans: list[tuple[int, int]] = []

    def read(self, offset: int, n: int) -> bytes:
        self.spans.append((offset, n))
        return super().read(offset, n)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[bytes], Counting]]:
    """A file of these bytes, open until the end of the test."""
    sources = []

    def write(content: bytes) -> Counting:
        path = tmp_path / f"{len(sources)}.bin"
        path.write_bytes(content)
        sources.append(Counting(path))
        return sources[-1]

    yield write
    for source in sources:
        source.close()


def tensor_at(content: bytes, info: TensorInfo) -> torch.Tensor:
    """The tensor that lies where `info` says, row by row."""
    dtype, itemsize = DTYPES[info.dtype], DTYPE_BYTES[info.dtype]
    row = itemsize * int(torch.Size(info.shape[1:]).numel())
    step = info.row_stride or row
    count = info.shape[0] if info.shape else 1
    rows = [content[info.begin + i * step : info.begin + i * step + row] for i in range(count)]
    assert info.begin + (count - 1) * step + row == info.end or 0 in info.shape
    data = bytearray(b"".join(rows))
    return torch.frombuffer(data, dtype=dtype).reshape(info.shape) if data else torch.empty(info.shape, dtype=dtype)


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal bit by bit."""
    bits = [t.detach().contiguous().view(-1).view(torch.uint8) for t in (left, right)]
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*bits)


def views(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every kind of dense tensor whose rows are runs of bytes."""
    draw = torch.Generator().manual_seed(0)
    wide = torch.randint(0, 2, (90, 24), generator=draw).to(dtype)
    plain = torch.randint(0, 2, (50, 7), generator=draw).to(dtype)
    return {
        "plain": plain,
        "tied": plain,
        "copy": plain.clone(),
        "offset": wide[20:70],
        "strided": wide[3:53, 8:15],
        "every other row": wide[::2],
        "one row": wide[5:6],
        "one column": wide[:, 3:4],
        "vector": wide[7],
        "scalar": wide[0, 1],
        "cube": wide.view(90, 4, 6)[10:20],
        "no rows": torch.empty(0, 7, dtype=dtype),
        "no columns": torch.empty(7, 0, dtype=dtype),
        "no middle": torch.empty(3, 0, 5, dtype=dtype),
    }


APART = ("strided", "every other row", "one column")
"""The views whose rows do not touch."""


# ---- what there is


@LEGACY
@pytest.mark.parametrize("name", DTYPES)
def test_spans_are_those_of_the_reference_writer(opened: Callable[[bytes], Counting], name: str, legacy: bool) -> None:
    tensors = views(DTYPES[name])
    content = torch_bytes(tensors, legacy=legacy)
    found = torch_format.index(opened(content))
    assert list(found) == list(tensors)
    assert len(found) == len(tensors)
    assert found.shapes == {key: tuple(stored.shape) for key, stored in tensors.items()}
    for key, info in found.items():
        assert (info.name, info.dtype, info.byteorder) == (key, name, "little")
        assert same(tensor_at(content, info), tensors[key]), key
        stride = tensors[key].stride(0) * tensors[key].itemsize if tensors[key].ndim else 0
        assert info.row_stride == (stride if key in APART else None), key
    assert found["plain"].shared_with == ("tied",)
    assert found["tied"].shared_with == ("plain",)
    assert found["copy"].shared_with == found["offset"].shared_with == ()
    for key in ("plain", "tied", "copy"):
        crc32 = None if legacy else zlib.crc32(content[found[key].begin : found[key].end])
        assert found[key].crc32 == crc32
    assert all(found[key].crc32 is None for key in found if key not in ("plain", "tied", "copy"))


def without_records(path: Path, *names: str) -> None:
    """Takes records out of the list of an archive, as if they had never been written."""
    with zipfile.ZipFile(path, "a") as archive:
        for info in [info for info in archive.filelist if info.filename.partition("/")[2] in names]:
            archive.filelist.remove(info)
        archive.comment = b""  # has the list written again


@pytest.mark.parametrize("old", [False, True], ids=["as written today", "as before torch 2.1"])
def test_offsets_are_those_of_torch(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "f.bin"
    torch.save(views(torch.float16), path)
    if old:
        without_records(path, ".format_version", ".storage_alignment", "byteorder", ".data/serialization_id")
    assert_offsets_are_torchs(path)


def assert_offsets_are_torchs(path: Path) -> None:
    source = LocalFile(path)
    found, meta = torch_format.index(source), torch.load(path, map_location="meta")
    assert list(found) == list(meta)
    for name, info in found.items():
        storage = meta[name].untyped_storage()._checkpoint_offset
        assert info.begin == storage + meta[name].storage_offset() * meta[name].itemsize, name
    source.close()


def test_offsets_beyond_4_gib(tmp_path: Path) -> None:
    path = tmp_path / "sparse.bin"
    tensors = {"first": torch.empty(7, 5), "large": torch.empty(5 << 30, dtype=torch.uint8), "last": torch.empty(50, 4)}
    with torch.serialization.skip_data():
        torch.save(tensors, path)
    assert path.stat().st_size > 5 << 30
    assert path.stat().st_blocks * 512 < 1 << 20, "the file system has no sparse files"
    assert_offsets_are_torchs(path)
    source = Counting(path)
    assert torch_format.index(source)["large"].end > 5 << 30
    source.spans.clear()
    last = torch_format.index(source)["last"]
    assert last.begin > 5 << 30
    assert last.crc32 is None  # it was not computed, and a 0 in its place is no checksum
    assert len(source.spans) == 2
    source.close()


@pytest.mark.parametrize("shards", [1, 3])
def test_every_shard(opened: Callable[[bytes], Counting], shards: int) -> None:
    tensors = {f"layers.{i}.weight": torch.randn(9, 4) for i in range(7)}
    files = {n: c for n, c in weight_files(tensors, "torch", shards).items() if n.endswith(".bin")}
    assert len(files) == shards
    got = {}
    for content in files.values():
        got |= {name: tensor_at(content, info) for name, info in torch_format.index(opened(content)).items()}
    assert got.keys() == tensors.keys()
    assert all(same(got[name], stored) for name, stored in tensors.items())


@LEGACY
def test_parameters_and_metadata(opened: Callable[[bytes], Counting], legacy: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    plain = module.state_dict()
    assert isinstance(plain, OrderedDict)
    assert hasattr(plain, "_metadata")
    marked = torch.nn.Parameter(torch.randn(4, 3))
    marked.note = "kept by _rebuild_parameter_with_state"  # type: ignore[attr-defined]
    tensors = {**plain, "parameter": module[0].weight, "with state": marked}
    for saved in (plain, tensors):
        content = torch_bytes(saved, legacy=legacy)
        found = torch_format.index(opened(content))
        assert list(found) == list(saved)
        assert all(same(tensor_at(content, found[name]), saved[name].detach()) for name in saved)


@LEGACY
@pytest.mark.parametrize(
    ("saved", "names"),
    [
        ({"epoch": 3, "state_dict": {"w": 1}, "optimizer": {"state": {0: {"exp_avg": 2}}}}, ["w"]),
        ({"module": {"state_dict": {"w": 1}}}, ["w"]),
        ({"model": {"lm": {"in": {"weight": 1}, "head": 2}}}, ["lm.in.weight", "lm.head"]),
        ({"model": {"w": 1}, "rng": 2}, ["model.w", "rng"]),
        ({"w": 1, "step": 5, 7: 2}, ["w", "7"]),
        ({"epoch": 3}, []),
        ({}, []),
    ],
)  # fmt: skip
def test_names_in_nested_dictionaries(
    opened: Callable[[bytes], Counting], saved: dict[Any, Any], names: list[str], legacy: bool
) -> None:
    def filled(value: Any, key: Any = None) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner, key) for key, inner in value.items()}
        return value if key in ("epoch", "step") else torch.full((2, 3), float(value))

    assert list(torch_format.index(opened(torch_bytes(filled(saved), legacy=legacy)))) == names


@LEGACY
def test_weights_beside_foreign_objects(opened: Callable[[bytes], Counting], legacy: bool) -> None:
    from argparse import Namespace

    saved = {"args": Namespace(lr=0.1, path=Path("x")), "w": torch.randn(4, 5), "tags": {"a", "b"}}
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(content := torch_bytes(saved, legacy=legacy)), weights_only=True)
    found = torch_format.index(opened(content))
    assert list(found) == ["w"]
    assert same(tensor_at(content, found["w"]), saved["w"])  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_big_endian(opened: Callable[[bytes], Counting], layout: str) -> None:
    content = LAYOUTS[layout](state_dict())
    if layout == "zip":
        buffer = io.BytesIO(content)
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr("archive/byteorder", b"big")
        content = buffer.getvalue()
    else:
        content = content.replace(text("little_endian") + b"q\x01\x88", text("little_endian") + b"q\x01\x89")
    assert torch_format.index(opened(content))[HEAD].byteorder == "big"


# ---- how little is read


def test_two_reads_find_one_tensor_among_hundreds(opened: Callable[[bytes], Counting]) -> None:
    tensors = {"wte.weight": torch.zeros(5000, 64)} | {f"h.{i}.weight": torch.zeros(64, 64) for i in range(389)}
    content = torch_bytes(tensors)
    source = opened(content)
    assert source.size > 7_000_000
    found = torch_format.index(source)
    assert len(found.shapes) == 390
    assert len(source.spans) == 2
    assert found["wte.weight"].end - found["wte.weight"].begin == 5000 * 64 * 4
    assert len(source.spans) == 2
    assert sum(n for _, n in source.spans) < 300_000
    for name in tensors:  # most of them neither near the pickle nor near the list
        assert same(tensor_at(content, found[name]), tensors[name])
    assert len(source.spans) == 2


def test_an_archive_that_is_not_aligned_has_its_local_headers_read(opened: Callable[[bytes], Counting]) -> None:
    tensors = {f"h.{i}.weight": torch.randn(64, 64) for i in range(389)}
    packed, packed_again = zipfile.ZipFile(io.BytesIO(torch_bytes(tensors))), io.BytesIO()
    with zipfile.ZipFile(packed_again, "w", zipfile.ZIP_STORED) as archive:
        for name in packed.namelist():
            archive.writestr(name, packed.read(name))
    source = opened(packed_again.getvalue())
    found = torch_format.index(source)
    assert len(source.spans) == 2
    assert same(tensor_at(packed_again.getvalue(), found["h.200.weight"]), tensors["h.200.weight"])
    assert len(source.spans) == 3
    assert source.spans[2][1] == 30
    assert 0 < found["h.200.weight"].begin - source.spans[2][0] < 200


def test_legacy_is_two_reads_and_a_word(opened: Callable[[bytes], Counting]) -> None:
    tensors = {f"h.{i}.weight": torch.zeros(64, 64) for i in range(200)}
    source = opened(torch_bytes(tensors, legacy=True))
    found = torch_format.index(source)
    assert source.spans == [(source.size - TAIL, TAIL), (0, FIRST_READ)]
    begin = found["h.77.weight"].begin
    assert source.spans[2:] == [(begin - 8, 8)]


def test_a_legacy_head_of_any_length(opened: Callable[[bytes], Counting]) -> None:
    tensors = {f"{'long name ' * 90}{i}": torch.zeros(1) for i in range(700)}
    source = opened(torch_bytes(tensors, legacy=True))
    assert list(torch_format.index(source)) == list(tensors)
    assert source.spans[1:] == [(0, FIRST_READ), (FIRST_READ, source.size - FIRST_READ)]


def test_an_endless_legacy_pickle_is_read_to_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "f.bin"
    path.write_bytes(legacy_file(b"\x80\x02}(X" + struct.pack("<I", 0xFFFFFFFF))[:200])
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    source = Counting(path)
    with pytest.raises(CheckpointError, match="cut short"):
        torch_format.index(source)
    assert sum(n for _, n in source.spans) <= (16 << 20) + TAIL
    source.close()


# ---- from the Hub to the rows


def streamed(hub: FakeHub, files: dict[str, bytes]) -> tuple[torch.Tensor, HeadLocation]:
    """The head of these files on the Hub, as its rows arrive."""
    hub.add("org/tiny", files)
    repository = open_repository(ModelEntry("org/tiny"))
    location = locate_head(repository)
    stream = stream_rows(location, repository.open(location.file), block_rows=77)
    return torch.cat([block.rows.clone() for block in stream]), location


@LEGACY
@pytest.mark.parametrize("shards", [1, 3])
def test_the_rows_of_a_checkpoint_on_the_hub(hub: FakeHub, shards: int, legacy: bool) -> None:
    tensors = {"model.decoder.embed_positions.weight": torch.randn(9, 8), "model.norm.weight": torch.randn(8)}
    tensors |= {HEAD: torch.randn(500, 8, dtype=torch.float16), "score.weight": torch.randn(2, 8)}
    files = weight_files(tensors, "torch", shards)
    if legacy:
        for name in [name for name in files if name.endswith(".bin")]:
            files[name] = torch_bytes(torch.load(io.BytesIO(files[name])), legacy=True)
    rows, location = streamed(hub, files)
    assert same(rows, tensors[HEAD])
    assert not location.tied
    assert (location.tensor.crc32 is None) == legacy


@LEGACY
def test_the_rows_of_a_view(hub: FakeHub, legacy: bool) -> None:
    wide = torch.randn(600, 20, dtype=torch.bfloat16)
    rows, location = streamed(hub, {"pytorch_model.bin": torch_bytes({HEAD: wide[50:550, 4:11]}, legacy=legacy)})
    assert location.tensor.row_stride == 40
    assert same(rows, wide[50:550, 4:11])


def test_the_rows_of_a_big_endian_machine(hub: FakeHub) -> None:
    stored = STORAGE[::-1]
    data = {"a/data.pkl": state_dict(), "a/byteorder": b"big", "a/data/0": stored}
    rows, _ = streamed(hub, {"pytorch_model.bin": zip_of(data)})
    swapped = torch.frombuffer(bytearray(stored), dtype=torch.uint8).view(-1, 4).flip(1).reshape(-1)
    assert same(rows, swapped.view(torch.float32).view(32, 32))


def test_a_flipped_byte_is_found(hub: FakeHub) -> None:
    content = bytearray(torch_bytes({HEAD: torch.ones(500, 8)}))
    content[content.index(struct.pack("<f", 1.0) * 9) + 6000] ^= 1
    with pytest.raises(CheckpointError, match="have CRC-32"):
        streamed(hub, {"pytorch_model.bin": bytes(content)})


def test_two_ranges_locate_a_head_on_the_hub(hub: FakeHub) -> None:
    tensors = {HEAD: torch.zeros(5000, 64)} | {f"h.{i}.weight": torch.zeros(64, 64) for i in range(389)}
    hub.add("org/tiny", {"pytorch_model.bin": torch_bytes(tensors)})
    repository = open_repository(ModelEntry("org/tiny"))
    hub.take_log()
    location = locate_head(repository)
    assert [request.method for request in hub.take_log()] == ["HEAD", "GET", "GET"]
    source = repository.open(location.file)
    before = source.moved
    for block in stream_rows(location, source):
        block.release()
    assert source.moved - before == location.nbytes == 5000 * 64 * 4


# ---- what is no span of rows


REFUSED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "transposed": (lambda w: w.t(), "its shape [7, 50] has stride [1, 7], so that its rows are not separate runs"),
    "columns apart": (lambda w: w[:, ::2], "its shape [50, 4] has stride [7, 2]"),
    "one row many times": (lambda w: w[:1].expand(9, 7), "its shape [9, 7] has stride [0, 1]"),
    "overlapping rows": (lambda w: w.as_strided((9, 7), (3, 1)), "its shape [9, 7] has stride [3, 1]"),
    "sparse": (lambda w: w.to_sparse(), "it is made by torch._utils._rebuild_sparse_tensor: not a dense tensor"),
    "quantised": (
        lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
        "it is made by torch._utils._rebuild_qtensor: not a dense tensor",
    ),
}


@LEGACY
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_is_no_span_is_refused_when_asked_for(
    opened: Callable[[bytes], Counting], kind: str, legacy: bool
) -> None:
    make, message = REFUSED[kind]
    weight = torch.randn(50, 7)
    source = opened(content := torch_bytes({"good": weight, "bad": make(weight.clone())}, legacy=legacy))
    found = torch_format.index(source)
    assert same(tensor_at(content, found["good"]), weight)
    assert "bad" in found
    with pytest.raises(CheckpointError) as caught:
        found["bad"]
    assert str(caught.value).startswith(f"{source.name}: 'bad': {message}")
    with pytest.raises(KeyError):
        found["missing"]


# ---- what is malformed


def repacked(content: bytes, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", **options) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    return buffer.getvalue()


def torchscript() -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:  # torch.jit is deprecated, and warns
        for name in ("data/0", "data.pkl", "code/__torch__/linear.py", "constants.pkl", "version"):
            archive.writestr(f"net/{name}", b"\x80\x02}.")
    return buffer.getvalue()


def zip_of(records: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar() -> bytes:
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


def entry(content: bytes, name: str) -> int:
    """Where the entry of a record in the list of records begins."""
    return content.rindex(name.encode()) - 46


def patched(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


GOOD = zip_file(state_dict())
OLD = legacy_file(state_dict())
CELL = entry(GOOD, "archive/data/0")
PKL = entry(GOOD, "archive/data.pkl")
WORD = len(OLD) - len(STORAGE) - 8

HOSTILE: dict[str, tuple[bytes, str]] = {
    "TorchScript": (torchscript(), "this is a TorchScript archive"),
    "packed again": (repacked(GOOD, compression=zipfile.ZIP_DEFLATED), "packed again with compression"),
    "encrypted": (patched(GOOD, PKL + 8, b"\x01\x00"), "packed again with compression or encryption"),
    "another zip": (zip_of({"hello.txt": b"hello"}), "this is a zip archive that torch.save did not write"),
    "no folder": (zip_of({"data.pkl": state_dict()}), "no `data.pkl` in a folder"),
    "two pickles": (zip_of({"a/data.pkl": b"", "b/data.pkl": b""}), "no `data.pkl` in a folder"),
    "tar": (tar(), "this is a tar archive, the layout of torch 0.1"),
    "HTML": (b"<!DOCTYPE html><html>Log in</html>" * 9, "this is an HTML or XML page and not the file itself"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "this is a Git LFS pointer"),
    "safetensors": (safetensors_bytes({"a": torch.zeros(3)}), "this is a safetensors file under the wrong name"),
    "gzip": (gzip.compress(GOOD), "this is gzip-compressed"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(100), "this is a GGUF file"),
    "noise": (b"\x01\x02\x03" * 99, "this is no torch checkpoint: its first bytes are b'\\x01"),
    "empty": (b"", "its first bytes are b''"),
    "a zip cut short": (GOOD[: len(GOOD) // 2], "this is a zip archive that is cut short"),
    "a bare pickle": (pickle.dumps({"a": 1}), "this is a pickle that torch.save did not write"),
    "a module": (zip_file(b"\x80\x02ctorch.nn\nLinear\n)\x81}b."), "its pickle holds torch.nn.Linear, not a state dict"),
    "a list": (zip_file(b"\x80\x02]."), "its pickle holds no dictionary, not a state dict"),
    "a wrong checksum of the pickle": (patched(GOOD, PKL + 16, b"abcd"), "the CRC-32 of 'archive/data.pkl'"),
    "a pickle of 4 GB": (patched(GOOD, PKL + 20, b"\xf0\xff\xff\xff" * 2), "its pickle has 4,294,967,280 bytes"),
    "a record beyond the file": (patched(GOOD, CELL + 42, b"\xf0\xff\xff\x7f"), "points to bytes 2,147,483,632"),
    "a record that is none": (patched(GOOD, CELL + 42, b"\x07\x00\x00\x00"), "there is no record of 4,096 bytes at byte 7"),
    "a record into the list": (patched(GOOD, GOOD.index(b"archive/data/0") - 2, b"\x00\x10"), "there is no record of 4,096"),
    "a list of the whole file": (patched(GOOD, len(GOOD) - 10, b"\xff\xff\xff\x7f"), "its list of records is damaged"),
    "two records of one name": (
        zip_of({"a/data.pkl": state_dict(), "a/data/0": STORAGE, "a/data/1": STORAGE}).replace(b"data/1", b"data/0"),
        "two records of the archive have one name",
    ),
    "a storage of another size": (zip_file(state_dict(), STORAGE[:-4]), "has 4,092 bytes, the pickle says 4,096"),
    "no storage": (zip_file(state_dict(head=tensor(key=text("1")))), "no record 'archive/data/1', which its pickle needs"),
    "a byte order": (zip_of({"a/data.pkl": state_dict(), "a/byteorder": b"middle"}), "`byteorder` says b'middle'"),
    "another count": (patched(OLD, WORD, struct.pack("<q", 1023)), "has 1,023 elements, the pickle says 1,024"),
    "a negative count": (patched(OLD, WORD, struct.pack("<q", -1)), "has -1 elements"),
    "legacy cut short": (OLD[:-1], "the file has"),
    "legacy cut in the pickle": (OLD[:200], "its pickle is cut short"),
    "legacy protocol": (OLD.replace(b"M\xe9\x03.", b"M\xe8\x03.", 1), "its torch.save protocol is not 1001"),
    "legacy keys": (OLD.replace(pickle.dumps(["0"], 2), pickle.dumps(["1"], 2)), "its list of storages is not that"),
    "legacy keys twice": (OLD.replace(pickle.dumps(["0"], 2), pickle.dumps(["0", "0"], 2)), "its list of storages is not"),
    "legacy without keys": (OLD.replace(pickle.dumps(["0"], 2), pickle.dumps([], 2)), "storage '0' is not in the file"),
    "a storage of two sizes": (
        legacy_file(state_dict(text("other"), tensor(kind=b"ctorch\nHalfStorage\n"))),
        "storage '0' has two sizes",
    ),
    "a view of a storage": (
        zip_file(state_dict(head=tensor().replace(b"M\x00\x04tQ", b"M\x00\x04(K\x01K\x02K\x03ttQ"))),
        "a storage is a view of another (torch 0.3)",
    ),
}  # fmt: skip
"""Files by what is wrong with them, and a part of the refusal."""


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_malformed_is_refused(opened: Callable[[bytes], Counting], name: str) -> None:
    content, message = HOSTILE[name]
    source = opened(content)
    with pytest.raises(CheckpointError) as caught:
        torch_format.index(source)[HEAD]
    assert message in str(caught.value)
    assert str(caught.value).startswith(source.name)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("prefix", DISGUISES)
def test_every_disguise_has_its_own_words(opened: Callable[[bytes], Counting], prefix: bytes) -> None:
    with pytest.raises(CheckpointError) as caught:
        torch_format.index(opened(prefix + bytes(300)))
    assert f"this is {DISGUISES[prefix]}." in str(caught.value)


GEOMETRY: dict[str, tuple[bytes, str]] = {
    "an offset past the storage": (tensor(offset=b"K\x01"), "its elements reach beyond its storage of 4,096 bytes"),
    "a stride past the storage": (tensor(stride=b"K\x21K\x01\x86"), "reach beyond its storage"),
    "too many rows": (tensor(shape=b"K\x21K\x20\x86"), "reach beyond its storage"),
    "2^31 rows": (tensor(shape=b"J\xff\xff\xff\x7fK\x20\x86"), "reach beyond its storage"),
    "2^63 rows": (tensor(shape=b"\x8a\x09" + bytes(7) + b"\x80\x00K\x20\x86"), "other than whole numbers"),
    "negative rows": (tensor(shape=b"J\xff\xff\xff\xffK\x20\x86"), "other than whole numbers"),
    "a negative stride": (tensor(stride=b"J\xe0\xff\xff\xffK\x01\x86"), "other than whole numbers"),
    "a negative offset": (tensor(offset=b"J\xff\xff\xff\xff"), "other than whole numbers"),
    "true rows": (tensor(shape=b"\x88K\x20\x86"), "other than whole numbers"),
    "a shape without a stride": (tensor(stride=b"K\x01\x85"), "not tuples of one length"),
    "a wider storage": (tensor(kind=b"ctorch\nDoubleStorage\n"), "the pickle says 8,192"),
    "a negative storage": (tensor().replace(b"M\x00\x04tQ", b"J\xff\xff\xff\xfftQ"), "not that of a storage"),
    "another class": (tensor(kind=b"cos\nFloatStorage\n"), "of the class os.FloatStorage, which is unknown"),
    "an unknown class": (tensor(kind=b"ctorch\nOddStorage\n"), "of the class torch.OddStorage, which is unknown"),
    "an unknown call": (tensor(rebuild=b"ctorch._utils\n_rebuild_odd\n"), "made by torch._utils._rebuild_odd"),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_a_tensor_is_within_its_storage(opened: Callable[[bytes], Counting], name: str) -> None:
    head, message = GEOMETRY[name]
    found = torch_format.index(opened(zip_file(state_dict(head=head))))
    with pytest.raises(CheckpointError) as caught:
        found[HEAD]
    assert message in str(caught.value)
    with pytest.raises(CheckpointError):
        torch_format.index(opened(legacy_file(state_dict(head=head))))[HEAD]


@pytest.mark.parametrize("layout", ["zip", "zip by torch", "legacy", "legacy by torch"])
def test_a_damaged_file_is_located_or_refused(tmp_path: Path, layout: str) -> None:
    weights = {HEAD: torch.randn(32, 32), "b": torch.ones(3)}
    content = (
        torch_bytes(weights, legacy=layout.startswith("legacy"))
        if "torch" in layout
        else {"zip": GOOD, "legacy": OLD}[layout]
    )
    draw, outcomes = random.Random(1), {"located": 0, "refused": 0}
    path = tmp_path / "f.bin"
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            edge = draw.randrange(1000)
            damaged[draw.choice([edge, -1 - edge])] = draw.randrange(256)
        if draw.random() < 0.2:
            del damaged[draw.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        source = LocalFile(path)
        try:
            found = torch_format.index(source)
            if HEAD in found:
                info = found[HEAD]
                assert 0 <= info.begin <= info.end <= len(damaged)
                outcomes["located"] += 1
        except CheckpointError as error:
            outcomes["refused"] += 1
            assert str(error).endswith(".")
        finally:
            source.close()
    assert min(outcomes.values()) > 10, outcomes


def test_an_index_is_a_mapping(opened: Callable[[bytes], Counting]) -> None:
    found = torch_format.index(opened(GOOD))
    assert isinstance(found, TorchIndex)
    assert HEAD in found
    assert "other" not in found
    assert dict(found) == {HEAD: found[HEAD]}
