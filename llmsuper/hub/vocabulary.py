"""Which rows are tokens and which are padding, from the tokenizer's own files.

The number of tokens is not the base vocabulary: added tokens have trained rows too (Qwen2.5 has 151,643 base tokens
and 151,665 in all, of 151,936 stored rows). So every place that gives a token an id is read, and the ids are kept as
a set, for some tokenizers leave gaps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

import numpy as np

from llmsuper.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from llmsuper.hub.repository import Repository
    from llmsuper.types import HeadLocation


def _of_tokenizer(value: dict[str, Any]) -> Iterable[Any]:
    """tokenizer.json: the model's vocabulary, and the added tokens."""
    vocab = value["model"]["vocab"]
    yield from vocab.values() if isinstance(vocab, dict) else range(len(vocab))  # Unigram: a list, the id is the place
    yield from (token["id"] for token in value.get("added_tokens") or ())


def _of_names(value: dict[str, Any]) -> Iterable[Any]:
    """vocab.json, added_tokens.json: token → id."""
    return value.values()


def _of_config(value: dict[str, Any]) -> Iterable[Any]:
    """tokenizer_config.json: id → added token, the id as text."""
    return [int(key) for key in value.get("added_tokens_decoder") or {}]


READERS: dict[str, Callable[[dict[str, Any]], Iterable[Any]]] = {
    "tokenizer.json": _of_tokenizer,
    "vocab.json": _of_names,
    "added_tokens.json": _of_names,
    "tokenizer_config.json": _of_config,
}
"""The token ids that each file gives."""

SETS: tuple[tuple[str, ...], ...] = (
    ("tokenizer.json",),
    ("vocab.json", "added_tokens.json", "tokenizer_config.json"),
)
"""Files that tell a whole vocabulary together, best first; the first of each set must be there, the others may."""

TOKENIZER_FILES: tuple[str, ...] = tuple(READERS)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The ids that a tokenizer can emit."""

    ids: np.ndarray
    """int64, sorted, each once."""
    files: tuple[str, ...]
    """Where they were read."""

    def __len__(self) -> int:
        return len(self.ids)

    def mask(self, rows: int, row_ids: tuple[int, int] | None = None) -> np.ndarray:
        """(rows,) bool: whether row r, which is token id start + r·step for row_ids = (start, step), is a token."""
        start, step = row_ids or (0, 1)
        return np.isin(start + step * np.arange(rows, dtype=np.int64), self.ids, assume_unique=True)

    def beyond(self, rows: int, row_ids: tuple[int, int] | None = None) -> int:
        """How many ids have no stored row: 0 unless the tokenizer is of a larger model than the head.

        A checkpoint that holds every step-th row lacks the others on purpose: 0 there too.
        """
        return int(np.count_nonzero(self.ids >= rows)) if row_ids is None else 0


def files_needed(files: Iterable[str]) -> tuple[str, ...]:
    """Those of `files` that `read_vocabulary` reads."""
    there = set(files)
    for names in SETS:
        if names[0] in there:
            return tuple(name for name in names if name in there)
    return ()


def runs(ids: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Sorted ids as runs (first, last) of consecutive ones."""
    breaks = np.flatnonzero(np.diff(ids) != 1)
    firsts, lasts = np.append(0, breaks + 1), np.append(breaks, len(ids) - 1)
    return tuple((int(ids[a]), int(ids[b])) for a, b in zip(firsts, lasts, strict=True)) if len(ids) else ()


def read_vocabulary(repository: Repository, location: HeadLocation) -> Vocabulary | None:
    """The vocabulary of the model's own tokenizer, or None where neither the head's file nor a file of `READERS` tells it.

    Raises `CheckpointError` for a malformed file.
    """
    if location.token_ranges is not None:
        ids = [np.arange(first, last + 1, dtype=np.int64) for first, last in location.token_ranges]
        return Vocabulary(np.concatenate([np.empty(0, np.int64), *ids]), (location.file,))
    names = files_needed(repository.files)
    if not names:
        return None
    ids = [_ids(f"{repository.entry.name}/{name}", name, repository.fetch(name)) for name in names]
    return Vocabulary(np.unique(np.concatenate(ids)), names)


def _ids(thing: str, name: str, path: Path) -> np.ndarray:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        ids = list(READERS[name](value))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{thing}: not the tokenizer file that its name says ({type(error).__name__}: {str(error)[:200]}). "
            "Download it again, or count every stored row with --rows all."
        ) from error
    wrong = next((i for i in ids if type(i) is not int or not 0 <= i < 2**31), None)
    if wrong is not None:
        raise CheckpointError(
            f"{thing}: {short(wrong)} is given as a token id. Download it again, or count every stored row with --rows all."
        )
    return np.array(ids, dtype=np.int64)
