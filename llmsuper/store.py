"""Keeps records as one JSON file each, and shows them as one DataFrame."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from abc import ABC, abstractmethod
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from llmsuper.errors import LlmsuperError
from llmsuper.types import HeadRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

R = TypeVar("R")


class RecordStore(ABC, Generic[R]):
    """A folder of records of one kind, one file each; a kind says what its files are called and how they are read.

    A record is written to a temporary file, flushed to disk and renamed: if it exists, it is complete. That is the whole
    resume protocol; two processes may share a folder.
    """

    @abstractmethod
    def file_name(self, record: R) -> str:
        """The record's key as a file name: records with one key replace each other."""

    @abstractmethod
    def flat(self, record: R) -> dict[str, Any]:
        """The record as a row of a frame."""

    @abstractmethod
    def load(self, loaded: dict[str, Any]) -> R:
        """The record that was kept as this JSON object; any of `_read`'s errors where it is none."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def check_writable(self) -> None:
        """Raises `LlmsuperError` now, before anything is measured, if no record could be written later."""
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass

    def put(self, record: R) -> Path:
        """Write one record, replacing the one with the same key. Raises `LlmsuperError` if the folder cannot be written."""
        path = self.folder / self.file_name(record)
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=self.folder)
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(to_json(record, indent=1) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary).chmod(0o644)
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        return path

    def records(self) -> Iterator[R]:
        """Every record, in the order of file names. Raises `LlmsuperError` for a file that is not a record."""
        for path in sorted(self.folder.glob("*.json")):
            yield self._read(path)

    def frame(self) -> pd.DataFrame:
        """One row per record; what is nested becomes columns such as `overlap.mean_squared_overlap`."""
        import pandas as pd

        return pd.DataFrame([self.flat(record) for record in self.records()])

    def _writing(self) -> _Writing:
        return _Writing(self.folder)

    def _read(self, path: Path) -> R:
        try:
            record = self.load(json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant))
            self.flat(record)  # these two read what every user of a record counts on
            self.file_name(record)
            return record
        except (LlmsuperError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise LlmsuperError(
                f"{path}: is not a record of llmsuper ({type(error).__name__}: {error}). Move it out of the results folder."
            ) from error


class ResultStore(RecordStore[HeadRecord]):
    """A folder of head records, one file per (repo, commit, tensor, rows rule, sample of pairs, version of llmsuper)."""

    def file_name(self, record: HeadRecord) -> str:
        return file_name(record)

    def flat(self, record: HeadRecord) -> dict[str, Any]:
        return flat(record)

    def load(self, loaded: dict[str, Any]) -> HeadRecord:
        return HeadRecord(**{**loaded, "notes": tuple(loaded["notes"])})

    def frame(self) -> pd.DataFrame:
        """One row per record; of a head with a record that is of no sample, not those that are of one."""
        import pandas as pd

        records = list(self.records())
        whole = {file_name(record) for record in records if _sample(record) is None}
        return pd.DataFrame([flat(r) for r in records if _sample(r) is None or _file_name(r, sample=None) not in whole])

    def find(
        self,
        *,
        repo: str,
        commit: str,
        row_rule: str,
        version: str,
        tensor: str | None = None,
        file: str | None = None,
        sample: float | None = None,
    ) -> HeadRecord | None:
        """The record made by that version: of what was found to be the head, or of `tensor` or `file`, asked for by name.

        sample: the sample of pairs that it is to be of; None finds no record of a sample.
        """
        for path in sorted(self.folder.glob(f"{_slug(repo, commit)}.*.{row_rule}.json")):
            record = self._read(path)
            same = (record.repo, record.commit, record.row_rule, record.made_by.get("version"))
            asked = (*_asked(record), _sample(record))
            if same == (repo, commit, row_rule, version) and asked == (tensor, file, sample):
                return record
        return None


class _Writing:
    """Turns an OSError into the one error that says which folder and what to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise LlmsuperError(
                f"results folder {self.folder}: cannot be written ({error.strerror or error}). "
                "Free it, or name another one with --results DIR."
            ) from error


def file_name(record: HeadRecord) -> str:
    """The record's key as a file name: repo, commit, version of llmsuper, tensor, sample of pairs, rows rule.

    A tensor asked for by name has a record of its own, even where it is the head: its rows are not told from padding. So has
    a sample of pairs, which is to replace no record of all.
    """
    return _file_name(record, _sample(record))


def _file_name(record: HeadRecord, sample: float | None) -> str:
    tensor, file = _asked(record)
    asked = (".by-name" if tensor else "") + (f".{_safe(file)}" if file else "")
    if sample is not None:
        asked += f".sample-{_safe(repr(sample).removesuffix('.0'))}"
    version = _safe(f"v{record.made_by['version']}")
    return f"{_slug(record.repo, record.commit)}.{version}.{_safe(record.tensor)}{asked}.{record.row_rule}.json"


def to_json(record: Any, indent: int | None = None) -> str:
    """The record, a dataclass, as JSON; floats to the last digit, and never NaN."""
    return json.dumps(asdict(record), indent=indent, allow_nan=False)


def flat(record: HeadRecord) -> dict[str, Any]:
    """The record without nesting: its plain fields, `sample`, and `name.field` for each number of each statistic."""
    plain = {
        f.name: getattr(record, f.name) for f in fields(record) if f.name not in ("statistics", "notes", "made_by")
    }
    plain["sample"] = _sample(record)
    for name, values in record.statistics[record.row_class].items():
        plain |= {f"{name}.{key}": value for key, value in values.items() if not isinstance(value, (list, dict))}
    return plain


def _slug(repo: str, commit: str) -> str:
    return f"{_safe(repo.replace('/', '--'))}@{commit[:18]}"


def _safe(text: str, most: int = 80) -> str:
    """`text` as a part of a file name; a digest stands for what is odd in it, or too long for a file system."""
    safe = re.sub(r"[^\w.\-]+", "-", text, flags=re.ASCII).strip("-.")
    if safe == text and len(text) <= most:
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{safe[-most:]}-{digest}".lstrip("-.")


def _asked(record: HeadRecord) -> tuple[str | None, str | None]:
    """The tensor and the file that were asked for by name."""
    made = record.made_by
    return (
        record.tensor if made.get("tensor_by_name", False) else None,
        record.file if made.get("file_by_name", False) else None,
    )


def _sample(record: HeadRecord) -> float | None:
    """The share or number of tiles that its pairs are a sample of; None where they are all."""
    sample: float | None = record.made_by.get("sample")
    return sample


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
