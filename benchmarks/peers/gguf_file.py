"""Writes a Llama checkpoint as a GGUF file, one tensor in memory at a time.

llama.cpp rotates neighbouring dimensions (2i, 2i + 1) where Hugging Face rotates (i, i + D / 2), so
the rows of the query and key projections change places. The tokenizer goes along as a byte-level
BPE; llama.cpp is given token ids, and only turns them back into text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdengine.errors import CheckpointError, ConfigError
from sdengine.model.checkpoint import Checkpoint, open_checkpoint
from sdengine.model.config import ModelConfig
from sdengine.model.config_file import read_json

__all__ = ["write_gguf"]

LAYER_NAMES = {
    "attn_norm": "attn_norm",
    "o": "attn_output",
    "mlp_norm": "ffn_norm",
    "down": "ffn_down",
}
PART_NAMES = {"qkv": ("attn_q", "attn_k", "attn_v"), "gate_up": ("ffn_gate", "ffn_up")}
TOP_NAMES = {"embed": "token_embd", "final_norm": "output_norm", "lm_head": "output"}


def write_gguf(source: Path, file: Path, dtype: str) -> None:
    """Converts a checkpoint.

    Args:
        source: a Llama checkpoint with a byte-level BPE tokenizer.
        file: written; replaced where it exists.
        dtype: float32, bfloat16 or float16, of the matrices; norms are float32.

    Raises:
        CheckpointError: the checkpoint is damaged, or its tokenizer is of another kind.
        ConfigError: no plain Llama, or a rotation that is not converted.
    """
    import gguf

    checkpoint = open_checkpoint(source)
    _check(checkpoint.config)
    staged = file.with_suffix(".partial")
    writer = gguf.GGUFWriter(staged, "llama")
    _add_sizes(writer, checkpoint.config, dtype)
    _add_tokenizer(writer, source, checkpoint.config)
    stored = getattr(torch, dtype)
    kinds = {
        torch.float32: gguf.GGMLQuantizationType.F32,
        torch.bfloat16: gguf.GGMLQuantizationType.BF16,
        torch.float16: gguf.GGMLQuantizationType.F16,
    }
    for name, shape in _planned(checkpoint):
        kept = torch.float32 if len(shape) == 1 else stored
        row_bytes = (*shape[:-1], shape[-1] * kept.itemsize)
        num_bytes = math.prod(row_bytes)
        writer.add_tensor_info(name, row_bytes, np.dtype(np.uint8), num_bytes, kinds[kept])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in _tensors(checkpoint, stored):
        writer.write_tensor_data(tensor.contiguous().view(torch.uint8).numpy())
    writer.close()
    staged.replace(file)


def _check(config: ModelConfig) -> None:
    biased = config.qkv_bias or config.o_bias or config.mlp_bias
    if config.family != "llama" or biased or config.rope.type != "default":
        raise ConfigError.from_parts(
            "a Llama checkpoint without biases and with plain RoPE, to be written as GGUF",
            f"family {config.family}, RoPE type {config.rope.type}",
            "convert it with llama.cpp's own script",
        )


def _add_sizes(writer: Any, config: ModelConfig, dtype: str) -> None:
    import gguf

    writer.add_context_length(config.longest_context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.rope.dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    types = {"float32": "ALL_F32", "bfloat16": "MOSTLY_BF16", "float16": "MOSTLY_F16"}
    writer.add_file_type(gguf.LlamaFileType[types[dtype]])


def _add_tokenizer(writer: Any, source: Path, config: ModelConfig) -> None:
    import gguf

    tokenizer = read_json(source / "tokenizer.json")
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise CheckpointError.from_parts(
            f"a byte-level BPE in {source / 'tokenizer.json'}, to be written as GGUF",
            f"type {model.get('type')!r}",
            "convert it with llama.cpp's own script",
        )
    tokens = [f"[PAD{index}]" for index in range(config.vocab_size)]
    types = [gguf.TokenType.UNUSED] * config.vocab_size
    for token, index in model["vocab"].items():
        tokens[index], types[index] = token, gguf.TokenType.NORMAL
    for added in tokenizer.get("added_tokens", []):
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)
    if config.eos_token_ids:
        writer.add_eos_token_id(config.eos_token_ids[0])


def _planned(checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[int, ...]]]:
    """GGUF names and shapes, in the order of `_tensors`."""
    config = checkpoint.config
    kv_rows = config.num_kv_heads * config.head_dim
    rows = {
        "qkv": (config.num_heads * config.head_dim, kv_rows, kv_rows),
        "gate_up": (config.intermediate_size,) * 2,
    }
    for name in checkpoint.names():
        shape = checkpoint.shape(name)
        part = name.rsplit(".", 1)[-1]
        for written, count in zip(_written_names(name), rows.get(part, shape[:1]), strict=True):
            yield written, (count, *shape[1:])


def _written_names(name: str) -> list[str]:
    if name in TOP_NAMES:
        return [f"{TOP_NAMES[name]}.weight"]
    _, layer, part = name.split(".")
    parts = PART_NAMES.get(part) or (LAYER_NAMES[part],)
    return [f"blk.{layer}.{item}.weight" for item in parts]


def _tensors(checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    config = checkpoint.config
    for name in checkpoint.names():
        kept = torch.float32 if len(checkpoint.shape(name)) == 1 else dtype
        parts = checkpoint.parts(name, kept, check_finite=True)
        if name.endswith(".qkv"):
            parts[0] = _neighbours(parts[0], config.num_heads)
            parts[1] = _neighbours(parts[1], config.num_kv_heads)
        yield from parts


def _neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head in the order 0, D / 2, 1, D / 2 + 1, ..."""
    rows, columns = weight.shape
    halves = weight.view(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)
