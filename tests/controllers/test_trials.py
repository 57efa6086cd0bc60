"""What trials cost: a simulated pair whose draft has to catch up before it can draft."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from sdengine.controllers import accounts, adaptive, turns
from sdengine.controllers.adaptive import AdaptiveController
from sdengine.controllers.tree_size import GrowingSize
from sdengine.controllers.turns import LONGEST_PAUSE, TRIAL_STEPS, Turns
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import MAX_ITERATIONS, Outlook, StepPlan, StepReport

SMALL = CostModel((1, 2, 4, 64), (1.0, 1.3, 1.8, 22.0), 0.2, 0.15)  # of 6M on a CPU: in its caches
LARGE = CostModel(  # of 1.1B on the same, whose DRAM sets the pace; both in plain steps
    (1, 2, 3, 4, 6, 8, 12, 16, 24, 64),
    (1, 1.35, 1.35, 1.84, 1.92, 2.39, 2.73, 3.6, 5.9, 14),
    0.04,
    0.035,
)
PROMPT, REQUEST = 80, 64


@dataclass(slots=True)
class World:
    """Requests of PROMPT and `request` tokens; the draft reads what it has missed with its first
    tree.

    Args:
        acceptance: of every further node of a chain.
        token_s: what the draft takes for a token that it missed.
        overhead_s: of every step of trees.
        tells: whether the controller may ask what is before it.
        in_a_row: most iterations that a plan serves, if it says that it may.
        known: costs that the last plan brought.
        believed: acceptance by which trees are grown; None for the true one.
    """

    acceptance: float
    costs: CostModel = SMALL
    token_s: float = 0.05
    overhead_s: float = 0.5
    seconds: float = 0.0
    tokens: int = 0
    num_trees: int = 0
    missing: int = PROMPT
    left: int = REQUEST
    batch: int = 1
    request: int = REQUEST
    tells: bool = True
    in_a_row: int = 1
    known: CostModel | None = None
    believed: float | None = None

    def run(self, controller: AdaptiveController, tokens: int) -> World:
        """Decodes so many tokens more."""
        rng = np.random.default_rng(0)
        end = self.tokens + tokens
        while self.tokens < end:
            plan = controller.plan(self.batch, self.outlook if self.tells else None)
            num_iterations = min(self.in_a_row, plan.num_iterations)
            for report in [self.step(plan, rng) for _ in range(num_iterations)]:
                controller.observe(plan, report)
        return self

    def step(self, plan: StepPlan, rng: np.random.Generator) -> StepReport:
        nodes = self.nodes(plan)
        accepted = [self.walk(nodes, rng) for _ in range(self.batch)]
        is_steady, draft = True, 0.0
        if plan.depth:
            is_steady = self.missing <= 2
            draft = (
                self.token_s * self.missing + self.costs.draft_time(plan.depth) + self.overhead_s
            )
        rows = self.batch * (1 + nodes)
        verify = self.costs.verify_time(rows)
        self.missing = 1 if plan.depth else self.missing + 1
        self.seconds += draft + verify
        self.tokens += self.batch + sum(accepted)
        self.num_trees += plan.depth > 0
        self.left -= 1 + max(accepted)
        if self.left <= 0:
            self.left, self.missing = self.request, PROMPT
        total = draft + verify
        return StepReport(accepted, rows - self.batch, rows, draft, verify, total, is_steady)

    def outlook(self) -> Outlook:
        """Of the sequences of the next step."""
        return Outlook(self.batch * self.missing, self.left)

    def walk(self, nodes: int, rng: np.random.Generator) -> int:
        """Accepted nodes of a chain."""
        accepted = 0
        while accepted < nodes and rng.random() < self.acceptance:
            accepted += 1
        return accepted

    def nodes(self, plan: StepPlan) -> int:
        """A chain as long as its nodes are worth their row and their layer, as far as is known."""
        if plan.costs is not None:
            self.known = plan.costs
        nodes, most = 0, plan.max_batch_nodes // self.batch
        acceptance = self.acceptance if self.believed is None else self.believed
        prices = (self.known or self.costs).row_costs(self.batch * (most + 2))
        while nodes < min(most, plan.depth):
            layer_s = self.costs.draft_layer_s if nodes else 0.0
            price = max(prices[self.batch * (nodes + 1)], layer_s)
            if acceptance ** (nodes + 1) < price * plan.tokens_per_s:
                break
            nodes += 1
        return nodes

    @property
    def loss(self) -> float:
        """Against plain decoding, relative."""
        plain_s = self.costs.verify_time(self.batch) / self.batch
        return self.seconds / self.tokens / plain_s - 1.0


def pair(acceptance: float, tokens: int, **settings: object) -> World:
    world = World(acceptance, **settings)  # type: ignore[arg-type]
    return world.run(AdaptiveController(world.costs, GrowingSize(8, 16)), tokens)


@pytest.mark.parametrize("in_a_row", [1, MAX_ITERATIONS])
@pytest.mark.parametrize("token_s", [0.01, 0.1])
def test_a_pair_that_does_not_pay_comes_to_cost_next_to_nothing(
    token_s: float, in_a_row: int
) -> None:
    """Whatever it takes the draft to read what it missed."""
    early, late = (
        pair(0.2, tokens, token_s=token_s, in_a_row=in_a_row) for tokens in (2000, 12000)
    )
    assert early.loss < 0.03 and late.loss < 0.012, (early.loss, late.loss)
    assert late.num_trees > early.num_trees >= 3, "it is tried again all the same"


def test_trials_that_earn_nothing_but_their_length_would_cost_far_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control: pauses that double up to 1024 steps, whatever was lost before."""
    mended = pair(0.2, 12000, tells=False)
    monkeypatch.setattr(adaptive, "TRIAL_SHARE", 1e9)
    for module in (adaptive, turns):
        monkeypatch.setattr(module, "LONGEST_PAUSE", 1024)
    monkeypatch.setattr(accounts, "HOPELESS", 1e9)
    monkeypatch.setattr(accounts, "FRUITLESS", 0.0)
    before = pair(0.2, 12000, tells=False)
    assert before.loss > 0.02 and before.loss > 2 * mended.loss, (before.loss, mended.loss)


def test_a_trial_ends_when_it_can_hardly_be_won_any_more() -> None:
    """Steps that take 3 and yield 1: no need for the 16 that a late trial may take."""
    controller = AdaptiveController(SMALL, GrowingSize(8, 16))
    world = World(0.0, overhead_s=1.5).run(controller, 20000)
    trees = world.num_trees
    while world.num_trees == trees:
        world.run(controller, 1)
    world.run(controller, 64)
    assert 3 <= world.num_trees - trees <= 5


def test_a_single_walk_more_is_waited_for() -> None:
    trial, spent = accounts.Trial(most_loss=100.0), accounts.Spent()
    verdicts = []
    for _ in range(3):
        trial.add(8.0)
        spent.add(9.0, 1)
        verdicts.append([trial.is_lost(spent, batch, 1.0 / batch) for batch in (1, 2)])
    assert verdicts == [[False, False], [False, True], [True, True]]


@pytest.mark.parametrize(("cost", "lost_after"), [(1.6, 3), (1.45, 4), (1.3, 6), (1.05, None)])
def test_walks_that_accept_nothing_end_a_trial_sooner(cost: float, lost_after: int | None) -> None:
    """A draft token in so many would have to be accepted; a lookup that costs nothing may wait."""

    def first_verdict(accepted_at: int) -> int | None:
        trial, spent = accounts.Trial(most_loss=100.0), accounts.Spent()
        for walk in range(1, 17):
            trial.walk(1, int(walk == accepted_at), 0.0)
            trial.add(cost - 1.0)
            spent.add(cost, 1)
            if trial.is_lost(spent, 1, 1.0):
                return walk
        return None

    assert first_verdict(0) == lost_after
    after_one = first_verdict(1)
    assert after_one is None or lost_after is None or after_one >= lost_after
    assert cost != 1.45 or after_one == 5, "two standard errors"


@pytest.mark.parametrize(("price", "lost_after"), [(0.6, 3), (0.3, 6), (0.2, 9), (0.05, None)])
def test_trees_in_vain_that_look_free_end_a_trial_by_what_was_measured(
    price: float, lost_after: int | None
) -> None:
    """The plain steps they are compared with found cold caches."""
    trial, spent = accounts.Trial(most_loss=2.0), accounts.Spent()
    verdicts = []
    for _ in range(16):
        trial.walk(1, 0, price)
        trial.add(0.0)
        spent.add(1.0, 1)
        verdicts.append(trial.is_lost(spent, 1, 1.0))
    assert (verdicts.index(True) + 1 if any(verdicts) else None) == lost_after


def test_a_useless_draft_after_cold_plain_steps_has_a_short_trial() -> None:
    """The first plain steps take twice what later ones do, so trees seem to gain in any case."""
    world, controller = World(0.0, overhead_s=0.0), AdaptiveController(SMALL, GrowingSize(8, 16))
    world.costs, world.believed = CostModel((1, 64), (2.0, 2.0), 0.2, 0.15), 0.9
    while not controller.plan(1).depth:
        world.run(controller, 1)
    world.costs = SMALL
    world.run(controller, 60)
    assert 3 <= world.num_trees <= 7


def test_the_last_sequence_of_a_batch_does_not_end_a_trial_that_gains() -> None:
    """Seven steps of two sequences gained; the first of the one that is left accepted nothing."""
    trial, alone = accounts.Trial(most_loss=100.0), accounts.Spent()
    for _ in range(7):
        trial.add(-0.7)
    trial.add(2.0)
    alone.add(3.0, 1)
    assert not trial.is_lost(alone, 1, 1.0)
    for _ in range(2):
        trial.add(2.0)
        alone.add(3.0, 1)
    assert trial.is_lost(alone, 1, 1.0), "three of its own say it"


def test_a_step_of_a_trial_may_lose_a_part_of_what_is_left_to_lose() -> None:
    """A tree of two nodes takes 1.15 and 0.35 for its draft, so that without luck it loses 0.5."""
    costs = CostModel((1, 2, 3, 4, 8, 16), (1.0, 1.1, 1.15, 1.9, 3.5, 8.0), 0.2, 0.15)
    controller, size = AdaptiveController(costs, GrowingSize(8, 16)), []
    world = World(1.0, costs=costs, overhead_s=0.0)
    rng = np.random.default_rng(0)
    while len(size) < 20:
        plan = controller.plan(1)
        if plan.depth:
            size.append(plan.max_batch_nodes)
        controller.observe(plan, world.step(plan, rng))
    assert size[:8] == [2, 2, 2, 3, 4, 5, 5, 6], "all is accepted, and a part of it is staked"
    assert size[15] == 13 and size[16] == 16, "after the trial nothing is limited"


def test_large_stakes_fail_trials_of_a_pair_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured: eight rows for 1.4. True: for 3.6. Nothing else is known of this machine."""
    world = CostModel((1, 2, 4, 8, 16), (1.0, 1.1, 2.0, 3.6, 7.0), 0.1, 0.05)
    measured = CostModel((1, 2, 4, 8, 16), (1.0, 1.1, 1.2, 1.4, 2.4), 0.1, 0.05)

    def first_request(seed: int) -> float:
        controller = AdaptiveController(measured, GrowingSize(8, 16))
        rng = np.random.default_rng(seed)
        run = World(0.7, costs=world, overhead_s=0.0, token_s=0.01)
        while run.tokens < 128:
            plan = controller.plan(1)
            controller.observe(plan, run.step(plan, rng))
        return run.loss

    def failed() -> int:
        return sum(first_request(seed) > -0.03 for seed in range(60))

    now = failed()
    monkeypatch.setattr(accounts, "STAKE", 1e9)
    before = failed()
    assert before > 40 and now < before / 2, (now, before)


def test_in_a_batch_a_trial_is_seen_through_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight walks a step: two steps say as much as sixteen of a single sequence."""
    world = pair(0.6, 8 * 800, batch=8, tells=False)
    monkeypatch.setattr(accounts, "HOPELESS_WALKS", 24)
    monkeypatch.setattr(accounts, "HOPELESS", 8**0.5)  # as if a step were one walk
    before = pair(0.6, 8 * 800, batch=8, tells=False)
    assert 2 <= world.num_trees < 0.7 * before.num_trees, (world.num_trees, before.num_trees)
    assert world.loss < 0.7 * before.loss, (world.loss, before.loss)


def test_a_batch_that_pays_is_kept() -> None:
    """Two standard errors are no verdict by chance."""
    assert pair(0.8, 8 * 800, costs=LARGE, token_s=0.01, overhead_s=0.05, batch=4).loss < -0.1


@pytest.mark.parametrize(("acceptance", "gain"), [(0.6, 0.15), (0.7, 0.2), (0.8, 0.33)])
def test_a_pair_that_pays_is_kept(acceptance: float, gain: float) -> None:
    """The best constant trees gain 0.23, 0.31 and 0.40 of the time."""
    world = pair(acceptance, 6000, costs=LARGE, token_s=0.01, overhead_s=0.05)
    assert world.loss < -gain


def test_a_machine_that_stands_still_while_the_draft_catches_up_is_not_held_against_it() -> None:
    """One step of the first trial takes 400 plain ones, and the trial is lost: that would be owed
    for 16384 steps."""
    controller = AdaptiveController(LARGE, GrowingSize(8, 16))
    world = World(0.8, LARGE, 0.01, 0.05)
    while world.num_trees == 0:
        world.token_s = 400.0 / PROMPT if controller.plan(1).depth else 0.01
        world.run(controller, 1)
    assert world.seconds > 400.0
    world.token_s, world.acceptance = 0.01, 0.0
    while controller.plan(1).depth:
        world.run(controller, 1)
    world.acceptance = 0.8
    world.run(controller, 3000)
    assert world.num_trees > 300


def test_what_a_machine_that_stood_still_is_owed_does_not_double() -> None:
    """The trial after it fails too, by chance: its pause is what it has lost itself."""
    controller = AdaptiveController(LARGE, GrowingSize(8, 16))
    world = World(0.0, LARGE, 0.01, 0.05)

    def plain_steps() -> int:
        """Until the next tree, with which the draft reads what it has missed."""
        steps, trees = 0, world.num_trees
        while world.num_trees == trees:
            world.run(controller, 1)
            steps += 1
        return steps

    def lose_a_trial(token_s: float) -> int:
        """Steps of the pause after it."""
        world.token_s = token_s
        plain_steps()
        world.token_s = 0.01
        while controller.plan(1).depth:
            world.run(controller, 1)
        return plain_steps()

    stood_still = lose_a_trial(400.0 / PROMPT)
    assert stood_still > 300 and lose_a_trial(0.01) < 0.7 * stood_still


def test_a_pair_that_clearly_pays_is_seldom_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain_steps() -> int:
        controller = AdaptiveController(LARGE, GrowingSize(8, 16))
        world = World(0.8, LARGE, 0.01, 0.05).run(controller, 2000)
        trees, tokens = world.num_trees, world.tokens
        steps = 0
        while world.tokens < tokens + 4000:
            world.run(controller, 1)
            steps += 1
        return steps - (world.num_trees - trees)

    seldom = plain_steps()
    monkeypatch.setattr(adaptive, "CLEAR", 0.0)
    assert 2 <= seldom < 0.4 * plain_steps()


def test_a_pair_that_comes_to_pay_is_found_within_the_longest_pause() -> None:
    controller = AdaptiveController(LARGE, GrowingSize(8, 16))
    world = World(0.1, LARGE, 0.01, 0.05).run(controller, 20000)
    world.acceptance = 0.8
    world.run(controller, LONGEST_PAUSE + 200)
    trees = world.num_trees
    world.run(controller, 600)
    assert world.num_trees - trees > 100


def test_most_plain_steps_of_a_long_pause_are_only_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning from each took 2% of a step of 0.3 ms."""
    controller = AdaptiveController(SMALL, GrowingSize(8, 16))
    world = World(0.0).run(controller, 200)
    assert controller.plan(1).depth == 0
    seen = []
    add = controller._pace._seen_costs.add
    monkeypatch.setattr(
        controller._pace._seen_costs,
        "add",
        lambda rows, s, is_plain: seen.append(rows) or add(rows, s, is_plain=is_plain),
    )
    world.run(controller, 100)
    assert 10 <= len(seen) <= 15


def test_the_last_sequence_of_a_batch_does_not_end_speculation_for_all() -> None:
    """It is on its own for a step or two, and then a token may well be refused."""
    controller = AdaptiveController(SMALL, GrowingSize(4, 6))
    World(acceptance=0.9, overhead_s=0.0, batch=2, tells=False).run(controller, 300)
    plan = controller.plan(1)
    assert plan.depth > 0 and controller.plan(2).depth > 0
    verify, draft = SMALL.verify_time(4), SMALL.draft_time(2)
    for accepted in (*[[0]] * 8, [1, 1]):
        controller.observe(plan, StepReport(accepted, 3, 4, draft, verify, draft + verify, True))
    assert not controller._turns.is_paused


def test_plain_steps_are_rarely_looked_at_while_a_trial_is_put_off() -> None:
    counted = Turns()
    while counted.plain_left:
        counted.count_plain()
    assert counted.put_off() == MAX_ITERATIONS
    num_looked_at = 0
    while counted.plain_left:
        if not counted.rests():
            counted.count_plain()
            num_looked_at += 1
    assert 0 < num_looked_at <= MAX_ITERATIONS // 2
    assert counted.trial_left == TRIAL_STEPS and not counted.is_paused
    counted.count_trees()
    counted.plain_left = MAX_ITERATIONS
    assert not counted.rests(), "trees came in between"
