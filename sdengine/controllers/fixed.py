"""fixed: the configured tree, every step."""

from __future__ import annotations

from sdengine.core.plan import StepPlan, StepReport


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
        self._plans: dict[int, StepPlan] = {}

    def plan(self, num_decoding: int) -> StepPlan:
        plan = self._plans.get(num_decoding)
        if plan is None:
            limit = self._max_batch_nodes
            if limit is None:
                limit = self._max_nodes * num_decoding
            plan = StepPlan(self._depth if num_decoding else 0, self._max_nodes, limit)
            self._plans[num_decoding] = plan
        return plan

    def observe(self, plan: StepPlan, report: StepReport) -> None:
        pass
