"""A pickle is read, never run: exploits locate their weights and do nothing, bombs stay small."""

from __future__ import annotations

import importlib
import io
import pickle
import sys
import tracemalloc
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from llmsuper.errors import CheckpointError
from llmsuper.hub.formats import pickle_symbols
from llmsuper.hub.formats import torch as torch_format
from llmsuper.hub.formats.pickle_symbols import (
    CONSTANTS,
    LITERALS,
    OPCODES,
    Call,
    MalformedError,
    Pairs,
    Reference,
    Symbol,
    UnfinishedError,
    read_symbols,
)
from llmsuper.hub.source import LocalFile
from tests.hostile_pickles import BOMBS, FLOODS, HEAD, LAYOUTS, STORAGE, exploits, state_dict, zip_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llmsuper.types import TensorInfo

MODULE = "module_that_acts"
EXPLOITS = tuple(exploits("flag", MODULE))


def index_bytes(folder: Path, content: bytes) -> tuple[dict[str, TensorInfo], list[str]]:
    """The tensors that can be located, and the messages of the others; or the one message for the file."""
    (folder / "f.bin").write_bytes(content)
    source, located, refused = LocalFile(folder / "f.bin"), {}, []
    try:
        found = torch_format.index(source)
        for name in found:
            try:
                located[name] = found[name]
            except CheckpointError as error:
                refused.append(str(error))
    except CheckpointError as error:
        refused.append(str(error))
    finally:
        source.close()
    return located, refused


class Unguarded(pickle.Unpickler):
    """What torch.load was for years, but for the storages."""

    def persistent_load(self, pid: object) -> None: ...


# ---- exploits


@pytest.fixture
def flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that every exploit makes, also by being able to import `MODULE`."""
    made = tmp_path / "flag"
    (tmp_path / f"{MODULE}.py").write_text(f"import os\nanything = os.mkdir({str(made)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    importlib.invalidate_caches()
    return made


@pytest.mark.parametrize("name", EXPLOITS)
def test_an_exploit_does_nothing_and_its_weights_are_found(tmp_path: Path, flag: Path, name: str) -> None:
    data = exploits(str(flag), MODULE)[name]
    index_bytes(tmp_path, zip_file(state_dict()))  # imports the codec of zip's file names
    before = set(sys.modules)
    for layout, write in LAYOUTS.items():
        content = write(data)
        located, refused = index_bytes(tmp_path, content)
        assert not refused, layout
        assert set(located) == {HEAD}
        assert content[located[HEAD].begin : located[HEAD].end] == STORAGE
    assert set(sys.modules) == before
    assert not flag.exists()
    with suppress(Exception):
        Unguarded(io.BytesIO(data)).load()
    assert flag.is_dir(), "an exploit that does nothing when it is loaded tests nothing"
    sys.modules.pop(MODULE, None)


# ---- bombs


@pytest.fixture
def small() -> Iterator[None]:
    """Fails the test that takes much memory."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 << 20


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("small")
def test_a_bomb_stays_small(tmp_path: Path, layout: str, name: str) -> None:
    data, refusal = BOMBS[name]
    _, refused = index_bytes(tmp_path, LAYOUTS[layout](data))
    assert all(len(message) < 500 for message in refused)
    if refusal is None:
        assert not refused
    else:
        assert refusal in refused[0]


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_and_takes_little_memory_an_opcode(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pickle_symbols.MAX_OPCODES * 150 < 100 << 20
    monkeypatch.setattr(pickle_symbols, "MAX_OPCODES", 20_000)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedError, match="more than 20,000 opcodes"):
            read_symbols(FLOODS[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000 * 150 + len(FLOODS[name])


# ---- the machine


VALUES = [
    None, True, False, 0, -1, 255, 70_000, 2**40, -(2**70), 1.5, "", "ключ", b"bytes", "x" * 300, b"y" * 300,
    (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1, [2]], {}, {"a": {"b": 1}, 2: ()}, {1, 2}, frozenset({3}),
    OrderedDict(a=1), bytearray(b"z"),
]  # fmt: skip


def inert(value: object) -> object:
    """What the machine makes of a value."""
    if isinstance(value, OrderedDict):
        return ("call", [inert(part) for item in value.items() for part in item])
    if isinstance(value, dict):
        return ("pairs", [inert(part) for item in value.items() for part in item])
    if isinstance(value, list | set | frozenset):
        return [inert(part) for part in value]
    return tuple(inert(part) for part in value) if isinstance(value, tuple) else value


def plain(node: object) -> object:
    """The same of what the machine made."""
    if isinstance(node, Call):
        assert isinstance(node.function, Symbol)
        if node.function.name == "collections.OrderedDict":
            return ("call", [plain(part) for part in node.pairs])
        items = node.arguments  # sets and bytes of protocols that have no opcode for them
        assert isinstance(items, tuple)
        return plain(items[0])
    if isinstance(node, Pairs):
        return ("pairs", [plain(part) for part in node])
    if isinstance(node, list):
        return [plain(part) for part in node]
    return tuple(plain(part) for part in node) if isinstance(node, tuple) else node


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_are_those_of_pickle(value: object, protocol: int) -> None:
    if protocol == 2 and isinstance(value, bytes):
        pytest.skip("protocol 2 has no bytes: it pickles a call of the codec")
    if protocol < 5 and isinstance(value, bytearray):
        pytest.skip("before protocol 5 a bytearray is a call")
    data = pickle.dumps(value, protocol)
    reading = read_symbols(b"before" + data + b"after", 6)
    assert plain(reading.value) == inert(value)
    assert reading.end == 6 + len(data)
    assert reading.references == []


def test_persistent_ids_are_listed() -> None:
    reading = read_symbols(b"\x80\x02(K\x01QK\x02Qt.")
    assert [type(node) for node in reading.references] == [Reference, Reference]
    assert [node.value for node in reading.references] == [1, 2]
    assert reading.value == tuple(reading.references)


def test_nothing_inert_says_more_than_its_class() -> None:
    for node in (Symbol("a"), Call(None, ()), Reference(1)):
        assert repr(node).startswith("<llmsuper")
        assert node != type(node)(*(getattr(node, field) for field in type(node).__dataclass_fields__))


@pytest.mark.parametrize("cut", range(1, len(state_dict())))
def test_a_pickle_cut_anywhere_is_unfinished(cut: int) -> None:
    with pytest.raises(UnfinishedError, match="cut short"):
        read_symbols(state_dict()[:cut])


@pytest.mark.parametrize("code", sorted(OPCODES))
def test_no_opcode_is_taken_from_nothing(code: bytes) -> None:
    name = OPCODES[code].name
    alone = read_or_refuse(b"\x80\x04" + code + b"1\n1\n" + bytes(8) + b".")
    pushes = name in LITERALS or name in CONSTANTS or name.startswith("EMPTY_")
    assert pushes or name in ("PROTO", "FRAME", "MARK") or alone is MalformedError, name


def read_or_refuse(data: bytes) -> type[Exception] | None:
    try:
        read_symbols(data)
    except MalformedError as error:
        return type(error)
    return None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x82\x01.", "opcode EXT1, which torch.save never writes"),
        (b"\x97.", "opcode NEXT_BUFFER"),
        (b"Pid\n.", "opcode PERSID"),
        (b"\xff", "the byte b'\\xff' in place of an opcode"),
        (b"K\x01}s.", "a SETITEM of what it never made"),
        (b"]K\x01K\x02s.", "sets items of something other than a dictionary"),
        (b"}K\x01a.", "appends to something other than a list"),
        (b"h\x07.", "a BINGET of what it never made"),
        (b"K\x01(\x85.", "a TUPLE1 of what it never made"),
        (b"K\x01K\x02\x93.", "a global of something other than names"),
    ],
)
def test_what_is_no_pickle(data: bytes, message: str) -> None:
    with pytest.raises(MalformedError) as caught:
        read_symbols(b"\x80\x04" + data)
    assert message in str(caught.value)
