"""Finds which file and which bytes hold a model's LM head, from headers alone.

The checkpoint decides the name, the tying and the width; config.json and the catalog are checks. A config that
disagrees is a note, for configs are often wrong about tying; a catalog that disagrees is an error, for we wrote it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from llmsuper.errors import CatalogError, CheckpointError, near_matches
from llmsuper.hub.formats import FORMATS, index_file, unreadable, weight_files
from llmsuper.types import HEAD_DTYPES, HeadLocation, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llmsuper.hub.repository import Repository


class HeadName(NamedTuple):
    """A name that an LM head may have; `tied` when it is that of an input embedding, which serves as the head."""

    name: str
    tied: bool


HEAD_NAMES: tuple[HeadName, ...] = (
    HeadName("lm_head.weight", False),
    HeadName("embed_out.weight", False),
    HeadName("output.weight", False),
    HeadName("head.weight", False),
    HeadName("transformer.output_layer.weight", False),
    HeadName("model.transformer.ff_out.weight", False),
    HeadName("language_model.lm_head.weight", False),
    HeadName("model.lm_head.weight", False),
    HeadName("model.language_model.lm_head.weight", False),
    HeadName("text_model.lm_head.weight", False),
    HeadName("model.embed_tokens.weight", True),
    HeadName("model.decoder.embed_tokens.weight", True),
    HeadName("decoder.embed_tokens.weight", True),
    HeadName("transformer.wte.weight", True),
    HeadName("wte.weight", True),
    HeadName("model.transformer.wte.weight", True),
    HeadName("transformer.word_embeddings.weight", True),
    HeadName("word_embeddings.weight", True),
    HeadName("gpt_neox.embed_in.weight", True),
    HeadName("backbone.embeddings.weight", True),
    HeadName("backbone.embedding.weight", True),
    HeadName("model.language_model.embed_tokens.weight", True),
    HeadName("language_model.model.embed_tokens.weight", True),
    HeadName("model.text_model.embed_tokens.weight", True),
    HeadName("embed_tokens.weight", True),
)
"""Every own head before every input embedding: an embedding is the head only where there is no other."""

TIED: dict[str, bool] = dict(HEAD_NAMES)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

WIDTH_KEYS = ("word_embed_proj_dim", "hidden_size", "n_embd", "d_model", "n_embed")
"""Config keys of the head's columns, best first: of OPT's two, only word_embed_proj_dim is the head's."""
TIE_KEYS = ("tie_word_embeddings", "weight_tying")


def locate_head(repository: Repository, *, tensor: str | None = None) -> HeadLocation:
    """Where the LM head of `repository` lies; reads headers, the shard index and config.json, no weights.

    `tensor` names any matrix of the checkpoint instead. Raises `CheckpointError` where there is no head, or one that
    cannot be measured, and `CatalogError` where the head's shape is not what the model list claims.
    """
    shards, weight_map = _weight_map(repository)
    wanted = (tensor,) if tensor else repository.entry.lm_head or tuple(name for name, _ in HEAD_NAMES)
    if weight_map is None:
        (file,) = shards
        found = _index(repository, file)
        name = _choose(repository, wanted, found, asked=tensor)
        info = found[name]
    else:
        name = _choose(repository, wanted, weight_map, asked=tensor)
        file = weight_map[name]
        _require_shard(repository, name, file)
        found = _index(repository, file)
        if name not in found:
            raise CheckpointError(
                f"{_where(repository)}: {INDEX} puts {name!r} in {file}, which does not hold it. "
                "The index and the shards are of different saves: download both again, or ask their author."
            )
        info = found[name]
    _check_head(repository, file, info)
    config = _config(repository)
    row_ids, subset_rows = _row_ids(repository, config)
    tied = TIED.get(name, False)
    notes = () if tensor else tuple(_disagreements(config, info, tied, subset_rows))
    if not tensor:
        _check_claims(repository, file, info)
    return HeadLocation(
        entry=repository.entry,
        commit=repository.commit,
        file=file,
        tensor=info,
        tied=tied,
        checkpoint_bytes=sum(repository.files.get(shard, 0) for shard in shards),
        notes=notes,
        row_ids=row_ids,
    )


def _where(repository: Repository) -> str:
    """The thing that a message is about."""
    entry = repository.entry
    return entry.repo if entry.local else f"{entry.repo}@{repository.commit[:7]}"


def _weight_map(repository: Repository) -> tuple[tuple[str, ...], dict[str, str] | None]:
    """The weight files of the checkpoint, and the file of each tensor; None where there is a single file."""
    files = repository.files
    if SINGLE in files:
        return (SINGLE,), None
    if INDEX in files:
        index = _json(repository, INDEX)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise CheckpointError(f"{_where(repository)}: {INDEX} has no weight_map of file names. Download it again.")
        return tuple(sorted(set(weight_map.values()))), weight_map
    weights = weight_files(file for file in files if "/" not in file)  # a subfolder holds another model's, or a copy
    readable = [file for file in weights if unreadable(file) is None]
    if len(readable) == 1:
        return (readable[0],), None
    if readable:
        raise CheckpointError(
            f"{_where(repository)}: there are {len(readable)} weight files and no {INDEX}: {_listed(readable)}. "
            "Download the index too, or give the path of one of the files."
        )
    if weights:
        raise CheckpointError(
            f"{_where(repository)}: the weights are in formats that are not read yet: "
            f"{_listed([f'{file} ({unreadable(file)})' for file in weights])}. "
            f"Use a revision that has {' or '.join(FORMATS)}, such as a conversion under refs/pr."
        )
    then = {
        "hub": "Check the repository's file list",
        "hub-cache": "The Hub was not asked: only the Hub cache was searched. Run the same command online",
        "local": "Give the folder or the file that holds the weights",
    }[repository.origin]
    raise CheckpointError(
        f"{_where(repository)}: there is no weight file among its files: {_listed(sorted(files))}. {then}."
    )


def _listed(names: list[str], most: int = 8) -> str:
    shown = ", ".join(names[:most]) or "none at all"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _index(repository: Repository, file: str) -> dict[str, TensorInfo]:
    source = repository.open(file)
    try:
        return index_file(source, file)
    finally:
        source.close()


def _require_shard(repository: Repository, name: str, file: str) -> None:
    if file not in repository.files:
        raise CheckpointError(
            f"{_where(repository)}: {INDEX} puts {name!r} in {file}, which is not there. "
            + ("Run the same command online." if repository.origin == "hub-cache" else "Download the shard too.")
        )


def _choose(
    repository: Repository, wanted: tuple[str, ...], there: Mapping[str, TensorInfo | str], *, asked: str | None
) -> str:
    """The first of `wanted` that is `there`: the tensors of a file, or the weight_map of an index."""
    for name in wanted:
        if name in there:
            return name
    if asked:
        near = near_matches(asked, there) or sorted(there)[:5]
        raise CheckpointError(
            f"{_where(repository)}: no tensor is named {asked!r}; the most like it are {', '.join(near)}. "
            "Put the right name after --lm-head."
        )
    known = [info for info in there.values() if isinstance(info, TensorInfo)]
    if known:
        matrices = sorted((info for info in known if len(info.shape) == 2), key=lambda info: info.begin - info.end)
        found = "Two-dimensional tensors, largest first: " + _listed([f"{t.name} {list(t.shape)}" for t in matrices])
    else:  # an index gives no shapes; but a head lies outside the numbered layers
        found = "Tensors outside the layers: " + _listed([name for name in there if not re.search(r"\.\d+\.", name)])
    raise CheckpointError(
        f"{_where(repository)}: the checkpoint holds no LM head under any of the names {', '.join(wanted)}. "
        f"{found}. Name the head with --lm-head NAME, or under `lm_head` in a model list."
    )


def _check_head(repository: Repository, file: str, info: TensorInfo) -> None:
    """Refuses what is not a matrix of floating-point numbers."""
    thing = f"{_where(repository)}, {file}: {info.name!r}"
    if len(info.shape) != 2 or 0 in info.shape:
        raise CheckpointError(
            f"{thing} has shape {list(info.shape)}, which is not a matrix with rows and columns. "
            "Name another tensor with --lm-head NAME."
        )
    if info.dtype not in HEAD_DTYPES:
        raise CheckpointError(
            f"{thing} is stored as {info.dtype}; a head is measured in {', '.join(HEAD_DTYPES)}. "
            "Use a revision that is not quantised, or name another tensor with --lm-head NAME."
        )


def _check_claims(repository: Repository, file: str, info: TensorInfo) -> None:
    entry = repository.entry
    for what, claimed, found in (("rows", entry.rows, info.shape[0]), ("columns", entry.columns, info.shape[1])):
        if claimed is not None and claimed != found:
            raise CatalogError(
                f"{entry.name}: the model list claims {claimed} {what}, {info.name!r} in {file} has {found} "
                f"(shape {list(info.shape)}). Correct `{what}` in model_lists/{entry.family or '<family>'}.toml."
            )


def _json(repository: Repository, file: str) -> dict[str, Any]:
    path: Path = repository.fetch(file)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{_where(repository)}: {file} is not valid JSON ({error}). Download it again, or ask its author."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{_where(repository)}: {file} is not a JSON object. Download it again.")
    return value


def _config(repository: Repository) -> dict[str, Any]:
    """config.json with its `text_config`, where it has one, laid over it; empty where there is none."""
    if "config.json" not in repository.files:
        return {}
    config = _json(repository, "config.json")
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def _row_ids(repository: Repository, config: dict[str, Any]) -> tuple[tuple[int, int] | None, int | None]:
    """(start, step) and the number of rows of a checkpoint that holds every step-th row, or None twice."""
    subset = config.get("row_subset")
    if subset is None:
        return None, None
    if isinstance(subset, dict):
        start, stop, step = (subset.get(key) for key in ("start", "stop", "step"))
        if type(start) is int and type(stop) is int and type(step) is int and 0 <= start <= stop and step > 0:
            return (start, step), len(range(start, stop, step))
    raise CheckpointError(
        f"{_where(repository)}: `row_subset` in config.json is {subset!r}. "
        "Write it as {start, stop, step}, whole numbers."
    )


def _disagreements(config: dict[str, Any], info: TensorInfo, tied: bool, subset_rows: int | None) -> list[str]:
    """One sentence for each claim of config.json that the checkpoint contradicts; an absent key claims nothing."""
    notes = []
    rows, columns = info.shape
    width_key = next((key for key in WIDTH_KEYS if config.get(key) is not None), None)
    if width_key is not None and config[width_key] != columns:
        notes.append(f"config.json says {width_key} = {config[width_key]}, the head has {columns} columns.")
    if subset_rows is not None and subset_rows != rows:
        notes.append(f"config.json says row_subset has {subset_rows} rows, the head has {rows}.")
    if subset_rows is None and config.get("vocab_size") not in (None, rows):
        notes.append(f"config.json says vocab_size = {config['vocab_size']}, the head has {rows} rows.")
    tie_key = next((key for key in TIE_KEYS if config.get(key) is not None), None)
    if tie_key is not None and bool(config[tie_key]) != tied:
        found = "there is no head of its own: the input embedding" if tied else "there is a head of its own:"
        notes.append(f"config.json says {tie_key} = {str(config[tie_key]).lower()}, but {found} {info.name!r} is used.")
    return notes
