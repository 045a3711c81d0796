"""Counts the tokens of a corpus, in groups of consecutive texts that a jackknife can leave out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmsuper.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from llmsuper.tokens.tokenizers import Tokenizer

GROUPS = 20
"""Groups of consecutive texts, at most; from the twentieth text on at least half as many, of about one size."""
BATCH = 1 << 20
"""Characters that are given to a tokenizer at once, about."""


@dataclass(frozen=True, eq=False)
class TokenCounts:
    """How often each token occurs in a corpus.

    groups       (GROUPS, ids) int64: the counts of each group of consecutive texts, by token id
    texts        documents of the corpus, or pieces of its text files
    complete     False where counting stopped at a limit of tokens before the corpus ended
    """

    corpus: str
    tokenizer: Tokenizer
    groups: NDArray[np.int64]
    texts: int
    complete: bool

    @property
    def by_id(self) -> NDArray[np.int64]:
        """(ids,) int64."""
        total: NDArray[np.int64] = self.groups.sum(axis=0)
        return total

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return int(self.groups.sum())

    @property
    def types(self) -> int:
        """Different tokens that occur."""
        return int(np.count_nonzero(self.by_id))

    @property
    def frequencies(self) -> NDArray[np.int64]:
        """(types,) int64: the counts that are not zero, largest first; entry r − 1 is that of rank r."""
        return ranked(self.by_id)

    def without_each_group(self) -> list[NDArray[np.int64]]:
        """`frequencies` of the corpus without each group that has tokens, ranked anew; empty for fewer than two such groups."""
        there = self.groups[self.groups.any(axis=1)]
        return [ranked(self.by_id - group) for group in there] if len(there) > 1 else []

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a token that occurs, the most frequent first, ties by id: rank, id, token, count."""
        by_id = self.by_id
        order = np.argsort(-by_id, kind="stable")[: self.types]
        for rank, token_id in enumerate(order.tolist(), 1):
            yield {
                "rank": rank,
                "id": token_id,
                "token": self.tokenizer.token(token_id),
                "count": int(by_id[token_id]),
            }


def ranked(by_id: NDArray[np.int64]) -> NDArray[np.int64]:
    """The counts above zero, largest first."""
    return np.sort(by_id[by_id > 0])[::-1]


class _Groups:
    """Counts in groups of consecutive texts, whose number stays bounded while the corpus has no known end.

    Neighbouring texts are alike, so a group has to be one stretch of the corpus and not every twentieth text. When the last
    group is full, pairs of neighbours become one group each, and the rest is filled with groups of that size.
    """

    def __init__(self, ids: int) -> None:
        self.counts = np.zeros((GROUPS, ids), dtype=np.int64)
        self.tokens = self._here = self._held = 0
        self._size = 1

    def add(self, ids: NDArray[np.int64]) -> None:
        """Count one text. A text is in one group whole."""
        if not len(ids):
            return
        if self._held >= self._size:
            self._here, self._held = self._here + 1, 0
            if self._here == GROUPS:
                self._halve()
        found = np.bincount(ids)
        if len(found) > self.counts.shape[1]:  # by doubling, so that growing costs little
            wider = max(len(found), 2 * self.counts.shape[1]) - self.counts.shape[1]
            self.counts = np.pad(self.counts, ((0, 0), (0, wider)))
        self.counts[self._here, : len(found)] += found
        self._held += len(ids)
        self.tokens += len(ids)

    def _halve(self) -> None:
        half = GROUPS // 2
        self.counts[:half] = self.counts[0::2] + self.counts[1::2]
        self.counts[half:] = 0
        self._here, self._size = half, self.tokens // half


def count_tokens(
    name: str,
    pieces: Iterable[str],
    tokenizer: Tokenizer,
    *,
    max_tokens: int | None = None,
    watch: Callable[[int], None] | None = None,
) -> TokenCounts:
    """Count the tokens of `pieces`, at most `max_tokens` of them; `watch` is told how many each batch had.

    Memory is that of the counts, GROUPS × largest id, and does not grow with the corpus. A token never spans two pieces.
    Raises `FitError` for a corpus without any token, and whatever reading the pieces raises.
    """
    groups = _Groups(tokenizer.vocabulary or 1024)
    texts, complete = 0, True
    for batch in _batches(pieces):
        before = groups.tokens
        for ids in tokenizer.encode(batch):
            left = None if max_tokens is None else max_tokens - groups.tokens
            complete = left is None or len(ids) <= left
            groups.add(ids if complete else ids[:left])
            texts += 1
            if not complete:
                break
        if watch is not None:
            watch(groups.tokens - before)
        if not complete:
            break
    if not groups.tokens:
        raise FitError(f"{name}: no token in {texts} texts under {tokenizer.name}. Give a corpus with text in it.")
    return TokenCounts(name, tokenizer, groups.counts, texts, complete)


def _batches(pieces: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
