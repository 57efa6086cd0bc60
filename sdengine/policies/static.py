"""Static trees: "chain" (one token per depth), "kary" (the likeliest tokens), "sampled" (drawn
without replacement, as RSD-C).

Source: RSD, arXiv 2402.14160 (constant branching). Which tokens fill the tree is the drafter's
affair (top-k or Gumbel-top-k); its shape is `SpeculationConfig.level_widths`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdengine.core.config import SpeculationConfig
from sdengine.core.growth import LayerGrowth, ValueRule


@dataclass(frozen=True, slots=True)
class StaticPolicy:
    """Every node of depth d gets level_widths[d] children; a plan may want fewer levels, or fewer
    children of the root alone."""

    level_widths: tuple[int, ...]
    rule: ValueRule

    @classmethod
    def from_config(cls, config: SpeculationConfig) -> StaticPolicy:
        """The shape that the configuration names."""
        return cls(config.level_widths, "uniform_slot" if config.draws_drafts else "uniform")

    @property
    def num_candidates(self) -> int:
        return max(self.level_widths)

    def grow(self, layer: int) -> LayerGrowth:
        children = self.level_widths[layer]
        width = 1
        for siblings in self.level_widths[: layer + 1]:
            width *= siblings
        return LayerGrowth(children, width, self.rule)
