"""fixed: the configured tree, every step."""

from __future__ import annotations

from sdengine.controllers.base import AskOutlook
from sdengine.core.plan import StepPlan, StepReport

MOST_ITERATIONS = 1 << 20  # every plan is the same


class FixedController:
    """Always the same plan.

    Args:
        depth: draft layers.
        max_nodes: tree nodes per sequence.
        max_batch_nodes: tree nodes per step; None is max_nodes for every sequence.
    """

    def __init__(self, depth: int, max_nodes: int, max_batch_nodes: int | None = None) -> None:
        self._depth = depth
        self._max_nodes = max_nodes
        self._max_batch_nodes = max_batch_nodes

    def plan(self, num_decoding: int, outlook: AskOutlook | None = None) -> StepPlan:
        limit = self._max_batch_nodes
        if limit is None:
            limit = self._max_nodes * num_decoding
        depth = self._depth if num_decoding else 0
        return StepPlan(depth, limit, num_iterations=MOST_ITERATIONS)

    def observe(self, plan: StepPlan, report: StepReport) -> None:
        pass
