"""The adaptive budget's prediction: the controller itself over sampled trees."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.probe_adaptive import Replay, StepTimes, replay_speedup
from sdengine.controllers.adaptive import AdaptiveController
from sdengine.controllers.fixed import FixedController
from sdengine.controllers.tree_size import GrowingSize
from sdengine.controllers.turns import FIRST_PLAIN_STEPS
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepPlan

COSTS = CostModel((1, 2, 4, 8, 16, 64), (1.0, 1.1, 1.2, 1.6, 3.0, 11.0), 0.05, 0.05)
DEPTH = 4


class Sampled:
    """Chains of four nodes: `accepted` of them come true, each time."""

    def __init__(self, values: list[float], accepted: int, prompt_tokens: int = 40) -> None:
        self.num_trees = 1
        self.prompt_tokens = prompt_tokens
        self._values = np.array(values)
        self._accepted = accepted

    def tree(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert index == 0
        return self._values, np.arange(1, DEPTH + 1), np.arange(1, self._accepted + 1)


GOOD = Sampled([0.9, 0.8, 0.7, 0.6], 3)
USELESS = Sampled([0.5, 0.2, 0.1, 0.05], 0)


def times(missed_token_s: float = 0.0) -> StepTimes:
    """A step as the costs say, a plain step of 1 second."""
    return StepTimes(
        COSTS, 1.0, 0.0, missed_token_s, lambda n, d: COSTS.draft_time(int(d)) + 1.0 + 0.1 * n
    )


def speedup(sampler: Sampled, *, batch: int = 1, missed: float = 0.0, repeats: int = 3) -> float:
    controllers = [AdaptiveController(COSTS, GrowingSize(8, 64))]
    return replay_speedup(controllers, [sampler] * 4, times(missed), batch, 64, 32, repeats)


def test_a_fixed_budget_is_replayed_exactly() -> None:
    """Four tokens a step of 1.6 seconds; the last of the 61 after the first step makes one more."""
    replay = Replay(FixedController(4, 4), times(), 0)
    seconds = replay.run(GOOD, 1, 64)  # 60 tokens in 15 steps of full trees
    assert seconds == pytest.approx(15 * 1.6 / 60, rel=0.02)
    assert Replay(FixedController(0, 0), times(), 0).run(GOOD, 1, 64) == pytest.approx(1.0)


@pytest.mark.parametrize("batch", [1, 3])
def test_trees_that_pay_are_predicted_to_pay(batch: int) -> None:
    assert 2.0 < speedup(GOOD, batch=batch) < 2.9


def test_a_useless_draft_is_predicted_to_cost_its_trials() -> None:
    assert 0.93 < speedup(USELESS, repeats=1) <= 1.0
    first, dear = (
        Replay(AdaptiveController(COSTS, GrowingSize(8, 64)), times(missed), 0).run(USELESS, 1, 64)
        for missed in (0.0, 1.0)
    )
    assert 1.0 < first < 1.1
    missing = USELESS.prompt_tokens + FIRST_PLAIN_STEPS - 1
    assert dear - first == pytest.approx(missing / 63, rel=0.2), "read before the first tree"


def test_the_first_steps_are_plain_and_late_catching_up_is_no_steady_step() -> None:
    seen = []

    class Watched(AdaptiveController):
        def observe(self, plan: StepPlan, report) -> None:  # type: ignore[no-untyped-def]
            seen.append((plan.depth, report.is_steady, report.draft_time_s))
            super().observe(plan, report)

    Replay(Watched(COSTS, GrowingSize(8, 64)), times(0.01), 0).run(GOOD, 1, 64)
    first = next(i for i, (depth, _, _) in enumerate(seen) if depth)
    assert first == FIRST_PLAIN_STEPS, "the prompt's own step is the first of them"
    missing = GOOD.prompt_tokens + FIRST_PLAIN_STEPS - 1
    assert not seen[first][1] and seen[first][2] > 0.01 * missing
    assert seen[first + 1][1]


def test_prices_cut_what_does_not_pay() -> None:
    replay = Replay(FixedController(4, 4), times(), 0)
    values, depths = [np.array([0.9, 0.3, 0.2, 0.1])], [np.arange(1, 5)]

    def kept(plan: StepPlan, room: int = 4) -> int:
        return int(replay._keep(plan, values, [depths[0] <= room])[0].sum())

    assert kept(StepPlan(4, 4)) == 4
    assert kept(StepPlan(4, 4), room=2) == 2
    assert kept(StepPlan(4, 3)) == 3 and kept(StepPlan(4, 2)) == 2
    prices = COSTS.row_costs(8)[1:5]
    worth = 0.25 / prices[1]  # a second is worth so much that only the first two nodes pay
    assert kept(StepPlan(4, 4, worth)) == 2


def test_layers_run_while_they_promise_more_than_they_cost() -> None:
    """A second is worth 2 tokens: a layer 0.1; newcomers have to be worth 0.16, 0.1, 0.1, 0.2."""
    replay = Replay(FixedController(4, 4), times(), 0)
    values, depths = np.array([0.9, 0.3, 0.2, 0.1]), np.arange(1, 5)

    def layers(plan: StepPlan, rooms: list[int]) -> int:
        batch = len(rooms)
        return replay._count_layers(plan, [values] * batch, [depths] * batch, rooms)

    assert layers(StepPlan(4, 4), [4]) == 4 and layers(StepPlan(3, 4), [4]) == 3
    assert layers(StepPlan(4, 4), [2]) == 2 and layers(StepPlan(4, 8), [2, 3]) == 3
    assert layers(StepPlan(4, 4, 2.0), [4]) == 3  # 0.8 and 0.2 beyond the newcomer's cost, then 0
    assert layers(StepPlan(4, 4, 2.5), [4]) == 2  # 0.175 for a layer of 0.125: it is the most
    assert layers(StepPlan(4, 4, 5.0), [4]) == 2  # a layer is 0.25, and the second promises 0.05
    assert layers(StepPlan(4, 4, 10.0), [4]) == 1
