"""commit_plan: histories, lengths and moves equal the reference and a simulation of the caches."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from sdengine.kernels.commit_plan import OUTPUTS
from sdengine.kernels.move_plan import MovePlan
from sdengine.kernels.programs.program import run_op
from sdengine.kernels.token_tree import TokenTree
from sdengine.kernels.verdict import Verdict

from .random_token_trees import forward_prefix, int_tensor, random_token_tree
from .same_tensors import assert_same_tensors


def commit_args(batch: int, depth: int, history_size: int, vocab: int) -> dict[str, Any]:
    lens = ("wants_logits", "pending_lens", "max_emit", "num_emitted", "history_lens")
    lens += ("computed_lens", "draft_pending_lens", "draft_computed_lens")
    args: dict[str, Any] = {name: torch.zeros(batch, dtype=torch.int32) for name in lens}
    args["num_seqs"] = int_tensor([batch])
    args["verdict"] = verdict = Verdict.allocate(batch, depth)
    verdict.path[:], verdict.out_tokens[:] = -7, -7
    for name in ("moves", "draft_moves"):
        args[name] = MovePlan.allocate(batch, depth)
        args[name].source[:] = -7
    args["history"] = torch.full((batch, history_size), -7, dtype=torch.int32)
    args["output_counts"] = torch.zeros(batch, vocab, dtype=torch.int32)
    return args


def fill_walk(rng: random.Random, args: dict[str, Any], tree: TokenTree, b: int) -> None:
    """A random step of sequence b: known tokens, chain, accepted path and bonus token."""
    length = rng.randint(3, 20)
    args["history_lens"][b] = length
    args["history"][b, :length] = torch.randint(0, 9, (length,))
    args["wants_logits"][b] = rng.choice([0, 1, 1, 1, 2])
    pending = rng.randint(1, 3)
    unread = rng.randint(1, 3) if int(args["wants_logits"][b]) == 0 else 0
    args["pending_lens"][b] = pending
    args["computed_lens"][b] = max(0, length - pending - unread)
    if int(args["wants_logits"][b]):
        args["computed_lens"][b] = length - pending
    lag = rng.choice([0, 0, 0, 1, 2])
    args["draft_pending_lens"][b] = draft_pending = rng.randint(0, 2)
    args["draft_computed_lens"][b] = max(0, length - draft_pending - lag)
    verdict: Verdict = args["verdict"]
    path: list[int] = []
    node = 0
    while int(args["wants_logits"][b]) == 1 and len(path) < verdict.max_depth:
        node = int(tree.first_child[b, node])
        while node >= 0 and rng.random() < 0.3:
            node = int(tree.next_sibling[b, node])
        if node < 0:
            break
        path.append(node)
    verdict.num_accepted[b] = len(path)
    verdict.path[b, : len(path)] = int_tensor(path)
    verdict.out_tokens[b, : len(path)] = int_tensor([int(tree.tokens[b, i]) for i in path])
    verdict.out_tokens[b, len(path)] = rng.choice([-1, 3, 4, 5])
    args["max_emit"][b] = rng.choice([0, 1, 2, 99, 99])


def simulate(before: dict[str, Any], after: dict[str, Any], tree: TokenTree, b: int) -> None:
    """Plays the moves on a cache of (kind, id) entries and compares with what should lie there."""
    root = int(before["computed_lens"][b]) + int(before["pending_lens"][b]) - 1
    cache: dict[int, Any] = {i: ("known", i) for i in range(root + 1)}
    cache |= {root + i: ("node", i) for i in range(1, int(tree.num_nodes[b]) + 1)}
    moves: MovePlan = after["moves"]
    start = int(moves.dst_start[b])
    for j in range(int(moves.num_moves[b])):
        source = int(moves.source[b, j])
        assert source > start + j
        cache[start + j] = cache[source]
    kept = int(after["computed_lens"][b]) - root - 1
    if int(after["num_emitted"][b]):
        expected = [("node", int(i)) for i in before["verdict"].path[b, :kept]]
        assert [cache[root + 1 + j] for j in range(kept)] == expected
        assert kept == int(after["num_emitted"][b]) - 1
        assert int(after["history_lens"][b]) == int(after["computed_lens"][b]) + 1


@pytest.mark.parametrize("seed", range(30))
def test_random_steps_equal_the_reference_and_the_simulation(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    tree = random_token_tree(rng, batch=6, max_nodes=20, vocab=9)
    forward_prefix(rng, tree)
    args = commit_args(batch=6, depth=5, history_size=22, vocab=9)
    for b in range(6):
        fill_walk(rng, args, tree, b)
    args["draft_slots"] = tree.draft_slots
    before, expected = copy.deepcopy(args), copy.deepcopy(args)
    run_op("commit_plan", "reference", **expected)
    run_op("commit_plan", "cpu", **args)
    for name in OUTPUTS:
        assert_same_tensors(name, args[name], expected[name])
    for b in range(6):
        simulate(before, args, tree, b)
    assert torch.equal(args["output_counts"].sum(1).int(), args["num_emitted"])


def planned(moves: MovePlan) -> tuple[int, list[int]]:
    """First destination and sources of the first sequence."""
    return int(moves.dst_start[0]), moves.source[0, : int(moves.num_moves[0])].tolist()


def one_step(**changes: Any) -> dict[str, Any]:
    """Root at position 9; nodes 1 and 4 accepted, forwarded as slots 1 and 3; three tokens."""
    args = commit_args(batch=1, depth=3, history_size=32, vocab=50)
    args["history"][0, :10] = torch.arange(10)
    values = {"wants_logits": 1, "pending_lens": 1, "max_emit": 9, "history_lens": 10}
    values |= {"computed_lens": 9, "draft_pending_lens": 1, "draft_computed_lens": 9, **changes}
    for name, value in values.items():
        args[name][0] = value
    verdict: Verdict = args["verdict"]
    verdict.num_accepted[0] = 2
    verdict.path[0] = int_tensor([1, 4, -7])
    verdict.out_tokens[0] = int_tensor([41, 42, 43, -7])
    args["draft_slots"] = int_tensor([0, 1, 2, -1, 3])[None]
    run_op("commit_plan", **args)
    return args


def test_a_step_keeps_the_path_and_leaves_the_bonus_token_pending() -> None:
    args = one_step()
    assert args["history"][0, 8:14].tolist() == [8, 9, 41, 42, 43, -7]
    assert (int(args["computed_lens"]), int(args["history_lens"]), int(args["num_emitted"])) == (
        12,
        13,
        3,
    )
    assert planned(args["moves"]) == (11, [9 + 4]), "node 1 lies right already"
    assert int(args["draft_computed_lens"]) == 12
    assert planned(args["draft_moves"]) == (11, [9 + 3])


@pytest.mark.parametrize(
    "max_emit,computed,draft", [(0, 9, 9), (1, 10, 10), (2, 11, 11), (3, 12, 12)]
)
def test_an_emission_limit_cuts_tokens_and_caches_alike(
    max_emit: int, computed: int, draft: int
) -> None:
    args = one_step(max_emit=max_emit)
    assert int(args["num_emitted"]) == max_emit
    assert int(args["history_lens"]) == 10 + max_emit
    assert (int(args["computed_lens"]), int(args["draft_computed_lens"])) == (computed, draft)


def test_a_lagging_draft_keeps_nothing_of_the_path() -> None:
    args = one_step(draft_computed_lens=5)
    assert int(args["draft_computed_lens"]) == 6 and planned(args["draft_moves"])[1] == []


def test_unfinished_prefill_only_advances() -> None:
    args = one_step(
        wants_logits=0, computed_lens=3, pending_lens=4, draft_computed_lens=0, draft_pending_lens=4
    )
    assert (
        int(args["computed_lens"]),
        int(args["draft_computed_lens"]),
        int(args["num_emitted"]),
    ) == (7, 4, 0)
    assert int(args["history_lens"]) == 10


def test_a_sequence_that_took_no_part_stays_as_it_was() -> None:
    """What it emitted last too: whether that ended it is asked for in any later step."""
    args = one_step(pending_lens=0, draft_pending_lens=0, num_emitted=3)
    assert (int(args["num_emitted"]), int(args["history_lens"])) == (3, 10)
    assert (int(args["computed_lens"]), int(args["draft_computed_lens"])) == (9, 9)
    assert planned(args["moves"])[1] == planned(args["draft_moves"])[1] == []
    assert int(args["output_counts"].sum()) == 0 and args["history"][0, 10] == -7


def test_draft_arguments_come_together() -> None:
    for name in ("draft_computed_lens", "draft_moves"):
        args = commit_args(1, 1, 4, 4)
        args[name] = None
        with pytest.raises(ValueError, match=f"commit_plan: {name}: expected tensors"):
            run_op("commit_plan", **args)


@pytest.mark.parametrize(
    "name,wrong,message",
    [
        ("moves", MovePlan.allocate(2, 2), r"moves.source: expected shape \[2, 3\], got \[2, 2\]"),
        (
            "draft_moves",
            MovePlan.allocate(1, 3),
            r"draft_moves.source: expected shape \[2, 3\], got",
        ),
        ("moves", torch.zeros(2, 3), "moves: expected a MovePlan, got Tensor"),
        ("verdict", None, "verdict: expected a Verdict, got NoneType"),
        (
            "verdict",
            replace(Verdict.allocate(2, 3), out_tokens=int_tensor([[1, 2, 3]] * 2)),
            r"verdict.out_tokens: expected shape \[2, 4\], got \[2, 3\]",
        ),
        (
            "verdict",
            replace(Verdict.allocate(2, 3), num_accepted=torch.zeros(2)),
            "verdict.num_accepted: expected torch.int32, got torch.float32",
        ),
    ],
)
def test_names_the_wrong_field(name: str, wrong: object, message: str) -> None:
    args = {**commit_args(2, 3, 4, 4), name: wrong}
    with pytest.raises(ValueError, match=f"commit_plan: {message}"):
        run_op("commit_plan", **args)
