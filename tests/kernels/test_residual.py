"""The scalar residual family equals the literal recursion; kernel and reference decide alike."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

from sdengine.kernels.programs.program import make_pool, run_op
from sdengine.kernels.sampling_tables import SamplingTables
from sdengine.kernels.token_tree import TokenTree
from sdengine.kernels.tree_verify_reference import Residual, TargetRow, Verifier
from sdengine.kernels.verdict import Verdict
from tests.torch_threads import one_thread as one_thread

from .random_token_trees import fill_token_tree, int_tensor
from .same_tensors import assert_same_tensors


class FixedRow(TargetRow):
    """A target row with given probabilities."""

    def __init__(self, probs: list[float]):
        self.probs = probs

    def probability(self, token: int) -> float:
        return self.probs[token]


def laws(kind: str, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Target and draft laws in float64, some of them hostile."""
    generator = torch.Generator().manual_seed(hash_free_seed(kind, vocab))
    p = torch.rand(vocab, generator=generator, dtype=torch.float64) ** 6
    q = torch.rand(vocab, generator=generator, dtype=torch.float64) ** 6
    if kind == "equal":
        q = p.clone()
    elif kind == "disjoint":
        p[: vocab // 2], q[vocab // 2 :] = 0, 0
    elif kind == "target one-hot":
        p = torch.zeros(vocab, dtype=torch.float64)
        p[vocab // 2] = 1
    elif kind == "draft nearly one-hot":
        q = q / q.sum() * 1e-7
        q[0] += 1 - 1e-7
    elif kind == "nearly equal":
        q = p * (1 + 1e-9 * torch.rand(vocab, generator=generator, dtype=torch.float64))
    return p / p.sum(), q / q.sum()


def hash_free_seed(kind: str, vocab: int) -> int:
    """The same seed in every process."""
    return sum(map(ord, kind)) * 1000 + vocab


KINDS = ["random", "equal", "disjoint", "target one-hot", "draft nearly one-hot", "nearly equal"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", [2, 5, 64])
def test_scalar_family_equals_the_literal_recursion(kind: str, vocab: int) -> None:
    p, q = laws(kind, vocab)
    order = torch.multinomial(q, int((q > 0).sum()), generator=torch.Generator().manual_seed(1))
    support = [(int(t), float(q[t])) for t in order]
    row, residual = FixedRow(p.tolist()), Residual()
    verifier = Verifier.__new__(Verifier)
    literal, proposal = p.clone(), q.clone()
    for i, (token, _) in enumerate(support):
        ratio = float((literal[token] / proposal[token]).clamp(max=1))
        if ratio > 1e-9:  # accepted by a coin just below the ratio, whatever the scale
            coin = ratio * (1 - 1e-6)
            probe = Residual(residual.taken, residual.mass, residual.num_rejected)
            assert verifier.test_drawn(row, support, probe, coin)
        if ratio > 1 - 1e-6:
            return  # cannot be rejected
        assert not verifier.test_drawn(row, support, residual, ratio + (1 - ratio) * 1e-6)
        left = (literal - proposal).clamp(min=0)
        if float(left.sum()) * residual.mass < 1e-6:
            return
        literal = left / left.sum()
        proposal[token] = 0
        if float(proposal.sum()) < 1e-6:
            return
        proposal = proposal / proposal.sum()
        scalar = torch.tensor(
            [verifier.weight(row, support, residual, j) for j in range(i + 1, len(support))]
        ).double()
        rest = torch.tensor([t for t, _ in support[i + 1 :]], dtype=torch.long)
        assert torch.allclose(scalar / residual.mass, literal[rest], rtol=1e-6, atol=1e-9)


def proposals(
    rng: random.Random, rows: int, vocab: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A proposal store drawn by draft_topk from random draft logits."""
    tokens = torch.empty(rows, width, dtype=torch.int32)
    probs = torch.empty(rows, width)
    run_op(
        "draft_topk",
        noise="fresh",
        logits=torch.randn(rows, vocab) * rng.choice([0.3, 2.0]),
        row_seq=torch.zeros(rows, dtype=torch.int32),
        positions=torch.zeros(rows, dtype=torch.int32),
        temperature=torch.tensor([1.0]),
        seeds=torch.tensor([rng.randrange(2**40)]),
        out_tokens=tokens,
        out_probs=probs,
        num_rows=int_tensor([rows]),
        node_slots=torch.arange(rows, dtype=torch.int32),
        tree_starts=int_tensor([1]),
    )
    return tokens, probs


def drawn_tree(
    rng: random.Random, tree: TokenTree, b: int, store: Any, first_row: int, vocab: int
) -> None:
    """Random tree whose nodes' children are a prefix of their proposal, then some chosen tokens."""
    parents: list[int] = []
    tokens: list[int] = []
    probs: list[float] = []
    rows = {0: first_row}
    for parent in range(tree.max_nodes):
        if parent > len(parents):
            break
        rows[parent] = row = first_row + parent
        support = [int(t) for t in store[0][row] if int(t) >= 0]
        drawn = rng.randint(0, min(5, len(support)))
        others = [t for t in range(vocab) if t not in support[:drawn]]
        chosen = rng.sample(others, min(len(others), rng.randint(0, 1)))
        if rng.random() < 0.2:
            drawn, chosen, rows[parent] = 0, rng.sample(range(vocab), min(2, vocab)), -1
        for j, token in enumerate(support[:drawn] + chosen):
            if len(parents) < tree.max_nodes:
                parents.append(parent)
                tokens.append(token)
                probs.append(float(store[1][row, j]) if j < drawn else 0.0)
    fill_token_tree(tree, b, parents, tokens, [rng.random() for _ in parents])
    tree.probs[b, 1 : len(probs) + 1] = torch.tensor(probs)
    for node in range(len(parents) + 1):
        tree.proposal_rows[b, node] = rows.get(node, -1)
        tree.creation_ids[b, node] = 2 * node + 1


def rejection_args(
    rng: random.Random, batch: int, max_nodes: int, vocab: int, width: int
) -> dict[str, Any]:
    """A batch of drawn trees over random target rows with mixed sampling parameters."""
    store = proposals(rng, batch * (max_nodes + 1), vocab, width)
    tree = TokenTree.allocate(batch, max_nodes)
    for b in range(batch):
        drawn_tree(rng, tree, b, store, b * (max_nodes + 1), vocab)
    depth = rng.choice([1, 3, 6])
    rows = batch * (max_nodes + 1)
    return {
        "mode": "rejection",
        "tree": tree,
        "logit_starts": torch.arange(batch, dtype=torch.int32) * (max_nodes + 1),
        "wants_logits": int_tensor([rng.choice([0, 1, 1, 1, 1, 2]) for _ in range(batch)]),
        "num_seqs": int_tensor([batch]),
        "logits": torch.randn(rows, vocab) * rng.choice([0.3, 2.0]),
        "tree_starts": int_tensor([rng.randrange(1, 1000) for _ in range(batch)]),
        "sampling": SamplingTables(
            temperature=torch.tensor([rng.choice([0.0, 0.7, 1.0]) for _ in range(batch)]),
            top_k=int_tensor([rng.choice([0, 0, 2]) for _ in range(batch)]),
            top_p=torch.tensor([rng.choice([1.0, 0.8]) for _ in range(batch)]),
            min_p=torch.tensor([rng.choice([0.0, 0.2]) for _ in range(batch)]),
            seeds=torch.tensor([rng.randrange(-(2**62), 2**62) for _ in range(batch)]),
        ),
        "proposal_tokens": store[0],
        "proposal_probs": store[1],
        "verdict": Verdict.allocate(batch, depth),
    }


def assert_equals_reference(args: dict[str, Any], workers: int = 1) -> None:
    """Runs kernel and reference on their own verdicts and insists on the same bits."""
    logits = args["logits"].clone()
    mine = {**args, "verdict": copy.deepcopy(args["verdict"])}
    run_op("tree_verify", "reference", **mine)
    run_op("tree_verify", "cpu", make_pool(workers), **args)
    assert_same_tensors("verdict", args["verdict"], mine["verdict"])
    assert torch.equal(args["logits"], logits)


@pytest.mark.parametrize("seed", range(40))
def test_rejection_walks_equal_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    vocab = rng.choice([2, 3, 8, 70])
    args = rejection_args(rng, batch=16, max_nodes=10, vocab=vocab, width=rng.choice([2, 8]))
    assert_equals_reference(args, workers=rng.choice([1, 2]))


def plain_parameters(args: dict[str, Any]) -> None:
    """Everybody walks at temperature 1 without filters."""
    sampling: SamplingTables = args["sampling"]
    args["wants_logits"][:], sampling.temperature[:] = 1, 1.0
    sampling.top_k[:], sampling.top_p[:], sampling.min_p[:] = 0, 1.0, 0.0


def test_a_residual_without_mass_falls_back_to_the_target() -> None:
    """p = q but for one token; once that is rejected, nothing that can be trusted is left."""
    batch, vocab = 200, 8
    args = rejection_args(random.Random(0), batch=batch, max_nodes=1, vocab=vocab, width=vocab)
    q = torch.tensor([1e-8, 0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05])
    args["logits"] = q.log().repeat(2 * batch, 1)
    args["logits"][:, 0] = float("-inf")
    args["proposal_tokens"] = torch.arange(vocab, dtype=torch.int32)[None].contiguous()
    args["proposal_probs"] = q[None].contiguous()
    plain_parameters(args)
    for b in range(batch):
        fill_token_tree(args["tree"], b, [0], [0], [0.5])
    args["tree"].probs[:, 1] = q[0]
    args["tree"].proposal_rows[:, 0] = 0
    assert_equals_reference(args)
    counts = torch.bincount(args["verdict"].out_tokens[:, 0].long(), minlength=vocab)
    assert args["verdict"].num_accepted.tolist() == [0] * batch
    assert torch.allclose(counts / batch, q, atol=0.12)


def test_a_residual_that_a_chosen_child_leaves_without_mass_falls_back_too() -> None:
    """p = q but for three tokens: once the drawn 0 and the chosen 8 are rejected, only 9 is left,
    and with less mass than p was rounded by."""
    batch, vocab = 200, 10
    args = rejection_args(random.Random(0), batch=batch, max_nodes=2, vocab=vocab, width=8)
    q = torch.tensor([2e-6, 0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05])
    args["logits"] = torch.cat([q, torch.tensor([1.6e-6, 4e-7])]).log().repeat(3 * batch, 1)
    args["logits"][:, 0] = float("-inf")
    args["proposal_tokens"] = torch.arange(8, dtype=torch.int32)[None].contiguous()
    args["proposal_probs"] = q[None].contiguous()
    plain_parameters(args)
    for b in range(batch):
        fill_token_tree(args["tree"], b, [0, 0], [0, 8], [0.5, 0.5])
    args["tree"].probs[:, 1:] = torch.tensor([2e-6, 0.0])
    args["tree"].proposal_rows[:, 0] = 0
    assert_equals_reference(args)
    rejected = args["verdict"].out_tokens[args["verdict"].num_accepted == 0, 0].long()
    assert 10 < len(rejected) < 100
    counts = torch.bincount(rejected, minlength=vocab)
    assert torch.allclose(counts[:8] / len(rejected), q, atol=0.2)


def test_more_chosen_children_than_are_kept_in_mind() -> None:
    """Beyond 64 rejections the rest is not tested: the output's law does not depend on it."""
    batch, children, vocab = 6, 70, 200
    args = rejection_args(random.Random(0), batch=batch, max_nodes=children, vocab=vocab, width=2)
    args["logits"][:] = 0.0
    args["logits"][:, 150:] = 8.0
    plain_parameters(args)
    for b in range(batch):
        fill_token_tree(args["tree"], b, [0] * children, list(range(children)), [0.5] * children)
    args["tree"].proposal_rows.fill_(-1)
    assert_equals_reference(args)
    assert args["verdict"].tried.sum((1, 2)).max() == 64


def test_a_slot_of_no_mass_is_not_tested() -> None:
    """What is left of q after the first draw is less than its rounding."""
    batch = 32
    args = rejection_args(random.Random(0), batch=batch, max_nodes=2, vocab=8, width=2)
    args["logits"].fill_(float("-inf"))
    args["logits"][:, :2] = 0.0
    args["proposal_tokens"] = int_tensor([0, 1])[None]
    args["proposal_probs"] = torch.tensor([[1.0, 5e-7]])
    plain_parameters(args)
    for b in range(batch):
        fill_token_tree(args["tree"], b, [0, 0], [0, 1], [0.5, 0.5])
    args["tree"].probs[:, 1:] = args["proposal_probs"]
    args["tree"].proposal_rows[:, 0] = 0
    assert_equals_reference(args)
    assert (args["verdict"].tried.sum((1, 2)) == 1).all()
    assert args["verdict"].out_tokens[:, 0].tolist() == [
        1 - n for n in args["verdict"].num_accepted.tolist()
    ]
    assert 0 < int(args["verdict"].num_accepted.sum()) < batch


def test_of_equal_chosen_children_the_second_is_not_accepted() -> None:
    batch = 32
    args = rejection_args(random.Random(0), batch=batch, max_nodes=2, vocab=2, width=2)
    args["logits"][:] = 0.0
    plain_parameters(args)
    for b in range(batch):
        fill_token_tree(args["tree"], b, [0, 0], [1, 1], [0.5, 0.5])
    args["tree"].proposal_rows.fill_(-1)
    assert_equals_reference(args)
    assert args["verdict"].out_tokens[:, 0].tolist() == args["verdict"].num_accepted.tolist()
    is_accepted = args["verdict"].num_accepted.bool()
    assert set(args["verdict"].path[is_accepted, 0].tolist()) == {1} and not is_accepted.all()


def test_children_that_are_no_prefix_of_the_proposal_are_refused() -> None:
    rng = random.Random(0)
    args = rejection_args(rng, batch=1, max_nodes=2, vocab=8, width=8)
    tree, store = args["tree"], args["proposal_tokens"]
    second = int(store[0, 1])
    fill_token_tree(tree, 0, [0], [second], [0.5])
    tree.probs[0, 1] = args["proposal_probs"][0, 1]
    tree.proposal_rows[0, :] = 0
    args["wants_logits"][0] = 1
    args["sampling"].temperature[0] = 1.0
    run_op("tree_verify", **args)
    assert int(args["verdict"].num_accepted) == 0 and int(args["verdict"].out_tokens[0, 0]) == -1


def test_equal_laws_always_accept_the_first_child() -> None:
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)).repeat(600, 1)
    batch = 300
    rng = random.Random(1)
    args = rejection_args(rng, batch=batch, max_nodes=1, vocab=40, width=40)
    tokens = torch.empty(batch, 40, dtype=torch.int32)
    probs = torch.empty(batch, 40)
    run_op(
        "draft_topk",
        noise="fresh",
        logits=logits[:batch],
        row_seq=torch.arange(batch, dtype=torch.int32),
        positions=torch.zeros(batch, dtype=torch.int32),
        temperature=torch.ones(batch),
        seeds=args["sampling"].seeds,
        out_tokens=tokens,
        out_probs=probs,
        num_rows=int_tensor([batch]),
        node_slots=torch.zeros(batch, dtype=torch.int32),
        tree_starts=args["tree_starts"],
    )
    for b in range(batch):
        fill_token_tree(args["tree"], b, [0], [int(tokens[b, 0])], [0.5])
    args["tree"].probs[:, 1] = probs[:, 0]
    args["tree"].proposal_rows[:, 0] = torch.arange(batch)
    args |= {"proposal_tokens": tokens, "proposal_probs": probs, "logits": logits}
    plain_parameters(args)
    run_op("tree_verify", **args)
    assert args["verdict"].num_accepted.tolist() == [1] * batch
