"""Sizes of trees: static ones are as deep as costs and walks say, growing ones earn nodes."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest

from sdengine.controllers.tree_size import CHOOSE_EVERY, GrowingSize, StaticSize
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepReport

STAIRS = CostModel((1, 2, 5, 6, 9, 10, 64), (1.0, 1.2, 1.2, 1.8, 1.8, 2.5, 12.0), 0.05, 0.02)


def report(accepted: list[int], num_nodes: int) -> StepReport:
    return StepReport(accepted, num_nodes, len(accepted) + num_nodes, 0.0, 1.0, 1.0, True)


def walks(rates: list[float], depth: int, count: int, rng: np.random.Generator) -> list[int]:
    """Accepted tokens of `count` walks that pass depth d with probability rates[d - 1]."""
    passed = rng.random((count, depth)) < np.asarray(rates[:depth])
    return np.cumprod(passed, axis=1).sum(axis=1).tolist()


def settled(size: StaticSize, rates: list[float], costs: CostModel, batch: int = 1) -> int:
    """Most usual depth of late steps in a world with these rates."""
    rng, depths = np.random.default_rng(0), []
    for _ in range(600):
        depth, nodes = size.choose(batch, costs)
        size.learn(depth, report(walks(rates, depth, batch, rng), nodes * batch))
        depths.append(depth)
    return int(np.bincount(depths[200:]).argmax())


def cheapest(widths: list[int], rates: list[float], costs: CostModel, batch: int = 1) -> int:
    """By trying every depth."""
    best = []
    for depth in range(1, len(widths) + 1):
        nodes = sum(accumulate(widths[:depth], lambda a, b: a * b))
        tokens = 1 + sum(accumulate(rates[:depth], lambda a, b: a * b))
        best.append((costs.draft_time(depth) + costs.verify_time(batch * (1 + nodes))) / tokens)
    return int(np.argmin(best)) + 1


@pytest.mark.parametrize("rates", [[0.9] * 8, [0.65] * 8, [0.3] * 8, [0.8, 0.2, *[0.9] * 6]])
@pytest.mark.parametrize("widths", [[1] * 8, [4, 2, 2, 1]])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_static_tree_is_as_deep_as_costs_least(
    rates: list[float], widths: list[int], batch: int
) -> None:
    rates = rates[: len(widths)]
    wanted = cheapest(widths, rates, STAIRS, batch)
    assert settled(StaticSize(widths), rates, STAIRS, batch) == wanted


def test_a_useless_draft_gets_the_shallowest_tree_within_a_few_steps() -> None:
    size, slope = StaticSize([1] * 8), CostModel((1, 64), (1.0, 13.6), 0.05, 0.02)
    for _ in range(2 * CHOOSE_EVERY):
        depth, nodes = size.choose(1, slope)
        size.learn(depth, report([0], nodes))
    assert size.choose(1, slope) == (1, 1)


def test_a_draft_that_gets_better_gets_deeper_trees_again() -> None:
    size = StaticSize([1] * 8)
    assert settled(size, [0.05] * 8, STAIRS) == 1
    assert settled(size, [0.95] * 8, STAIRS) == 8


def test_a_step_without_a_tree_says_nothing() -> None:
    size = StaticSize([1] * 8)
    before = settled(size, [0.95] * 8, STAIRS)
    for _ in range(10 * CHOOSE_EVERY):
        size.learn(before, report([0], 0))
    depths = [size.choose(1, STAIRS)[0] for _ in range(4 * CHOOSE_EVERY)]
    assert int(np.bincount(depths).argmax()) == before > 1


def test_a_batch_limit_keeps_trees_whole_and_leaves_one_level() -> None:
    flat = CostModel((1, 64), (1.0, 1.0), 0.0, 0.0)  # the deeper the better
    assert StaticSize([4, 2, 2, 1]).choose(3, flat) == (4, 44)
    assert StaticSize([4, 2, 2, 1], max_batch_nodes=40).choose(3, flat) == (2, 12)
    assert StaticSize([4, 2, 2, 1], max_batch_nodes=2).choose(3, flat) == (1, 4)


def test_growing_trees_earn_their_nodes() -> None:
    size = GrowingSize(max_depth=8, max_nodes=16)
    assert size.choose(1, STAIRS) == (2, 2)
    for _ in range(6):
        size.learn(8, report([3], 16))
    depth, nodes = size.choose(1, STAIRS)
    assert nodes == 16 and 3 < depth <= 8
    for _ in range(60):
        size.learn(depth, report([0], 16))
    assert size.choose(1, STAIRS) == (1, 1)


def test_steps_without_a_tree_leave_a_drafter_that_looks_up_as_it_is() -> None:
    """It finds something in one step of four, and half of that is right."""
    sizes = [GrowingSize(max_depth=8, max_nodes=16, has_layers=has) for has in (False, True)]
    for step in range(400):
        found = step % 4 == 0
        for size in sizes:
            size.learn(8, report([4 * (step % 8 == 0)], 5 * found))
    looks_up, computes = sizes
    assert looks_up.choose(1, STAIRS)[1] >= 12
    assert computes.choose(1, STAIRS)[1] < 3, "a layer that was computed in vain counts"


def test_in_a_batch_only_walks_through_what_was_found_count() -> None:
    size = GrowingSize(max_depth=8, max_nodes=16, has_layers=False)
    for _ in range(40):
        size.learn(8, report([2, 0, 0, 0, 0, 0], 6))  # in five of them every draft was wrong
    assert size.choose(6, STAIRS)[1] < 3
    for _ in range(40):
        size.learn(8, report([1, 0, 0, 0, 0, 0], 1))  # for five nothing was found
    assert size.choose(6, STAIRS)[1] == 16


def test_what_is_looked_up_is_as_deep_as_its_nodes_allow() -> None:
    """A text that repeats itself does so rarely, and at length."""
    depths = []
    for has_layers in (False, True):
        size = GrowingSize(max_depth=8, max_nodes=16, has_layers=has_layers)
        for step in range(400):
            size.learn(8, report([1 if step % 10 else 8], 8))
        depths.append(size.choose(1, STAIRS)[0])
    assert depths[0] == 8 > depths[1]
