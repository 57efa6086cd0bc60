"""A model's weights in the layout its kernels read, made one tensor at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sdengine.kernels.huge_pages import HugePageArena
from sdengine.kernels.packed_weight import PackedWeight, pack_weight
from sdengine.model.checkpoint import Checkpoint
from sdengine.model.config import ModelConfig
from sdengine.model.rope import cos_sin_table


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Norm weights and biases are float32; None where the family has none."""

    attn_norm: torch.Tensor  # [E]
    qkv: PackedWeight  # [(H + 2 H_kv) D, E]
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None  # [D]
    k_norm: torch.Tensor | None  # [D]
    o: PackedWeight  # [E, H D]
    o_bias: torch.Tensor | None
    mlp_norm: torch.Tensor  # [E]
    gate_up: PackedWeight  # [2F, E], gate and up interleaved
    gate_up_bias: torch.Tensor | None  # [2F], gate first
    down: PackedWeight  # [E, F]
    down_bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """A whole model, ready to be described into programs."""

    config: ModelConfig
    dtype: torch.dtype
    embed: torch.Tensor  # [V, E]
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor  # [E]
    lm_head: PackedWeight  # [V, E]
    cos_sin: torch.Tensor  # [max_pos, 2, D_rot / 2]

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices that one pass reads."""
        layers = (w.nbytes for x in self.layers for w in (x.qkv, x.o, x.gate_up, x.down))
        return self.lm_head.nbytes + sum(layers)


def load_weights(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    max_model_len: int,
    pool: Any,
    vocab_size: int | None = None,
) -> ModelWeights:
    """Reads, converts and packs a checkpoint, holding one unpacked tensor at a time.

    Args:
        checkpoint: an open checkpoint.
        dtype: float32 or bfloat16, of the matrices.
        max_model_len: positions for which the RoPE table is made.
        pool: native thread pool that shares the packing.
        vocab_size: the target's, when this is its draft model, whose vocabulary may be padded
            otherwise: more tokens than these are not predicted, and of these those that it does not
            have are embedded as zeros.

    Raises:
        CheckpointError: a tensor is missing, has the wrong shape, or its file is damaged.
    """
    names = set(checkpoint.names())
    arena = HugePageArena()
    # Where nothing has to be converted `embed` stays a view of the mapped file: only the rows that
    # are used take memory. The largest weights come first: while one is packed, its packed copy and
    # its pages are both in memory, and the layers need that room later anyway.
    embed = checkpoint.weight("embed", dtype, check_finite=True)
    head = checkpoint.weight("lm_head", dtype, check_finite=True) if "lm_head" in names else embed
    lm_head = pack_weight(head[:vocab_size], dtype, pool=pool, arena=arena)
    del head
    if vocab_size is not None and vocab_size > len(embed):
        embed = torch.nn.functional.pad(embed, (0, 0, 0, vocab_size - len(embed)))
    layers = tuple(
        _load_layer(checkpoint, names, i, dtype, pool, arena)
        for i in range(checkpoint.config.num_layers)
    )
    return ModelWeights(
        config=checkpoint.config,
        dtype=dtype,
        embed=embed,
        layers=layers,
        final_norm=checkpoint.weight("final_norm", torch.float32, check_finite=True).clone(),
        lm_head=lm_head,
        cos_sin=cos_sin_table(checkpoint.config.rope, max_model_len),
    )


def _load_layer(
    checkpoint: Checkpoint,
    names: set[str],
    index: int,
    dtype: torch.dtype,
    pool: Any,
    arena: HugePageArena,
) -> LayerWeights:
    prefix = f"layers.{index}."

    def packed(name: str, interleave: bool = False) -> PackedWeight:
        parts = checkpoint.parts(prefix + name, dtype, check_finite=True)
        return pack_weight(parts, dtype, interleave, pool, arena)

    def vector(name: str) -> torch.Tensor | None:
        if prefix + name not in names:
            return None
        return checkpoint.weight(prefix + name, torch.float32, check_finite=True).clone()

    attn_norm, mlp_norm = vector("attn_norm"), vector("mlp_norm")
    assert attn_norm is not None and mlp_norm is not None
    return LayerWeights(
        attn_norm=attn_norm,
        qkv=packed("qkv"),
        qkv_bias=vector("qkv_bias"),
        q_norm=vector("q_norm"),
        k_norm=vector("k_norm"),
        o=packed("o"),
        o_bias=vector("o_bias"),
        mlp_norm=mlp_norm,
        gate_up=packed("gate_up", interleave=True),
        gate_up_bias=vector("gate_up_bias"),
        down=packed("down"),
        down_bias=vector("down_bias"),
    )
