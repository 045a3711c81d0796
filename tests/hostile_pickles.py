"""Pickles that act when they are loaded, and pickles that fill the memory of whoever reads them.

An exploit is a value beside the weights of a state dict: `{"evil": <exploit>, "lm_head.weight": <tensor>}`. When any of
them is loaded by `pickle`, a folder named `flag` appears; that is how a test knows that the exploit is one.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = "lm_head.weight"
STORAGE = bytes(range(256)) * 16
"""The only storage: 1,024 float32, of which the head is the 32 × 32 matrix."""


def text(value: str) -> bytes:
    """BINUNICODE."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def tensor(
    key: bytes = text("0"),
    kind: bytes = b"ctorch\nFloatStorage\n",
    location: bytes = text("cpu"),
    offset: bytes = b"K\x00",
    shape: bytes = b"K\x20K\x20\x86",
    stride: bytes = b"K\x20K\x01\x86",
    hooks: bytes = b"ccollections\nOrderedDict\n)R",
    rebuild: bytes = b"ctorch._utils\n_rebuild_tensor_v2\n",
) -> bytes:
    """The head as torch.save writes it; each part may be replaced."""
    reference = b"(" + text("storage") + kind + key + location + b"M\x00\x04tQ"
    return rebuild + b"(" + reference + offset + shape + stride + b"\x89" + hooks + b"tR"


def state_dict(*items: bytes, head: bytes | None = None) -> bytes:
    """The pickle of a dictionary of `items` (key, value, …) and the head."""
    return b"\x80\x04}(" + b"".join(items) + text(HEAD) + (tensor() if head is None else head) + b"u."


def zip_file(data: bytes, storage: bytes = STORAGE) -> bytes:
    """A torch zip file around any `data.pkl`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {"data.pkl": data, "data/0": storage, "version": b"3\n"}.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def legacy_file(data: bytes, storage: bytes = STORAGE) -> bytes:
    """A legacy file around any pickle of the state dict."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001, "type_sizes": {}})
    before = b"".join(pickle.dumps(value, 2) for value in head)
    return before + data + pickle.dumps(["0"], 2) + struct.pack("<q", len(storage) // 4) + storage


LAYOUTS: dict[str, Callable[[bytes], bytes]] = {"zip": zip_file, "legacy": legacy_file}


class _Reduced:
    """Pickles as the call of `os.mkdir`."""

    def __init__(self, flag: str) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.flag,)


def dumped(value: object, protocol: int) -> bytes:
    """The opcodes of a value, as part of another pickle: no header, no memo, no end."""
    data = pickletools.optimize(pickle.dumps(value, protocol))
    first = next(position for opcode, _, position in pickletools.genops(data) if opcode.name not in ("PROTO", "FRAME"))
    return data[first:-1]


def exploits(flag: str, module: str) -> dict[str, bytes]:
    """State dicts by what they do; each makes the folder `flag` when it is loaded. Importing `module` does so too."""
    system, mkdir, command = b"cposix\nsystem\n", b"cposix\nmkdir\n", text(f"mkdir {flag}")
    code, call = text(f"__import__('os').mkdir({flag!r})"), text(flag)
    mapped = b"cbuiltins\nmap\n(" + system + b"]" + command + b"at\x81"
    namespace = b"cargparse\nNamespace\n)\x81}"
    values = {
        "os.system": system + b"(" + command + b"tR",
        "exec": b"cbuiltins\nexec\n(" + code + b"tR",
        "eval, by STACK_GLOBAL": text("builtins") + text("eval") + b"\x93(" + code + b"tR",
        "a dotted name, by STACK_GLOBAL": text("subprocess") + text("os.mkdir") + b"\x93(" + call + b"tR",
        "INST": b"(" + command + b"iposix\nsystem\n",
        "OBJ": b"(" + system + command + b"o",
        "NEWOBJ": b"cbuiltins\nbytes\n(" + mapped + b"t\x81",
        "NEWOBJ_EX": b"cbuiltins\nbytes\n(" + mapped + b"t}\x92",
        "BUILD, by __setstate__": namespace + text("__setstate__") + system + b"sb" + command + b"b",
        "APPEND, by append": namespace + text("append") + mkdir + b"sb" + call + b"a",
        "a nested pickle": b"c_pickle\nloads\n(B" + struct.pack("<I", len(n := mkdir + b"(" + call + b"tR.")) + n + b"tR",
        "getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(" + text("os") + b"tR" + text("mkdir") + b"tR("
        + call + b"tR",
        "runpy": b"crunpy\n_run_code\n(" + code + b"}tR",
        "subprocess": b"csubprocess\ncall\n(]" + text("mkdir") + b"a" + call + b"atR",
        "an import": b"c" + module.encode() + b"\nanything\n",
        **{f"__reduce__, protocol {p}": dumped(_Reduced(flag), p) for p in range(pickle.HIGHEST_PROTOCOL + 1)},
    }  # fmt: skip
    act = mkdir + b"(" + call + b"tR"
    return {
        **{name: state_dict(text("evil"), value) for name, value in values.items()},
        "in the tensor's hooks": state_dict(head=tensor(hooks=act)),
        "in the storage's location": state_dict(head=tensor(location=act)),
        "a call as a key": state_dict(act, b"K\x01"),
        "below the weights": b"\x80\x04" + act + b"0" + state_dict()[2:],
    }


def _nested(depth: int) -> bytes:
    """A tuple of 2^depth leaves."""
    return b"K\x01" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(depth))


def _wide(depth: int, width: int) -> bytes:
    """A dictionary that holds another `width` times, which does so too, `depth` deep: width^depth paths."""
    made = b"}q\x00"
    for i in range(depth):
        items = b"".join(text(str(n)) + b"h%c" % i for n in range(width))
        made += b"0}q%c(" % (i + 1) + items + b"u"
    return made


FAR = struct.pack("<I", 0xFFFFFFF0)
LONG_NAME = text("k" * (1 << 20))

BOMBS: dict[str, tuple[bytes, str | None]] = {
    "a memo of 4e9 places": (state_dict(b"K\x01r" + FAR + b"0"), None),
    "2^60 leaves as a key": (state_dict(_nested(60), b"K\x01"), None),
    "2^60 leaves as a value": (state_dict(text("evil"), _nested(60)), None),
    "2^60 leaves as a storage's key": (state_dict(head=tensor(key=_nested(60))), "not that of a storage"),
    "2^60 leaves as a storage's class": (state_dict(head=tensor(kind=_nested(60))), "not that of a storage"),
    "2^60 leaves as a shape": (state_dict(head=tensor(shape=_nested(60))), "other than whole numbers"),
    "2^60 leaves as a function": (state_dict(head=tensor(rebuild=_nested(60))), None),
    "20,000 lists in each other": (state_dict(text("evil"), b"]" * 20_000 + b"a" * 19_999), None),
    "20,000 dictionaries in each other": (
        state_dict(text("evil"), (b"}" + text("a")) * 20_000 + b"K\x01" + b"s" * 20_000),
        None,
    ),
    "5,000 parameters of parameters": (
        state_dict(head=b"ctorch._utils\n_rebuild_parameter\n(" * 5_000 + tensor() + b"tR" * 5_000),
        "not a dense tensor",
    ),
    "a string of 4 GiB": (b"\x80\x02}(X" + struct.pack("<I", 0xFFFFFFFF) + b"abc", "cut short"),
    "bytes of 2^63": (b"\x80\x04}(\x8e" + struct.pack("<Q", (1 << 63) - 1) + b"abc", "cut short"),
    "a line without an end": (b"\x80\x02}(c" + b"a" * (8 << 20), "GLOBAL that cannot be read"),
    "a dictionary that holds itself": (
        b"\x80\x02}q\x00(" + text("model") + b"h\x00" + text("b") + b"h\x00" + text(HEAD) + tensor() + b"u.",
        None,
    ),
    "10^50 paths of dictionaries": (state_dict(text("evil"), _wide(50, 10)), None),
    "a long name before many short": (
        state_dict(LONG_NAME, b"}(" + b"".join(text(str(n)) + tensor() for n in range(1000)) + b"u"),
        "a name of more than",
    ),
    "a long name that many globals have": (
        state_dict(LONG_NAME + b"q\x00", (b"h\x00h\x00\x930") * 1000),
        "makes a global",
    ),
    "a whole number of 1e5 digits": (state_dict(b"I" + b"9" * 100_000 + b"\n", b"K\x01"), "INT that cannot be read"),
    "a whole number of 1 MiB": (
        state_dict(head=tensor(offset=b"\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20))),
        "other than whole numbers",
    ),
    "20,000 dimensions": (
        state_dict(head=tensor(shape=b"(" + b"K\x01" * 20_000 + b"t", stride=b"(" + b"K\x01" * 20_000 + b"t")),
        "not tuples of one length",
    ),
}
"""Pickles that are small and say something large, and a part of the refusal; None: the rest can be read."""

FLOODS: dict[str, bytes] = {
    "DUP without end": b"\x80\x02}" + b"2" * 100_000 + b".",
    "dictionaries without end": b"\x80\x02}" + b"}" * 100_000 + b".",
    "calls without end": b"\x80\x02}" + b"N)R" * 100_000 + b".",
}
"""Pickles that never come to an end, of at least 100,000 opcodes."""
