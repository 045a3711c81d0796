"""Tiny checkpoints with the file names, tensor names, configs and tokenizers of the real ones.

checkpoint = pythia_like(rows=640, columns=64, tokens=600)      # {file name: bytes}
hub.add("EleutherAI/pythia-tiny", checkpoint)
checkpoint.head                                                 # what a reader of it must find
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import safetensors.torch
import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Architecture:
    """One kind of checkpoint. Shapes are in letters: n rows, m columns, w width of the model, 3 and 4 times w."""

    model_type: str
    class_name: str
    head: str
    """The tensor that is the LM head; in a tied checkpoint, the input embedding."""
    tensors: dict[str, str]
    """Every tensor in the order of the file, by its shape."""
    dtype: torch.dtype
    tokenizer: Literal["tokenizer.json", "vocab.json"] = "tokenizer.json"
    format: Literal["safetensors", "torch"] = "safetensors"
    shards: int = 1
    width_key: str = "hidden_size"
    width_per_column: int = 1
    config: dict[str, Any] = field(default_factory=dict)
    """Entries of config.json beyond sizes and dtype; what the real one leaves out is left out."""


QWEN_LAYER = {
    "model.layers.0.self_attn.q_proj.weight": "w w",
    "model.layers.0.self_attn.q_proj.bias": "w",
    "model.layers.0.mlp.up_proj.weight": "4w w",
    "model.layers.0.input_layernorm.weight": "w",
    "model.norm.weight": "w",
}
QWEN = partial(Architecture, "qwen2", "Qwen2ForCausalLM", dtype=torch.bfloat16)

ARCHITECTURES: dict[str, Architecture] = {
    "pythia": Architecture(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        head="embed_out.weight",
        tensors={
            "gpt_neox.embed_in.weight": "n m",
            "gpt_neox.layers.0.attention.query_key_value.weight": "3w w",
            "gpt_neox.layers.0.attention.query_key_value.bias": "3w",
            "gpt_neox.layers.0.mlp.dense_h_to_4h.weight": "4w w",
            "gpt_neox.final_layer_norm.weight": "w",
            "embed_out.weight": "n m",
        },
        dtype=torch.float16,
        config={"tie_word_embeddings": False, "num_hidden_layers": 1, "torch_dtype": "float16"},
    ),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        head="wte.weight",
        tensors={
            "h.0.attn.c_attn.weight": "w 3w",
            "h.0.attn.c_attn.bias": "3w",
            "h.0.mlp.c_fc.weight": "w 4w",
            "ln_f.weight": "w",
            "wpe.weight": "w m",
            "wte.weight": "n m",
        },
        dtype=torch.float32,
        width_key="n_embd",
        config={"n_layer": 1, "n_head": 1, "n_positions": 1024},
    ),
    "qwen_tied": QWEN(
        head="model.embed_tokens.weight",
        tensors={"model.embed_tokens.weight": "n m", **QWEN_LAYER},
        config={"tie_word_embeddings": True, "torch_dtype": "bfloat16"},
    ),
    "qwen_untied": QWEN(
        head="lm_head.weight",
        tensors={"model.embed_tokens.weight": "n m", **QWEN_LAYER, "lm_head.weight": "n m"},
        shards=2,
        config={"tie_word_embeddings": False, "torch_dtype": "bfloat16"},
    ),
    "opt": Architecture(
        "opt",
        "OPTForCausalLM",
        head="model.decoder.embed_tokens.weight",
        tensors={
            "model.decoder.embed_tokens.weight": "n m",
            "model.decoder.embed_positions.weight": "w w",
            "model.decoder.layers.0.fc1.weight": "4w w",
            "model.decoder.final_layer_norm.weight": "w",
        },
        dtype=torch.float16,
        tokenizer="vocab.json",
        format="torch",
        config={"torch_dtype": "float16", "do_layer_norm_before": True},
    ),
    "opt350": Architecture(
        "opt",
        "OPTForCausalLM",
        head="decoder.embed_tokens.weight",
        tensors={
            "decoder.embed_tokens.weight": "n m",
            "decoder.embed_positions.weight": "w w",
            "decoder.project_out.weight": "m w",
            "decoder.project_in.weight": "w m",
            "decoder.layers.0.fc1.weight": "4w w",
        },
        dtype=torch.float16,
        tokenizer="vocab.json",
        format="torch",
        width_per_column=2,
        config={"torch_dtype": "float16", "do_layer_norm_before": False},
    ),
}


def gaussian(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Rows in random directions, of norm about 1."""
    return torch.randn(rows, columns, generator=generator) / columns**0.5


def anisotropic(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Rows that share a mean direction and a falling spectrum, of unequal norms, as in trained heads."""
    spectrum = torch.arange(1, columns + 1, dtype=torch.float32).rsqrt()
    mean = torch.randn(columns, generator=generator) / columns**0.5
    norms = torch.exp(0.3 * torch.randn(rows, 1, generator=generator))
    return norms * (gaussian(rows, columns, generator) * spectrum + 0.3 * mean)


KINDS: dict[str, Callable[[int, int, torch.Generator], torch.Tensor]] = {
    "gaussian": gaussian,
    "anisotropic": anisotropic,
}
"""How the rows of a head are drawn."""


class Checkpoint(dict[str, bytes]):
    """The files of a checkpoint by name, and what a reader of them must find."""

    def __init__(self, files: dict[str, bytes], tensors: Tensors, head_name: str, tokens: int) -> None:
        super().__init__(files)
        self.tensors, self.head_name, self.tokens = tensors, head_name, tokens

    @property
    def head(self) -> torch.Tensor:
        """(n, m), in the stored dtype; the rows from `tokens` on are padding."""
        return self.tensors[self.head_name]

    @property
    def head_file(self) -> str:
        """The name of the file that holds the head."""
        for index in (json.loads(content) for name, content in self.items() if name.endswith(".index.json")):
            return str(index["weight_map"][self.head_name])
        return next(name for name in self if name in ("model.safetensors", "pytorch_model.bin"))

    def write(self, folder: Path) -> Path:
        """The same files in a folder, which is made; returns it."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.items():
            (folder / name).write_bytes(content)
        return folder


def safetensors_bytes(tensors: Tensors) -> bytes:
    """A safetensors file, written by the library itself."""
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


def torch_bytes(tensors: Tensors, *, legacy: bool = False) -> bytes:
    """A torch.save file: the zip archive, or the layout from before torch 1.6."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


FORMATS: dict[str, tuple[Callable[[Tensors], bytes], str, str]] = {
    "safetensors": (safetensors_bytes, "model", ".safetensors"),
    "torch": (torch_bytes, "pytorch_model", ".bin"),
}
"""Writer, stem and suffix of the weight files."""


def weight_files(tensors: Tensors, format: str = "safetensors", shards: int = 1) -> dict[str, bytes]:  # noqa: A002
    """The weight files: one, or `shards` of them in the order of the tensors and the index that says what is where."""
    write, stem, suffix = FORMATS[format]
    if shards == 1:
        return {f"{stem}{suffix}": write(tensors)}
    names = list(tensors)
    files: dict[str, bytes] = {}
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05d}-of-{shards:05d}{suffix}"
        inside = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        files[file] = write({name: tensors[name] for name in inside})
        weight_map |= dict.fromkeys(inside, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    return {**files, f"{stem}{suffix}.index.json": json.dumps(index).encode()}


def tokenizer_files(name: str, tokens: int, added: int = 5) -> dict[str, bytes]:
    """A tokenizer of `tokens` ids: the last `added` are added tokens, and one of those is a base token as well."""
    words = {f"t{token}": token for token in range(tokens)}
    if name == "vocab.json":
        return {"vocab.json": json.dumps(words).encode(), "merges.txt": b"#version: 0.2\n"}
    specials = [
        {"id": token, "content": f"t{token}", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for token in range(tokens - added, tokens)
    ]  # fmt: skip
    vocab = dict(list(words.items())[: tokens - added + 1])
    whole = {"version": "1.0", "added_tokens": specials, "model": {"type": "BPE", "vocab": vocab, "merges": []}}
    return {"tokenizer.json": json.dumps(whole).encode()}


def build(
    architecture: str,
    *,
    rows: int = 640,
    columns: int = 64,
    tokens: int = 600,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    shards: int | None = None,
    kind: str = "gaussian",
    format: str | None = None,  # noqa: A002
) -> Checkpoint:
    """A checkpoint of one of `ARCHITECTURES`, which also says what dtype, shards and format default to.

    Rows from `tokens` on are padding: a hundredth of the norm, all near one direction, so that a statistic which
    counts them is visibly wrong.
    """
    made, generator = ARCHITECTURES[architecture], torch.Generator().manual_seed(seed)
    width = columns * made.width_per_column
    sizes = {"n": rows, "m": columns, "w": width, "3w": 3 * width, "4w": 4 * width}
    tensors: Tensors = {}
    for name, letters in made.tensors.items():
        shape = [sizes[letter] for letter in letters.split()]
        if letters == "n m":
            values = KINDS[kind](rows, columns, generator)
            values[tokens:] = 0.01 * (values[0] + 0.1 * values[tokens:])
        else:
            values = torch.randn(shape, generator=generator)
        tensors[name] = values.to(dtype or made.dtype)
    config = {
        "architectures": [made.class_name],
        "model_type": made.model_type,
        "vocab_size": rows,
        made.width_key: width,
        **made.config,
    }
    if "torch_dtype" in config and dtype is not None:
        config["torch_dtype"] = str(dtype).removeprefix("torch.")
    if made.model_type == "opt":
        config["word_embed_proj_dim"] = columns
    files = {
        "config.json": json.dumps(config, indent=2).encode(),
        **tokenizer_files(made.tokenizer, tokens),
        **weight_files(tensors, format or made.format, shards or made.shards),
    }
    return Checkpoint(files, tensors, made.head, tokens)


pythia_like = partial(build, "pythia")
gpt2_like = partial(build, "gpt2")
qwen_tied = partial(build, "qwen_tied")
qwen_untied = partial(build, "qwen_untied")
opt_like = partial(build, "opt")
opt350_like = partial(build, "opt350")
