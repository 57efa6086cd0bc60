"""Where heads, FFN units and channels of a small Llama go inside a large one, or why they cannot.

Rotation: pair i of a head of D dimensions turns by theta^(-2i / D) a position. In a head of k D
dimensions pair k i turns by theta^(-2ki / kD): the same. So head_dim may grow by whole factors k.

Groups: query heads that share a key/value head must go on sharing it. Where the large groups are
smaller than the small model's, a key/value head is copied as often as it takes.

    small, groups of 2     q0 q1 | q2 q3        kv0 | kv1
    large, groups of 1     q0 | q1 | q2 | q3    kv0 | kv0 | kv1 | kv1
    large, groups of 3     q0 q1 .  | q2 q3 .   kv0 | kv1             (. = a head that adds zero)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.shapes import Shape
from sdengine.errors import CheckpointError, ConfigError
from sdengine.model.config import ModelConfig

__all__ = ["Placement", "place"]

STRETCHABLE_ROPES = ("default", "linear", "llama3")
"""Types whose frequencies depend on the pair's own frequency alone, not on the head's size."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Maps from the small model's rows to the large one's; all int64.

    Args:
        head_factor: k, by which heads grow.
        query_rows: [H D] row of the large query projection (and column of the output projection)
            for each row of the small one.
        kv_sources: [C H_kv D] row of the small key (or value) projection, C copies of each head.
        kv_rows: [C H_kv D] row of the large projection for each of `kv_sources`.
        silent_key_rows: rows of the large key projection that must be zero: the dimensions of
            placed heads that the small model does not have. Whatever the queries hold there then
            adds nothing to the scores.
        surplus_vocab: rows of the vocabulary that the small model does not have.
    """

    head_factor: int
    query_rows: torch.Tensor
    kv_sources: torch.Tensor
    kv_rows: torch.Tensor
    silent_key_rows: torch.Tensor
    surplus_vocab: int


def place(config: ModelConfig, shape: Shape) -> Placement:
    """Finds a place for everything.

    Args:
        config: the small model.
        shape: of the large model.

    Raises:
        CheckpointError: the small model is of a kind that cannot be enlarged.
        ConfigError: the shape cannot hold it; the message names the size and the least that will
            do.
    """
    _check_kind(config)
    _check_sizes(config, shape)
    factor = _head_factor(config, shape)
    small_group = config.num_heads // config.num_kv_heads
    group = shape.num_attention_heads // shape.num_key_value_heads
    copies = -(-small_group // group)
    if config.num_kv_heads * copies > shape.num_key_value_heads:
        raise ConfigError.from_parts(
            f"num_key_value_heads of at least {config.num_kv_heads * copies}, for "
            f"{config.num_heads} query heads in groups of {group}",
            str(shape.num_key_value_heads),
        )
    heads = torch.arange(config.num_heads)
    place_in_group = heads % small_group
    kv_of_query = heads // small_group * copies + place_in_group // group
    query_heads = kv_of_query * group + place_in_group % group
    kv_heads = torch.arange(config.num_kv_heads * copies)
    dims = _dims(config.head_dim, shape.head_dim, factor)
    kv_rows = _rows(kv_heads, dims, shape.head_dim)
    placed = _rows(kv_heads, torch.arange(shape.head_dim), shape.head_dim)
    return Placement(
        head_factor=factor,
        query_rows=_rows(query_heads, dims, shape.head_dim),
        kv_sources=_rows(kv_heads // copies, torch.arange(config.head_dim), config.head_dim),
        kv_rows=kv_rows,
        silent_key_rows=placed[torch.isin(placed, kv_rows, invert=True)],
        surplus_vocab=shape.vocab_size - config.vocab_size,
    )


def _rows(heads: torch.Tensor, dims: torch.Tensor, head_dim: int) -> torch.Tensor:
    return (heads[:, None] * head_dim + dims[None, :]).flatten()


def _dims(small: int, large: int, factor: int) -> torch.Tensor:
    """Dimension of the large head for each of the small one's: pair (i, i + D / 2) stays a pair."""
    pairs = torch.arange(small // 2) * factor
    return torch.cat([pairs, pairs + large // 2])


def _check_kind(config: ModelConfig) -> None:
    biased = config.qkv_bias or config.o_bias or config.mlp_bias
    windowed = any(window is not None for window in config.layer_windows)
    if config.family != "llama" or biased or windowed or config.rope.dim != config.head_dim:
        raise CheckpointError.from_parts(
            "a Llama checkpoint without biases, to be enlarged",
            f"one of the {config.family} family" + (" with biases" if biased else ""),
        )


def _check_sizes(config: ModelConfig, shape: Shape) -> None:
    channel = 1 if shape.vocab_size > config.vocab_size else 0
    least = {
        "hidden_size": config.hidden_size + channel,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "vocab_size": config.vocab_size,
    }
    for name, size in least.items():
        if getattr(shape, name) < size:
            reason = "one channel is for the surplus vocabulary" if name == "hidden_size" else ""
            raise ConfigError.from_parts(
                f"{name} of at least {size}, to hold the checkpoint",
                str(getattr(shape, name)),
                reason if channel else "",
            )
    if shape.num_attention_heads % shape.num_key_value_heads:
        raise ConfigError.from_parts(
            "num_key_value_heads to divide num_attention_heads",
            f"{shape.num_key_value_heads} and {shape.num_attention_heads}",
        )


def _head_factor(config: ModelConfig, shape: Shape) -> int:
    factor, rest = divmod(shape.head_dim, config.head_dim)
    if rest or factor < 1:
        raise ConfigError.from_parts(
            f"head_dim to be a multiple of the checkpoint's {config.head_dim}, so that the rotary "
            "frequencies coincide",
            str(shape.head_dim),
        )
    if factor > 1 and config.rope.type not in STRETCHABLE_ROPES:
        raise ConfigError.from_parts(
            f"head_dim of {config.head_dim}, as the frequencies of RoPE type {config.rope.type} "
            "depend on it",
            str(shape.head_dim),
        )
    return factor
