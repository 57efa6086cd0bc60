"""tree_select: the prefix of the batch's value order that thresholds allow, in preorder."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdengine.kernels.programs.program import run_op
from sdengine.kernels.token_tree import DraftTree, TokenTree, allocate_tree_scratch
from tests.kernels.tree_oracles import heap_tree
from tests.kernels.tree_worlds import World, assert_same_trees, grow, paths_of

torch.set_num_threads(1)
I32 = torch.int32


def select(
    draft: DraftTree,
    thresholds: torch.Tensor,
    base_rows: int = 0,
    live: int | None = None,
    backend: str = "cpu",
    total: int | None = None,
) -> TokenTree:
    """Selects with `base_rows` pending rows before the nodes, at most `total` of these."""
    batch = draft.batch_size
    tree = TokenTree.allocate(batch, draft.max_nodes)
    run_op(
        "tree_select",
        backend,
        draft=draft,
        thresholds=thresholds,
        cu_pending=torch.full((batch + 1,), base_rows, dtype=I32),
        num_seqs=torch.tensor([batch if live is None else live], dtype=I32),
        scratch=allocate_tree_scratch(batch, draft.max_nodes),
        tree=tree,
        total_budget=None if total is None else torch.tensor([total], dtype=I32),
    )
    return tree


def random_draft(seed: int, **changes: object) -> tuple[World, DraftTree]:
    """A grown batch of odd sizes."""
    r = Random(seed)
    world = World(
        seed=seed,
        batch=r.choice([1, 2, 3, 9]),
        nodes=r.choice([1, 2, 7, 20, 70]),
        layers=r.randint(1, 4),
        k=r.choice([1, 3, 6]),
        rule=r.choice(["node", "slot", "uniform"]),
        levels=r.choice([0, 4]),
        width=16,
    )
    world = replace(world, **changes)
    return world, grow(world).tree


def check_preorder(tree: TokenTree, b: int) -> None:
    """Links, depths, masks and order agree with the parents."""
    count = int(tree.num_nodes[b])
    children: dict[int, list[int]] = {}
    masks = [0]
    for i in range(1, count + 1):
        parent = int(tree.parents[b, i])
        assert 0 <= parent < i and tree.depths[b, i] == tree.depths[b, parent] + 1
        children.setdefault(parent, []).append(i)
        words = [w % 2**64 for w in tree.ancestor_mask[b, i].tolist()]
        masks.append(sum(word << 64 * at for at, word in enumerate(words)))
        assert masks[i] == masks[parent] | 1 << (i - 1)
        assert bin(masks[i]).count("1") == int(tree.depths[b, i])
    assert not tree.ancestor_mask[b, 0].any()
    for i in range(count + 1):
        below = children.get(i, [])
        assert int(tree.first_child[b, i]) == (i + 1 if below else -1)
        assert not below or below[0] == i + 1
        tokens = tree.tokens[b, below].tolist()
        assert len(set(tokens)) == len(tokens)
        for child, following in zip(below, [*below[1:], -1]):
            assert int(tree.next_sibling[b, child]) == following


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6))
def test_equals_the_reference(seed: int) -> None:
    r = Random(seed)
    world, draft = random_draft(seed)
    total = int(draft.num_nodes.sum())
    generator = torch.Generator().manual_seed(seed)
    thresholds = torch.rand(r.randint(0, total + 6), generator=generator) * r.choice(
        [0.0, 0.1, 0.5]
    )
    if r.random() < 0.5:
        thresholds = thresholds.sort().values
    base, live = r.randint(0, 5), r.randint(0, world.batch)
    limit = r.choice([None, r.randint(-1, total + 1)])
    native = select(draft, thresholds, base, live, total=limit)
    assert_same_trees(native, select(draft, thresholds, base, live, "reference", limit), live)
    assert limit is None or int(native.num_nodes[:live].sum()) <= max(limit, 0)
    for b in range(live):
        check_preorder(native, b)


def test_zero_thresholds_keep_every_node_and_its_fields() -> None:
    for seed in range(40):
        world, draft = random_draft(seed)
        tree = select(draft, torch.zeros(1000))
        for b in range(world.batch):
            assert int(tree.num_nodes[b]) == int(draft.num_nodes[b])
            ids = tree.creation_ids[b, : int(tree.num_nodes[b]) + 1].long()
            assert sorted(ids.tolist()) == list(range(len(ids)))
            draft_paths = paths_of(draft, b)
            assert [draft_paths[i] for i in ids.tolist()] == paths_of(tree, b)
            for name in (
                "tokens",
                "depths",
                "draft_slots",
                "proposal_rows",
                "reach",
                "estimates",
                "probs",
            ):
                assert torch.equal(getattr(tree, name)[b, : len(ids)], getattr(draft, name)[b, ids])


def test_a_smaller_choice_is_the_smaller_heap_tree() -> None:
    """Trimming n nodes off the batch gives what a budget smaller by n would have grown."""
    for seed in range(60):
        world, draft = random_draft(seed, nodes=12, layers=3, rule=["node", "slot"][seed % 2])
        for rows in (0, 1, 5, 11):
            expected = {(s.b, s.child) for s in heap_tree(replace(world, width=99, total=rows))}
            by_rows = select(draft, torch.zeros(rows))
            for tree in (by_rows, select(draft, torch.zeros(1000), total=rows)):
                got = {(b, p) for b in range(world.batch) for p in paths_of(tree, b)[1:]}
                assert got == expected


def test_the_choice_ends_at_the_first_node_below_its_threshold() -> None:
    draft = DraftTree.allocate(1, 4)
    draft.num_nodes[0] = 4
    draft.parents[0, 1:] = torch.tensor([0, 0, 1, 1])
    draft.depths[0, 1:] = torch.tensor([1, 1, 2, 2])
    draft.values[0, 1:] = torch.tensor([0.9, 0.5, 0.6, 0.4])
    draft.tokens[0, 1:] = torch.tensor([11, 12, 13, 14])
    for thresholds, tokens in (
        ([0.9, 0.0, 0.0, 0.0], [11, 13, 14, 12]),
        ([0.0, 0.6, 0.55, 0.0], [11, 13]),  # 12 is not worth 0.55, so 14 is not looked at
        ([1.0, 0.0, 0.0, 0.0], []),
        ([float("nan"), 0.0, 0.0, 0.0], []),
        ([0.0, 0.0], [11, 13]),
    ):
        tree = select(draft, torch.tensor(thresholds))
        assert tree.tokens[0, 1 : int(tree.num_nodes[0]) + 1].tolist() == tokens
    shifted = select(draft, torch.tensor([9.0, 9.0, 0.0, 0.0, 0.0, 0.0]), base_rows=2)
    assert int(shifted.num_nodes[0]) == 4
    assert shifted.parents[0].tolist() == [-1, 0, 1, 1, 0]
    assert shifted.next_sibling[0].tolist() == [-1, 4, 3, -1, -1]


def test_values_shared_by_sequences_go_to_the_shallower_then_the_earlier() -> None:
    draft = DraftTree.allocate(2, 2)
    draft.num_nodes[:] = 2
    draft.parents[:, 1:] = torch.tensor([0, 1])
    draft.depths[:, 1:] = torch.tensor([1, 2])
    draft.values[:, 1:] = 0.5
    sizes = [select(draft, torch.full((n,), 0.3)).num_nodes.tolist() for n in range(5)]
    assert sizes == [[0, 0], [1, 0], [1, 1], [2, 1], [2, 2]]


@pytest.mark.parametrize("shape", ["chain", "fan", "empty"])
def test_512_nodes(shape: str) -> None:
    nodes = 512
    draft = DraftTree.allocate(1, nodes)
    index = torch.arange(1, nodes + 1, dtype=I32)
    draft.num_nodes[0] = 0 if shape == "empty" else nodes
    draft.parents[0, 1:] = index - 1 if shape == "chain" else 0
    draft.depths[0, 1:] = index if shape == "chain" else 1
    draft.values[0, 1:] = 1 / index
    draft.tokens[0, 1:] = index
    tree = select(draft, torch.full((nodes,), 1 / 300))
    count = 0 if shape == "empty" else 300
    assert int(tree.num_nodes[0]) == count
    assert tree.tokens[0, 1 : count + 1].tolist() == list(range(1, count + 1))
    check_preorder(tree, 0)


def test_the_door_names_the_wrong_argument() -> None:
    draft = DraftTree.allocate(1, 4)
    args = {
        "draft": draft,
        "thresholds": torch.zeros(4),
        "cu_pending": torch.zeros(2, dtype=I32),
        "num_seqs": torch.ones(1, dtype=I32),
        "scratch": allocate_tree_scratch(1, 4),
        "tree": TokenTree.allocate(1, 4),
    }
    for change, message in (
        ({"tree": TokenTree.allocate(1, 5)}, r"tree: expected shape \[1, 5\], got \[1, 6\]"),
        ({"thresholds": torch.zeros(4, dtype=torch.float64)}, "thresholds: expected torch.float32"),
        ({"total_budget": torch.zeros(2, dtype=I32)}, r"total_budget: expected shape \[1\]"),
        ({"scratch": torch.zeros(3, dtype=torch.int64)}, "scratch: expected at least"),
        ({"cu_pending": torch.zeros(3, dtype=I32)}, r"cu_pending: expected shape \[2\], got \[3\]"),
    ):
        with pytest.raises(ValueError, match="tree_select: " + message):
            run_op("tree_select", **(args | change))
