"""ngram_match: equals a brute-force search, continues loops, ranks by length and votes."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdengine.kernels.calibration import CELLS
from sdengine.kernels.ngram_match import ngram_scratch_size
from sdengine.kernels.programs.program import make_pool, run_op
from sdengine.kernels.token_tree import DraftTree, TokenTree, allocate_tree_scratch
from tests.kernels.tree_worlds import assert_same_trees, paths_of

torch.set_num_threads(1)
I32 = torch.int32


def match(
    texts: list[list[int]], backend: str = "cpu", pool: Any = None, **settings_: Any
) -> DraftTree:
    """Drafts from texts, padded with tokens that would match if they were read."""
    batch = len(texts)
    longest = max(map(len, texts), default=0)
    nodes = settings_.pop("nodes", 16)
    args: dict[str, Any] = {
        "history": torch.tensor(
            [t + [t[-1] if t else 0] * (longest + 3 - len(t)) for t in texts], dtype=I32
        ),
        "history_lens": torch.tensor([len(t) for t in texts], dtype=I32),
        "node_budgets": torch.full((batch,), nodes, dtype=I32),
        "depth_limits": torch.full((batch,), 99, dtype=I32),
        "stop_tokens": torch.full((batch, 1), -1, dtype=I32),
        "num_seqs": torch.tensor([batch], dtype=I32),
        "tree": DraftTree.allocate(batch, nodes),
        "min_ngram": 2,
        "max_ngram": 4,
        "max_depth": 5,
        "max_children": 8,
        "max_matches": 32,
    }
    args |= settings_
    size = ngram_scratch_size(batch, args["max_matches"], args["max_depth"])
    run_op("ngram_match", backend, pool, scratch=torch.zeros(size, dtype=torch.int64), **args)
    return args["tree"]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6))
def test_equals_the_brute_force_search(seed: int) -> None:
    r = Random(seed)
    batch, nodes, vocab = r.choice([1, 2, 9]), r.choice([1, 4, 16, 40]), r.choice([1, 2, 3, 8])
    texts = [
        [r.randrange(vocab) for _ in range(r.choice([0, 1, 2, 7, 40, 90]))] for _ in range(batch)
    ]
    low = r.randint(1, 3)
    table = torch.rand(batch, *CELLS, generator=torch.Generator().manual_seed(seed)).sort().values
    settings_ = {
        "nodes": nodes,
        "node_budgets": torch.tensor([r.randint(-1, nodes + 1) for _ in texts], dtype=I32),
        "depth_limits": torch.tensor([r.randint(0, 7) for _ in texts], dtype=I32),
        "stop_tokens": torch.tensor([[-1, r.choice([-1, 0])]] * batch, dtype=I32),
        "min_ngram": low,
        "max_ngram": low + r.choice([0, 1, 3, 11]),
        "max_depth": r.randint(1, 6),
        "max_children": r.choice([1, 2, 9]),
        "max_matches": r.choice([1, 2, 8, 32]),
        "calibration": table if r.random() < 0.4 else None,
        "root_values": torch.rand(batch) if r.random() < 0.3 else None,
    }
    native = match(texts, "cpu", **{**settings_})
    assert_same_trees(native, match(texts, "reference", **{**settings_}), batch)


def test_votes_of_the_docstring() -> None:
    x, y, z, a, b, other = 1, 2, 3, 10, 11, 50
    text = [x, y, z, a, other, 51, x, y, z, b, 52, y, z, a, 53, x, y, z]
    tree = match([text], min_ngram=2, max_ngram=3, max_depth=1)
    assert tree.tokens[0, 1:3].tolist() == [a, b] and int(tree.num_nodes[0]) == 2
    assert tree.estimates[0, 1:3].tolist() == pytest.approx([5 / 10, 4 / 5])
    assert tree.reach[0, 1:3].tolist() == pytest.approx([5 / 10, 4 / 10])
    assert tree.probs[0, 1:3].tolist() == [1, 1]
    assert (tree.draft_slots[0, 1:3] == -1).all() and (tree.proposal_rows[0, :3] == -1).all()


@pytest.mark.parametrize("period", [1, 2, 3, 7])
def test_a_loop_is_continued_at_any_depth(period: int) -> None:
    text = [t % period for t in range(2 * period + 5)]
    tree = match([text], max_depth=16, nodes=16, max_children=1)
    assert int(tree.num_nodes[0]) == 16
    assert tree.tokens[0, 1:].tolist() == [(len(text) + i) % period for i in range(16)]


def test_the_longer_match_wins_and_the_more_recent_of_equals() -> None:
    longer = [1, 2, 3, 7, 9, 2, 3, 8, 9, 1, 2, 3]
    assert match([longer]).tokens[0, 1].item() == 7
    recent = [5, 2, 3, 7, 6, 2, 3, 8, 9, 4, 2, 3]
    assert match([recent], max_depth=1).tokens[0, 1:3].tolist() == [8, 7]


def test_no_match_is_an_empty_tree() -> None:
    tree = match([[], [1], [1, 2], [1, 2, 3, 4], [3, 1, 2, 9, 1, 3]])
    assert tree.num_nodes.tolist() == [0] * 5


def test_a_long_text_over_many_threads() -> None:
    rng = Random(1)
    texts = [[rng.randrange(3000) for _ in range(20000)] for _ in range(5)]
    for i, text in enumerate(texts):
        text[100 + i : 106 + i] = [7, 7, 8, 4000 + i, 9, 9]
        text[-3:] = [7, 7, 8]
    tree = match(texts, pool=make_pool(3))
    assert tree.tokens[:, 1].tolist() == [4000 + i for i in range(5)]


def test_the_tree_can_be_selected() -> None:
    """Creation order and siblings are as tree_select expects them."""
    rng = Random(2)
    for _ in range(30):
        draft = match([[rng.randrange(3) for _ in range(60)]], nodes=30)
        tree = TokenTree.allocate(1, 30)
        run_op(
            "tree_select",
            draft=draft,
            thresholds=torch.zeros(40),
            cu_pending=torch.zeros(2, dtype=I32),
            num_seqs=torch.ones(1, dtype=I32),
            scratch=allocate_tree_scratch(1, 30),
            tree=tree,
        )
        assert int(tree.num_nodes[0]) == int(draft.num_nodes[0]) > 0
        assert set(paths_of(tree, 0)) == set(paths_of(draft, 0))
        for i in range(1, int(draft.num_nodes[0]) + 1):
            assert draft.values[0, i] <= draft.values[0, int(draft.parents[0, i])]
            assert draft.ranks[0, i] == 0 or draft.values[0, i] <= draft.values[0, i - 1]


def test_the_door_names_the_wrong_argument() -> None:
    for change, message in (
        ({"max_ngram": 1}, "max_ngram: expected at least min_ngram=2, got 1"),
        ({"max_depth": 0}, "max_depth: expected at least 1, got 0"),
        ({"history": torch.zeros(0, 4, dtype=I32)}, "history: expected at least B=1 rows, got 0"),
    ):
        with pytest.raises(ValueError, match="ngram_match: " + message):
            match([[1, 2]], **change)
