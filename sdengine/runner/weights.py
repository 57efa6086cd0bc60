"""A model's weights in the layout its kernels read, made one tensor at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sdengine.kernels.dense_weight import DenseWeight
from sdengine.kernels.huge_pages import HugePageArena
from sdengine.kernels.packed_weight import PackedWeight, pack_weight
from sdengine.kernels.programs.memory import StagedMemory
from sdengine.model.checkpoint import Checkpoint
from sdengine.model.config import ModelConfig
from sdengine.model.rope import cos_sin_table

Matrix = PackedWeight | DenseWeight


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Norm weights and biases are float32; None where the family has none."""

    attn_norm: torch.Tensor  # [E]
    qkv: Matrix  # [(H + 2 H_kv) D, E]
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None  # [D]
    k_norm: torch.Tensor | None  # [D]
    o: Matrix  # [E, H D]
    o_bias: torch.Tensor | None
    mlp_norm: torch.Tensor  # [E]
    gate_up: Matrix  # [2F, E], gate and up, for the activation "silu_gate"
    gate_up_bias: torch.Tensor | None  # [2F], gate first
    down: Matrix  # [E, F]
    down_bias: torch.Tensor | None


@dataclass(frozen=True, eq=False)  # without slots: engines that share it refer to it weakly
class ModelWeights:
    """A whole model, ready to be described into programs. Engines share it: nobody writes it."""

    config: ModelConfig
    dtype: torch.dtype
    embed: torch.Tensor  # [V, E]
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor  # [E]
    lm_head: Matrix  # [V, E]
    cos_sin: torch.Tensor  # [max_pos, 2, D_rot / 2]

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices that one pass reads."""
        layers = (w.nbytes for x in self.layers for w in (x.qkv, x.o, x.gate_up, x.down))
        return self.lm_head.nbytes + sum(layers)


class Layout(Protocol):
    """How a backend's kernels want a model's tensors."""

    def matrix(self, parts: list[torch.Tensor], is_gate_up: bool = False) -> Matrix:
        """A matrix of the stacked parts, for `linear`."""

    def tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor that kernels read as it is."""


class PackedLayout:
    """Matrices in panels for the CPU's kernels, everything else as it is.

    Args:
        dtype: of the matrices.
        pool: native thread pool that shares the packing.
    """

    def __init__(self, dtype: torch.dtype, pool: Any) -> None:
        self._dtype = dtype
        self._pool = pool
        self._arena = HugePageArena()

    def matrix(self, parts: list[torch.Tensor], is_gate_up: bool = False) -> Matrix:
        return pack_weight(parts, self._dtype, is_gate_up, self._pool, self._arena)

    def tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


class DeviceLayout:
    """Everything on a device, matrices row-major; what lies there already is not copied.

    Args:
        memory: the device's.
    """

    def __init__(self, memory: StagedMemory) -> None:
        self._memory = memory
        self._placed: set[int] = set()

    def matrix(self, parts: list[torch.Tensor], is_gate_up: bool = False) -> Matrix:
        if len(parts) == 1 and parts[0].untyped_storage().data_ptr() in self._placed:
            return DenseWeight(parts[0], is_gate_up)
        rows = sum(part.shape[0] for part in parts)
        matrix = self._memory.empty(rows, parts[0].shape[1], dtype=parts[0].dtype)
        for target, part in zip(matrix.split([part.shape[0] for part in parts]), parts):
            target.copy_(part)
        return DenseWeight(matrix, is_gate_up)

    def tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        copy = self._memory.empty(*tensor.shape, dtype=tensor.dtype)
        self._placed.add(copy.untyped_storage().data_ptr())
        return copy.copy_(tensor)


def load_weights(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    max_model_len: int,
    layout: Layout,
    vocab_size: int | None = None,
) -> ModelWeights:
    """Reads, converts and lays out a checkpoint, holding one tensor of it at a time.

    Args:
        checkpoint: an open checkpoint.
        dtype: float32, bfloat16 or float16, of the matrices.
        max_model_len: positions for which the RoPE table is made.
        layout: what the kernels want.
        vocab_size: the target's, when this is its draft model, whose vocabulary may be padded
            otherwise: more tokens than these are not predicted, and of these those that it does not
            have are embedded as zeros.

    Raises:
        CheckpointError: a tensor is missing, has the wrong shape, or its file is damaged.
    """
    names = set(checkpoint.names())
    # Where nothing has to be converted a CPU's `embed` stays a view of the mapped file: only the
    # rows that are used take memory. The largest weights come first: while one is packed, its
    # packed copy and its pages are both in memory, and the layers need that room later anyway.
    stored = checkpoint.weight("embed", dtype, check_finite=True)
    num_embedded = len(stored)
    if vocab_size is not None and vocab_size > num_embedded:
        stored = torch.nn.functional.pad(stored, (0, 0, 0, vocab_size - num_embedded))
    embed = layout.tensor(stored)
    head = embed[:num_embedded]
    if "lm_head" in names:
        head = checkpoint.weight("lm_head", dtype, check_finite=True)
    lm_head = layout.matrix([head[:vocab_size]])
    del head, stored
    layers = tuple(
        _load_layer(checkpoint, names, i, dtype, layout)
        for i in range(checkpoint.config.num_layers)
    )
    final_norm = checkpoint.weight("final_norm", torch.float32, check_finite=True).clone()
    return ModelWeights(
        config=checkpoint.config,
        dtype=dtype,
        embed=embed,
        layers=layers,
        final_norm=layout.tensor(final_norm),
        lm_head=lm_head,
        cos_sin=layout.tensor(cos_sin_table(checkpoint.config.rope, max_model_len)),
    )


def _load_layer(
    checkpoint: Checkpoint, names: set[str], index: int, dtype: torch.dtype, layout: Layout
) -> LayerWeights:
    prefix = f"layers.{index}."

    def matrix(name: str, is_gate_up: bool = False) -> Matrix:
        return layout.matrix(checkpoint.parts(prefix + name, dtype, check_finite=True), is_gate_up)

    def vector(name: str) -> torch.Tensor | None:
        if prefix + name not in names:
            return None
        stored = checkpoint.weight(prefix + name, torch.float32, check_finite=True)
        return layout.tensor(stored.clone())

    attn_norm, mlp_norm = vector("attn_norm"), vector("mlp_norm")
    assert attn_norm is not None and mlp_norm is not None
    return LayerWeights(
        attn_norm=attn_norm,
        qkv=matrix("qkv"),
        qkv_bias=vector("qkv_bias"),
        q_norm=vector("q_norm"),
        k_norm=vector("k_norm"),
        o=matrix("o"),
        o_bias=vector("o_bias"),
        mlp_norm=mlp_norm,
        gate_up=matrix("gate_up", is_gate_up=True),
        gate_up_bias=vector("gate_up_bias"),
        down=matrix("down"),
        down_bias=vector("down_bias"),
    )
