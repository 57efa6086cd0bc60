"""The tensor behind a model's KV cache."""

from __future__ import annotations

import torch

from sdengine.kernels.programs.memory import Memory
from sdengine.model.config import ModelConfig


class KVCache:
    """Keys and values of all layers in one allocation: [L, P, 2, H_kv, block_size, D].

    Args:
        config: the model whose keys and values it holds.
        num_blocks: P.
        block_size: tokens per block.
        dtype: float32, bfloat16 or float16.
        memory: where it lies.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        memory: Memory,
    ) -> None:
        shape = (config.num_layers, num_blocks, 2, config.num_kv_heads, block_size, config.head_dim)
        self.tensor = memory.pages(*shape, dtype=dtype)

    def layer(self, index: int) -> torch.Tensor:
        """Cache of one layer: [P, 2, H_kv, block_size, D]."""
        return self.tensor[index]

    @staticmethod
    def block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one block takes over all layers."""
        return (
            2
            * config.num_layers
            * config.num_kv_heads
            * block_size
            * config.head_dim
            * dtype.itemsize
        )
