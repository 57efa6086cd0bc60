"""AdaptiveController: speculates where it pays, stops where it does not, and tries again rarely."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine.controllers import turns
from sdengine.controllers.adaptive import AdaptiveController
from sdengine.controllers.fixed import FixedController
from sdengine.controllers.tree_size import GrowingSize
from sdengine.controllers.turns import FIRST_PLAIN_STEPS, LONGEST_PAUSE, PROMPT_STEPS
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import MAX_ITERATIONS, StepPlan, StepReport

COSTS = CostModel((1, 8, 16), (1.0, 1.0, 2.0), 0.1, 0.1)


def simulate(
    controller: AdaptiveController,
    accepted: int,
    draft_s: float,
    steps: int,
    slowdown: float = 1.0,
    in_a_row: int = 1,
) -> tuple[float, int, int]:
    """Runs steps in a world where `accepted` draft tokens come of every tree, up to so many in a
    row.

    Returns:
        Seconds, tokens, and how many steps speculated.
    """
    seconds, tokens, speculated = 0.0, 0, 0
    while steps > 0:
        plan = controller.plan(1)
        nodes = min(7, plan.max_batch_nodes) if plan.depth else 0
        num_accepted = min(accepted, plan.depth, nodes)
        draft = draft_s if plan.depth else 0.0
        verify = COSTS.verify_time(1 + nodes) * slowdown
        total = draft + verify
        report = StepReport([num_accepted], nodes, 1 + nodes, draft, verify, total, True)
        num_iterations = min(in_a_row, plan.num_iterations, steps)
        for _ in range(num_iterations):
            controller.observe(plan, report)
        seconds += num_iterations * total
        tokens += num_iterations * (1 + num_accepted)
        speculated += num_iterations * (plan.depth > 0)
        steps -= num_iterations
    return seconds, tokens, speculated


def simulate_late(
    controller: AdaptiveController, accepted: int, draft_s: float, steps: int
) -> list[int]:
    """As `simulate`, but every report comes when the next step has begun; returns the depths."""
    plans = [controller.plan(1)]
    for _ in range(steps):
        plans.append(controller.plan(1))
        plan = plans[-2]
        nodes = min(7, plan.max_batch_nodes) if plan.depth else 0
        draft, verify = draft_s if plan.depth else 0.0, COSTS.verify_time(1 + nodes)
        took = draft + verify
        num_accepted = min(accepted, plan.depth, nodes)
        report = StepReport([num_accepted], nodes, 1 + nodes, draft, verify, took, True)
        controller.observe(plan, report)
    return [plan.depth for plan in plans]


def pauses(depths: list[int]) -> list[int]:
    """Lengths of the runs of plain steps."""
    return [len(run) for run in "".join("p" if d == 0 else " " for d in depths).split()]


def test_late_reports_lengthen_a_pause_by_one_step_and_nothing_else() -> None:
    """A verdict is passed once, although one more report of the speculation comes after it."""
    depths = simulate_late(AdaptiveController(COSTS, GrowingSize(8, 16)), 0, 0.49, 1200)
    # three steps lose 1.47: a pause of fifty times as many at least, however short its turn
    assert pauses(depths)[:4] == [13, 74, 129, 257]
    useful = simulate_late(AdaptiveController(COSTS, GrowingSize(8, 16)), 3, 0.4, 500)
    assert set(pauses(useful)[1:-1]) == {3} and sum(depth > 0 for depth in useful) > 450


def test_layers_are_priced_by_what_they_take() -> None:
    """Of steady steps: a draft that reads a prompt says nothing of a layer."""
    controller = AdaptiveController(COSTS, GrowingSize(8, 16))
    for step in range(120):
        plan = controller.plan(1)
        layers, times = min(plan.depth, 3), 1.0 if step % 5 else 30.0
        first = 0.2 * times if layers else 0.0
        draft = first + 0.15 * times * max(layers - 1, 0)
        controller.observe(
            plan,
            StepReport(
                [layers], layers, 1 + layers, draft, 1.0, 1.0 + draft, step % 5 > 0, layers, first
            ),
        )
    costs = controller._pace.costs
    assert (costs.draft_first_s, costs.draft_layer_s) == pytest.approx((0.2, 0.15), rel=0.05)


@pytest.mark.parametrize("accepted,share", [(3, 1.2 / 4.0), (0, 1.0)])
def test_a_batch_of_another_size_is_taken_to_gain_as_much(accepted: int, share: float) -> None:
    """Until it is known; and never to be slower than plain decoding."""
    controller = AdaptiveController(COSTS, GrowingSize(8, 16))
    for _ in range(FIRST_PLAIN_STEPS + 2):
        plan = controller.plan(3)
        is_plain = plan.depth == 0
        draft, found = (0.0, 0) if is_plain else (0.2, accepted)
        report = StepReport([found] * 3, 0, 3, draft, 1.0, 1.0 + draft, True)
        controller.observe(plan, report)
    assert not is_plain
    plain, known = controller._pace.plain_step_s(2) / 2, controller._pace.token_s(3)
    assert known == pytest.approx(share / 3.0, rel=1e-6)
    assert controller._pace.token_s(2) == pytest.approx(plain * share, rel=1e-6)


@pytest.mark.parametrize("in_a_row", [1, MAX_ITERATIONS])
@pytest.mark.parametrize("slowdown", [1.0, 2.5])
def test_keeps_speculating_while_it_pays(slowdown: float, in_a_row: int) -> None:
    controller = AdaptiveController(COSTS, GrowingSize(8, 16))
    _, _, speculated = simulate(controller, 3, 0.4 * slowdown, 500, slowdown, in_a_row)
    assert speculated >= 500 * 0.96 - FIRST_PLAIN_STEPS, (
        "but for the plain steps it compares itself with"
    )


@pytest.mark.parametrize("in_a_row", [1, MAX_ITERATIONS])
def test_a_useless_draft_costs_under_three_percent(in_a_row: int) -> None:
    controller = AdaptiveController(COSTS, GrowingSize(8, 16))
    seconds, tokens, speculated = simulate(controller, 0, 0.5, 3000, in_a_row=in_a_row)
    assert tokens == 3000
    assert seconds < 1.03 * 3000 * COSTS.verify_time(1)
    assert speculated > 12, "it must be tried again now and then"


def test_iterations_follow_one_another_where_nothing_is_decided() -> None:
    """All of a pause, some of a trial once it has begun, and then twice what is looked at."""
    controller, num_iterations = AdaptiveController(COSTS, GrowingSize(8, 16)), []
    for _ in range(28):
        plan = controller.plan(1)
        report = StepReport([3 * (plan.depth > 0)], 3, 4, 0.1, 1.0, 1.1, True)
        num_iterations.append((plan.depth > 0, plan.num_iterations))
        for _ in range(min(plan.num_iterations, MAX_ITERATIONS)):
            controller.observe(plan, report)
    trial = [(True, number) for number in (1, 2, 4, 4, 4, 1)]
    assert num_iterations[:7] == [(False, 12), *trial]
    assert num_iterations[7:9] == [(True, 16)] * 2
    assert num_iterations[9] == (False, 2), "plain steps in between"
    assert controller.plan(0).num_iterations == 1


def plain_and_slow(controller: AdaptiveController, steps: int) -> None:
    """Plain steps that take 1.8 where 1.0 was measured; as long as the controller wants them."""
    for _ in range(steps):
        plan = controller.plan(1)
        if plan.depth:
            return
        controller.observe(plan, StepReport([0], 0, 1, 0.0, 1.8, 1.8, True))


@pytest.mark.parametrize(
    ("long_step_s", "slowdown", "first"), [(0.1, 1.05, 3), (0.1, 1.6, 12), (2.0, 1.0, 12)]
)
def test_long_steps_that_take_what_was_measured_need_no_others(
    monkeypatch: pytest.MonkeyPatch, long_step_s: float, slowdown: float, first: int
) -> None:
    """A model of 1.1B would spend a second and a half on them."""
    monkeypatch.setattr(turns, "LONG_STEP_S", long_step_s)
    controller = AdaptiveController(COSTS, GrowingSize(8, 16))
    assert simulate(controller, 3, 0.4, first, slowdown)[2] == 0
    assert simulate(controller, 3, 0.4, 1, slowdown)[2] == 1


def test_slow_steps_after_a_prompt_are_not_believed() -> None:
    """The weights have left the caches, and trees that lose would seem to pay."""
    controller = AdaptiveController(COSTS, GrowingSize(8, 16))
    plain_and_slow(controller, PROMPT_STEPS)
    for _ in range(FIRST_PLAIN_STEPS - PROMPT_STEPS):
        controller.observe(controller.plan(1), StepReport([0], 0, 1, 0.0, 1.0, 1.0, True))
    assert 1.0 / controller.plan(1).tokens_per_s == pytest.approx(1.0)
    for _ in range(20):  # two tokens a step in three times the time
        plan = controller.plan(1)
        controller.observe(plan, StepReport([1], 4, 5, 0.5, 2.5, 3.0, True))
        if plan.depth == 0:
            break
    assert plan.depth == 0


def test_a_slower_machine_than_the_measured_one_is_known_before_the_first_trial() -> None:
    """Otherwise trees, which are slower too, would be held against the measurement."""
    controller = AdaptiveController(COSTS, GrowingSize(8, 16))
    plain_and_slow(controller, FIRST_PLAIN_STEPS)
    assert 1.0 / controller.plan(1).tokens_per_s > 1.6
    _, _, speculated = simulate(controller, 3, 0.4 * 1.8, 40, 1.8)
    assert speculated == 40


def test_slow_steps_are_believed_when_they_go_on() -> None:
    controller = AdaptiveController(COSTS, GrowingSize(8, 16))
    simulate(controller, 0, 0.5, 20)
    assert controller.plan(1).depth == 0, "a useless draft is paused"
    plain_and_slow(controller, 400)
    assert 1.0 / controller.plan(1).tokens_per_s > 1.5


@pytest.mark.parametrize("tokens", [64, 128, 256, 1024])
def test_a_useless_draft_costs_little_from_the_first_token_on(tokens: int) -> None:
    """Trees that are as dear as on a processor without spare arithmetic: a row costs a third."""
    costs = CostModel((1, 4, 64), (1.0, 2.0, 22.0), 0.2, 0.15)
    controller = AdaptiveController(costs, GrowingSize(8, 64))
    seconds = 0.0
    for _ in range(tokens):
        plan = controller.plan(1)
        nodes = plan.max_batch_nodes
        draft, verify = costs.draft_time(plan.depth), costs.verify_time(1 + nodes)
        report = StepReport([0], nodes, 1 + nodes, draft, verify, draft + verify, True)
        controller.observe(plan, report)
        seconds += draft + verify
    assert seconds < tokens * 1.04 + 4, seconds


def test_no_course_of_events_confuses_it() -> None:
    """Batches that grow and shrink, steps that cannot be timed, times out of all proportion."""
    random = np.random.default_rng(0)
    for _ in range(400):
        controller = AdaptiveController(COSTS, GrowingSize(8, 16), 24)
        for _ in range(40):
            size = int(random.integers(0, 9))
            plan = controller.plan(size)
            assert 0 <= plan.depth <= 8 and 0 <= plan.max_batch_nodes <= min(16 * size, 24)
            assert np.isfinite(plan.tokens_per_s)
            accepted = random.integers(0, plan.depth + 1, size).tolist()
            draft, verify, other = random.exponential(0.5, 3).tolist()
            nodes = plan.max_batch_nodes
            rows = size + nodes
            is_steady = bool(random.random() < 0.5)
            report = StepReport(
                accepted, nodes, rows, draft, verify, draft + verify + other, is_steady
            )
            controller.observe(plan, report)


def test_trust_follows_what_is_accepted() -> None:
    controller = AdaptiveController(COSTS, GrowingSize(8, 16))
    simulate(controller, 3, 0.1, FIRST_PLAIN_STEPS)  # the plain steps at the beginning
    limits = []
    for _ in range(8):
        limits.append(controller.plan(1).max_batch_nodes)
        simulate(controller, 3, 0.1, 1)
    assert limits[:4] == [2, 4, 8, 16] and limits[-1] == 16
    controller.observe(StepPlan(4, 16), StepReport([0], 16, 17, 0.1, 2.0, 2.1, True))
    assert controller.plan(1).max_batch_nodes == 12


def test_comes_back_when_the_draft_becomes_useful() -> None:
    controller = AdaptiveController(COSTS, GrowingSize(8, 16))
    simulate(controller, 0, 0.5, 500)
    _, _, speculated = simulate(controller, 4, 0.5, 2 * LONGEST_PAUSE)
    assert speculated > LONGEST_PAUSE // 2


def test_a_trial_is_not_judged_by_the_one_that_failed_before_it() -> None:
    """The draft comes to gain one per cent: with the steps of the failed trial it loses four."""
    controller = AdaptiveController(COSTS, GrowingSize(8, 16))
    while controller.plan(1).depth == 0:
        simulate(controller, 0, 0.5, 1)
    while controller.plan(1).depth > 0:
        simulate(controller, 0, 0.5, 1)
    _, _, speculated = simulate(controller, 1, 0.98, 400)
    assert speculated > 200


def test_what_was_gained_pays_for_little_of_what_is_lost() -> None:
    """Twenty catch-ups of some ten plain steps each, after thousands were gained."""
    controller = AdaptiveController(COSTS, GrowingSize(8, 16))
    simulate(controller, 4, 0.1, 2000)
    num_lost = num_plain = 0
    while num_lost < 20 or controller.plan(1).depth == 0:
        plan = controller.plan(1)
        if plan.depth == 0:
            simulate(controller, 0, 0.0, 1)
            num_plain += 1
            continue
        controller.observe(plan, StepReport([0], 7, 8, 99.0, 1.0, 100.0, False))
        num_lost += 1
    assert num_plain > 5000, "128 where all that was gained may be lost again"


def test_depth_follows_what_is_accepted() -> None:
    controller = AdaptiveController(COSTS, GrowingSize(8, 16))
    simulate(controller, 1, 0.05, 200)
    assert controller.plan(1).depth == 3
    simulate(controller, 8, 0.05, 40)
    assert controller.plan(1).depth == 8


def test_a_faster_engine_asks_more_of_a_row() -> None:
    slow, fast = (
        AdaptiveController(COSTS, GrowingSize(8, 16)),
        AdaptiveController(COSTS, GrowingSize(8, 16)),
    )
    simulate(slow, 1, 0.5, 100)
    simulate(fast, 6, 0.5, 100)
    assert fast.plan(1).tokens_per_s > slow.plan(1).tokens_per_s > 0


def test_a_batch_of_another_size_starts_from_what_is_known() -> None:
    """Of one sequence left by a batch of two nothing had been seen, and a token's time was taken
    for a plain one's: trees of forty nodes."""
    controller = AdaptiveController(COSTS, GrowingSize(8, 16))
    simulate(controller, 6, 0.5, 100)
    known = controller.plan(1).tokens_per_s  # a plain token takes a second, both of two sequences
    assert known > 3.0
    assert controller.plan(2).tokens_per_s == pytest.approx(2.0 * known)
    for goes_on in (True, False):  # until it is given up, until the next trial
        while (controller.plan(1).depth > 0) is goes_on:
            simulate(controller, 0, 0.5, 1)
    assert controller.plan(2).tokens_per_s == pytest.approx(2.0), "nor after it was given up"


def test_nothing_is_drafted_without_decoding_sequences() -> None:
    assert AdaptiveController(COSTS, GrowingSize(8, 16)).plan(0).depth == 0
    assert FixedController(8, 16).plan(0).depth == 0


def test_fixed_plan_is_what_was_asked_for() -> None:
    plan = FixedController(4, 16).plan(3)
    assert plan == StepPlan(4, 48, num_iterations=plan.num_iterations)
    assert plan.num_iterations > 1000, "no plan differs from the one before"
    assert FixedController(4, 16, 20).plan(3).max_batch_nodes == 20


def test_cost_model_interpolates_and_is_monotone() -> None:
    model = CostModel.from_samples((1, 2, 4, 8), (1.0, 1.4, 1.2, 2.0), 0.1, 0.05, 0.01)
    times = [model.verify_time(m) for m in range(1, 20)]
    assert times == sorted(times)
    assert model.verify_time(2) == pytest.approx(1.2)
    assert model.verify_time(16) == pytest.approx(3.6)

    assert model.draft_time(0) == 0.0 and model.draft_time(3) == pytest.approx(0.2)


def test_the_foot_of_a_stair_is_dear_and_the_stair_itself_free() -> None:
    stairs = CostModel((1, 4, 5, 8, 9, 12), (1.0, 1.0, 2.0, 2.0, 3.0, 3.0), 0.1, 0.05)
    prices = stairs.row_costs(12)
    assert prices[1:4].tolist() == [0.0, 0.0, 0.0]
    # all four rows of the stair, each worth 0.8 of the one before
    assert prices[4] == pytest.approx(1 / (1 + 0.8 + 0.8**2 + 0.8**3))
    assert prices[5:8].tolist() == [0.0, 0.0, 0.0] and prices[8] > 0.1
    assert CostModel((1,), (1.0,), 0.1, 0.1).row_costs(3).tolist() == [0.0, 0.0, 0.0]


def test_where_times_are_convex_a_row_costs_what_it_adds() -> None:
    convex = CostModel((1, 2, 3, 4, 5), (1.0, 1.1, 1.3, 1.6, 2.0), 0.1, 0.05)
    assert convex.row_costs(5)[1:] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert convex.row_costs(9)[5:] == pytest.approx([0.4] * 4), "beyond the measurements as before"


MEASURED = CostModel(  # a 1.1B shape in bfloat16 on two Zen 3 cores, milliseconds
    (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64),
    (86.5, 116.9, 116.9, 159.4, 166.0, 206.9, 236.6, 312.3, 512.0, 512.0, 1243.2),
    3.5,
    3.0,
)


def test_the_choice_is_nearly_the_best_one() -> None:
    """Nodes of random worth, in order: what the prices choose against every other number."""
    prices = MEASURED.row_costs(33)
    times = np.array([MEASURED.verify_time(m) for m in range(1, 34)])
    rng = np.random.default_rng(0)
    best = chosen = 0.0
    for _ in range(400):
        worth = 65.0 * rng.uniform(0.2, 0.9) * np.cumprod(rng.uniform(0.55, 1.0, 32))
        gains = np.concatenate([[0.0], np.cumsum(worth)]) - times
        too_dear = worth < prices[1:]
        number = int(np.argmax(too_dear)) if too_dear.any() else len(worth)
        best += gains.max() - gains[0]
        chosen += gains[number] - gains[0]
    assert chosen > 0.95 * best > 0


def test_believes_what_it_sees_over_what_was_measured() -> None:
    """Plain steps that are twice as fast as measured make a modest tree a loss."""
    controller = AdaptiveController(COSTS, GrowingSize(8, 16))
    speculated = 0
    for _ in range(600):
        plan = controller.plan(1)
        nodes = 7 if plan.depth else 0
        verify = COSTS.verify_time(8) if plan.depth else 0.5 * COSTS.verify_time(1)
        draft = 0.2 * (nodes > 0)
        accepted = [min(1, plan.depth)]
        report = StepReport(accepted, nodes, 1 + nodes, draft, verify, draft + verify, True)
        controller.observe(plan, report)
        speculated += plan.depth > 0
    assert speculated < 130, "trials only"


def test_a_draft_that_gives_nothing_is_dropped_however_cheap() -> None:
    _, _, speculated = simulate(AdaptiveController(COSTS, GrowingSize(8, 16)), 0, 0.001, 3000)
    assert speculated < 300


def test_a_lookup_that_costs_nothing_may_gain_little() -> None:
    """One token in twelve steps is worth a lookup, but no layer of a model."""
    speculated = {}
    for draft_s in (0.005, 0.1):
        costs = CostModel(COSTS.rows, COSTS.verify_s, draft_s, 0.0)
        controller = AdaptiveController(costs, GrowingSize(8, 16))
        depths = []
        for step in range(1000):
            plan = controller.plan(1)
            found = int(plan.depth > 0 and step % 12 == 0)
            report = StepReport([found], found, 1 + found, 0.0, 1.0, 1.0, True)
            controller.observe(plan, report)
            depths.append(plan.depth)
        speculated[draft_s] = sum(depth > 0 for depth in depths)
    assert speculated[0.005] > 900 and speculated[0.1] < 200
