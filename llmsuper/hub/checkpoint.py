"""Finds the weight files of a checkpoint, and which of them holds each tensor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmsuper.errors import CheckpointError, near_matches
from llmsuper.hub.formats import FORMATS, unreadable, weight_files

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmsuper.hub.repository import Repository


class Layout(NamedTuple):
    """The names that transformers gives to a checkpoint in one format: in a single file, or in shards with an index."""

    single: str
    sharded: str


LAYOUTS: tuple[Layout, ...] = (
    Layout("model.safetensors", "model.safetensors.index.json"),
    Layout("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""Best first: of a checkpoint that is there in two formats, the first is read."""

ON_REQUEST = ("*.gguf",)
"""Files that are read only when they are asked for: a repository holds many, quantised in different ways."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint of a repository."""

    files: tuple[str, ...]
    """Its weight files."""
    weight_map: Mapping[str, str] | None = None
    """The file of each tensor, for shards; None for a single file."""
    index: str = ""
    """The file that `weight_map` was read from."""


def find_checkpoint(repository: Repository, file: str | None = None) -> Checkpoint:
    """The checkpoint to read: that one `file`, or the first layout that is there, or the only readable weight file.

    Raises `CheckpointError` where there is none, or no telling which.
    """
    files = repository.files
    if file is not None:
        if file not in files:
            near = near_matches(file, files) or weight_files(files)
            raise CheckpointError(
                f"{where(repository)}: no file is named {file!r}; there are {listed(near)}. Correct --file."
            )
        return Checkpoint((file,))
    for layout in LAYOUTS:
        if layout.single in files:
            return Checkpoint((layout.single,))
        if layout.sharded in files:
            weight_map = read_json(repository, layout.sharded).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
                raise CheckpointError(
                    f"{where(repository)}: {layout.sharded} has no weight_map of file names. Download it again."
                )
            return Checkpoint(tuple(sorted(set(weight_map.values()))), weight_map, layout.sharded)
    weights = weight_files(name for name in files if "/" not in name)  # a subfolder holds another model's, or a copy
    given = Path(repository.entry.repo).name if repository.entry.local else ""
    readable = [name for name in weights if unreadable(name) is None and (name == given or not _on_request(name))]
    if len(readable) == 1:
        return Checkpoint((readable[0],))
    raise _no_telling(repository, weights, readable)


def small_files(repository: Repository, file: str | None = None) -> tuple[str, ...]:
    """Those files that locating a head reads whole: config.json, and the index of shards."""
    files = repository.files
    for layout in LAYOUTS:
        if file is not None or layout.single in files:
            break
        if layout.sharded in files:
            return ("config.json", layout.sharded)
    return ("config.json",)


def _on_request(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in ON_REQUEST)


def _no_telling(repository: Repository, weights: list[str], readable: list[str]) -> CheckpointError:
    """What to say where there is no checkpoint to read by itself."""
    if readable:
        index = " or ".join(layout.sharded for layout in LAYOUTS)
        found = f"there are {len(readable)} weight files and no {index}: {listed(readable)}"
        then = "Download the index too, or name one of the files with --file"
    elif asked := [name for name in weights if _on_request(name)]:
        found = f"the weights are in files that are read only on request: {listed(asked)}"
        then = f"Name one, such as --file {asked[0]}"
    elif weights:
        unread = listed([f"{name} ({unreadable(name)})" for name in weights])
        found = f"the weights are in formats that are not read: {unread}"
        then = f"Use a revision that has {' or '.join(FORMATS)}"
    else:
        found = f"there is no weight file among its files: {listed(sorted(repository.files))}"
        then = {
            "hub": "Check the repository's file list",
            "hub-cache": "The Hub was not asked: only what is kept on this machine was searched. Run this again online",
            "local": "Give the folder or the file that holds the weights",
        }[repository.origin]
    return CheckpointError(f"{where(repository)}: {found}. {then}.")


def where(repository: Repository) -> str:
    """The thing that a message is about."""
    entry = repository.entry
    return entry.repo if entry.local else f"{entry.repo}@{repository.commit[:7]}"


def listed(names: list[str], most: int = 8) -> str:
    """The first few names, of at most 200 letters each, and how many more there are."""
    shown = ", ".join(name[:200] for name in names[:most]) or "none at all"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def read_json(repository: Repository, file: str) -> dict[str, Any]:
    """A small JSON file of the repository, which must hold an object."""
    path: Path = repository.fetch(file)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where(repository)}: {file} is not valid JSON ({error}). Download it again, or ask its author."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where(repository)}: {file} is not a JSON object. Download it again.")
    return value
