"""SideBySide: the price of a speculative step, whatever mood the machine is in."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine.controllers.adaptive import AdaptiveController
from sdengine.controllers.side_by_side import LAST_COMPARISONS, SideBySide
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepReport


def run(side: SideBySide, is_plain: bool, seconds: float, steps: int) -> None:
    for _ in range(steps):
        side.add(is_plain, seconds)


def test_both_kinds_are_needed_and_some_steps_in_a_row() -> None:
    side = SideBySide()
    run(side, True, 1.0, 4)
    assert side.ratio is None
    run(side, False, 1.5, 5)
    assert side.ratio is None
    run(side, False, 1.5, 1)
    assert side.ratio == pytest.approx(1.5)
    side.interrupt()
    run(side, True, 100.0, 4)  # another time, another machine
    assert side.ratio == pytest.approx(1.5)


def test_moods_of_the_machine_cancel() -> None:
    """Every pair in a mood of its own; means over all steps of a kind would be off by the moods."""
    side, rng = SideBySide(), np.random.default_rng(0)
    for _ in range(20):
        mood = rng.uniform(1.0, 3.0)
        run(side, True, mood, 2)
        run(side, False, 1.3 * mood, 8)
        side.interrupt()
    assert side.ratio == pytest.approx(1.3)


def test_it_follows_and_forgets() -> None:
    side = SideBySide()
    for ratio in (3.0, 1.2):
        for _ in range(4 * LAST_COMPARISONS):
            run(side, True, 1.0, 2)
            run(side, False, ratio, 6)
    assert side.ratio == pytest.approx(1.2, rel=0.05)


COSTS = CostModel((1, 2, 3, 4, 6, 8, 16), (0.51, 0.51, 0.6, 0.75, 0.92, 1.2, 2.3), 0.076, 0.028)


def rate_in_moods(alpha: float, seed: int, steps: int = 1500) -> float:
    """Tokens per second over plain decoding; a neighbour comes and goes, and steps scatter."""
    rng, controller = np.random.default_rng(seed), AdaptiveController(COSTS, 8, 16)
    thresholds, mood, seconds, tokens = np.zeros(16), 1.0, 0.0, 0
    reach = np.cumprod(np.full(16, alpha))
    for _ in range(steps):
        if rng.random() < 1 / 40:
            mood = rng.choice([1.0, 1.6])
        plan, nodes, accepted = controller.plan(1), 0, 0
        if plan.costs is not None:
            thresholds = plan.costs.row_costs(17)[1:]
        if plan.depth:
            worth = reach >= thresholds * plan.tokens_per_s
            nodes = int(min(worth.argmin() if not worth.all() else 16, plan.depth, plan.max_nodes))
        while accepted < nodes and rng.random() < alpha:
            accepted += 1
        pace = mood * rng.lognormal(0.0, 0.1)
        draft = COSTS.draft_time(min(nodes, plan.depth)) * pace
        verify = COSTS.verify_time(1 + nodes) * pace
        other = (0.12 if plan.depth else 0.06) * pace
        total = draft + verify + other
        controller.observe(
            plan, StepReport([accepted], nodes, 1 + nodes, draft, verify, total, True)
        )
        seconds += total / mood
        tokens += 1 + accepted
    return tokens / seconds * (COSTS.verify_time(1) + 0.06)


@pytest.mark.parametrize(
    ("alpha", "least"),  # best constant trees: 1.71, 1.35, 1.13, 1.0
    [(0.8, 1.6), (0.6, 1.25), (0.4, 1.05), (0.0, 0.97)],
)
def test_moods_do_not_stop_what_pays(alpha: float, least: float) -> None:
    rates = [rate_in_moods(alpha, seed) for seed in range(8)]
    assert np.mean(rates) > least, rates
