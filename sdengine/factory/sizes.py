"""How large everything is: number format, context, capacities of buffers, KV blocks that fit."""

from __future__ import annotations

import torch

from sdengine.core.config import EngineConfig, SpeculationConfig
from sdengine.core.growth import TreePolicy
from sdengine.drafters.draft_model import tree_room
from sdengine.errors import CheckpointError, ConfigError
from sdengine.kernels.programs.memory import Memory, StagedMemory
from sdengine.kernels.token_tree import MASK_BITS
from sdengine.kernels.tree_attention import (
    HEAD_DIM_STEP,
    MAX_HEAD_DIM,
    MAX_MASK_WORDS,
    QUERIES_PER_TILE,
)
from sdengine.kernels.tree_select import most_sequences
from sdengine.model.checkpoint import Checkpoint
from sdengine.model.config import ModelConfig
from sdengine.runner.device_fit import device_needs, free_bytes
from sdengine.runner.memory import fitting_blocks, require_buffers
from sdengine.runner.placement import Placement
from sdengine.runner.workspace import Sizes

DEVICE_STOP_TOKENS = 8
"""Stop tokens per sequence below which the device drafts nothing; more are only cut by the host."""
PROPOSAL_SUPPORT = 64
"""Likeliest tokens that sampled drafts are drawn from (renormalised): the rejection verifier then
reads 64 probabilities per node instead of a whole vocabulary, and stays exact for any support."""
LEAST_WIDTH = 16
"""Nodes of a layer that go on where deeper trees would leave less to each."""


def choose_dtype(config: EngineConfig, stored: str, placement: Placement) -> torch.dtype:
    """Of weights and caches, for a target whose file is in the format `stored`. "auto": the same,
    but bfloat16 on CPUs that have it, and float32 where the kernels are interpreted."""
    name = config.dtype
    if name == "auto":
        name = "float32" if placement.is_interpreted else stored
        if placement.prefers_bfloat16:
            name = "bfloat16"
    if name == "bfloat16" and placement.is_interpreted:
        raise ConfigError.from_parts(
            'dtype "float32" in Triton\'s interpreter, whose arithmetic on bfloat16 is wrong',
            '"bfloat16"',
            'pass dtype="float32"',
        )
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def choose_max_model_len(config: EngineConfig, target: ModelConfig) -> int:
    """The target's context, or what was asked for within it. The draft has no say: beyond its own
    context its guesses get worse, and the text must be what it is without a draft."""
    if config.max_model_len is None:
        return target.default_context
    if config.max_model_len > target.longest_context:
        raise ConfigError.from_parts(
            f"max_model_len of at most {target.longest_context}, which the target was made for",
            str(config.max_model_len),
        )
    return config.max_model_len


def check_windows(
    speculation: SpeculationConfig | None, target: ModelConfig, draft: ModelConfig | None
) -> None:
    """A tree must fit into every sliding window: its ancestors are found by mask, not position."""
    windows = [w for m in (target, draft) if m is not None for w in m.layer_windows if w]
    if speculation is not None and windows and speculation.max_depth >= min(windows):
        raise ConfigError.from_parts(
            f"max_depth below the sliding window of {min(windows)} tokens",
            str(speculation.max_depth),
        )


def check_heads(checkpoint: Checkpoint) -> None:
    """The kernels of attention take most heads, not all.

    Raises:
        CheckpointError: not this model's.
    """
    model = checkpoint.config
    path = checkpoint.path / "config.json"
    if model.head_dim % HEAD_DIM_STEP or model.head_dim > MAX_HEAD_DIM:
        raise CheckpointError.from_parts(
            f"a head_dim in {path} that is a multiple of {HEAD_DIM_STEP} up to {MAX_HEAD_DIM}",
            str(model.head_dim),
            "this model is not supported",
        )
    group = model.num_heads // model.num_kv_heads
    if group > QUERIES_PER_TILE:
        raise CheckpointError.from_parts(
            f"at most {QUERIES_PER_TILE} query heads for one of keys and values in {path}",
            str(group),
            "this model is not supported",
        )


def choose_sizes(
    config: EngineConfig,
    speculation: SpeculationConfig | None,
    policy: TreePolicy | None,
    vocab_size: int,
    max_model_len: int,
) -> Sizes:
    """Capacities, but for the number of KV blocks, which depends on what all others take.

    Raises:
        ConfigError: more nodes in a batch than `tree_select` can tell apart.
    """
    nodes = speculation.max_nodes if speculation else 0
    _check_ranks(config.max_num_seqs, nodes)
    depth = speculation.max_depth if speculation else 0
    candidates, width = (speculation.max_children if speculation else 0), 0
    if policy is not None and speculation is not None:
        if speculation.level_widths:
            depth = len(speculation.level_widths)
        candidates = policy.num_candidates
        if speculation.draws_drafts:
            candidates = min(PROPOSAL_SUPPORT, vocab_size)
        width = _max_width(speculation, policy, depth)
    room = tree_room(nodes, depth, width) if speculation else 0
    max_blocks = -(-(max_model_len + room) // config.block_size)
    return Sizes(
        max_num_seqs=config.max_num_seqs,
        max_batched_tokens=config.max_num_batched_tokens,
        max_history=max_model_len + depth + 1,
        block_size=config.block_size,
        num_blocks=0,
        max_blocks=max_blocks,
        vocab_size=vocab_size,
        max_nodes=nodes,
        max_depth=depth,
        num_candidates=candidates,
        max_width=width,
        num_stop_tokens=DEVICE_STOP_TOKENS,
    )


def _check_ranks(max_num_seqs: int, max_nodes: int) -> None:
    most_seqs = most_sequences(max_nodes)
    if max_num_seqs > most_seqs:
        raise ConfigError.from_parts(
            f"max_num_seqs with max_nodes = {max_nodes} of at most {most_seqs}, whose nodes can be "
            "ranked together",
            str(max_num_seqs),
            "lower max_num_seqs or the speculation's max_nodes",
        )


def _max_width(speculation: SpeculationConfig, policy: TreePolicy, depth: int) -> int:
    """Most nodes of a sequence that a draft layer forwards; the last forwards none. A static tree
    forwards each of its at most 1024 nodes once, which the masks hold."""
    width = max((policy.grow(layer).max_width for layer in range(depth - 1)), default=1)
    if not speculation.level_widths:
        width = min(width, share_of_masks(depth, speculation.draws_drafts))
    return min(width, speculation.max_nodes)


def share_of_masks(depth: int, is_drawn: bool) -> int:
    """Nodes that a layer of a dynamic tree may forward.

    The attention's masks hold 1024 forwarded nodes of a tree, and the last layers get what the
    others leave: trees of 768 nodes that spent them on their first eight layers had 8.0 tokens a
    step where 68 nodes a layer had 11.5 (T 0). A drawn tree may not run out at all: how many nodes
    go on depends on the tokens that were drawn, and a draw would decide about its own slot.

    Args:
        depth: of the tree.
        is_drawn: whether children are drawn; others keep LEAST_WIDTH however deep they may be.
    """
    share = MASK_BITS * MAX_MASK_WORDS // max(depth - 1, 1)
    return share if is_drawn else max(share, LEAST_WIDTH)


def choose_num_blocks(
    config: EngineConfig,
    sizes: Sizes,
    checkpoints: list[Checkpoint],
    unread: list[Checkpoint],
    dtype: torch.dtype,
    memory: Memory,
) -> int:
    """KV blocks that fit, or that were asked for.

    Args:
        checkpoints: target, and draft if there is one.
        unread: those of them whose weights are not in memory yet.
    """
    wanted, asked = config.max_num_seqs * sizes.max_blocks, config.num_kv_blocks
    if isinstance(memory, StagedMemory):
        needs = device_needs(sizes, checkpoints, unread, dtype)
        return needs.fitting_blocks(free_bytes(memory.device), wanted, asked)
    models = [checkpoint.config for checkpoint in checkpoints]
    num_blocks = fitting_blocks(models, config.block_size, dtype, wanted, asked)
    require_buffers(sizes, models)
    return num_blocks
