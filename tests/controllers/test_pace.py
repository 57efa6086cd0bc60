"""What tokens cost, whatever happened while that was learned."""

from __future__ import annotations

import pytest

from sdengine.controllers.accounts import Spent
from sdengine.controllers.adaptive import AdaptiveController
from sdengine.controllers.pace import Pace
from sdengine.controllers.tree_size import GrowingSize
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepReport

COSTS = CostModel((1, 2, 4, 64), (1.0, 1.1, 1.3, 8.0), 0.1, 0.1)


def test_interrupted_accounts_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    pace = Pace(COSTS)
    with monkeypatch.context() as patch:
        patch.setattr(Spent, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pace.add_trees(1, 2.0, 3)
    assert pace.token_s(1) == 1.0  # of a plain step: nothing is known of trees
    pace.add_trees(1, 2.0, 3)
    assert pace.token_s(1) == pytest.approx(2.0 / 3.0)


def test_a_stalled_device_that_began_before_takes_no_negative_time() -> None:
    """Its step takes the time since the last one, which may be less than its kernels did."""
    costs = CostModel.from_samples((1, 64), (1.0, 1.2), 0.1, 0.04, 2e-4)
    controller = AdaptiveController(costs, GrowingSize(8, 64))
    plan = controller.plan(1)
    depths = []
    for is_stalled in [False] * 12 + [True] + [False] * 3:
        nodes = min(plan.max_batch_nodes, 4)
        draft_s = 0.02 * plan.depth
        verify_s, step_s = (20.0, 0.04) if is_stalled else (1.0, 1.0 + draft_s)
        controller.observe(
            plan,
            StepReport(
                (min(nodes, 2),),
                nodes,
                1 + nodes,
                draft_s,
                verify_s,
                step_s,
                True,
                plan.depth,
                draft_s,
            ),
        )
        depths.append(plan.depth)
        plan = controller.plan(1)
        assert plan.tokens_per_s >= 0.0 and controller._pace.token_s(1) > 0.0
    assert depths[12] > 0  # there were trees to stall
