"""Fuzzers and bombs: files that are damaged or lie, read through the public functions; only our own errors may come out.

python -m tests.fuzz --count 10000                              # damaged files of each format
python -m tests.fuzz --format GGUF --seed 1 --first 77 --count 1    # one of them again
python -m tests.fuzz --bombs                                    # what each bomb takes, in a process of its own
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch

from llmsuper.errors import LlmsuperError
from llmsuper.hub.formats.gguf import MAX_HEADER as GGUF_HEADER
from llmsuper.hub.formats.torch_zip import MAX_DIRECTORY
from llmsuper.hub.locate import locate_head
from llmsuper.hub.repository import open_repository
from llmsuper.hub.stream import stream_rows
from llmsuper.types import ModelEntry
from tests.checkpoints import safetensors_bytes, torch_bytes
from tests.hostile_pickles import BOMBS as PICKLES
from tests.hostile_pickles import FLOODS, LAYOUTS, legacy_file, state_dict, zip_file
from tests.hostile_pickles import text as pickled_text
from tests.test_gguf import entry, info, packed, stored_rows, text
from tests.test_gguf import write as write_gguf

SECONDS = 5
"""Of processor time, that one file may take."""
MEMORY = 64 << 20
"""Bytes that one file may take."""


class HangError(BaseException):
    """A file took too long; not an Exception, so that nothing can take it for an error of its own."""


def read(path: Path) -> str:
    """Locates the head of the file and streams its rows; the name of the error, or `read`.

    Whatever else is raised is a bug.
    """
    try:
        repository = open_repository(ModelEntry(str(path), local=True))
        location = locate_head(repository)
        with closing(repository.open(location.file)) as source:
            rows = 0
            for block in stream_rows(location, source, workers=1):
                rows += len(block.rows)
                block.release()
        assert rows == location.rows
    except LlmsuperError as error:
        assert len(str(error)) < 10_000, "an error as long as the file"
        return type(error).__name__
    return "read"


# ---- damage

Damage = Callable[[bytearray, random.Random], None]


def _place(data: bytearray, draw: random.Random) -> int:
    """A position: half of the time among the first or last 200 bytes, where headers and lists of records are."""
    edge = draw.randrange(min(200, len(data)))
    return draw.choice([edge, len(data) - 1 - edge, draw.randrange(len(data)), draw.randrange(len(data))])


def _chunk(data: bytearray, draw: random.Random) -> slice:
    begin = _place(data, draw)
    return slice(begin, begin + draw.choice([1, 2, 4, 8, 16, 64, 500]))


def flip(data: bytearray, draw: random.Random) -> None:
    data[_place(data, draw)] ^= 1 << draw.randrange(8)


def overwrite(data: bytearray, draw: random.Random) -> None:
    at = _chunk(data, draw)
    data[at] = draw.randbytes(len(data[at]))


def insert(data: bytearray, draw: random.Random) -> None:
    at = _place(data, draw)
    data[at:at] = draw.randbytes(draw.choice([1, 2, 4, 8, 100]))


def delete(data: bytearray, draw: random.Random) -> None:
    del data[_chunk(data, draw)]


def truncate(data: bytearray, draw: random.Random) -> None:
    del data[_place(data, draw) :]


def splice(data: bytearray, draw: random.Random) -> None:
    """A piece of the file in another place of it."""
    data[_chunk(data, draw)] = data[_chunk(data, draw)]


def length(data: bytearray, draw: random.Random) -> None:
    """A whole number, as a header has them, becomes another."""
    width, at = draw.choice([1, 2, 4, 8]), _place(data, draw)
    bits = 8 * width
    value = draw.choice(
        [0, 1, 2, 0x7F, 1 << (bits - 1), (1 << bits) - 1, len(data), len(data) - 1, draw.getrandbits(bits)]
    )
    data[at : at + width] = (value % (1 << bits)).to_bytes(width, "little")


def digits(data: bytearray, draw: random.Random) -> None:
    """A number that is written in digits becomes another."""
    found = list(re.finditer(rb"\d+", data[:20_000]))
    if found:
        at = draw.choice(found)
        value = draw.choice([b"0", b"-1", b"1e9", b"1.5", b"9" * draw.choice([2, 10, 19, 20, 5000]), b"true", b"null"])
        data[at.start() : at.end()] = value


DAMAGES: tuple[Damage, ...] = (flip, overwrite, insert, delete, truncate, splice, length, digits)


def damage(content: bytes, draw: random.Random) -> bytes:
    """The bytes after one to four damages."""
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        if data:
            draw.choice(DAMAGES)(data, draw)
    return bytes(data)


# ---- formats


def _tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    wide = torch.randn(30, 16, generator=draw)
    return {
        "model.embed_tokens.weight": torch.randn(40, 8, generator=draw).to(torch.bfloat16),
        "model.layers.0.mlp.up_proj.weight": wide,
        "model.norm.weight": torch.ones(8),
        "lm_head.weight": torch.randn(40, 8, generator=draw).half(),
    }


def _legacy() -> bytes:
    """A file of one storage, under a key that is not its address: the same file in every process."""
    weights = torch.randn(900, generator=torch.Generator().manual_seed(0)).half()
    views = {
        "lm_head.weight": weights[:320].view(40, 8),
        "model.embed_tokens.weight": weights[320:].view(20, 29)[:, :8],
    }
    content = torch_bytes(views, legacy=True)
    return re.sub(rb"X.\0\0\0\d{9,}", lambda _: pickled_text("7"), content, flags=re.DOTALL)


@cache
def _gguf() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        tensors = {name: (stored_rows("Q8_0", 20, 64), "Q8_0") for name in ("token_embd.weight", "output.weight")}
        return write_gguf(Path(folder) / "x.gguf", tensors, tokens=20, unused=2).read_bytes()


def _safetensors(content: bytes, draw: random.Random) -> bytes:
    """Damage to the header alone, whose length is then made right."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = damage(content[8:end], draw)
    return len(header).to_bytes(8, "little") + header + content[end:]


def _zipped_again(content: bytes, change: Callable[[bytes], bytes] = bytes) -> bytes:
    """The archive with its pickle changed, and without the time of day."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            record = old.read(name)
            new.writestr(zipfile.ZipInfo(name), change(record) if name.endswith("data.pkl") else record)
    return made.getvalue()


def _torch_zip(content: bytes, draw: random.Random) -> bytes:
    """Damage to the pickle alone, whose CRC-32 is then made right."""
    return _zipped_again(content, lambda pickle: damage(pickle, draw))


def _anywhere(end: int | None) -> Callable[[bytes, random.Random], bytes]:
    """Damage to what is before `end`."""
    return lambda content, draw: damage(content[:end], draw) + (content[end:] if end else b"")


@dataclass(frozen=True)
class Format:
    """Valid files, and a way to damage what a checksum or a length would otherwise guard."""

    suffix: str
    valid: Callable[[], list[bytes]]
    inside: Callable[[bytes, random.Random], bytes]


FORMATS: dict[str, Format] = {
    "safetensors": Format(".safetensors", lambda: [safetensors_bytes(_tensors())], _safetensors),
    "torch zip": Format(".bin", lambda: [torch_bytes(_tensors()), _zipped_again(zip_file(state_dict()))], _torch_zip),
    "torch legacy": Format(".bin", lambda: [_legacy(), legacy_file(state_dict())], _anywhere(900)),
    "GGUF": Format(".gguf", lambda: [_gguf()], _anywhere(1500)),
}


def damaged(name: str, seed: int, number: int) -> bytes:
    """The file of this number; the same whenever it is asked for."""
    draw, made = random.Random(f"{seed} {name} {number}"), FORMATS[name]
    content = draw.choice(_valid(name))
    return made.inside(content, draw) if draw.random() < 0.5 else damage(content, draw)


@cache
def _valid(name: str) -> list[bytes]:
    return FORMATS[name].valid()


@contextmanager
def limited(what: str, seconds: float = SECONDS) -> Iterator[None]:
    """`HangError` after so much processor time."""

    def hang(*_: object) -> None:
        raise HangError(f"{what} takes more than {seconds} s")

    before = signal.signal(signal.SIGPROF, hang)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def fuzz(name: str, count: int, folder: Path, *, seed: int = 0, first: int = 0) -> Counter[str]:
    """What came of `count` damaged files; an error that is not ours says which file it was."""
    path, outcomes = folder / f"model{FORMATS[name].suffix}", Counter[str]()
    for number in range(first, first + count):
        path.write_bytes(damaged(name, seed, number))
        again = f"python -m tests.fuzz --format {name!r} --seed {seed} --first {number} --count 1"
        try:
            with limited(again):
                outcomes[read(path)] += 1
        except Exception as error:
            error.add_note(f"again: {again}")
            raise
    return outcomes


# ---- bombs


def _headed(make: Callable[[], bytes]) -> bytes:
    header = make()
    return len(header).to_bytes(8, "little") + header


def _claim(value: bytes, count: int) -> bytes:
    """A GGUF array of `count` values of which only the first bytes are there."""
    return packed([entry("k", 9, struct.pack("<IQ", 8, count) + value)])


def _array(key: str, kind: int, count: int) -> bytes:
    """A GGUF file of one array of zeros or empty texts, as many as a header may have."""
    width = {5: 4, 8: 8}[kind]
    return packed([entry(key, 9, struct.pack("<IQ", kind, count - 20) + bytes(width * (count - 20)))])


def _zip(compression: int, size: int) -> bytes:
    """An archive whose pickle unpacks to far more than it has."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}" + bytes(size))
        archive.writestr("archive/data/0", bytes(4096))
    return made.getvalue()


def _many_records(count: int) -> bytes:
    """An archive of nothing but its list of records."""
    names = [b"a/%d" % i for i in range(count)]
    records = b"".join(b"PK\1\2" + bytes(24) + struct.pack("<H", len(name)) + bytes(16) + name for name in names)
    return records + b"PK\5\6" + struct.pack("<4H2LH", 0, 0, count, count, len(records), 0, 0)


Bomb = Callable[[], bytes]

JSONS: dict[str, Bomb] = {
    "100,000 lists in each other": lambda: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "an unclosed list of lists": lambda: b'{"a":' + b"[" * 8_000_000,
    "6 MB of empty objects": lambda: b'{"a":[' + b"{}," * 1_990_000 + b"{}]}",
    "6 MB of zeros": lambda: b'{"a":[' + b"0," * 2_900_000 + b"0]}",
    "6 MB of names": lambda: b"{" + b",".join(b'"%d":{}' % i for i in range(500_000)) + b"}",
    "a name of 6 MB, one letter of it beyond Latin": lambda: '{"😀'.encode() + b"a" * 5_900_000 + b'":{}}',
    "a name of 6 MB, one letter of it escaped": lambda: rb'{"\ud83d\ude00' + b"a" * 5_900_000 + b'":{}}',
    "1 MB of empty objects": lambda: b'{"a":[' + b"{}," * 39_000 + b"{}]}",
    "3 MB of names": lambda: b"{" + b",".join(b'"%d":{}' % i for i in range(39_000)) + b"}",
    "5 MB of names and numbers": lambda: b"{" + b",".join(b'"%030d":0' % i for i in range(150_000)) + b"}",
    "a whole number of 1,000,000 digits": lambda: b'{"a":{"dtype":"F32","shape":[' + b"9" * 1_000_000 + b"]}}",
    "100,000 dimensions": lambda: b'{"a":{"dtype":"F32","shape":[' + b"2," * 99_999 + b'2],"data_offsets":[0,0]}}',
    "300,000 large dimensions": lambda: (
        b'{"a":{"dtype":"F32","shape":[' + b"999999999999999999," * 300_000 + b'2],"data_offsets":[0,0]}}'
    ),
    "an end of 4,300 digits": lambda: b'{"a":{"dtype":"X","shape":[1],"data_offsets":[0,' + b"9" * 4300 + b"]}}",
    "one name twice among 100,000": lambda: b"{" + b"".join(b'"%d":{},' % i for i in range(100_000)) + b'"99999":{}}',
}

BOMBS: dict[str, dict[str, Bomb]] = {
    "safetensors": {
        "a header that claims 100 MB": lambda: struct.pack("<Q", 100_000_000) + b"{}",
        "a header that claims 2^64 bytes": lambda: struct.pack("<Q", (1 << 64) - 1) + b"{}",
        "a header of 100 MB of blanks": partial(_headed, lambda: b"{".ljust(100_000_000)),
        **{name: partial(_headed, header) for name, header in JSONS.items()},
    },
    "torch zip": {
        **{name: partial(LAYOUTS["zip"], made) for name, (made, _) in PICKLES.items()},
        **{name: partial(LAYOUTS["zip"], made) for name, made in FLOODS.items()},
        "a pickle that unpacks to 100 MB": lambda: _zip(zipfile.ZIP_DEFLATED, 100 << 20),
        "60,000 records": lambda: _many_records(60_000),
        "a list of records that claims 4 GiB": lambda: (
            zip_file(state_dict())[:-10] + struct.pack("<II", 0xFFFFFFF0, 0) + b"\0\0"
        ),
        "a list of records of zeros": lambda: (
            bytes(MAX_DIRECTORY) + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, MAX_DIRECTORY, 0, 0)
        ),
    },
    "torch legacy": {
        **{name: partial(LAYOUTS["legacy"], made) for name, (made, _) in PICKLES.items()},
        **{name: partial(LAYOUTS["legacy"], made) for name, made in FLOODS.items()},
    },
    "GGUF": {
        "2^62 metadata entries": lambda: b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 62),
        "2^62 tensors": lambda: b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0),
        "2^62 texts": lambda: _claim(b"", 1 << 62),
        "a text of 2^63": lambda: packed([entry("k", 8, struct.pack("<Q", 1 << 63))]),
        "a header full of empty texts": lambda: _array("k", 8, GGUF_HEADER // 8),
        "a header full of token types": lambda: _array("tokenizer.ggml.token_type", 5, GGUF_HEADER // 4),
        "a header full of tokens of no letter": lambda: _array("tokenizer.ggml.tokens", 8, GGUF_HEADER // 8),
        "a text as long as a header": lambda: packed([entry("k", 8, text("x" * (GGUF_HEADER - 200)))]),
        "a text of one emoji and many letters": lambda: packed([entry("k", 8, text("😀" + "x" * (GGUF_HEADER - 200)))]),
        "a header of 100 MB": lambda: packed([entry("k", 8, text("x" * 100_000_000))]),
        "arrays in arrays": lambda: packed([entry("k", 9, struct.pack("<IQ", 9, 1) * 100_000)]),
        "250,000 metadata entries": lambda: packed([entry(f"{i}", 0, b"\0") for i in range(250_000)]),
        "a long key": lambda: packed([entry("k" * (GGUF_HEADER - 200), 8, text("x"))] * 2),
        "250,000 tensors": lambda: packed([], [info(f"{i}", [32], 24, 0) for i in range(250_000)], 32),
        "250,000 tensors of one place": lambda: packed(
            [], [info(f"{i}", [32], 24, 32 * i) for i in range(250_000)], 8_000_000
        ),
    },
}
"""Files by format that are small for what they say, or large and say nothing."""


@dataclass(frozen=True)
class Cost:
    """What reading one file took, in a process of its own."""

    outcome: str
    bytes: int
    """By how much the process grew."""
    seconds: float
    """Of processor time."""


def cost(path: Path) -> Cost:
    """Reads the file in a child process, which begins with everything that a reader imports."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        # The child's peak begins at what it has of the parent; it must leave without the parent's clean-up.
        begun, outcome = _now(), "no outcome"
        try:
            with limited(path.name, 4 * SECONDS):
                outcome = read(path)
        except BaseException as error:  # noqa: BLE001 - to be told to the parent, whatever it is
            outcome = f"{type(error).__name__}: {error}"[:500]
        done = _now()
        os.write(send, json.dumps([outcome, done[0] - begun[0], done[1] - begun[1]]).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    return Cost(*json.loads(told)) if told else Cost(f"ended with status {status}", 0, 0.0)


def _now() -> tuple[int, float]:
    """Bytes at the peak, and seconds of processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_maxrss << 10, used.ru_utime + used.ru_stime


def costs(folder: Path) -> Iterator[tuple[str, str, int, Cost]]:
    """Format, name, size and cost of each bomb."""
    for name in FORMATS:  # so that all that is imported late is there before the first fork
        (folder / f"model{FORMATS[name].suffix}").write_bytes(_valid(name)[0])
        assert read(folder / f"model{FORMATS[name].suffix}") == "read"
    for name, bombs in BOMBS.items():
        path = folder / f"model{FORMATS[name].suffix}"
        for bomb, make in bombs.items():
            # made in a process of its own too: memory that this one has and lets go of would hide what a child takes
            if (maker := os.fork()) == 0:
                path.write_bytes(make())
                os._exit(0)
            os.waitpid(maker, 0)
            yield name, bomb, path.stat().st_size, cost(path)


# ---- by hand


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="files of each format")
    parser.add_argument("--format", choices=list(FORMATS), help="this format alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--bombs", action="store_true", help="the bombs instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.bombs:
            print("| format | bomb | bytes | outcome | MiB | s |\n|---|---|---|---|---|---|")
            for name, bomb, size, took in costs(Path(folder)):
                numbers = f"{took.bytes / 2**20:.0f} | {took.seconds:.1f}"
                print(f"| {name} | {bomb} | {size:,} | {took.outcome} | {numbers} |", flush=True)
            return
        for name in [options.format] if options.format else FORMATS:
            for content in _valid(name):
                path = Path(folder) / f"model{FORMATS[name].suffix}"
                path.write_bytes(content)
                assert read(path) == "read"
            begun, memory = time.monotonic(), _now()[0]
            found = fuzz(name, options.count, Path(folder), seed=options.seed, first=options.first)
            told = ", ".join(f"{count:,} {outcome}" for outcome, count in found.most_common())
            grown = (_now()[0] - memory) / 2**20
            print(f"{name}: {told}; {time.monotonic() - begun:.0f} s, grew by {grown:.0f} MiB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
