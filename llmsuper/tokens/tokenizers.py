"""Opens the tokenizer that a name means: a built-in one, a local tokenizer.json, or a repository of the Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llmsuper.errors import CheckpointError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

VOCABULARIES = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
BESIDE = ("merges.txt", "config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""What `transformers` makes a tokenizer of where a repository has no tokenizer.json, as those of OPT have none."""


class Tokenizer(Protocol):
    """Texts to token ids, special tokens left out."""

    name: str

    @property
    def vocabulary(self) -> int | None:
        """How many tokens there are; None where that depends on the corpus."""

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """The token ids of each text, none added before, between or after."""

    def token(self, token_id: int) -> str:
        """A token as text, the way its tokenizer writes it."""


class WordTokenizer:
    """Words in lower case: runs of letters, digits and underscores, apostrophes inside; ids in the order of first occurrence."""

    name = "words"
    vocabulary = None
    _word = re.compile(r"\w+(?:['’]\w+)*")

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._words: list[str] = []

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        ids = self._ids
        return [
            np.array([ids.setdefault(word, len(ids)) for word in self._word.findall(text.lower())], dtype=np.int64)
            for text in texts
        ]

    def token(self, token_id: int) -> str:
        if len(self._words) < len(self._ids):
            self._words = list(self._ids)
        return self._words[token_id]


class ByteTokenizer:
    """The bytes of UTF-8: 256 tokens."""

    name = "bytes"
    vocabulary = 256

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        # a lone surrogate, which JSON can hold, is not UTF-8; it counts as the three bytes that it would be
        return [np.frombuffer(t.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.int64) for t in texts]

    def token(self, token_id: int) -> str:
        return repr(bytes([token_id]))[2:-1]


class FastTokenizer:
    """A tokenizer of the library `tokenizers`: a tokenizer.json, read without executing anything of its repository."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        self.name = name
        self._tokenizer = tokenizer
        # a file may ask to cut or fill texts up to the length of its model, which would count other tokens
        tokenizer.no_truncation()
        tokenizer.no_padding()

    @property
    def vocabulary(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        # a lone surrogate, which JSON can hold, is no character; as a decoder does, a replacement character stands for it
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        encoded = self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int64) for one in encoded]

    def token(self, token_id: int) -> str:
        return str(self._tokenizer.id_to_token(token_id))


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {"bytes": ByteTokenizer, "words": WordTokenizer}
"""The tokenizers that need no file, by name."""


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that `name` means: one of `TOKENIZERS`, a tokenizer.json or the folder of one, or `owner/name@revision`.

    Raises `UnknownNameError` for a name that is none of these, `CheckpointError` for a file that is no tokenizer, and
    `HubError` as `open_repository` does.
    """
    if name in TOKENIZERS:
        return TOKENIZERS[name]()
    path = Path(name).expanduser()
    if path.is_file():
        return FastTokenizer(name, _from_file(name, path))
    if path.is_dir():
        return FastTokenizer(name, _from_folder(name, path))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[^\s]+)?", name) or name.startswith("."):
        raise UnknownNameError(
            f"{name}: no tokenizer is named so, and there is no such file. "
            f"Give one of {', '.join(sorted(TOKENIZERS))}, the path of a tokenizer.json, or owner/name of the Hub."
        )
    return FastTokenizer(name, _from_hub(name))


def _from_hub(name: str) -> Any:
    from llmsuper.hub.repository import open_repository
    from llmsuper.types import ModelEntry

    repo, _, revision = name.partition("@")
    repository = open_repository(ModelEntry(repo, revision or "main"))
    if "tokenizer.json" in repository.files:
        return _from_file(name, repository.fetch("tokenizer.json"))
    there = [file for file in VOCABULARIES if file in repository.files]
    if not there:
        raise CheckpointError(
            f"{name}: the repository has no tokenizer. Name the one of the model that it derives from."
        )
    paths = [repository.fetch(file) for file in (*there, *BESIDE) if file in repository.files]
    return _from_folder(name, paths[0].parent)  # one commit, one folder of the Hub cache


def _from_file(name: str, path: Path) -> Any:
    from tokenizers import Tokenizer as Library

    try:
        return Library.from_str(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{name}: cannot be read as text ({error}). Give the path of a tokenizer.json."
        ) from error
    except Exception as error:  # the library raises the bare class, and nothing else, for a file that it cannot parse
        if type(error) is not Exception:
            raise
        raise CheckpointError(f"{name}: not a tokenizer.json ({error}). Download it again, or name another.") from error


def _from_folder(name: str, folder: Path) -> Any:
    if (folder / "tokenizer.json").is_file():
        return _from_file(name, folder / "tokenizer.json")
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{name}: no tokenizer can be made of these files ({str(error).splitlines()[0]}). "
            "Give a folder with a tokenizer.json."
        ) from error
    library = getattr(loaded, "backend_tokenizer", None)
    if library is None:
        raise CheckpointError(
            f"{name}: {type(loaded).__name__} is not a fast tokenizer. Convert it to a tokenizer.json with `transformers`."
        )
    return library
