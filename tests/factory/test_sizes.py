"""Capacities: a frontier that draws its nodes always has room, so that no draw decides about it."""

from __future__ import annotations

from typing import Any

import pytest

from sdengine.core.config import EngineConfig, SpeculationConfig
from sdengine.drafters.draft_model import tree_room
from sdengine.errors import ConfigError
from sdengine.factory import kinds
from sdengine.factory.sizes import choose_sizes
from sdengine.kernels.token_tree import MASK_BITS
from sdengine.kernels.tree_attention import MAX_MASK_WORDS
from sdengine.runner.workspace import Sizes

MASKED_NODES = MASK_BITS * MAX_MASK_WORDS


def sizes_of(**settings: Any) -> Sizes:
    """Of an engine with a draft model."""
    speculation = SpeculationConfig(**settings)
    policy = kinds.make_policy(speculation)
    return choose_sizes(EngineConfig("m"), speculation, policy, 1000, 4096)


@pytest.mark.parametrize("nodes", [1, 64, 512, 1024])
@pytest.mark.parametrize("depth", [1, 2, 9, 10, 64, 256])
def test_masks_hold_whatever_a_drawn_tree_forwards(nodes: int, depth: int) -> None:
    """Otherwise which nodes still go on depends on the tokens drawn for others."""
    sizes = sizes_of(verifier="rejection", max_nodes=nodes, max_depth=depth)
    forwarded = (depth - 1) * sizes.max_width
    assert sizes.max_width >= 1
    assert forwarded <= MASKED_NODES
    assert sizes.max_blocks * sizes.block_size >= 4096 + tree_room(nodes, depth, sizes.max_width)


@pytest.mark.parametrize(
    ("verifier", "nodes", "depth", "width"),
    [
        ("rejection", 512, 8, 128),
        ("rejection", 512, 9, 128),
        ("rejection", 512, 10, 113),
        ("rejection", 1024, 256, 4),
        ("coupled", 512, 9, 128),
        ("coupled", 512, 10, 113),
        ("coupled", 768, 16, 68),
        ("coupled", 1024, 256, 16),
    ],
)
def test_only_what_would_not_fit_is_narrowed(
    verifier: str, nodes: int, depth: int, width: int
) -> None:
    assert sizes_of(verifier=verifier, max_nodes=nodes, max_depth=depth).max_width == width


def test_a_static_tree_keeps_its_width() -> None:
    """It forwards some of its at most 1024 nodes, each once."""
    branching = (1, 1, 1, 1, 1, 1, 1, 10, 20, 1)
    sizes = sizes_of(
        method="sampled",
        verifier="rejection",
        branching=branching,
        max_nodes=512,
        max_depth=10,
        max_children=32,
    )
    assert sizes.max_width == 200


@pytest.mark.parametrize("branching,width", [((10, 10, 9), 100), ((7,), 1), ((3, 3), 3)])
def test_the_last_layer_of_a_static_tree_forwards_nothing(
    branching: tuple[int, ...], width: int
) -> None:
    """Its nodes would otherwise have rows of logits of their own: 900 of a vocabulary instead of
    100."""
    sizes = sizes_of(method="kary", branching=branching, max_nodes=1024, max_depth=9)
    assert sizes.max_width == width


def test_trees_that_cannot_be_ranked_together_are_refused() -> None:
    """Selecting gives every node of the batch a number of its own, of 32 bits."""
    config = EngineConfig("m", max_num_seqs=4096, max_num_batched_tokens=4096)
    speculation = SpeculationConfig(max_nodes=1023)
    policy = kinds.make_policy(speculation)
    with pytest.raises(ConfigError, match=r"max_num_seqs .* of at most 4095.*, got 4096; lower"):
        choose_sizes(config, speculation, policy, 1000, 4096)
    choose_sizes(config.with_changes(max_num_seqs=4095), speculation, policy, 1000, 4096)
