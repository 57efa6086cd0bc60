"""Speculation that won its trial: a row's reports are looked at together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sdengine.controllers.adaptive import LEARN_EVERY, SETTLED_RUN, AdaptiveController
from sdengine.controllers.tree_size import GrowingSize
from sdengine.controllers.turns import FIRST_PAUSE, PROBE_STEPS
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepPlan, StepReport

COSTS = CostModel((1, 2, 4, 64), (1.0, 1.1, 1.3, 8.0), 0.1, 0.1)
PLAN = StepPlan(3, 3)  # of every tree
GAINS = StepReport((2,), 3, 4, 0.3, 1.3, 1.7, is_steady=True)  # three tokens in 1.7 plain steps
BARELY = replace(GAINS, num_accepted=(1,), step_s=1.9)  # two tokens in 1.9
LOSES = replace(GAINS, num_accepted=(0,))  # 0.7 of a plain step
PLAIN = StepReport((0,), 0, 1, 0.0, 1.0, 1.0, is_steady=True)
STOPPED_AFTER = 18  # such losses: MOST_DEBT is 12


def settled(by: StepReport = GAINS) -> AdaptiveController:
    """One whose trial has just been won by 16 such steps."""
    controller = AdaptiveController(COSTS, GrowingSize(8, 64))
    trees = 0
    while trees < 16:
        plan = controller.plan(1)
        controller.observe(plan, by if plan.depth else PLAIN)
        trees += plan.depth > 0
    assert controller.plan(1).num_iterations == SETTLED_RUN
    return controller


def observe(controller: AdaptiveController, *reports: StepReport) -> None:
    """These, and plain steps for comparison if they are due after them."""
    for report in reports:
        controller.observe(PLAN, report)
    if pause(controller) == PROBE_STEPS:
        for _ in range(PROBE_STEPS):
            controller.observe(StepPlan(0, 0), PLAIN)


def token_s(controller: AdaptiveController) -> float:
    """Seconds of a token, as the price of a row says."""
    return 1.0 / controller.plan(1).tokens_per_s


def pause(controller: AdaptiveController) -> int:
    """Plain steps to come."""
    plan = controller.plan(1)
    return 0 if plan.depth else plan.num_iterations


def test_tokens_and_seconds_of_all_of_them_count() -> None:
    """One of two gains. Those at odd places, whose rows alone are looked at, lose."""
    controller = settled(BARELY)  # 0.95 a token
    for _ in range(3):
        observe(controller, *[GAINS, LOSES] * (LEARN_EVERY // 2))  # 0.85
    assert 0.85 < token_s(controller) < 0.9


def test_they_stop_when_they_have_lost_enough() -> None:
    controller = settled()
    seen = 0
    while pause(controller) == 0:
        observe(controller, *[LOSES] * LEARN_EVERY)
        seen += LEARN_EVERY
    assert STOPPED_AFTER <= seen < STOPPED_AFTER + LEARN_EVERY


def test_a_step_that_the_machine_interrupted_does_not_stop_them() -> None:
    controller = settled()
    stood_still = replace(LOSES, verify_time_s=100.0, step_s=100.4)
    observe(controller, stood_still, *[GAINS] * (LEARN_EVERY - 1))
    assert pause(controller) == 0
    assert token_s(controller) < 1.0


def test_what_they_gained_makes_the_pause_after_them_shorter() -> None:
    """A fiftieth of a pause is what speculation may have lost before it, all in all."""
    pauses = []
    for num_gains in (0, 10):
        controller = settled(BARELY)
        observe(controller, *[GAINS] * num_gains, *[BARELY] * (LEARN_EVERY - num_gains))
        while pause(controller) == 0:
            observe(controller, *[LOSES] * LEARN_EVERY)
        pauses.append(pause(controller))
    assert pauses[0] > 2 * pauses[1] > 2 * FIRST_PAUSE


def test_one_that_is_not_steady_is_looked_at_by_itself() -> None:
    """Its time, a prompt's beside it, says nothing of a token's."""
    controller = settled()
    observe(controller, *[GAINS] * LEARN_EVERY)
    before = token_s(controller)
    with_prompt = replace(GAINS, num_rows=40, verify_time_s=3.0, step_s=3.4, is_steady=False)
    observe(controller, with_prompt, *[GAINS] * (LEARN_EVERY - 1))
    assert token_s(controller) == pytest.approx(before, rel=1e-6)


def test_those_of_another_number_of_sequences_are_looked_at_apart() -> None:
    """Three that gain with one sequence, then one with two, which says nothing of the three."""
    controller = settled(BARELY)
    before = token_s(controller)
    observe(controller, GAINS, GAINS, GAINS)
    assert token_s(controller) == before, "not looked at yet"
    observe(controller, replace(GAINS, num_accepted=(2, 2), num_nodes=6, num_rows=8))
    alone = token_s(controller)
    assert alone < before
    observe(controller, replace(LOSES, num_accepted=(0, 0)), replace(GAINS, is_steady=False))
    assert token_s(controller) == alone


@pytest.mark.parametrize(("read_s", "is_kept"), [(0.5, True), (4.0, False)])
def test_what_the_draft_reads_of_prompts_has_to_be_won_back(read_s: float, is_kept: bool) -> None:
    """A request of 15 steps gains one and a half plain ones."""
    controller = settled(BARELY)
    draft_s = BARELY.draft_time_s + read_s
    prompt = replace(BARELY, num_rows=40, draft_time_s=draft_s, verify_time_s=4.0, is_steady=False)
    longest = 0
    for step in range(12 * 16):
        plan = controller.plan(1)
        trees = BARELY if step % 16 else prompt
        controller.observe(plan, trees if plan.depth else PLAIN)
        longest = max(longest, pause(controller))
    assert (longest < FIRST_PAUSE) == is_kept  # two are plain for comparison now and then
