"""Finds which file and which bytes hold a model's LM head, from headers alone.

The checkpoint decides the name, the tying and the width; config.json and the catalog are checks. A config that
disagrees is a note, for configs are often wrong about tying; a catalog that disagrees is an error, for we wrote it.
"""

from __future__ import annotations

import math
import re
from contextlib import closing
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, NamedTuple

from llmsuper.errors import CatalogError, CheckpointError, near_matches
from llmsuper.hub.checkpoint import find_checkpoint, listed, read_json, where
from llmsuper.hub.formats import index_file, shapes_of, token_ids
from llmsuper.hub.formats.rows import quantisation_note, stored_type
from llmsuper.hub.vocabulary import runs
from llmsuper.types import HeadLocation

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import numpy as np

    from llmsuper.hub.checkpoint import Checkpoint
    from llmsuper.hub.repository import Repository
    from llmsuper.types import TensorInfo


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
    HeadName("token_embd.weight", True),  # GGUF, beside its output.weight
)
"""Every own head before every input embedding: an embedding is the head only where there is no other."""

TIED: dict[str, bool] = dict(HEAD_NAMES)

WIDTH_KEYS = ("word_embed_proj_dim", "hidden_size", "n_embd", "d_model", "n_embed")
"""Config keys of the head's columns, best first: of OPT's two, only word_embed_proj_dim is the head's."""
TIE_KEYS = ("tie_word_embeddings", "weight_tying")


def locate_head(repository: Repository, *, tensor: str | None = None, file: str | None = None) -> HeadLocation:
    """Where the LM head of `repository` lies; reads headers, the shard index and config.json, no weights.

    `tensor` names any matrix of the checkpoint instead, `file` the one file to look in. Raises `CheckpointError` where
    there is no head, or one that cannot be measured, and `CatalogError` where the head's shape is not what the model
    list claims.
    """
    checkpoint = find_checkpoint(repository, file)
    listed_names = (
        () if file else repository.entry.lm_head
    )  # a file asked for may be a conversion, with names of its own
    wanted = (tensor,) if tensor else listed_names or tuple(name for name, _ in HEAD_NAMES)
    if checkpoint.weight_map is None:
        (holder,) = checkpoint.files
        info, ids = _read(repository, checkpoint, holder, wanted, tensor)
    else:
        name = _choose(repository, wanted, checkpoint.weight_map, {}, asked=tensor)
        holder = checkpoint.weight_map[name]
        info, ids = _read(repository, checkpoint, holder, (name,), tensor)
    _check_head(repository, holder, info)
    config = _config(repository)
    row_ids, subset_rows = _row_ids(repository, config)
    tied = TIED.get(info.name, False)
    notes = [] if tensor else _disagreements(config, info, tied, subset_rows)
    quantised = quantisation_note(info.dtype)
    if not tensor:
        check_claims(repository, holder, info)
    return HeadLocation(
        entry=repository.entry,
        commit=repository.commit,
        file=holder,
        tensor=info,
        tied=tied,
        checkpoint_bytes=sum(repository.files.get(shard, 0) for shard in checkpoint.files),
        notes=tuple(notes + ([quantised] if quantised else [])),
        row_ids=row_ids,
        token_ranges=None if ids is None else runs(ids),
    )


def _read(
    repository: Repository, checkpoint: Checkpoint, file: str, wanted: tuple[str, ...], asked: str | None
) -> tuple[TensorInfo, np.ndarray | None]:
    """The first of `wanted` that is in `file`, from the file's header; and the ids of a tokenizer that is in it."""
    if file not in repository.files:
        then = "Run the same command online." if repository.origin == "hub-cache" else "Download the shard too."
        raise CheckpointError(
            f"{where(repository)}: {checkpoint.index} puts {wanted[0]!r} in {file}, which is not there. {then}"
        )
    with closing(repository.open(file)) as source:
        found = index_file(source, file)
        if checkpoint.index and wanted[0] not in found:
            raise CheckpointError(
                f"{where(repository)}: {checkpoint.index} puts {wanted[0]!r} in {file}, which does not hold it. "
                "The index and the shards are of different saves: download both again, or ask their author."
            )
        return found[_choose(repository, wanted, found, shapes_of(found), asked=asked)], token_ids(source, file)


def _choose(
    repository: Repository,
    wanted: tuple[str, ...],
    there: Collection[str],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    asked: str | None,
) -> str:
    """The first of `wanted` that is `there`: the tensors of a file, or those of an index, which gives no shapes."""
    for name in wanted:
        if name in there:
            return name
    if asked:
        near = near_matches(asked, there) or sorted(there)[:5]
        raise CheckpointError(
            f"{where(repository)}: no tensor is named {asked!r}; the most like it are {listed(near)}. "
            "Put the right name after --lm-head."
        )
    if shapes:
        matrices = sorted(
            (name for name in shapes if len(shapes[name]) == 2), key=lambda name: -math.prod(shapes[name])
        )
        found = "Two-dimensional tensors, largest first: " + listed(
            [f"{name} {list(shapes[name])}" for name in matrices]
        )
    else:  # a head lies outside the numbered layers
        found = "Tensors outside the layers: " + listed([name for name in there if not re.search(r"\.\d+\.", name)])
    raise CheckpointError(
        f"{where(repository)}: the checkpoint holds no LM head under any of the names {', '.join(wanted)}. "
        f"{found}. Name the head with --lm-head NAME, or under `lm_head` in a model list."
    )


def _check_head(repository: Repository, file: str, info: TensorInfo) -> None:
    """Refuses what is not a matrix of floating-point numbers."""
    thing = f"{where(repository)}, {file}: {info.name!r}"
    if len(info.shape) != 2 or 0 in info.shape:
        raise CheckpointError(
            f"{thing} has shape {list(info.shape)}, which is not a matrix with rows and columns. "
            "Name another tensor with --lm-head NAME."
        )
    stored_type(info.dtype, thing)


def check_claims(repository: Repository, file: str, info: TensorInfo) -> None:
    """Raises `CatalogError` where the model list claims another shape than the head has."""
    entry = repository.entry
    for what, claimed, found in (("rows", entry.rows, info.shape[0]), ("columns", entry.columns, info.shape[1])):
        if claimed is not None and claimed != found:
            raise CatalogError(
                f"{entry.name}: the model list claims {claimed} {what}, {info.name!r} in {file} has {found} "
                f"(shape {list(info.shape)}). Correct `{what}` in model_lists/{entry.family or '<family>'}.toml."
            )


def _config(repository: Repository) -> dict[str, Any]:
    """config.json with its `text_config`, where it has one, laid over it; empty where there is none."""
    if "config.json" not in repository.files:
        return {}
    config = read_json(repository, "config.json")
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
        f"{where(repository)}: `row_subset` in config.json is {short(subset)}. "
        "Write it as {start, stop, step}, whole numbers."
    )


def _disagreements(config: dict[str, Any], info: TensorInfo, tied: bool, subset_rows: int | None) -> list[str]:
    """One sentence for each claim of config.json that the checkpoint contradicts; an absent key claims nothing."""
    notes = []
    rows, columns = info.shape
    width_key = next((key for key in WIDTH_KEYS if config.get(key) is not None), None)
    if width_key is not None and config[width_key] != columns:
        notes.append(f"config.json says {width_key} = {short(config[width_key])}, the head has {columns} columns.")
    if subset_rows is not None and subset_rows != rows:
        notes.append(f"config.json says row_subset has {subset_rows} rows, the head has {rows}.")
    if subset_rows is None and config.get("vocab_size") not in (None, rows):
        notes.append(f"config.json says vocab_size = {short(config['vocab_size'])}, the head has {rows} rows.")
    tie_key = next((key for key in TIE_KEYS if config.get(key) is not None), None)
    if tie_key is not None and bool(config[tie_key]) != tied:
        found = "there is no head of its own: the input embedding" if tied else "there is a head of its own:"
        notes.append(
            f"config.json says {tie_key} = {short(config[tie_key]).lower()}, but {found} {info.name!r} is used."
        )
    return notes
