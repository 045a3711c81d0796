"""Reads a pickle as inert symbols; imports nothing, calls nothing.

A pickle is a program for a stack machine. This machine runs it with three differences: GLOBAL pushes the *name* of
what it would import, REDUCE and its kin push a `Call` that nobody makes, and a persistent id pushes a `Reference`.
There is no list of allowed callables to get wrong, for there is nothing here that calls.

What was read is never hashed, compared or printed: the memo makes tuples of 2^depth leaves out of a few bytes. A
dictionary is therefore a list of `Pairs`, and only what is known to be a `str` or an `int` may be looked at.

Opcodes and their arguments are those of `pickletools`; its own loop is not used, for it decodes escapes, which warns.
"""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MAX_BYTES = 16 << 20
"""Of one pickle, for whoever reads it from a file: a state dict takes about 150 a tensor."""
MAX_OPCODES = 1_000_000
"""Of one pickle: a state dict takes about 40 a tensor."""
MAX_NAME = 1_000
"""Letters: a long name that the memo puts into many others would fill the memory."""


class MalformedError(ValueError):
    """What was found to be wrong, and what to do; whoever knows the name of the file makes a `CheckpointError` of it."""

    def __init__(self, found: str, then: str = "Download it again, or ask its author") -> None:
        super().__init__(found)
        self.then = then


class UnfinishedError(MalformedError):
    """The data end before the pickle does."""


@dataclass(eq=False, repr=False, slots=True)
class Symbol:
    """The full name of something that the pickle would import."""

    name: str


class Pairs(list[object]):
    """A dictionary: key, value, key, value …"""

    __slots__ = ()


@dataclass(eq=False, repr=False, slots=True)
class Call:
    """What the pickle would call, or make an object of, and the items it would set on the result."""

    function: object
    arguments: object
    pairs: Pairs = field(default_factory=Pairs)


@dataclass(eq=False, repr=False, slots=True)
class Reference:
    """A persistent id: the pickle's way to name what lies outside of it, such as a storage."""

    value: object


class Reading(NamedTuple):
    """The value of one pickle, the position after its STOP, and every persistent id on the way."""

    value: object
    end: int
    references: list[Reference]


OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}

CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
"""Opcodes that always push the same."""

LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "GLOBAL",
}  # fmt: skip
"""Opcodes that push their argument; that of GLOBAL is a symbol."""


def read_symbols(data: bytes, start: int = 0) -> Reading:
    """The pickle that begins at `data[start]`.

    Raises `UnfinishedError` where the data end before it does, and `MalformedError` where it is no pickle, has more
    than `MAX_OPCODES`, or uses what torch never writes (extension codes, out-of-band buffers).
    """
    file, machine = io.BytesIO(data), _Machine()
    file.seek(start)
    for _ in range(MAX_OPCODES):
        code = file.read(1)
        if not code:
            raise UnfinishedError("its pickle is cut short")
        opcode = OPCODES.get(code)
        if opcode is None:
            raise MalformedError(f"its pickle has the byte {code!r} in place of an opcode")
        try:
            argument = _argument(opcode, file)
        except ValueError as error:
            if file.tell() >= len(data):
                raise UnfinishedError("its pickle is cut short") from error
            raise MalformedError(f"its pickle has an argument of {opcode.name} that cannot be read") from error
        try:
            if opcode.name == "STOP":
                return Reading(machine.take(1)[0], file.tell(), machine.references)
            machine.step(opcode.name, argument)
        except (IndexError, KeyError) as error:
            raise MalformedError(f"its pickle has a {opcode.name} of what it never made") from error
    raise MalformedError(f"its pickle has more than {MAX_OPCODES:,} opcodes", "Save the state dict alone")


def _argument(opcode: pickletools.OpcodeInfo, file: io.BytesIO) -> Any:
    """The argument as pickletools reads it; but lines are kept as they are, without the escapes."""
    if opcode.arg is None:
        return None
    if opcode.arg.n != pickletools.UP_TO_NEWLINE:
        return opcode.arg.reader(file)
    if opcode.name in ("GLOBAL", "INST"):
        return Symbol(f"{_line(file)}.{_line(file)}")
    line = _line(file)
    return int(line.rstrip("L")) if opcode.name in ("INT", "LONG", "GET", "PUT") else line


def _line(file: io.BytesIO) -> str:
    line = file.readline(MAX_NAME)
    if not line.endswith(b"\n"):
        raise ValueError("a line that does not end")
    return line[:-1].decode()


class _Machine:
    """The stack, the marks on it and the memo. Too few of anything is an `IndexError` or a `KeyError`."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.references: list[Reference] = []

    def take(self, count: int) -> list[object]:
        """The topmost `count` values above the last mark, off the stack, lowest first."""
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise IndexError(count)
        taken, self.stack[-count:] = self.stack[-count:], []
        return taken

    def marked(self) -> list[object]:
        """All values above the last mark, off the stack."""
        begin = self.marks.pop()
        taken, self.stack[begin:] = self.stack[begin:], []
        return taken

    def step(self, name: str, argument: Any) -> None:
        """One opcode, by its name in `pickletools`."""
        push = self.stack.append
        match name:
            case _ if name in LITERALS or name in CONSTANTS:
                push(CONSTANTS.get(name, argument))
            case "PROTO" | "FRAME":
                pass
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                push(self.memo[argument])
            case "MARK":
                self.marks.append(len(self.stack))
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(self.marked() if name == "TUPLE" else self.take(int(name[-1]))))
            case "LIST" | "FROZENSET" | "EMPTY_LIST" | "EMPTY_SET":
                push([] if name.startswith("EMPTY") else self.marked())
            case "DICT" | "EMPTY_DICT":
                push(Pairs(() if name == "EMPTY_DICT" else self.marked()))
            case "SETITEM" | "SETITEMS":
                items = self.marked() if name == "SETITEMS" else self.take(2)
                target = self.stack[-1]
                pairs = target.pairs if isinstance(target, Call) else target
                if not isinstance(pairs, Pairs):
                    raise MalformedError("its pickle sets items of something other than a dictionary")
                pairs.extend(items)
            case "APPEND" | "APPENDS" | "ADDITEMS":
                items = self.take(1) if name == "APPEND" else self.marked()
                target = self.stack[-1]
                if isinstance(target, list) and not isinstance(target, Pairs):
                    target.extend(items)
                elif not isinstance(target, Call):  # what a list or a set of some class holds has no name
                    raise MalformedError("its pickle appends to something other than a list")
            case "STACK_GLOBAL":
                module, attribute = self.take(2)
                if not (isinstance(module, str) and isinstance(attribute, str) and len(module + attribute) < MAX_NAME):
                    raise MalformedError("its pickle makes a global of something other than names")
                push(Symbol(f"{module}.{attribute}"))
            case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
                function, arguments, *_keywords = self.take(3 if name == "NEWOBJ_EX" else 2)
                push(Call(function, arguments))
            case "INST":
                push(Call(argument, tuple(self.marked())))
            case "OBJ":
                items = self.marked()
                push(Call(items[0], tuple(items[1:])))
            case "POP" | "BUILD":  # attributes of an object are of no use to whoever looks for tensors by name
                self.take(1)
            case "BINPERSID":
                self.references.append(Reference(self.take(1)[0]))
                push(self.references[-1])
            case "POP_MARK":
                self.marked()
            case "DUP":
                push(self.stack[-1])
            case _:
                raise MalformedError(f"its pickle has the opcode {name}, which torch.save never writes")
