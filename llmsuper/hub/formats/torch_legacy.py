"""Indexes the pre-1.6 torch.save layout.

Five pickles (a magic number, the protocol, facts about the machine, the object, the keys of its storages), then for
each key, in that order, the number of elements as an int64 and the elements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from llmsuper.hub.formats.pickle_symbols import MAX_BYTES, MalformedError, Pairs, Reading, UnfinishedError, read_symbols
from llmsuper.hub.formats.torch_state import storage

if TYPE_CHECKING:
    from llmsuper.hub.formats.torch_state import Storage
    from llmsuper.hub.source import ByteSource

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
FIRST_READ = 1 << 18
"""Bytes read at once: enough for the pickles of most files; where it is not, four times as many."""
COUNT = 8
"""Bytes of the number of elements before each storage."""


class LegacyRecords:
    """The storages of a legacy file: the pickle's value in `root`, and where the bytes of a storage are."""

    def __init__(self, source: ByteSource, head: bytes) -> None:
        self._source = source
        machine, body, keys = _pickles(source, head)
        self.root = body.value
        self.byteorder = _byteorder(machine.value)
        sizes: dict[str, Storage] = {}
        for found in map(storage, body.references):
            if sizes.setdefault(found.key, found) != found:
                raise MalformedError(f"storage {found.key!r} has two sizes")
        self._begins: dict[str, int] = {}
        end = keys.end
        for key in keys.value if isinstance(keys.value, list) else [None]:
            if not isinstance(key, str) or key not in sizes or key in self._begins:
                raise MalformedError("its list of storages is not that of its pickle")
            self._begins[key] = end + COUNT
            end += COUNT + sizes[key].nbytes
        if end > source.size:
            raise MalformedError(f"its storages end at byte {end:,}, the file has {source.size:,}: it is cut short")

    def find(self, wanted: Storage) -> tuple[int, int | None]:
        """Where the bytes of a storage begin; the layout has no checksums."""
        begin = self._begins.get(wanted.key)
        if begin is None:
            raise MalformedError(f"storage {wanted.key!r} is not in the file")
        count = int.from_bytes(self._source.read(begin - COUNT, COUNT), "little", signed=True)
        if count != wanted.numel:
            raise MalformedError(f"storage {wanted.key!r} has {count:,} elements, the pickle says {wanted.numel:,}")
        return begin, None


def _pickles(source: ByteSource, head: bytes) -> tuple[Reading, Reading, Reading]:
    """Facts about the machine, the object, and the keys of its storages; reads on while the pickles do not end."""
    while True:
        try:
            return _parse(head)
        except UnfinishedError:
            n = min(3 * len(head), source.size - len(head), MAX_BYTES - len(head))
            if n <= 0:
                raise
            head += source.read(len(head), n)


def _parse(head: bytes) -> tuple[Reading, Reading, Reading]:
    magic = read_symbols(head)
    if type(magic.value) is not int or magic.value != MAGIC:
        raise MalformedError("this is a pickle that torch.save did not write", "Save the state dict with torch.save")
    protocol = read_symbols(head, magic.end)
    if type(protocol.value) is not int or protocol.value != PROTOCOL:
        raise MalformedError(f"its torch.save protocol is not {PROTOCOL}", "Save it again with a current torch")
    machine = read_symbols(head, protocol.end)
    body = read_symbols(head, machine.end)
    return machine, body, read_symbols(head, body.end)


def _byteorder(machine: object) -> Literal["little", "big"]:
    if isinstance(machine, Pairs):
        for key, value in zip(machine[::2], machine[1::2], strict=False):
            if isinstance(key, str) and key == "little_endian" and isinstance(value, bool):
                return "little" if value else "big"
    raise MalformedError("it does not say its byte order")
