"""tree_expand: equals its reference bit for bit, a heap exactly, and brute force on small trees."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import fsum
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdengine.kernels.calibration import CELLS
from sdengine.kernels.programs.program import run_op
from sdengine.kernels.row_batch import RowBatch
from sdengine.kernels.token_tree import DraftTree
from sdengine.kernels.tree_expand import RULES
from tests.kernels import tree_worlds
from tests.kernels.tree_oracles import Slot, best_total, heap_tree
from tests.kernels.tree_worlds import (
    Grown,
    World,
    assert_same_rows,
    assert_same_trees,
    expand_args,
    grow,
    paths_of,
)

torch.set_num_threads(1)
I32 = torch.int32


def random_world(seed: int) -> World:
    """Awkward sizes, ties, pooled budgets, calibration, stop tokens, depth limits."""
    r = Random(seed)
    batch = r.choice([1, 1, 1, 2, 3, 9])
    nodes = r.choice([1, 2, 3, 5, 8, 13, 24])
    world = World(
        seed=seed,
        batch=batch,
        nodes=nodes,
        layers=r.randint(1, 4),
        k=r.choice([1, 2, 3, 4, 7]),
        rule=r.choice(RULES),
        max_children=r.choice([1, 2, 32]),
        levels=r.choice([0, 0, 3, 8]),
        sharpness=r.choice([0.0, 1.0, 4.0]),
        stops=r.choice([(), (), (0, 3)]),
    )
    if r.random() < 0.5:
        world.total = r.randint(0, batch * nodes)
    if r.random() < 0.3:
        world.root_values = [r.choice([1.0, 0.5, r.random()]) for _ in range(batch)]
    if r.random() < 0.3:
        world.budgets = [r.randint(-1, nodes + 2) for _ in range(batch)]
    if r.random() < 0.3:
        world.depth_limits = [r.randint(0, 5) for _ in range(batch)]
    if r.random() < 0.3:
        table = torch.rand(batch, *CELLS, generator=torch.Generator().manual_seed(seed))
        world.calibration = table if r.random() < 0.5 else table.sort().values
    return world


def kept_nodes(grown: Grown, world: World) -> list[dict[tuple[int, ...], tuple[float, float]]]:
    """Path -> (value, reach) of every node, per sequence."""
    tree = grown.tree
    return [
        {
            path: (float(tree.values[b, i]), float(tree.reach[b, i]))
            for i, path in enumerate(paths_of(tree, b))
            if i
        }
        for b in range(world.live)
    ]


def as_nodes(slots: list[Slot], world: World) -> list[dict[tuple[int, ...], tuple[float, float]]]:
    """The same view of an oracle's slots."""
    return [
        {s.child: (float(s.value), float(s.reach)) for s in slots if s.b == b}
        for b in range(world.live)
    ]


@pytest.mark.parametrize("part", range(4))
def test_layers_grow_the_heaps_tree(part: int) -> None:
    """2000 random batches, ties and pooled budgets among them."""
    sizes = 0
    for seed in range(500 * part, 500 * (part + 1)):
        world = random_world(seed)
        world.layers = max(2, world.layers)
        world.width = world.nodes
        if world.depth_limits is None:
            world.depth_limits = [world.layers] * world.batch
        world.depth_limits = [min(d, world.layers) for d in world.depth_limits]
        expected = as_nodes(heap_tree(world), world)
        assert kept_nodes(grow(world), world) == expected, f"seed {seed}"
        sizes += sum(map(len, expected))
    assert sizes > 1500, "the worlds became trivial"


@pytest.mark.parametrize("rule", ["node", "slot"])
def test_no_connected_set_is_worth_more(rule: str) -> None:
    for seed in range(60):
        world = World(seed=seed, nodes=1 + seed % 6, layers=3, k=2 + seed % 2, width=16, rule=rule)
        world.levels = 4 if seed % 3 == 0 else 0
        tree = grow(world).tree
        got = fsum(tree.values[0, 1 : int(tree.num_nodes[0]) + 1].tolist())
        assert got == best_total(world, world.nodes)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, 64]))
def test_equals_the_reference(seed: int, width: int) -> None:
    world = replace(random_world(seed), width=width)
    world.min_gain = Random(seed).choice([0.0, 0.0, 0.05, 0.5])
    world.num_seqs = Random(seed + 1).randint(0, world.batch)
    native, plain = grow(world), grow(world, "reference")
    assert_same_trees(native.tree, plain.tree, world.live)
    for left, right in zip(native.layers, plain.layers):
        assert_same_rows(left, right, world.live)
    count = int(native.layers[-1].num_rows)
    assert torch.equal(native.args["node_slots"][:count], plain.args["node_slots"][:count])


def check_structure(grown: Grown, world: World) -> None:
    """Creation order, closure, monotone values, distinct siblings, slots, proposals."""
    tree = grown.tree
    for b in range(world.live):
        paths, count = paths_of(tree, b), int(tree.num_nodes[b])
        assert len(set(paths)) == count + 1, "duplicate siblings"
        children: dict[int, list[int]] = {}
        for i in range(1, count + 1):
            parent = int(tree.parents[b, i])
            assert 0 <= parent < i and tree.depths[b, i] == tree.depths[b, parent] + 1
            assert tree.values[b, i] <= tree.values[b, parent]
            assert int(tree.ranks[b, i]) == len(children.setdefault(parent, []))
            if children[parent]:
                assert children[parent][-1] == i - 1, "siblings are not together"
                assert tree.values[b, i] <= tree.values[b, i - 1]
            children[parent].append(i)
            row = int(tree.proposal_rows[b, parent])
            assert grown.proposals[row] == (b, paths[parent])
        slots = [s for s in tree.draft_slots[b, : count + 1].tolist() if s >= 0]
        assert len(set(slots)) == len(slots) and max(slots) <= int(tree.num_forwarded[b])


def check_rows(grown: Grown, world: World) -> None:
    """The last layer's rows: positions, physical slots, masks over draft slots."""
    rows, tree, args = grown.layers[-1], grown.tree, grown.args
    for b in range(world.live):
        start = int(args["tree_starts"][b])
        for row in range(int(rows.cu_rows[b]), int(rows.cu_rows[b + 1])):
            node = int(rows.row_node[row])
            slot = int(tree.draft_slots[b, node])
            logical = start - 1 + slot
            block = int(args["block_tables"][b, logical // world.block_size])
            assert rows.tokens[row] == tree.tokens[b, node] and rows.row_seq[row] == b
            assert rows.slots[row] == block * world.block_size + logical % world.block_size
            assert rows.positions[row] == start - 1 + tree.depths[b, node]
            assert rows.visible_lens[row] == start
            ancestors = set()
            while node:
                ancestors.add(int(tree.draft_slots[b, node]) - 1)
                node = int(tree.parents[b, node])
            words = rows.ancestor_mask[row].tolist()
            bits = {64 * w + i for w, word in enumerate(words) for i in range(64) if word >> i & 1}
            assert bits == ancestors


@pytest.mark.parametrize("part", range(2))
def test_structure_of_trees_and_rows(part: int) -> None:
    for seed in range(5000 + 150 * part, 5000 + 150 * (part + 1)):
        world = replace(random_world(seed), width=1 + seed % 7)
        grown = grow(world)
        check_structure(grown, world)
        check_rows(grown, world)


@pytest.mark.parametrize("rule", ["node", "slot"])
def test_budgets_give_nested_trees(rule: str) -> None:
    for seed in range(40):
        world = World(seed=seed, nodes=20, layers=4, k=3, rule=rule, levels=4 * (seed % 2))
        smaller: set[tuple[int, ...]] = set()
        for budget in range(0, 21, 2):
            world.budgets = [budget]
            nodes = set(kept_nodes(grow(world), world)[0])
            assert len(nodes) <= budget and smaller <= nodes
            smaller = nodes


@pytest.mark.parametrize("is_calibrated", [False, True])
def test_a_slot_tree_does_not_look_at_the_drawn_tokens(is_calibrated: bool) -> None:
    """Which slots are kept depends on earlier draws only: the last slot kept may hold any token."""
    for seed in range(40):
        world = World(seed=seed, nodes=6, layers=3, k=3, rule="slot")
        if is_calibrated:
            world.calibration = torch.rand(1, *CELLS, generator=torch.Generator().manual_seed(seed))
        before = grow(world)
        last = max(
            range(1, int(before.tree.num_nodes[0]) + 1),
            key=lambda i: (int(before.tree.depths[0, i]), int(before.tree.ranks[0, i])),
        )
        path, rank = paths_of(before.tree, 0)[last][:-1], int(before.tree.ranks[0, last])
        tokens, probs = world.candidates(0, path)
        tail = probs[rank:].copy()
        swapped = copy.deepcopy(world)
        swapped.tables[(0, *path)] = (
            tokens[:rank] + tokens[rank:][::-1],
            torch.tensor([*probs[:rank], *tail[::-1]]).numpy(),
        )
        after = grow(swapped)
        ranks = {rank_path(after.tree, n) for n in range(1, int(after.tree.num_nodes[0]) + 1)}
        assert rank_path(before.tree, last) in ranks


def test_a_calibrated_slot_is_worth_what_its_draw_can_be_expected_to_add() -> None:
    """Two candidates of 0.75 and 0.25, of which the likelier is always accepted and the other never
    when both are left: the second slot is certain to be accepted if the first was the wrong one."""
    world = World(seed=0, nodes=2, layers=1, k=2, rule="slot")
    table = torch.zeros(1, *CELLS)
    table[:, :, 16:] = 1.0  # estimates from a half on come true
    world.calibration = table
    for probs, values in (([0.75, 0.25], [0.75]), ([0.25, 0.75], [0.75, 0.75])):
        world.tables[(0,)] = ([5, 6], torch.tensor(probs).numpy())
        tree = grow(world).tree
        count = int(tree.num_nodes[0])
        assert tree.values[0, 1 : count + 1].tolist() == pytest.approx(values)
        assert tree.reach[0, 1].item() == pytest.approx(float(probs[0] > 0.5))


def test_later_draws_have_rates_of_their_own() -> None:
    """Four equal candidates; what is left is accepted in half of the draws at first, then less."""
    world = World(seed=0, nodes=3, layers=1, k=4, rule="slot")
    table = torch.zeros(1, *CELLS)
    for rank, rate in enumerate([0.5, 0.25, 0.125]):
        table[0, rank] = rate
    world.calibration = table
    world.tables[(0,)] = ([5, 6, 7, 8], torch.full((4,), 0.25).numpy())
    tree = grow(world).tree
    chances = torch.tensor([1.0, 0.5, 0.5 * 0.75])
    assert torch.equal(tree.values[0, 1:4], chances * torch.tensor([0.5, 0.25, 0.125]))
    assert torch.equal(tree.reach[0, 1:4], tree.values[0, 1:4])


@pytest.mark.parametrize(
    "rate,reach",
    [(None, [0.5, 0.3, 0.125, 0.0625]), (0.5, [0.5, 0.25, 0.125, 0.0625]), (1.0, [1.0])],
)
def test_a_child_is_reached_when_no_earlier_sibling_is(
    rate: float | None, reach: list[float]
) -> None:
    """Without a table as often as its probability says; with one rate for all estimates the first
    takes that share of the whole, the second of what is left."""
    world = World(seed=0, nodes=4, layers=1, k=4)
    world.tables[(0,)] = ([5, 6, 7, 8], torch.tensor([0.5, 0.3, 0.125, 0.0625]).numpy())
    world.calibration = None if rate is None else torch.full((1, *CELLS), rate)
    tree = grow(world).tree
    count = int(tree.num_nodes[0])
    assert tree.reach[0, 1 : count + 1].tolist() == pytest.approx(reach)
    assert torch.equal(tree.values, tree.reach)
    shares = [0.5, 0.3 / 0.5, 0.125 / 0.2, 0.0625 / 0.075]
    assert tree.estimates[0, 1 : count + 1].tolist() == pytest.approx(shares[:count])


def rank_path(tree: DraftTree, node: int) -> tuple[int, ...]:
    """Ranks from depth 1 down to a node of sequence 0."""
    ranks: tuple[int, ...] = ()
    while node:
        ranks = (int(tree.ranks[0, node]), *ranks)
        node = int(tree.parents[0, node])
    return ranks


def test_width_cap_forwards_the_likeliest() -> None:
    world = World(seed=3, nodes=12, layers=2, k=6, width=3)
    grown = grow(world)
    reach = sorted(heap_tree(replace(world, depth_limits=[1])), key=lambda s: -s.reach)
    first = grown.layers[0]
    assert sorted(first.tokens[:3].tolist()) == sorted(s.token for s in reach[:3])
    assert int(first.num_rows) == 3 and first.row_node[:3].tolist() == sorted(
        first.row_node[:3].tolist()
    )


def test_uniform_rule_fills_a_static_tree() -> None:
    for rule in ("uniform", "uniform_slot"):
        grown = grow(World(seed=1, nodes=2 + 4 + 8, layers=3, k=4, max_children=2, rule=rule))
        assert grown.tree.depths[0, 1:].tolist() == [1] * 2 + [2] * 4 + [3] * 8
        assert (grown.tree.values == 1).all()


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_depth_limit(limit: int) -> None:
    grown = grow(World(seed=2, nodes=10, layers=4, depth_limits=[limit]))
    count = int(grown.tree.num_nodes[0])
    assert (count == 0) == (limit == 0)
    assert count == 0 or int(grown.tree.depths[0, 1 : count + 1].max()) == limit
    assert all(int(rows.num_rows) == 0 for rows in grown.layers[limit:])


def test_nothing_grows_below_a_stop_token() -> None:
    for seed in range(20):
        grown = grow(World(seed=seed, nodes=16, layers=4, k=3, vocab=3, stops=(1,)))
        for i in range(1, int(grown.tree.num_nodes[0]) + 1):
            assert int(grown.tree.tokens[0, int(grown.tree.parents[0, i])]) != 1


def test_min_layer_gain_ends_the_draft() -> None:
    world = World(seed=4, nodes=16, layers=4)
    rows = grow(world).layers[0]
    tree = grow(replace(world, layers=1)).tree
    gain = fsum(tree.reach[0, rows.row_node[: int(rows.num_rows)].long()].tolist())
    assert int(grow(replace(world, min_gain=gain - 1e-3)).layers[0].num_rows) > 0
    stopped = grow(replace(world, min_gain=gain + 1e-3))
    assert [int(r.num_rows) for r in stopped.layers] == [0] * 4
    assert (stopped.tree.draft_slots[0, 1:5] == -1).all()


@pytest.mark.parametrize("rule", ["node", "slot", "uniform_slot"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_slots_without_a_tree_do_not_make_layers_cheaper(rule: str, backend: str) -> None:
    """An engine's batch is all of its slots, of which one may be at work."""
    for seed in range(20):
        alone = World(seed=seed, nodes=40, layers=5, k=6, rule=rule, vocab=30, min_gain=0.3)
        crowd = replace(alone, batch=8, depth_limits=[5] + [0] * 7)
        one, among = grow(alone, backend), grow(crowd, backend)
        assert paths_of(one.tree, 0) == paths_of(among.tree, 0)
        rows = [[int(layer.num_rows) for layer in grown.layers] for grown in (one, among)]
        assert rows[0] == rows[1]


def test_no_row_leaves_the_block_table_or_the_row_batch() -> None:
    world = World(seed=5, nodes=16, layers=1, k=8, width=8)
    world.starts, world.depth_limits = [10], [2]
    args = expand_args(world)
    tokens, probs = world.candidates(0, ())
    args |= {
        "block_tables": args["block_tables"][:, :2].contiguous(),  # slots 0..15: 10..15 are free
        "candidate_tokens": torch.tensor([tokens], dtype=I32),
        "candidate_probs": torch.tensor([probs.tolist()]),
        "cu_rows": torch.tensor([0, 1], dtype=I32),
        "frontier_nodes": None,
        "layer": 0,
    }
    run_op("tree_expand", **args)
    assert int(args["rows"].num_rows) == 6 and int(args["tree"].num_nodes[0]) == 8


@pytest.mark.parametrize("limit", ["mask bits", "block table"])
def test_the_layers_together_forward_no_more_than_there_is_room_for(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 nodes have a bit in a mask of one word; 13 follow the third slot of two blocks of 8."""

    def run(op: str, backend: str, **args: Any) -> None:
        if limit == "block table":
            args["block_tables"] = args["block_tables"][:, :2].contiguous()
        run_op(op, backend, **args)

    if limit == "mask bits":
        monkeypatch.setattr(tree_worlds, "mask_words", lambda num_slots: 1)
    world = World(seed=1, nodes=700, layers=4, k=8, width=40, sharpness=0.0)
    native, plain = grow(world, run=run), grow(world, "reference", run)
    assert int(native.tree.num_forwarded[0]) == (64 if limit == "mask bits" else 13)
    assert_same_trees(native.tree, plain.tree, 1)
    for left, right in zip(native.layers, plain.layers):
        assert_same_rows(left, right, 1)


def test_512_nodes_in_a_chain_and_in_a_fan() -> None:
    chain_world = World(seed=6, nodes=512, layers=130, k=1, width=1, sharpness=0.0, vocab=1)
    tree = grow(chain_world).tree
    assert tree.depths[0, 1:131].tolist() == list(range(1, 131)) and int(tree.num_nodes[0]) == 130
    fan = World(seed=7, nodes=512, layers=2, k=600, width=512, max_children=600, vocab=700)
    native, plain = grow(fan), grow(fan, "reference")
    assert int(native.tree.num_nodes[0]) == 512
    assert_same_trees(native.tree, plain.tree, 1)


def test_the_last_layer_needs_no_rows() -> None:
    world = World(seed=8, nodes=8, layers=1)
    args = expand_args(world) | {"rows": None, "node_slots": None, "layer": 0}
    tokens, probs = world.candidates(0, ())
    args["tree"].num_forwarded[0] = 7
    for backend in ("cpu", "reference"):
        run_op(
            "tree_expand",
            backend,
            candidate_tokens=torch.tensor([tokens], dtype=I32),
            candidate_probs=torch.tensor([probs.tolist()]),
            cu_rows=torch.tensor([0, 1], dtype=I32),
            frontier_nodes=None,
            **args,
        )
        assert int(args["tree"].num_nodes[0]) == 4 and int(args["tree"].num_forwarded[0]) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, 0.0])
def test_damaged_probabilities_end_a_row_and_harm_no_other(bad: float) -> None:
    world = World(seed=9, batch=2, nodes=8, layers=3)
    clean = kept_nodes(grow(world), world)
    tokens, probs = world.candidates(0, ())
    world.tables[(0,)] = (tokens, probs * 0 + bad)
    nodes = kept_nodes(grow(world), world)
    assert nodes[1] == clean[1]
    assert bool(nodes[0]) == (bad == float("inf"))


def test_the_door_names_the_wrong_argument() -> None:
    world = World(layers=1, width=4)
    args = expand_args(world) | {
        "layer": 0,
        "candidate_tokens": torch.zeros(1, 4, dtype=I32),
        "candidate_probs": torch.zeros(1, 4),
        "cu_rows": torch.tensor([0, 1], dtype=I32),
        "frontier_nodes": None,
    }
    for change, message in (
        ({"rule": "best"}, "rule: expected one of node, slot"),
        ({"layer": 1}, "frontier_nodes: expected None in layer 0"),
        ({"scratch": torch.zeros(3, dtype=torch.int64)}, "scratch: expected at least"),
        (
            {"rows": RowBatch.allocate(1, 3, 1)},
            "rows: expected room for B \\* max_width = 4 rows, got 3",
        ),
        ({"max_children": 0}, "max_children: expected at least 1, got 0"),
        (
            {"candidate_probs": torch.zeros(1, 3)},
            r"candidate_probs: expected shape \[1, 4\], got \[1, 3\]",
        ),
        ({"tree": None}, "tree: expected a DraftTree, got NoneType"),
    ):
        with pytest.raises(ValueError, match="tree_expand: " + message):
            run_op("tree_expand", **(args | change))
