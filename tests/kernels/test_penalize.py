"""penalize: logits of a tree node become those of plain decoding at the same prefix."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from sdengine.kernels.programs.program import make_pool, run_op

from .random_token_trees import int_tensor, random_token_tree


def penalty_args(batch: int, rows: int, vocab: int, seed: int = 0, more: int = 0) -> dict[str, Any]:
    """Neutral parameters, random logits and counts, these of so many more tokens."""
    generator = torch.Generator().manual_seed(seed)
    args: dict[str, Any] = {
        "logits": torch.randn(rows, vocab, generator=generator) * 2,
        "row_seq": torch.zeros(rows, dtype=torch.int32),
        "repetition_penalty": torch.ones(batch),
        "presence_penalty": torch.zeros(batch),
        "frequency_penalty": torch.zeros(batch),
        "bias_ids": torch.zeros(batch, 3, dtype=torch.int32),
        "bias_values": torch.zeros(batch, 3),
        "stop_ids": torch.zeros(batch, 2, dtype=torch.int32),
        "num_rows": int_tensor([rows]),
    }
    for name in ("prompt_counts", "output_counts"):
        counts = torch.randint(-3, 3, (batch, vocab + more), generator=generator).clamp(min=0)
        args[name] = counts.int()
    for name in ("num_bias", "num_stops", "min_lens", "history_lens"):
        args[name] = torch.zeros(batch, dtype=torch.int32)
    return args


def run_both(args: dict[str, Any], workers: int = 1) -> torch.Tensor:
    """Runs kernel and reference, insists on the same bits and returns them."""
    mine = {**args, "logits": args["logits"].clone()}
    run_op("penalize", "reference", **mine)
    run_op("penalize", "cpu", make_pool(workers), **args)
    assert torch.equal(args["logits"], mine["logits"])
    return args["logits"]


def random_args(rng: random.Random, seed: int) -> dict[str, Any]:
    """Rows of random trees in any order, every option on or off by sequence."""
    batch, vocab = 3, rng.choice([5, 70, 9000])
    tree = random_token_tree(rng, batch, max_nodes=12, vocab=5)
    nodes = [(b, i) for b in range(batch) for i in range(int(tree.num_nodes[b]) + 1)]
    rng.shuffle(nodes)
    more = rng.choice([0, 0, 3, 50])  # a target's beyond its draft's
    args = penalty_args(batch, len(nodes), vocab, seed, more)
    packed = list(range(len(nodes)))
    rng.shuffle(packed)
    args |= {"rows": int_tensor(packed), "row_node": torch.zeros(len(nodes)).int()}
    args |= {"node_tokens": tree.tokens, "node_parents": tree.parents}
    for row, (b, node) in zip(packed, nodes):
        args["row_seq"][row], args["row_node"][row] = b, node
    for b in range(batch):
        args["repetition_penalty"][b] = rng.choice([1.0, 1.3, 0.8])
        args["presence_penalty"][b] = rng.choice([0.0, 0.7])
        args["frequency_penalty"][b] = rng.choice([0.0, -0.4])
        args["num_bias"][b], args["num_stops"][b] = rng.randint(0, 3), rng.randint(0, 2)
        args["bias_ids"][b] = int_tensor([rng.randrange(vocab + more) for _ in range(3)])
        args["bias_values"][b] = torch.tensor([rng.choice([5.0, -100.0]) for _ in range(3)])
        args["stop_ids"][b] = int_tensor([rng.randrange(vocab + more) for _ in range(2)])
        args["history_lens"][b], args["min_lens"][b] = 10, rng.choice([0, 11, 13])
    return args


@pytest.mark.parametrize("seed", range(12))
def test_random_rows_of_random_trees_equal_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    args = random_args(rng, seed)
    run_both(args, workers=rng.choice([1, 2, 3]))


def test_counts_of_fewer_tokens_are_refused() -> None:
    args = penalty_args(1, 1, 10)
    for name in ("prompt_counts", "output_counts"):
        args[name] = args[name][:, :9].contiguous()
    with pytest.raises(ValueError, match="prompt_counts: expected 10 tokens or more, got 9"):
        run_op("penalize", "reference", **args)


@pytest.mark.parametrize("workers", [2, 3])
def test_a_long_row_is_shared_by_workers(workers: int) -> None:
    """Every token is changed by the one whose slice it is in."""
    args = penalty_args(1, 1, 13000)
    args["presence_penalty"][0], args["num_bias"][0], args["num_stops"][0] = 0.7, 3, 2
    args["bias_ids"][0], args["bias_values"][0] = int_tensor([0, 6500, 12999]), 5.0
    args["stop_ids"][0], args["min_lens"][0] = int_tensor([1, 12998]), 9
    raw = args["logits"][0].clone()
    got = run_both(args, workers)[0]
    present = (args["output_counts"][0] > 0) * 0.7
    expected = raw - present
    expected[[0, 6500, 12999]] += 5.0
    expected[[1, 12998]] = float("-inf")
    assert torch.allclose(got, expected)


def test_a_node_gets_the_logits_of_plain_decoding_at_its_prefix() -> None:
    rng = random.Random(3)
    tree = random_token_tree(rng, 1, max_nodes=12, vocab=6)
    count = int(tree.num_nodes[0]) + 1
    in_tree = penalty_args(1, count, 50)
    in_tree["logits"][:] = in_tree["logits"][0]
    nodes = {"node_tokens": tree.tokens, "node_parents": tree.parents}
    nodes["row_node"] = torch.arange(count, dtype=torch.int32)
    in_tree |= nodes
    values = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3}
    values |= {"num_stops": 1, "min_lens": 8, "history_lens": 6}
    for name, value in values.items():
        in_tree[name][0] = value
    raw = in_tree["logits"][0].clone()
    penalised = run_both(in_tree)
    for node in range(count):
        plain = {k: v.clone() for k, v in in_tree.items() if k not in nodes}
        plain["logits"], plain["num_rows"] = raw.clone()[None], int_tensor([1])
        plain["row_seq"] = int_tensor([0])
        walk = node
        while walk:
            plain["output_counts"][0, tree.tokens[0, walk]] += 1
            plain["history_lens"][0] += 1
            walk = int(tree.parents[0, walk])
        assert torch.equal(run_both(plain)[0], penalised[node])


def test_repetition_equals_the_processor_of_transformers() -> None:
    args = penalty_args(1, 1, 40)
    args["repetition_penalty"][0] = 1.7
    seen = (args["prompt_counts"][0] + args["output_counts"][0]).nonzero().view(1, -1)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(seen, args["logits"].clone())
    assert torch.allclose(run_both(args), expected)


def test_presence_and_frequency_count_the_output_only() -> None:
    args = penalty_args(1, 1, 4)
    args["logits"].zero_()
    args["prompt_counts"][0] = int_tensor([5, 5, 0, 0])
    args["output_counts"][0] = int_tensor([0, 2, 1, 0])
    args["presence_penalty"][0], args["frequency_penalty"][0] = 0.5, 0.25
    assert run_both(args)[0].tolist() == [0.0, -1.0, -0.75, 0.0]


def test_neutral_rows_keep_their_bits() -> None:
    args = penalty_args(1, 3, 100)
    args["logits"][0, :3] = torch.tensor([float("nan"), float("inf"), -0.0])
    before = args["logits"].clone()
    run_op("penalize", **args)
    assert torch.equal(before.view(torch.int32), args["logits"].view(torch.int32))


@pytest.mark.parametrize("history,is_banned", [(7, True), (8, False)])
def test_stop_tokens_are_banned_until_the_minimum(history: int, is_banned: bool) -> None:
    args = penalty_args(1, 1, 10)
    args["stop_ids"][0, 0], args["num_stops"][0] = 4, 1
    args["min_lens"][0], args["history_lens"][0] = 8, history
    args["num_bias"][0], args["bias_ids"][0, 0], args["bias_values"][0, 0] = 1, 4, 100.0
    assert (float(run_both(args)[0, 4]) == float("-inf")) == is_banned


NODES = {
    "row_node": int_tensor([0]),
    "node_tokens": int_tensor([[-1, 2]]),
    "node_parents": int_tensor([[-1, 0]]),
}


@pytest.mark.parametrize("missing", NODES)
def test_trees_and_row_nodes_come_together(missing: str) -> None:
    args = penalty_args(1, 1, 4)
    args |= {name: tensor for name, tensor in NODES.items() if name != missing}
    message = "penalize: row_node, node_tokens, node_parents: expected all or none"
    with pytest.raises(ValueError, match=message):
        run_op("penalize", **args)


@pytest.mark.parametrize("name", ["node_tokens", "node_parents"])
def test_a_tree_of_another_batch_is_refused(name: str) -> None:
    args = penalty_args(1, 1, 4) | NODES
    args[name] = args[name].repeat(2, 1)
    with pytest.raises(ValueError, match=f"penalize: {name}"):
        run_op("penalize", **args)
