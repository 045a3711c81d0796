"""Indexes a torch.save zip archive.

The archive has a pickle (`data.pkl`), one stored record of raw bytes for each storage (`data/0`, …), and since torch
2.1 a record `byteorder`. The list of records at the end and the pickle at the beginning are two reads. Where the bytes
of one storage begin only its own local header says, which is a third, unless what is known already leaves one place:
torch pads that header so that they are aligned, and they end where the next record begins.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from llmsuper.hub.formats.pickle_symbols import MAX_BYTES, MalformedError, read_symbols

if TYPE_CHECKING:
    from llmsuper.hub.formats.torch_state import Storage
    from llmsuper.hub.source import ByteSource

TAIL = (1 << 16) + 22
"""Bytes read at the end: as far as zipfile searches for the list of records, which usually fits in too."""
AHEAD = 1 << 17
"""Bytes read after the pickle: `byteorder` and the local headers of the first storages, which are often the head."""
ALIGNMENT, MOST_PADDING = 64, 64 + 32
"""Bytes that torch aligns storages to, and as much as a local header may hold behind the name: padding and 64-bit sizes."""
DESCRIPTORS: dict[bool, tuple[int, ...]] = {False: (0,), True: (16, 24)}
"""Bytes behind the content by whether bit 3 of the flags is set: CRC-32 and sizes of 32 or 64 bits (APPNOTE.TXT 4.3.9)."""
MAX_DIRECTORY = 5 << 20
"""Bytes; a record takes about 80."""
LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, and bytes of the name and of the extra field that follow (APPNOTE.TXT 4.3.7)."""


class RangeFile:
    """A file as zipfile wants it, over a `ByteSource`; spans that were kept are not read again."""

    def __init__(self, source: ByteSource) -> None:
        self.source, self.size = source, source.size
        self._position = 0
        self._kept: list[tuple[int, bytes]] = []
        self.keep(self.size - TAIL, TAIL)

    def keep(self, offset: int, n: int) -> None:
        """Reads what there is of [offset, offset + n), unless it is there already."""
        begin, end = max(0, offset), min(self.size, offset + n)
        data = self.at(begin, end - begin)
        self._kept.append((begin, data))

    def at(self, offset: int, n: int) -> bytes:
        """Exactly these bytes, which must lie within the file."""
        if not 0 <= offset <= offset + n <= self.size:
            raise MalformedError(f"the archive points to bytes {offset:,} to {offset + n:,} of {self.size:,}")
        kept = self.kept(offset, n)
        return self.source.read(offset, n) if kept is None else kept

    def kept(self, offset: int, n: int) -> bytes | None:
        """These bytes, if they need not be read."""
        for begin, data in self._kept:
            if begin <= offset and offset + n <= begin + len(data):
                return data[offset - begin : offset - begin + n]
        return None

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        position = offset + (0, self._position, self.size)[whence]
        if position < 0:
            raise OSError("before the beginning")  # as a file does: zipfile tries, and goes on
        self._position = position
        return position

    def read(self, n: int = -1) -> bytes:
        rest = max(0, self.size - self._position)
        n = rest if n < 0 else min(n, rest)
        if n > MAX_DIRECTORY:
            raise MalformedError(f"the archive's list of records claims {n:,} bytes")
        data = self.at(min(self._position, self.size), n)
        self._position += n
        return data


def is_zip(file: RangeFile) -> bool:
    """Whether the file ends as a zip archive does, be it a damaged one."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:
        return True


class ZipRecords:
    """The records of a zip archive: the pickle's value in `root`, and where the bytes of a storage are."""

    def __init__(self, file: RangeFile) -> None:
        self._file = file
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OverflowError) as error:
            if isinstance(error, MalformedError):
                raise
            raise MalformedError(f"its list of records is damaged ({error})") from error
        self._end = archive.start_dir
        self._records = {info.filename: info for info in archive.infolist()}
        if len(self._records) < len(archive.infolist()):
            raise MalformedError("two records of the archive have one name")
        starts = sorted({*(info.header_offset for info in archive.infolist()), self._end})
        self._next = dict(pairwise(starts))
        self._folder = self._find_folder()
        pickle = self._record("data.pkl")
        if pickle.file_size > MAX_BYTES:
            raise MalformedError(f"its pickle has {pickle.file_size:,} bytes", "Save the state dict alone")
        file.keep(pickle.header_offset, len(pickle.filename) + pickle.file_size + AHEAD)
        self.root = read_symbols(self._content(pickle)).value
        self.byteorder = self._byteorder()

    def find(self, storage: Storage) -> tuple[int, int | None]:
        """Where the bytes of a storage begin, and their CRC-32 unless it was not computed when saving."""
        info = self._record(f"data/{storage.key}")
        if info.file_size != storage.nbytes:
            raise MalformedError(f"{info.filename!r} has {info.file_size:,} bytes, the pickle says {storage.nbytes:,}")
        begin = None if self._file.kept(info.header_offset, LOCAL_HEADER.size) else self._aligned(info)
        return self._begin(info) if begin is None else begin, info.CRC or None

    def _find_folder(self) -> str:
        """The folder that torch puts all records in, which is named after the file."""
        folders = [name.removesuffix("data.pkl") for name in self._records if name.endswith("/data.pkl")]
        folders = [folder for folder in folders if folder.count("/") == 1]
        if len(folders) != 1:
            raise MalformedError(
                "this is a zip archive that torch.save did not write: it has no `data.pkl` in a folder",
                "Unpack it, or save the state dict with torch.save",
            )
        if f"{folders[0]}constants.pkl" in self._records:
            raise MalformedError(
                "this is a TorchScript archive, a program and not a state dict",
                "Load it with torch.jit.load and save its state_dict() with torch.save",
            )
        return folders[0]

    def _record(self, name: str) -> zipfile.ZipInfo:
        """The entry of a record, which must be stored as it is."""
        info = self._records.get(self._folder + name)
        if info is None:
            raise MalformedError(f"the archive has no record {self._folder + name!r}, which its pickle needs")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise MalformedError(
                "the archive was packed again with compression or encryption: parts of it cannot be read alone",
                "Unpack it and run `zip -0 -r` on its folder, or load it and save it with torch.save",
            )
        return info

    def _begin(self, info: zipfile.ZipInfo) -> int:
        """Where the bytes of a record begin, which its local header says."""
        signature, name, extra = LOCAL_HEADER.unpack(self._file.at(info.header_offset, LOCAL_HEADER.size))
        begin = info.header_offset + LOCAL_HEADER.size + int(name) + int(extra)
        if signature != b"PK\x03\x04" or begin + info.file_size > self._end:
            raise MalformedError(f"there is no record of {info.file_size:,} bytes at byte {info.header_offset:,}")
        return begin

    def _aligned(self, info: zipfile.ZipInfo) -> int | None:
        """Where the bytes of a record must begin to be aligned, and to end where the next record begins; None if unclear."""
        least = info.header_offset + LOCAL_HEADER.size + len(info.filename.encode())
        end = self._next.get(info.header_offset, 0) - info.file_size
        places = [end - behind for behind in DESCRIPTORS[bool(info.flag_bits & 8)]]
        places = [at for at in places if at % ALIGNMENT == 0 and least <= at <= least + MOST_PADDING]
        return places[0] if len(places) == 1 else None

    def _content(self, info: zipfile.ZipInfo) -> bytes:
        data = self._file.at(self._begin(info), info.file_size)
        if info.CRC and zlib.crc32(data) != info.CRC:
            raise MalformedError(f"the CRC-32 of {info.filename!r} is not the one in the archive")
        return data

    def _byteorder(self) -> Literal["little", "big"]:
        if self._folder + "byteorder" not in self._records:
            return "little"  # before torch 2.1, and no Hub checkpoint of that time comes from a big-endian machine
        info = self._record("byteorder")
        content = self._content(info) if info.file_size < 10 else b""
        match content:
            case b"little":
                return "little"
            case b"big":
                return "big"
        raise MalformedError(f"its record `byteorder` says {content!r}, which is neither little nor big")
