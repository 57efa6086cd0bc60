"""build_rows: chains and trees packed exactly as the row batch contract says."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdengine.kernels.programs.program import run_op
from sdengine.kernels.row_batch import RowBatch
from sdengine.kernels.token_tree import TokenTree
from tests.kernels.test_tree_select import random_draft, select
from tests.kernels.tree_worlds import assert_same_rows

torch.set_num_threads(1)
I32 = torch.int32


def batch_args(
    pending: list[int], tree: TokenTree | None, wants: list[int], **settings: Any
) -> dict[str, Any]:
    """Arguments for sequences with so many pending tokens each; shuffled blocks, empty outputs."""
    batch = len(pending)
    computed = settings.pop("computed", [3 * b for b in range(batch)])
    nodes = 0 if tree is None else tree.max_nodes
    block_size = settings.pop("block_size", 8)
    blocks = (max(c + p for c, p in zip(computed, pending)) + nodes) // block_size + 1
    n = sum(pending) + batch * nodes + 2
    cu = torch.zeros(batch + 1, dtype=I32)
    cu[1:] = torch.tensor(pending).cumsum(0)
    words = 1 if tree is None else tree.mask_words
    rows = RowBatch.allocate(batch, n, words + settings.pop("spare_words", 0))
    rows.tokens.fill_(-9)
    rows.ancestor_mask.fill_(-9)
    generator = torch.Generator().manual_seed(batch)
    return {
        "pending_tokens": torch.arange(100, 100 + sum(pending), dtype=I32),
        "cu_pending": cu,
        "computed_lens": torch.tensor(computed, dtype=I32),
        "wants_logits": torch.tensor(wants, dtype=I32),
        "num_seqs": torch.tensor([settings.pop("live", batch)], dtype=I32),
        "block_tables": torch.randperm(batch * blocks, generator=generator).to(I32).view(batch, -1),
        "block_size": block_size,
        "tree": tree,
        "rows": rows,
        "logit_rows": torch.full((n,), -9, dtype=I32),
        "cu_logits": torch.zeros(batch + 1, dtype=I32),
        "num_logits": torch.zeros(1, dtype=I32),
        **settings,
    }


def test_the_drawing_of_the_docstring() -> None:
    tree = TokenTree.allocate(1, 3)
    tree.num_nodes[0] = 3
    tree.tokens[0, 1:] = torch.tensor([7, 8, 9])
    tree.parents[0, 1:] = torch.tensor([0, 1, 0])
    tree.depths[0, 1:] = torch.tensor([1, 2, 1])
    tree.ancestor_mask[0, 1:, 0] = torch.tensor([0b001, 0b011, 0b100])
    args = batch_args([2], tree, [1], computed=[5], block_size=4)
    args["block_tables"] = torch.tensor([[6, 1, 3]], dtype=I32)
    run_op("build_rows", **args)
    rows = args["rows"]
    assert int(rows.num_rows) == 5 and rows.cu_rows.tolist() == [0, 5]
    assert rows.tokens[:5].tolist() == [100, 101, 7, 8, 9]
    assert rows.positions[:5].tolist() == [5, 6, 7, 8, 7]
    assert rows.slots[:5].tolist() == [5, 6, 7, 12, 13]
    assert rows.visible_lens[:5].tolist() == [6, 7, 7, 7, 7]
    assert rows.ancestor_mask[:5, 0].tolist() == [0, 0, 0b001, 0b011, 0b100]
    assert rows.row_node[:5].tolist() == [0, 0, 1, 2, 3]
    assert rows.tree_starts.tolist() == [7]
    assert args["logit_rows"][:4].tolist() == [1, 2, 3, 4]
    assert args["cu_logits"].tolist() == [0, 4] and int(args["num_logits"]) == 4
    assert rows.tokens[5:].eq(-9).all() and rows.ancestor_mask[5:].eq(-9).all()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6))
def test_equals_the_reference(seed: int) -> None:
    r = Random(seed)
    world, draft = random_draft(seed)
    tree = select(draft, torch.zeros(10**4)) if r.random() < 0.8 else None
    settings_ = {
        "spare_words": r.choice([0, 1]),
        "block_size": r.choice([1, 8, 64]),
        "live": r.randint(0, world.batch),
        "computed": [r.randint(0, 70) for _ in range(world.batch)],
    }
    pending = [r.choice([0, 1, 2, 9]) for _ in range(world.batch)]
    wants = [r.randint(0, 2) for _ in range(world.batch)]
    native, plain = (batch_args(pending, tree, wants, **settings_) for _ in range(2))
    run_op("build_rows", "cpu", **native)
    run_op("build_rows", "reference", **plain)
    assert_same_rows(native["rows"], plain["rows"], settings_["live"])
    count = int(native["num_logits"])
    assert count == int(plain["num_logits"])
    assert torch.equal(native["logit_rows"], plain["logit_rows"])
    assert torch.equal(native["cu_logits"], plain["cu_logits"])


def test_who_gets_logits_and_tree_rows() -> None:
    _, draft = random_draft(0, batch=4, nodes=5)
    tree = select(draft, torch.zeros(100))
    args = batch_args([3, 1, 2, 0], tree, [0, 1, 2, 1])
    run_op("build_rows", **args)
    nodes = int(tree.num_nodes[1])
    assert nodes > 0
    assert args["rows"].cu_rows.tolist() == [0, 3, 4 + nodes, 6 + nodes, 6 + nodes]
    assert args["cu_logits"].tolist() == [0, 0, 1 + nodes, 2 + nodes, 2 + nodes]
    expected = [*range(3, 4 + nodes), 5 + nodes]
    assert args["logit_rows"][: int(args["num_logits"])].tolist() == expected


def test_a_long_prefill_crosses_blocks() -> None:
    args = batch_args([513], None, [1], computed=[61], block_size=64)
    run_op("build_rows", **args)
    rows, table = args["rows"], args["block_tables"][0]
    position = torch.arange(61, 61 + 513)
    assert torch.equal(rows.positions[:513].long(), position)
    assert torch.equal(rows.slots[:513].long(), table[position // 64] * 64 + position % 64)
    assert torch.equal(rows.visible_lens[:513].long(), position + 1)
    assert args["logit_rows"][:1].tolist() == [512]


def test_a_mask_of_two_words() -> None:
    tree = TokenTree.allocate(1, 70)
    tree.num_nodes[0] = 70
    tree.ancestor_mask[0, 1:] = torch.arange(140).view(70, 2)
    args = batch_args([1], tree, [1], spare_words=1)
    run_op("build_rows", **args)
    mask = args["rows"].ancestor_mask
    assert torch.equal(mask[1:71, :2], tree.ancestor_mask[0, 1:])
    assert not mask[:71, 2].any()


def test_the_door_names_the_wrong_argument() -> None:
    tree = TokenTree.allocate(1, 70)
    args = batch_args([1], tree, [1])
    for change, message in (
        ({"pending_tokens": torch.zeros(999, dtype=I32)}, "pending_tokens: expected at most N=73"),
        (
            {"tree": TokenTree.allocate(2, 70)},
            "tree: expected B=1 and at most 2 mask words, got B=2",
        ),
        (
            {"logit_rows": torch.zeros(3, dtype=I32)},
            r"logit_rows: expected shape \[73\], got \[3\]",
        ),
    ):
        with pytest.raises(ValueError, match="build_rows: " + message):
            run_op("build_rows", **(args | change))
