"""dyspec: the exact best-first tree of a given size, in as many draft calls as it is deep.

Source: DySpec, arXiv 2410.11744, Algorithm 1; the layered equivalent is proven and tested in
`tests/kernels/test_tree_expand.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdengine.core.config import SpeculationConfig
from sdengine.core.growth import LayerGrowth, ValueRule

MAX_WIDTH = 16
"""Most nodes forwarded per layer and sequence. Best-first trees of 64 nodes are at most some 13-25
wide; a node beyond the 16
likeliest of its layer is still kept as a leaf."""


@dataclass(frozen=True, slots=True)
class DySpecPolicy:
    """Best-first growth by estimated acceptance."""

    num_candidates: int
    rule: ValueRule
    is_trimmed: bool = True

    @classmethod
    def from_config(cls, config: SpeculationConfig) -> DySpecPolicy:
        """Slots are ranked before the draw when drafts are sampled (rejection), tokens
        otherwise."""
        rule: ValueRule = "slot" if config.verifier == "rejection" else "node"
        return cls(min(config.max_children, config.max_nodes), rule)

    def grow(self, layer: int) -> LayerGrowth:
        return LayerGrowth(self.num_candidates, MAX_WIDTH, self.rule)
