"""Indexes what torch.save wrote, in either of its layouts, and executes nothing of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol

from llmsuper.errors import CheckpointError
from llmsuper.hub.formats import safetensors
from llmsuper.hub.formats.pickle_symbols import MalformedError
from llmsuper.hub.formats.torch_legacy import FIRST_READ, LegacyRecords
from llmsuper.hub.formats.torch_state import Storage, Strided, tensors
from llmsuper.hub.formats.torch_zip import RangeFile, ZipRecords, is_zip
from llmsuper.types import TensorInfo

if TYPE_CHECKING:
    from llmsuper.hub.source import ByteSource

DISGUISES: dict[bytes, str] = {
    **safetensors.DISGUISES,
    b"PK\x03\x04": "a zip archive that is cut short. Download it again",
}
"""What a file that torch.save did not write turns out to be, by its first bytes, and what to do."""


class Records(Protocol):
    """A layout: the value of the pickle, and where the bytes of a storage are."""

    root: object
    byteorder: Literal["little", "big"]

    def find(self, wanted: Storage, /) -> tuple[int, int | None]: ...


def index(source: ByteSource) -> TorchIndex:
    """The place of every dense tensor, by name; `CheckpointError` for what torch.save did not write."""
    with _told(source.name):
        file = RangeFile(source)
        if is_zip(file):
            return TorchIndex(source, ZipRecords(file))
        head = source.read(0, min(FIRST_READ, source.size))
        if not head.startswith(b"\x80"):
            _refuse_start(source, head)
        return TorchIndex(source, LegacyRecords(source, head))


class TorchIndex(Mapping[str, TensorInfo]):
    """The tensors of one file. Their names and shapes are known; `index[name]` reads the few bytes before its storage
    for its place, so `source` must still be open. It raises `CheckpointError` for a tensor that is no span of rows."""

    def __init__(self, source: ByteSource, records: Records) -> None:
        self._source, self._records = source, records
        self._tensors = tensors(records.root)
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items() if isinstance(tensor, Strided)}
        """Shapes of the dense tensors, for which nothing more is read."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> TensorInfo:
        tensor = self._tensors[name]
        with _told(f"{self._source.name}: {name!r}"):
            if isinstance(tensor, MalformedError):
                raise MalformedError(str(tensor), tensor.then)
            row, step = tensor.rows()
            storage, crc32 = self._records.find(tensor.storage)
            begin = storage + tensor.offset * tensor.itemsize
            end = begin + (tensor.shape[0] - 1 if tensor.shape else 0) * step + row
            whole = end - begin == tensor.storage.nbytes and step == row
            return TensorInfo(
                name,
                tensor.dtype,
                tensor.shape,
                begin,
                end,
                row_stride=None if step == row else step,
                byteorder=self._records.byteorder,
                crc32=crc32 if whole else None,
                shared_with=tuple(other for other, same in self._tensors.items() if same == tensor and other != name),
            )


@contextmanager
def _told(thing: str) -> Iterator[None]:
    """Names the thing in which something malformed was found."""
    try:
        yield
    except MalformedError as error:
        raise CheckpointError(f"{thing}: {error}. {error.then}.") from error


def _refuse_start(source: ByteSource, head: bytes) -> NoReturn:
    """Says what a file is that begins as neither layout does."""
    for prefix, what in DISGUISES.items():
        if head.lstrip().lower().startswith(prefix.lower()):
            raise CheckpointError(f"{source.name}: this is {what}.")
    if head[257:262] == b"ustar":
        raise MalformedError("this is a tar archive, the layout of torch 0.1", "Load it with torch and save it again")
    if head[8:9] == b"{":
        raise MalformedError("this is a safetensors file under the wrong name", "Rename it to *.safetensors")
    raise MalformedError(f"this is no torch checkpoint: its first bytes are {head[:8]!r}")
