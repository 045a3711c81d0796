"""The head of every family of the catalog is found in a checkpoint that is laid out as the family's are."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llmsuper.hub.catalog import load_catalog
from llmsuper.hub.locate import TIED, locate_head
from llmsuper.hub.repository import open_repository
from tests.checkpoints import safetensors_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from llmsuper.types import HeadLocation, ModelEntry

CATALOG = load_catalog()
ROWS, COLUMNS = 12, 4

LLAMA = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight")
GPT2 = ("transformer.h.0.mlp.c_fc.weight", "transformer.ln_f.weight", "transformer.wpe.weight")
BLOOM = ("word_embeddings.weight", "word_embeddings_layernorm.weight", "h.0.mlp.dense_h_to_4h.weight")
NEOX = ("gpt_neox.embed_in.weight", "gpt_neox.layers.0.mlp.dense_h_to_4h.weight")
FALCON = ("transformer.word_embeddings.weight", "transformer.h.0.mlp.dense_h_to_4h.weight")
MAMBA = "backbone.layers.0.mixer.in_proj.weight"

LAYOUTS: tuple[tuple[str, str, dict[str, Any], tuple[str, ...]], ...] = (
    ("Meta-Llama-3-8B", "lm_head.weight", {"tie_word_embeddings": False}, LLAMA),
    ("Llama-3.2-1B", "model.embed_tokens.weight", {"tie_word_embeddings": True}, LLAMA),
    ("gemma-2-2b", "model.embed_tokens.weight", {}, LLAMA),
    ("gemma-3-1b-pt", "model.embed_tokens.weight", {}, LLAMA),
    ("gemma-3-4b-pt", "language_model.model.embed_tokens.weight", {"text_config": {"hidden_size": COLUMNS}},
     ("vision_tower.vision_model.embeddings.position_embedding.weight", "language_model.model.norm.weight")),
    ("gemma-3-4b-pt", "model.language_model.embed_tokens.weight", {"text_config": {"vocab_size": ROWS}},
     ("model.vision_tower.vision_model.embeddings.position_embedding.weight", "model.language_model.norm.weight")),
    ("Mistral-7B-v0.1", "lm_head.weight", {"tie_word_embeddings": False}, LLAMA),
    ("OLMo-2-1124-7B", "lm_head.weight", {"tie_word_embeddings": False}, LLAMA),
    ("SmolLM2-135M", "model.embed_tokens.weight", {"tie_word_embeddings": True}, LLAMA),
    ("Qwen3-8B-Base", "lm_head.weight", {"tie_word_embeddings": False}, LLAMA),
    ("Qwen3-4B-Base", "model.embed_tokens.weight", {"tie_word_embeddings": True}, LLAMA),
    ("falcon-7b", "lm_head.weight", {}, FALCON),
    ("Falcon3-7B-Base", "lm_head.weight", {"tie_word_embeddings": False}, LLAMA),
    ("bloom-560m", "word_embeddings.weight", {"n_embed": COLUMNS}, BLOOM),
    ("bloom-560m", "transformer.word_embeddings.weight", {}, FALCON),
    ("Cerebras-GPT-111M", "transformer.wte.weight", {"n_embd": COLUMNS}, GPT2),
    ("gpt-neo-125m", "transformer.wte.weight", {"hidden_size": COLUMNS}, GPT2),
    ("gpt-j-6b", "lm_head.weight", {"tie_word_embeddings": False}, ("transformer.wte.weight", "lm_head.bias")),
    ("gpt-neox-20b", "embed_out.weight", {"tie_word_embeddings": False}, NEOX),
    ("phi-2", "lm_head.weight", {"tie_word_embeddings": False}, (*LLAMA, "lm_head.bias")),
    ("phi-4", "lm_head.weight", {"tie_word_embeddings": False}, LLAMA),
    ("deepseek-llm-7b-base", "lm_head.weight", {"tie_word_embeddings": False}, LLAMA),
    ("DeepSeek-V3-Base", "lm_head.weight", {"tie_word_embeddings": False},
     ("model.layers.61.embed_tokens.weight", "model.layers.61.shared_head.head.weight", *LLAMA)),
    ("mamba-130m-hf", "backbone.embeddings.weight", {"hidden_size": COLUMNS}, (MAMBA,)),
    ("mamba-130m-hf", "backbone.embedding.weight", {"d_model": COLUMNS}, (MAMBA,)),
)  # fmt: skip
"""A model, the head its files have, what config.json says that concerns the head, and other tensors of the files."""


def checkpoint(folder: Path, head: str, others: tuple[str, ...], config: dict[str, Any]) -> torch.Tensor:
    """A folder with a file of these tensors, each different; returns the head."""
    folder.mkdir()
    tensors = {name: torch.full((ROWS, COLUMNS), float(at)) for at, name in enumerate(others, start=1)}
    tensors = {name: t[0] if name.endswith((".bias", "norm.weight")) else t for name, t in tensors.items()}
    tensors[head] = torch.arange(ROWS * COLUMNS, dtype=torch.float32).view(ROWS, COLUMNS)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    (folder / "config.json").write_text(json.dumps(config))
    return tensors[head]


def claiming(model: str, folder: Path) -> ModelEntry:
    """The row of the catalog, moved to a local folder and to the sizes of a tiny checkpoint."""
    sizes = {"width": COLUMNS, "columns": COLUMNS, "rows": ROWS, "vocabulary": None}
    return replace(CATALOG.find(model), repo=str(folder), local=True, **sizes)


def stored(found: HeadLocation, folder: Path) -> torch.Tensor:
    content = (folder / found.file).read_bytes()[found.tensor.begin : found.tensor.end]
    return torch.frombuffer(bytearray(content), dtype=torch.float32).view(found.rows, found.columns)


@pytest.mark.parametrize("by", ["the catalog", "the table of names"])
@pytest.mark.parametrize(("model", "head", "config", "others"), LAYOUTS, ids=lambda value: str(value)[:40])
def test_the_head_of_a_family_is_found(
    tmp_path: Path, model: str, head: str, config: dict[str, Any], others: tuple[str, ...], by: str
) -> None:
    folder = tmp_path / "model"
    rows = checkpoint(folder, head, others, config)
    entry = claiming(model, folder)
    found = locate_head(open_repository(entry if by == "the catalog" else replace(entry, lm_head=())))
    assert found.tensor.name == head
    assert found.tied == ("embed" in head.removeprefix("embed_out") or "wte" in head)
    assert found.notes == ()
    assert torch.equal(stored(found, folder), rows)


CANDIDATES = {(entry.family, name): entry.repo for entry in CATALOG.entries for name in entry.lm_head}
"""A model of each family, by the family and each name that the family's heads may have."""


@pytest.mark.parametrize(("family", "head"), CANDIDATES)
def test_every_candidate_is_taken_where_it_is_the_only_one(tmp_path: Path, family: str, head: str) -> None:
    folder = tmp_path / "model"
    checkpoint(folder, head, ("model.layers.0.mlp.up_proj.weight",), {"tie_word_embeddings": TIED[head]})
    found = locate_head(open_repository(claiming(CANDIDATES[family, head], folder)))
    assert (found.tensor.name, found.tied, found.notes) == (head, TIED[head], ())
