"""What a tree policy says. The growing itself is the `tree_expand` kernel; a policy is its
parameters.

A policy must work without looking at drawn tokens between two layers, because a device runs all
layers without the host. So it answers, before the iteration, how each layer grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

ValueRule = Literal["node", "slot", "uniform", "uniform_slot"]


@dataclass(frozen=True, slots=True)
class LayerGrowth:
    """How one draft layer grows.

    Args:
        max_children: most children of a node of this layer.
        max_width: most nodes of this layer that are grown further.
        rule: "node" ranks tokens by their estimated probability of being reached (deterministic or
            coupled drafts), "slot" ranks drawing opportunities before the draw (sampled drafts;
            algorithms: DySpec's Algorithm 1), "uniform" keeps all.
    """

    max_children: int
    max_width: int
    rule: ValueRule


class TreePolicy(Protocol):
    """Grows a tree layer by layer."""

    @property
    def num_candidates(self) -> int:
        """Most children any node may have: how many candidates a draft row must offer."""

    def grow(self, layer: int) -> LayerGrowth:
        """Growth of layer `layer` (0 = children of the root)."""
