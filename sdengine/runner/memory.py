"""How large the KV cache may be."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from sdengine.cache.kv_cache import KVCache
from sdengine.errors import CacheFull
from sdengine.model.config import ModelConfig
from sdengine.runner.workspace import Sizes

GIB = 2**30
CACHE_SHARE = 0.5
"""Most of the available memory that the KV cache takes when its size is not given; the rest is for
weights, buffers and the rest of the machine."""


def available_bytes() -> int:
    """Memory that a process can still get."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_memory(purpose: str, num_bytes: int, way_out: str) -> None:
    """Refuses an allocation that the machine cannot back.

    A system that overcommits would grant it and kill the process when the pages are written.

    Raises:
        CacheFull: more than is available.
    """
    available = available_bytes()
    if num_bytes > available:
        raise CacheFull.from_parts(
            f"{purpose} within the {available / GIB:.1f} GiB of memory that are free",
            f"{num_bytes / GIB:.1f} GiB",
            way_out,
        )


def fitting_blocks(
    models: Sequence[ModelConfig],
    block_size: int,
    dtype: torch.dtype,
    wanted: int,
    asked: int | None = None,
) -> int:
    """Blocks to allocate: what was asked for, or as many as all slots can use, or as fit.

    Args:
        models: target, and draft if there is one; a block exists in both caches.
        block_size: tokens per block.
        dtype: of the caches.
        wanted: blocks that every slot at full length would need.
        asked: the user's number.

    Raises:
        CacheFull: so many, or even one block, do not fit.
    """
    per_block = sum(KVCache.block_bytes(model, block_size, dtype) for model in models)
    if asked is not None:
        require_memory("a KV cache", asked * per_block, "lower num_kv_blocks")
        return asked
    budget = int(available_bytes() * CACHE_SHARE)
    if budget < per_block:
        raise CacheFull.from_parts(
            f"{per_block} bytes for one KV block",
            f"{budget} bytes",
            "free memory or use a smaller model",
        )
    return max(1, min(wanted, budget // per_block))


def require_buffers(sizes: Sizes, models: Sequence[ModelConfig]) -> None:
    """Refuses sizes whose buffers cannot fit.

    Raises:
        CacheFull: they do not fit.
    """
    require_memory(
        "buffers",
        buffer_bytes(sizes, models),
        "lower max_num_seqs, max_num_batched_tokens or the speculation's max_nodes",
    )


def buffer_bytes(sizes: Sizes, models: Sequence[ModelConfig]) -> int:
    """Bytes of logits, activations and token histories, the buffers that grow with the number of
    sequences, nodes and rows."""
    floats = sizes.max_logit_rows * sizes.vocab_size + sizes.max_num_seqs * sizes.max_history
    for model in models:
        heads = model.num_heads * model.head_dim
        per_row = 2 * model.hidden_size + model.qkv_rows + heads + model.intermediate_size
        floats += sizes.max_target_rows * per_row
    return 4 * floats
