"""What fits into a device's memory: weights, buffers and trees first, KV blocks into the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from sdengine.cache.kv_cache import KVCache
from sdengine.errors import CacheFull
from sdengine.kernels.draft_topk import device_scratch_size
from sdengine.kernels.token_tree import mask_words, tree_scratch_size
from sdengine.kernels.tree_attention import device_scratch_floats
from sdengine.kernels.tree_verify import walk_scratch_size
from sdengine.model.checkpoint import Checkpoint
from sdengine.model.config import ModelConfig
from sdengine.runner.memory import GIB, available_bytes, buffer_bytes
from sdengine.runner.workspace import Sizes

HEADROOM_SHARE = 0.08
"""Part of the free memory that stays free, for compiled kernels, graphs and fragments. A guess that
waits for a measurement on a GPU."""
NODE_ARRAYS, TREE_COUNTS = 21, 3
"""4-byte elements of draft tree and token tree, per node and per sequence."""
WAY_OUT = (
    "lower max_model_len, max_num_seqs, max_num_batched_tokens or the speculation's max_nodes, or "
    "use a smaller model"
)


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that an engine takes on a device.

    Args:
        weights: of target and draft, as far as they are not there yet.
        buffers: logits, activations, histories, scratch.
        trees: draft and token trees, and what is proposed for them.
        block: one KV block in all caches.
    """

    weights: int
    buffers: int
    trees: int
    block: int

    def fitting_blocks(self, free: int, wanted: int, asked: int | None = None) -> int:
        """Blocks to allocate: what was asked for, or as many as all slots can use, or as fit.

        Args:
            free: bytes that the device still has.
            wanted: blocks that every slot at full length would need.
            asked: the user's number.

        Raises:
            CacheFull: so many, or even one block, do not fit; names all sizes.
        """
        room = int(free * (1.0 - HEADROOM_SHARE)) - self.weights - self.buffers - self.trees
        needed = self.block * (1 if asked is None else asked)
        if needed > room:
            way_out = WAY_OUT if asked is None else f"lower num_kv_blocks, {WAY_OUT}"
            raise CacheFull.from_parts(
                f"weights, buffers, trees and KV cache within {1 - HEADROOM_SHARE:.0%} of the "
                f"{_gib(free)} of device memory that are free",
                f"{_gib(self.weights)} of weights, {_gib(self.buffers)} of buffers, "
                f"{_gib(self.trees)} of trees and {_gib(needed)} of KV cache "
                f"({needed // self.block} blocks)",
                way_out,
            )
        return asked if asked is not None else min(wanted, room // self.block)


def device_needs(
    sizes: Sizes,
    checkpoints: Sequence[Checkpoint],
    unread: Sequence[Checkpoint],
    dtype: torch.dtype,
) -> Needs:
    """What an engine of these sizes takes, the number of KV blocks apart.

    Args:
        sizes: capacities.
        checkpoints: target, and draft if there is one.
        unread: those of them whose weights are not in memory yet.
        dtype: of weights and caches.
    """
    models = [checkpoint.config for checkpoint in checkpoints]
    weights = [weight_bytes(checkpoint, dtype, sizes.max_history) for checkpoint in unread]
    scratch = sum(_scratch_floats(sizes, model) for model in models)
    counts = 2 * sizes.max_num_seqs * sizes.vocab_size  # penalties
    walks = 2 * walk_scratch_size(sizes.max_num_seqs)
    return Needs(
        weights=sum(weights),
        buffers=buffer_bytes(sizes, models) + 4 * (scratch + counts + walks),
        trees=_tree_bytes(sizes),
        block=sum(KVCache.block_bytes(model, sizes.block_size, dtype) for model in models),
    )


def weight_bytes(checkpoint: Checkpoint, dtype: torch.dtype, max_model_len: int) -> int:
    """Bytes of a checkpoint's tensors and of its RoPE table."""
    elements = sum(prod(checkpoint.shape(name)) for name in checkpoint.names())
    return elements * dtype.itemsize + 4 * max_model_len * checkpoint.config.head_dim


def free_bytes(device: torch.device) -> int:
    """Memory that the device still has. What torch keeps of engines that are gone goes back first:
    the device counts it as used."""
    if device.type == "cpu":
        return available_bytes()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def _scratch_floats(sizes: Sizes, model: ModelConfig) -> int:
    return device_scratch_floats(
        sizes.max_target_rows, model.num_heads, model.head_dim, sizes.max_context
    )


def _tree_bytes(sizes: Sizes) -> int:
    """Trees with their masks, the memory they grow in, the draft's logits, memory to find their
    best, all proposals."""
    slots, capacity = sizes.max_num_seqs, max(sizes.max_nodes, 1)
    node = 4 * NODE_ARRAYS + 8 * mask_words(capacity)
    trees = slots * ((capacity + 1) * node + 4 * TREE_COUNTS)
    width, candidates = max(sizes.max_width, 1), max(sizes.num_candidates, 1)
    scratch = tree_scratch_size(slots, capacity, width, candidates)
    frontier = slots * sizes.max_width
    proposals = 8 * sizes.max_depth * frontier * sizes.num_candidates
    topk = 8 * device_scratch_size(frontier, sizes.num_candidates)
    return trees + 8 * scratch + 4 * frontier * sizes.vocab_size + topk + proposals


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
