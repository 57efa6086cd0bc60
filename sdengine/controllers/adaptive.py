"""adaptive: as much speculation as pays on this machine, for this pair, right now; possibly none.

A draft token that is reached with probability r saves r * s seconds, where s is what a committed
token costs at present; its row costs what one more row adds to the target's pass. So a node is
worth its row while r >= (dT/dM) / s, and a draft layer is worth its time while the nodes it would
grow are together reached with probability T_layer / s. Both comparisons happen on the device, node
by node and layer by layer, on calibrated estimates; the controller only says what a second is worth
and how many layers to record.

Whether to speculate at all is decided here: seconds per token seen while speculating against the
cost of plain decoding. While it does not pay it is tried again after 16, 32, ... 1024 plain steps,
so that a pair that never pays costs under one per cent.
"""

from __future__ import annotations

from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepPlan, StepReport

SMOOTHING = 0.08  # of the running means: some 12 steps
TRIAL_STEPS = 6  # speculative steps of one trial
FIRST_PAUSE = 16  # plain steps between the first two trials
LONGEST_PAUSE = 1024
PATIENCE = 12  # speculative steps before the first verdict
SPARE_LAYERS = 2  # recorded beyond the depth that was of use lately
HICCUP = 2.0  # a time so many times what is expected is the machine's, not the step's


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
        self._slowdown = 1.0  # of the machine since the costs were measured
        self._spent: dict[int, _Spent] = {}  # by decoding sequences, while speculating
        self._depth_used = float(max_depth)
        self._steps_left = PATIENCE
        self._pause = FIRST_PAUSE
        self._plain_left = 0

    def plan(self, num_decoding: int) -> StepPlan:
        """Plain decoding during a pause, otherwise a tree priced at the current speed."""
        if num_decoding == 0 or self._plain_left > 0:
            return StepPlan(0, 0, 0)
        limit = self._max_batch_nodes or self._max_nodes * num_decoding
        depth = min(self._max_depth, int(self._depth_used + 0.5) + SPARE_LAYERS)
        # The device compares with the costs as they were measured, so the price is, too.
        return StepPlan(
            depth, self._max_nodes, limit, self._slowdown / self._token_seconds(num_decoding)
        )

    def observe(self, plan: StepPlan, report: StepReport) -> None:
        """Updates the running means and the verdict."""
        num_decoding = len(report.num_accepted)
        if num_decoding == 0:
            return
        if report.is_steady:
            expected = self._costs.verify_time(report.num_rows)
            seen = min(report.verify_time_s / expected, HICCUP * self._slowdown)
            self._slowdown += SMOOTHING * (seen - self._slowdown)
        if plan.depth == 0:
            self._plain_left -= 1
            if self._plain_left == 0:
                self._steps_left = TRIAL_STEPS
            return
        self._learn(num_decoding, plan, report)
        self._steps_left -= 1
        if self._steps_left <= 0:
            self._judge(num_decoding)

    def _plain_seconds(self, num_decoding: int) -> float:
        return self._slowdown * self._costs.verify_time(num_decoding) / num_decoding

    def _token_seconds(self, num_decoding: int) -> float:
        """Seconds per committed token of the whole batch, at best what plain decoding takes."""
        plain = self._plain_seconds(num_decoding)
        spent = self._spent.get(num_decoding)
        return plain if spent is None else min(spent.seconds / spent.tokens, plain)

    def _learn(self, num_decoding: int, plan: StepPlan, report: StepReport) -> None:
        deepest = max(report.num_accepted)
        # Grows at once and shrinks slowly: a layer too many costs little, one too few a token.
        rate = 0.5 if deepest > self._depth_used else SMOOTHING
        self._depth_used += rate * (deepest - self._depth_used)
        if not report.is_steady:
            return
        draft_s = self._costs.draft_time(plan.depth)
        expected = self._slowdown * (draft_s + self._costs.verify_time(report.num_rows))
        seconds = min(report.draft_time_s + report.verify_time_s, HICCUP * expected)
        spent = self._spent.setdefault(num_decoding, _Spent())
        spent.add(seconds, num_decoding + sum(report.num_accepted))

    def _judge(self, num_decoding: int) -> None:
        spent = self._spent.get(num_decoding)
        if spent is None or spent.seconds <= spent.tokens * self._plain_seconds(num_decoding):
            self._pause = FIRST_PAUSE
            return
        self._plain_left = self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        # The next trial starts from what is known then, not from the trial that failed.
        self._spent.pop(num_decoding)


class _Spent:
    """Recent seconds and the tokens they gave; older steps fade."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tokens = 0.0

    def add(self, seconds: float, tokens: int) -> None:
        """Counts one step."""
        self.seconds += seconds - SMOOTHING * self.seconds
        self.tokens += tokens - SMOOTHING * self.tokens
