"""What a plan asks of nodes and layers, as the kernels read it: thresholds of rows, least gain of a
layer, nodes of the batch."""

from __future__ import annotations

from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepPlan
from sdengine.kernels.programs.replay_copies import flat_items
from sdengine.kernels.row_prices import WriteRowPrices, write_row_prices
from sdengine.runner.workspace import Workspace

SAME_RATE = 0.05
"""Two rates that differ by no more are one: what a second is worth is not known that well, and on a
device thresholds are written anew in 85 us of cold code."""

PROMISED = 1.6
"""Times what a layer takes that it has to promise: the kernels promise the most that its nodes can
be worth. On that alone third layers of two sequences' trees brought 1.7% more tokens for 4.5% of
the time. Modelled steps of three machines, 1 to 4 sequences: 0.4% on average, up to 3%; 1.3 and 2:
nothing."""


def least_layer_gain(draft_layer_s: float, tokens_per_s: float) -> float:
    """Tokens that a draft layer has to promise.

    Args:
        draft_layer_s: what it takes.
        tokens_per_s: what a second is worth.
    """
    return PROMISED * draft_layer_s * tokens_per_s


class Prices:
    """Writes what a step's trees are cut by.

    Args:
        workspace: the engine's buffers; thresholds, least gain of a layer and total budget are
            written.
        write_row_prices: one of `sdengine.kernels.row_prices`.
    """

    def __init__(
        self, workspace: Workspace, write_row_prices: WriteRowPrices = write_row_prices
    ) -> None:
        host = workspace.memory.host
        self._write_row_prices = write_row_prices
        self._thresholds = host(workspace.thresholds)
        self._min_layer_gain = host(workspace.min_layer_gain)
        self._total_budget = flat_items(host(workspace.total_budget))
        self._costs: CostModel | None = None
        self._tokens_per_s = -1.0  # that thresholds were written for

    def write(self, plan: StepPlan) -> None:
        """Writes down the plan of the next step, which drafts."""
        self._total_budget[0] = plan.max_batch_nodes
        written = self._tokens_per_s
        if plan.costs is not None or abs(plan.tokens_per_s - written) > SAME_RATE * written:
            self._write_thresholds(plan)

    def _write_thresholds(self, plan: StepPlan) -> None:
        self._tokens_per_s = plan.tokens_per_s
        self._costs = costs = plan.costs or self._costs
        rate = plan.tokens_per_s
        if costs is None or rate == 0.0:
            self._thresholds[:] = 0.0
            self._min_layer_gain[0] = 0.0
        else:
            self._write_row_prices(costs.rows, costs.verify_s, rate, self._thresholds)
            self._min_layer_gain[0] = least_layer_gain(costs.draft_layer_s, rate)
