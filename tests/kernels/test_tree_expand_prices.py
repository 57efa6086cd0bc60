"""tree_expand with row prices: less is drafted, the same nodes are selected."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.kernels.test_tree_select import select
from tests.kernels.tree_worlds import World, assert_same_rows, assert_same_trees, grow, paths_of


def priced_world(seed: int, batch: int = 1) -> World:
    rng = np.random.default_rng([seed, 7])
    nodes = int(rng.integers(1, 24))
    rows = batch * (nodes + 1)
    prices = np.sort(rng.uniform(0, 0.6, rows)) * (rng.uniform(size=rows) > 0.2)
    return World(
        seed=seed,
        batch=batch,
        nodes=nodes,
        layers=4,
        k=5,
        rule=("node", "slot")[seed % 2],
        levels=(0, 8)[seed // 2 % 2],
        prices=np.sort(prices).astype(np.float32).tolist(),
    )


def forwarded(world: World) -> int:
    return sum(int(rows.num_rows) for rows in grow(world).layers)


@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_selected_stays_the_same(batch: int) -> None:
    saved = 0
    for seed in range(150):
        world = priced_world(seed, batch)
        free = replace(world, prices=None)
        thresholds = torch.tensor(world.prices)
        gated, whole = (select(grow(w).tree, thresholds, batch) for w in (world, free))
        for b in range(batch):
            assert sorted(paths_of(gated, b)) == sorted(paths_of(whole, b)), seed
        saved += forwarded(free) - forwarded(world)
    assert saved > 150, "the prices saved no draft work"


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_reference(seed: int) -> None:
    world = priced_world(seed, batch=2)
    native, plain = grow(world), grow(world, "reference")
    assert_same_trees(native.tree, plain.tree, world.live)
    for left, right in zip(native.layers, plain.layers):
        assert_same_rows(left, right, world.live)


def test_static_trees_ignore_prices() -> None:
    world = World(seed=1, nodes=12, layers=3, k=2, rule="uniform", prices=[9.0] * 16)
    assert forwarded(world) == forwarded(replace(world, prices=None)) > 0


def test_a_layer_promises_what_is_left_after_its_rows() -> None:
    """Every row costs 0.05: the sum over the next rows of (reach - 0.05) decides."""
    world = World(seed=4, nodes=16, layers=4, prices=[0.05] * 64)
    rows = grow(world).layers[0]
    tree = grow(replace(world, layers=1)).tree
    count = int(rows.num_rows)
    gain = float((tree.reach[0, rows.row_node[:count].long()] - 0.05).sum())
    assert count > 1
    assert int(grow(replace(world, min_gain=gain - 1e-3)).layers[0].num_rows) > 0
    assert int(grow(replace(world, min_gain=gain + 1e-3)).layers[0].num_rows) == 0


def test_beside_a_dear_row_only_nodes_that_may_displace_another_are_forwarded() -> None:
    """Four rows are free and the fifth is out of reach: of the first layer's children only those
    worth more than the fourth-best node are asked for children of their own."""
    free = World(seed=3, nodes=32, layers=1, k=8, max_children=8)
    tree = grow(free).tree
    values = sorted(tree.values[0, 1 : int(tree.num_nodes[0]) + 1].tolist(), reverse=True)
    stair = replace(free, layers=2, prices=[0.0] * 5 + [0.9] * 60)
    rows = grow(stair).layers[0]
    reaches = tree.reach[0, rows.row_node[: int(rows.num_rows)].long()].tolist()
    assert len(values) == 8 and min(reaches) >= values[3] > values[4]
    assert len(reaches) == 4


def test_beyond_the_last_price_no_row_pays() -> None:
    free = World(seed=3, nodes=32, layers=2, k=8, max_children=8, prices=[0.0] * 65)
    short, dear = (replace(free, prices=[0.0] * 5 + more) for more in ([], [2.0] * 60))
    assert 0 < forwarded(short) < forwarded(free)
    for world in (short, dear):
        native, plain = grow(world), grow(world, "reference")
        assert_same_trees(native.tree, plain.tree, 1)
    assert_same_trees(grow(short).tree, grow(dear).tree, 1)
    assert forwarded(short) == forwarded(dear)


def test_the_second_of_two_equal_nodes_does_not_pay_for_the_foot_of_a_stair() -> None:
    """So nothing comes onto the stair behind it, and the third node asks for no children."""
    prices = [0.0, 0.05, 0.9, 0.0, 0.9, 0.9, 0.9, 0.9, 0.9]
    world = World(seed=0, nodes=8, layers=2, k=3, prices=prices)
    world.tables[(0,)] = ([5, 6, 7], np.array([0.3, 0.3, 0.1], dtype=np.float32))
    rows = grow(world).layers[0]
    assert rows.tokens[: int(rows.num_rows)].tolist() == [5, 6]


def test_sequences_share_the_rows_that_are_cheap() -> None:
    """Two nodes of the batch fit the cheap rows: where a likelier sequence has both, the other's
    nodes ask for no children, although the rows would do for the first of them alone."""
    prices = [0.0] * 4 + [0.99] * 60
    world = World(seed=0, batch=2, nodes=8, layers=2, k=2, prices=prices)
    likely, unlikely = np.array([0.5, 0.45], np.float32), np.array([0.4, 0.3], np.float32)
    world.tables |= {(0,): ([5, 6], likely), (1,): ([7, 8], unlikely)}
    rows = grow(world).layers[0]
    assert rows.tokens[: int(rows.num_rows)].tolist() == [5, 6]
    world.tables[(0,)] = ([5, 6], np.array([0.5, 0.1], np.float32))
    rows = grow(world).layers[0]
    assert rows.tokens[: int(rows.num_rows)].tolist() == [5, 7]


def test_a_layer_that_would_only_change_good_nodes_for_good_ones_does_not_run() -> None:
    """Two rows are free. The children of the best node may be worth 0.5, beside a node of another
    sequence worth 0.45: the layer promises 0.05."""
    prices = [0.0] * 4 + [0.99] * 60
    world = World(seed=0, batch=2, nodes=8, layers=2, k=1, prices=prices)
    world.tables |= {(b,): ([5], np.array([p], np.float32)) for b, p in enumerate((0.5, 0.45))}
    assert int(grow(replace(world, min_gain=0.04)).layers[0].num_rows) == 2
    assert int(grow(replace(world, min_gain=0.06)).layers[0].num_rows) == 0


@pytest.mark.parametrize("rule", ["node", "slot"])
def test_a_tree_is_worth_what_its_root_is(rule: str) -> None:
    """Of two equal trees over as many rows as nodes are wanted, the one worth less gives way."""
    world = World(seed=5, batch=2, nodes=24, layers=3, rule=rule)
    grow(world)  # draws the tables
    world.tables |= {(1, *key[1:]): table for key, table in world.tables.items() if key[0] == 0}
    whole = grow(world).tree
    assert torch.equal(whole.values[0], whole.values[1])
    tree = grow(replace(world, root_values=[1.0, 0.25])).tree
    for name in ("values", "reach"):
        assert torch.equal(getattr(tree, name)[0], getattr(whole, name)[0])
        assert torch.equal(getattr(tree, name)[1], 0.25 * getattr(whole, name)[1])
    assert torch.equal(tree.estimates, whole.estimates)
    few = grow(replace(world, root_values=[1.0, 0.25], total=8)).tree
    equal = grow(replace(world, total=8)).tree
    assert few.num_nodes[0] > equal.num_nodes[0] > few.num_nodes[1] >= 0
    selected = select(tree, torch.full((99,), 0.2), 2)
    for b, worth in enumerate((1.0, 0.25)):
        assert selected.reach[b, 0] == worth
        assert int(selected.num_nodes[b]) == int((tree.values[b, 1:] >= 0.2).sum())
