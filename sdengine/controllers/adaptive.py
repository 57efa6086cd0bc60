"""adaptive: as much speculation as pays on this machine, for this pair, right now; possibly none.

A draft token that is reached with probability r saves r * s seconds, where s is the time a
committed token costs at present. It costs what one more row adds to the target's forward. So a node
is worth its row while r >= (dT/dM) / s, and a draft layer is worth its time while the reach of the
nodes it would grow is at least T_layer / s. Both comparisons happen on the device, node by node and
layer by layer, on calibrated estimates; the controller only says what a second is worth.

Whether to speculate at all is decided on the host: the seconds per token seen while speculating
against the measured cost of plain decoding. While it does not pay, it is tried again after 16, 32,
... 1024 plain steps, so that a pair that never pays costs under one per cent.
"""

from __future__ import annotations

import numpy as np

from sdengine.controllers.base import StepPlan, StepReport
from sdengine.controllers.cost_model import CostModel

SMOOTHING = 0.08  # of the running means: some 12 steps
TRIAL_STEPS = 6  # speculative steps of one trial
FIRST_PAUSE = 16  # plain steps between the first two trials
LONGEST_PAUSE = 1024
PATIENCE = 12  # speculative steps before the first verdict


class AdaptiveController:
    """Chooses depth and the price of a row from measured costs and observed speed.

    Args:
        costs: measured on this machine for this pair.
        max_depth: deepest tree.
        max_nodes: tree nodes per sequence.
        max_batch_nodes: tree nodes per step, None for no further limit.
    """

    def __init__(
        self, costs: CostModel, max_depth: int, max_nodes: int, max_batch_nodes: int | None = None
    ) -> None:
        self._costs = costs
        self._max_depth = max_depth
        self._max_nodes = max_nodes
        self._max_batch_nodes = max_batch_nodes
        self._seconds_per_token: dict[int, float] = {}
        self._depth_used = float(max_depth)
        self._steps_left = PATIENCE
        self._pause = FIRST_PAUSE
        self._plain_left = 0

    @property
    def costs(self) -> CostModel:
        """The measured costs it decides by."""
        return self._costs

    def plan(self, num_decoding: int) -> StepPlan:
        """Plain decoding during a pause, otherwise a tree priced at the current speed."""
        if num_decoding == 0 or self._plain_left > 0:
            return StepPlan(0, 0, 0)
        limit = self._max_batch_nodes or self._max_nodes * num_decoding
        depth = min(self._max_depth, round(self._depth_used) + 2)
        return StepPlan(depth, self._max_nodes, limit, 1.0 / self._token_seconds(num_decoding))

    def observe(self, plan: StepPlan, report: StepReport) -> None:
        """Updates the running means and the verdict."""
        num_decoding = len(report.num_accepted)
        if num_decoding == 0:
            return
        if plan.depth == 0:
            self._plain_left = max(self._plain_left - 1, 0)
            if self._plain_left == 0 and self._steps_left <= 0:
                self._steps_left = TRIAL_STEPS
            return
        self._learn(num_decoding, report)
        self._steps_left -= 1
        if self._steps_left <= 0:
            self._judge(num_decoding)

    def _token_seconds(self, num_decoding: int) -> float:
        """Seconds per committed token of the whole batch."""
        plain = self._costs.verify_time(num_decoding) / num_decoding
        return min(self._seconds_per_token.get(num_decoding, plain), plain)

    def _learn(self, num_decoding: int, report: StepReport) -> None:
        deepest = max(report.num_accepted)
        self._depth_used += SMOOTHING * (deepest - self._depth_used)
        if deepest > self._depth_used:
            self._depth_used += 0.5 * (deepest - self._depth_used)  # grow fast, shrink slowly
        if not report.is_steady:
            return
        tokens = num_decoding + sum(report.num_accepted)
        seen = (report.draft_time_s + report.verify_time_s) / tokens
        old = self._seconds_per_token.get(num_decoding)
        self._seconds_per_token[num_decoding] = seen if old is None else _mean(old, seen)

    def _judge(self, num_decoding: int) -> None:
        plain = self._costs.verify_time(num_decoding) / num_decoding
        if self._seconds_per_token.get(num_decoding, 0.0) <= plain:
            self._pause = FIRST_PAUSE
            self._steps_left = 1
            return
        self._plain_left = self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


def _mean(old: float, seen: float) -> float:
    """Running mean of a ratio: in logarithms, so that one hiccup of the machine weighs little."""
    return float(np.exp((1 - SMOOTHING) * np.log(old) + SMOOTHING * np.log(seen)))
