"""What a drafter does: describe how trees are grown, as launches on static buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from sdengine.cache.kv_cache import KVCache
from sdengine.kernels.programs.program import Program
from sdengine.runner.variant import Variant


@dataclass(frozen=True, slots=True, eq=False)
class Proposals:
    """What tree nodes' children were drawn from, one row per forwarded node.

    Args:
        tokens: [M, K] int32 in draw order, -1 past the support.
        probs: [M, K] float32, their draft probabilities.
    """

    tokens: torch.Tensor
    probs: torch.Tensor


class Drafter(Protocol):
    """Grows one tree per decoding sequence into the workspace's DraftTree.

    Everything a drafter does between two commits must be launches, because a device runs them
    without the host.
    """

    @property
    def cache(self) -> KVCache | None:
        """Its KV cache, whose accepted entries a commit moves into place; None without one."""

    @property
    def proposals(self) -> Proposals | None:
        """What it drew from; None when it chooses its tokens."""

    @property
    def cost_key(self) -> object:
        """What its time depends on beside its class, by `repr`: of a model its configuration."""

    @property
    def uses_filters(self) -> bool:
        """Whether `propose` does something else where a variant has filters."""

    @property
    def max_depth(self) -> int:
        """Deepest tree it can propose."""

    @property
    def tree_room(self) -> int:
        """Logical KV slots per sequence that it needs beyond the committed tokens."""

    def propose(self, program: Program, variant: Variant) -> None:
        """Appends the launches that grow trees, as deep as the slots' `depth_limits` say.

        None of these says more than `program.limits.layers`; launches for layers beyond that may be
        left out, and a device would launch them in vain. What else is promised there holds, too.

        Args:
            program: appended to.
            variant: what the iteration does beside. Who draws from logits changes them as the
                target's are where it `has_penalties` (`describe_penalties`), and had better leave
                out the tails of its own law where it `has_filters` (`filter_logits`).
        """

    def catch_up(self, program: Program) -> None:
        """Appends the launches that bring the drafter's own state up to the pending tokens without
        drafting (prefill)."""
