"""dyspec: the exact best-first tree of a given size, in as many draft calls as it is deep.

Source: DySpec, arXiv 2410.11744, Algorithm 1; the layered equivalent is proven and tested in
`tests/kernels/test_tree_expand.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdengine.core.config import SpeculationConfig
from sdengine.core.growth import LayerGrowth, ValueRule

MIN_WIDTH, NODES_PER_WIDTH = 16, 4
"""Most nodes forwarded per layer and sequence: a quarter of the tree, at least 16. Best-first trees
of 64 nodes are at most some 13-25 wide; a node beyond the likeliest of its layer is still kept as a
leaf."""


@dataclass(frozen=True, slots=True)
class DySpecPolicy:
    """Best-first growth by estimated acceptance."""

    num_candidates: int
    rule: ValueRule
    max_width: int = MIN_WIDTH

    @classmethod
    def from_config(cls, config: SpeculationConfig) -> DySpecPolicy:
        """Slots are ranked before the draw when drafts are sampled (rejection), tokens
        otherwise."""
        rule: ValueRule = "slot" if config.draws_drafts else "node"
        width = max(MIN_WIDTH, config.max_nodes // NODES_PER_WIDTH)
        return cls(min(config.max_children, config.max_nodes), rule, width)

    def grow(self, layer: int) -> LayerGrowth:
        return LayerGrowth(self.num_candidates, self.max_width, self.rule)
