"""The strings of a few tokens, from the tokenizer's own files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llmsuper.hub.vocabulary import files_needed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from llmsuper.hub.repository import Repository
    from llmsuper.types import HeadLocation


def _of_tokenizer(value: dict[str, Any]) -> Iterable[tuple[int, str]]:
    vocab = value["model"]["vocab"]
    if isinstance(vocab, dict):
        yield from ((number, text) for text, number in vocab.items())
    else:  # Unigram: (text, score), and the id is the place
        yield from ((number, text) for number, (text, *_) in enumerate(vocab))
    yield from ((token["id"], token["content"]) for token in value.get("added_tokens") or ())


def _of_names(value: dict[str, Any]) -> Iterable[tuple[int, str]]:
    return [(number, text) for text, number in value.items()]


def _of_config(value: dict[str, Any]) -> Iterable[tuple[int, str]]:
    return [(int(key), token["content"]) for key, token in (value.get("added_tokens_decoder") or {}).items()]


READERS: dict[str, Callable[[dict[str, Any]], Iterable[tuple[int, str]]]] = {
    "tokenizer.json": _of_tokenizer,
    "vocab.json": _of_names,
    "added_tokens.json": _of_names,
    "tokenizer_config.json": _of_config,
}
"""Pairs of an id and its string, by the file that has them: the files of `vocabulary.READERS`."""


def token_strings(repository: Repository, ids: Collection[int]) -> dict[int, str]:
    """The strings of those ids, as the vocabulary writes them (`Ġ` or `▁` for a space); ids without one are left out.

    `read_vocabulary` has checked the files. A GGUF file's own tokenizer is not read: no strings then.
    """
    wanted = set(ids)
    found: dict[int, str] = {}
    for name in files_needed(repository.files):
        value = json.loads(repository.fetch(name).read_text(encoding="utf-8"))
        found |= {number: text for number, text in READERS[name](value) if number in wanted}
    return found


def name_pairs(
    statistics: dict[str, dict[str, dict[str, Any]]], repository: Repository, location: HeadLocation, *, strings: bool
) -> None:
    """Put `ids` beside the rows of the closest pairs and of crowds in `statistics`, and `tokens`, their strings.

    `tokens` is null where the rows are not known to be tokens (`strings` is false) or where no file has their strings.
    """
    found_pairs = [of["pairs"] for of in statistics.values() if "pairs" in of]
    named = [one for found in found_pairs for one in (*found["closest_pairs"], *found["largest_crowds"])]
    start, step = location.row_ids or (0, 1)
    for one in named:
        rows = one["rows"] if "rows" in one else [one["row"], one["other"]]
        one["ids"] = [start + step * row for row in rows]
    wanted = {number for one in named for number in one["ids"]} if strings else set()
    found = token_strings(repository, wanted) if wanted else {}
    for one in named:
        one["tokens"] = [found.get(number) for number in one["ids"]] if found else None
