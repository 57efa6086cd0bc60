"""Trials that cannot win back what their draft has to read first are put off."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sdengine.controllers import turns
from sdengine.controllers.adaptive import AdaptiveController
from sdengine.controllers.entry_price import gains, is_worth_trying
from sdengine.controllers.tree_size import GrowingSize
from sdengine.controllers.turns import FIRST_PATIENCE
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import Outlook
from tests.controllers.test_trials import World

MEASURED = CostModel(  # ms of a 1.1B target and a 68M draft on two cores (AVX2)
    (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64),
    (68.4, 72.5, 72.5, 72.5, 90.4, 114.3, 151.3, 209.1, 285.0, 414.0, 779.0),
    4.26,
    3.51,
    0.59,
)
PROMPT = 70


def asked(batch: int, tokens_left: float, prompt: int = PROMPT) -> bool:
    return is_worth_trying(MEASURED, batch, Outlook(batch * prompt, tokens_left))


def most_gain(costs: CostModel, batch: int) -> float:
    return max(gains(costs, batch))


def test_the_most_that_chains_can_gain() -> None:
    flat = CostModel((1, 2, 3, 5), (1.0, 1.0, 1.0, 10.0), 0.0, 0.0)
    assert most_gain(flat, 1) == pytest.approx(1.0 - 1.0 / (1.0 + 0.8 + 0.64))
    assert most_gain(flat, 2) == pytest.approx(1.0 - 1.0 / (1.0 + 0.8 / 2)), "one node for two"
    coarse = CostModel((1, 2, 65), (1.0, 1.0, 1.5), 0.2, 0.2)
    assert 0.4 < most_gain(coarse, 4) < 0.45, "between rows that were measured, too"
    steep = CostModel((1, 2, 4), (1.0, 2.0, 4.0), 0.1, 0.1)
    assert most_gain(steep, 1) <= 0.0, "a row that costs a step is never won back"
    assert most_gain(steep, 4) <= 0.0, "no larger step was measured"
    most = [most_gain(MEASURED, batch) for batch in (1, 2, 4, 8)]
    assert most == sorted(most, reverse=True) and most[0] > 0.5 and most[3] < 0.1


@pytest.mark.parametrize(
    ("batch", "tokens_left", "prompt", "is_worth"),
    [
        (1, 31, PROMPT, True),
        (1, 31, 3000, False),  # 26 plain steps of reading
        (1, 128, 3000, True),
        (2, 31, PROMPT, True),
        (4, 31, PROMPT, False),  # what it can win is little more than its price
        (4, 128, PROMPT, True),
        (8, 31, PROMPT, False),
        (8, 512, PROMPT, True),
        (8, 31, 1, True),  # a draft that has read its prompts costs nothing to ask
    ],
)
def test_a_trial_begins_where_it_can_win_its_price_back(
    batch: int, tokens_left: int, prompt: int, is_worth: bool
) -> None:
    assert asked(batch, tokens_left, prompt) is is_worth


def test_an_ngram_drafter_has_nothing_to_read() -> None:
    assert is_worth_trying(MEASURED, 4, Outlook(0, 2.0))


def run(world: World, tokens: int) -> tuple[World, World]:
    """With a controller that asks what is before it, and with one that cannot."""
    worlds = replace(world, tells=True), replace(world, tells=False)
    for each in worlds:
        each.run(AdaptiveController(each.costs, GrowingSize(8, 16)), tokens)
    return worlds


def test_short_texts_of_a_large_batch_are_decoded_plainly() -> None:
    """And the control: who cannot ask pays for reading eight prompts."""
    world = World(0.7, MEASURED, token_s=0.45, overhead_s=0.5, batch=8, request=32, left=32)
    asks, does_not = run(world, 8 * 256)
    assert asks.num_trees == 0 and asks.loss == pytest.approx(0.0, abs=1e-9)
    assert does_not.num_trees > 0 and does_not.loss > 0.015, does_not.loss


def test_trees_begin_as_soon_as_the_rest_of_a_text_is_long_enough() -> None:
    world = World(0.7, MEASURED, token_s=0.45, overhead_s=0.5, batch=2, request=64, left=64)
    asks, does_not = run(world, 2 * 512)
    assert asks.loss == does_not.loss < -0.2


DEAR = CostModel((1, 4, 8, 16, 64), (1.0, 1.0, 2.0, 4.0, 16.0), 0.1, 0.05)  # a row for a quarter
CHEAP = CostModel((1, 4, 8, 16, 64), (1.0, 1.0, 1.2, 1.6, 6.0), 0.1, 0.05)


def batch_of_four(costs: CostModel, acceptance: float, request: int = 256) -> World:
    costs_s = {"token_s": 0.01, "overhead_s": 0.05}
    return World(acceptance, costs, batch=4, request=request, left=request, **costs_s)


@pytest.mark.parametrize("patience", [FIRST_PATIENCE, 1 << 40])
def test_a_measurement_that_says_no_is_put_to_the_test(
    monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    monkeypatch.setattr(turns, "FIRST_PATIENCE", patience)
    world = batch_of_four(CHEAP, 0.7)
    world.run(AdaptiveController(DEAR, GrowingSize(8, 16)), 4 * 16 * FIRST_PATIENCE)
    if patience == FIRST_PATIENCE:
        assert world.loss < -0.1
    else:
        assert world.num_trees == 0 and world.loss == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("costs", "acceptance"), [(DEAR, 0.5), (CHEAP, 0.0)])
def test_one_that_is_right_is_asked_ever_more_rarely(costs: CostModel, acceptance: float) -> None:
    world = batch_of_four(costs, acceptance)
    controller, trees = AdaptiveController(DEAR, GrowingSize(8, 16)), []
    for _ in range(2):
        before = world.num_trees
        world.run(controller, 4 * 8 * FIRST_PATIENCE)
        trees.append(world.num_trees - before)
    assert trees[0] > 2 * trees[1]
    assert world.loss < 0.005


def test_no_text_that_is_nearly_over_is_used_for_it() -> None:
    world = batch_of_four(CHEAP, 0.7, request=30)
    world.run(AdaptiveController(DEAR, GrowingSize(8, 16)), 4 * 4 * FIRST_PATIENCE)
    assert world.num_trees == 0
