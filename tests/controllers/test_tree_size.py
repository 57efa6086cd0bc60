"""Sizes of trees: static ones are as deep as costs and walks say, growing ones earn nodes."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest

from sdengine.controllers.tree_size import CHOOSE_EVERY, GrowingSize, StaticSize
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepPlan, StepReport

STAIRS = CostModel((1, 2, 5, 6, 9, 10, 64), (1.0, 1.2, 1.2, 1.8, 1.8, 2.5, 12.0), 0.05, 0.02)
DEEP = StepPlan(8, 64)


def report(accepted: list[int], num_nodes: int) -> StepReport:
    return StepReport(accepted, num_nodes, len(accepted) + num_nodes, 0.0, 1.0, 1.0, True)


def root_rate(rates: list[float], width: int, children: int) -> float:
    """That one of so many of a root's `width` children is accepted; all of them: rates[0]."""
    return rates[0] * (1.0 - 0.4**children) / (1.0 - 0.4**width)


def walks(rates: list[float], depth: int, count: int, rng: np.random.Generator) -> list[int]:
    """Accepted tokens of `count` walks that pass depth d with probability rates[d - 1]."""
    passed = rng.random((count, depth)) < np.asarray(rates[:depth])
    return np.cumprod(passed, axis=1).sum(axis=1).tolist()


def settled(
    widths: list[int], rates: list[float], costs: CostModel, batch: int = 1
) -> tuple[int, int]:
    """Most usual depth and nodes of late steps in a world with these rates."""
    size, rng = StaticSize(widths), np.random.default_rng(0)
    trees = [live(size, rates, widths[0], costs, batch, rng) for _ in range(600)]
    return max(set(trees[200:]), key=trees[200:].count)


def live(
    size: StaticSize,
    rates: list[float],
    width: int,
    costs: CostModel,
    batch: int,
    rng: np.random.Generator,
) -> tuple[int, int]:
    """A step."""
    depth, nodes = size.choose(batch, costs)
    here = [root_rate(rates, width, min(nodes, width)), *rates[1:]]
    seen = report(walks(here, depth, batch, rng), nodes * batch)
    size.learn(StepPlan(depth, nodes * batch, max_seq_nodes=nodes), seen)
    return depth, nodes


def token_s(
    widths: list[int], rates: list[float], costs: CostModel, batch: int
) -> dict[tuple[int, int], float]:
    """What a token costs, by every tree."""
    trees = {}
    for children in range(1, widths[0] + 1):
        trees[1, children] = [root_rate(rates, widths[0], children)]
    for depth in range(2, len(widths) + 1):
        nodes = sum(accumulate(widths[:depth], lambda a, b: a * b))
        trees[depth, nodes] = list(accumulate(rates[:depth], lambda a, b: a * b))
    return {
        (depth, nodes): (costs.draft_time(depth) + costs.verify_time(batch * (1 + nodes)))
        / (1 + sum(reach))
        for (depth, nodes), reach in trees.items()
    }


@pytest.mark.parametrize("rates", [[0.9] * 8, [0.65] * 8, [0.3] * 8, [0.8, 0.2, *[0.9] * 6]])
@pytest.mark.parametrize("widths", [[1] * 8, [4, 2, 2, 1]])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_static_tree_is_as_large_as_costs_least(
    rates: list[float], widths: list[int], batch: int
) -> None:
    rates = rates[: len(widths)]
    costs = token_s(widths, rates, STAIRS, batch)
    got, wanted = settled(widths, rates, STAIRS, batch), min(costs, key=costs.__getitem__)
    assert got[0] == wanted[0]
    assert costs[got] <= 1.02 * costs[wanted], "three children for four, say, where both are free"
    assert max(costs.values()) > 1.1 * min(costs.values())


def test_a_root_has_as_many_children_as_pay_for_their_rows() -> None:
    """Where rows are dear a whole level of four lost all that the first child gains."""
    slope, rates = CostModel((1, 64), (1.0, 26.0), 0.05, 0.02), [0.9, 0.8, 0.8, 0.7]
    assert settled([4, 2, 2, 1], rates, slope) == (1, 1)
    assert settled([4, 2, 2, 1], rates, STAIRS)[1] >= 4


def test_a_useless_draft_gets_the_shallowest_tree_within_a_few_steps() -> None:
    size, slope = StaticSize([1] * 8), CostModel((1, 64), (1.0, 13.6), 0.05, 0.02)
    for _ in range(2 * CHOOSE_EVERY):
        depth, nodes = size.choose(1, slope)
        size.learn(StepPlan(depth, nodes), report([0], nodes))
    assert size.choose(1, slope) == (1, 1)


def test_a_draft_that_gets_better_gets_deeper_trees_again() -> None:
    size, rng = StaticSize([1] * 8), np.random.default_rng(0)
    for rate, wanted in ((0.05, 1), (0.95, 8)):
        depths = [live(size, [rate] * 8, 1, STAIRS, 1, rng)[0] for _ in range(600)]
        assert max(set(depths[200:]), key=depths[200:].count) == wanted


def test_a_step_without_a_tree_says_nothing() -> None:
    size = StaticSize([1] * 8)
    rng = np.random.default_rng(0)
    for _ in range(600):
        live(size, [0.95] * 8, 1, STAIRS, 1, rng)
    for _ in range(10 * CHOOSE_EVERY):
        size.learn(StepPlan(8, 8), report([0], 0))
    depths = [size.choose(1, STAIRS)[0] for _ in range(4 * CHOOSE_EVERY)]
    assert max(set(depths), key=depths.count) == 8


def test_a_batch_limit_keeps_trees_alike_and_leaves_one_node() -> None:
    flat = CostModel((1, 64), (1.0, 1.0), 0.0, 0.0)  # the deeper the better
    assert StaticSize([4, 2, 2, 1]).choose(3, flat) == (4, 44)
    assert StaticSize([4, 2, 2, 1], max_batch_nodes=40).choose(3, flat) == (2, 12)
    assert StaticSize([4, 2, 2, 1], max_batch_nodes=9).choose(3, flat) == (1, 3)
    assert StaticSize([4, 2, 2, 1], max_batch_nodes=2).choose(3, flat) == (1, 1)


def test_growing_trees_earn_their_nodes() -> None:
    size = GrowingSize(max_depth=8, max_nodes=16)
    assert size.choose(1, STAIRS) == (2, 2)
    for _ in range(6):
        size.learn(DEEP, report([3], 16))
    depth, nodes = size.choose(1, STAIRS)
    assert nodes == 16 and 3 < depth <= 8
    for _ in range(60):
        size.learn(DEEP, report([0], 16))
    assert size.choose(1, STAIRS) == (1, 1)


def test_steps_without_a_tree_leave_a_drafter_that_looks_up_as_it_is() -> None:
    """It finds something in one step of four, and half of that is right."""
    sizes = [GrowingSize(max_depth=8, max_nodes=16, has_layers=has) for has in (False, True)]
    for step in range(400):
        found = step % 4 == 0
        for size in sizes:
            size.learn(DEEP, report([4 * (step % 8 == 0)], 5 * found))
    looks_up, computes = sizes
    assert looks_up.choose(1, STAIRS)[1] >= 12
    assert computes.choose(1, STAIRS)[1] < 3, "a layer that was computed in vain counts"


def test_in_a_batch_only_walks_through_what_was_found_count() -> None:
    size = GrowingSize(max_depth=8, max_nodes=16, has_layers=False)
    for _ in range(40):
        size.learn(DEEP, report([2, 0, 0, 0, 0, 0], 6))  # in five of them every draft was wrong
    assert size.choose(6, STAIRS)[1] < 3
    for _ in range(40):
        size.learn(DEEP, report([1, 0, 0, 0, 0, 0], 1))  # for five nothing was found
    assert size.choose(6, STAIRS)[1] == 16


def test_what_is_looked_up_is_as_deep_as_its_nodes_allow() -> None:
    """A text that repeats itself does so rarely, and at length."""
    depths = []
    for has_layers in (False, True):
        size = GrowingSize(max_depth=8, max_nodes=16, has_layers=has_layers)
        for step in range(400):
            size.learn(DEEP, report([1 if step % 10 else 8], 8))
        depths.append(size.choose(1, STAIRS)[0])
    assert depths[0] == 8 > depths[1]
