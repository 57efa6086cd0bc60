"""How large the KV cache may be."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from sdengine.cache.kv_cache import KVCache
from sdengine.errors import CacheFull
from sdengine.model.config import ModelConfig

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


def fitting_blocks(
    models: Sequence[ModelConfig], block_size: int, dtype: torch.dtype, wanted: int
) -> int:
    """Blocks to allocate: as many as all slots can use, or as fit.

    Args:
        models: target, and draft if there is one; a block exists in both caches.
        block_size: tokens per block.
        dtype: of the caches.
        wanted: blocks that every slot at full length would need.

    Raises:
        CacheFull: not even one block fits.
    """
    per_block = sum(KVCache.block_bytes(model, block_size, dtype) for model in models)
    budget = int(available_bytes() * CACHE_SHARE)
    if budget < per_block:
        raise CacheFull.from_parts(
            f"{per_block} bytes for one KV block",
            f"{budget} bytes",
            "free memory or use a smaller model",
        )
    return max(1, min(wanted, budget // per_block))
