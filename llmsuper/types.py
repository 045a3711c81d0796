"""The frozen records that floors hand to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

RowRule = Literal["tokens", "all"]
"""Which rows count: those that the tokenizer can emit, or every stored row, padding included."""

DTYPE_BYTES: dict[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one element, by the safetensors name of the dtype."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model: a row of model_lists, a repository found on the Hub, or a local folder or file.

    `width`, `columns`, `rows`, `vocabulary` and `params` are claims made before looking; None means no claim.
    """

    repo: str
    """`owner/name` on the Hub, or the path of a local folder or file."""
    revision: str = "main"
    family: str | None = None
    width: int | None = None
    """Width of the model (m of the loss laws)."""
    columns: int | None = None
    """Columns of the LM head (m of the overlaps); less than `width` for opt-350m."""
    rows: int | None = None
    """Stored rows of the LM head, padding included."""
    vocabulary: int | None = None
    """Tokenizer length: base tokens and added tokens."""
    params: int | None = None
    lm_head: tuple[str, ...] = ()
    """Names the head's tensor may have, best first; empty: the table in `hub.locate` decides."""
    lists: tuple[str, ...] = ()
    """Named lists that this model is in, such as `liu2025`."""
    local: bool = False
    note: str | None = None

    @property
    def name(self) -> str:
        """The entry as a user would type it."""
        return self.repo if self.local or self.revision == "main" else f"{self.repo}@{self.revision}"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's place in a file: its dtype, shape, and absolute byte span [begin, end)."""

    name: str
    dtype: str
    """safetensors' name (`BF16`), or the block type of a quantised GGUF tensor (`Q8_0`)."""
    shape: tuple[int, ...]
    begin: int
    end: int
    row_stride: int | None = None
    """Bytes from one row to the next where that is more than a row: a view of a wider storage. None: rows touch."""
    byteorder: Literal["little", "big"] = "little"
    crc32: int | None = None
    """CRC-32 of the bytes [begin, end), where the file has one: the record of a torch zip that holds this tensor alone."""
    shared_with: tuple[str, ...] = ()
    """Other names of the same bytes."""


@dataclass(frozen=True, slots=True)
class HeadLocation:
    """Where one model's LM head lies: which file at which commit, which bytes of it, and what was noticed."""

    entry: ModelEntry
    commit: str
    """40-digit commit of the Hub; for a local file `local-` and a digest of its header, size and time of change."""
    file: str
    tensor: TensorInfo
    tied: bool
    """True when the head is the input embedding, because the checkpoint holds no head of its own."""
    checkpoint_bytes: int
    """Bytes of all weight files of the checkpoint in this format: what a whole download would move."""
    notes: tuple[str, ...] = ()
    """Disagreements between config and checkpoint, one sentence each."""
    row_ids: tuple[int, int] | None = None
    """(start, step): row r is token id start + r·step, where the checkpoint's config has a `row_subset`."""
    token_ranges: tuple[tuple[int, int], ...] | None = None
    """Runs [first, last] of the ids that a tokenizer inside the file (GGUF) can emit; None where there is none inside."""

    @property
    def rows(self) -> int:
        """n, every stored row."""
        return self.tensor.shape[0]

    @property
    def columns(self) -> int:
        """m."""
        return self.tensor.shape[1]

    @property
    def row_bytes(self) -> int:
        """Stored bytes of one row, without what may lie between rows."""
        span, gaps = self.span_bytes, (self.rows - 1) * (self.tensor.row_stride or 0)
        return span - gaps if gaps else span // self.rows

    @property
    def nbytes(self) -> int:
        """Stored bytes of all rows."""
        return self.rows * self.row_bytes

    @property
    def span_bytes(self) -> int:
        """Bytes from the first row's begin to the last row's end: what reading the head moves."""
        return self.tensor.end - self.tensor.begin


def _keep() -> None:
    """The release of rows that nobody waits for."""


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Consecutive rows as stored: rows start … start + b − 1 in the checkpoint's own dtype."""

    start: int
    rows: torch.Tensor
    """(b, m), a view on a buffer that is used again after `release()`."""
    release: Callable[[], None] = _keep
    """Hand the buffer back; a block that is never released stays valid and costs its own memory."""


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """All that was found about one head; the store keeps it as one JSON file."""

    repo: str
    revision: str
    commit: str
    family: str | None
    width: int | None
    file: str
    tensor: str
    dtype: str
    tied: bool
    rows: int
    columns: int
    row_rule: RowRule
    """The rule asked for."""
    row_class: RowRule
    """The rows that `statistic(name)` is over; `all` under the rule `tokens` only where no tokenizer says which are tokens."""
    row_source: str
    """Where the token ids came from, or why every stored row is counted."""
    padding_rows: int
    """Stored rows that no token has."""
    statistics: dict[str, dict[str, dict[str, Any]]]
    """By row class (`tokens`, `all`), then by the statistic's name in `geometry.STATISTICS`."""
    notes: tuple[str, ...] = ()
    made_by: dict[str, Any] = field(default_factory=dict)
    """Version, backend, device, precision, date, seconds, bytes moved."""

    def statistic(self, name: str) -> dict[str, Any]:
        """The statistic over the rows that were asked for."""
        return self.statistics[self.row_class][name]
