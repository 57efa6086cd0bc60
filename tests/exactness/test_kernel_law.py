"""The compiled kernels draw from the target's law: G-tests over hundreds of thousands of walks.

Each right construction must pass with p > 1e-4; each wrong one must fail the very same test.
"""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from sdengine.kernels.programs.program import run_op
from sdengine.kernels.sampling_tables import SamplingTables
from tests.torch_threads import one_thread as one_thread

from .kernel_walks import RIGHT, Mistakes, TableWorld, random_table_world, rejection_tokens

ALPHA = 1e-4
COUNT = 3


def joint_law(world: TableWorld, count: int) -> torch.Tensor:
    """[V^count] float64 law of the first tokens under plain decoding."""
    law = torch.ones(1, dtype=torch.float64)
    contexts = torch.zeros(1, dtype=torch.long)
    for _ in range(count):
        law = (law[:, None] * world.target[contexts].double().softmax(1)).reshape(-1)
        contexts = (contexts[:, None] * world.vocab + torch.arange(world.vocab) + 1).reshape(-1)
    return law


def p_value(cells: torch.Tensor, law: torch.Tensor) -> float:
    """p of a G-test; cells expected fewer than 10 times are pooled."""
    counts = torch.bincount(cells, minlength=len(law)).double()
    expected = law * len(cells)
    order = expected.argsort()
    counts, expected = counts[order], expected[order]
    small = int((expected.cumsum(0) < 10).sum()) + 1
    counts = torch.cat([counts[:small].sum()[None], counts[small:]])
    expected = torch.cat([expected[:small].sum()[None], expected[small:]])
    return float(
        stats.power_divergence(counts.numpy(), expected.numpy(), lambda_="log-likelihood")[1]
    )


def cells_of(tokens: torch.Tensor, vocab: int) -> torch.Tensor:
    """Index of each token sequence in the joint law."""
    index = torch.zeros(len(tokens), dtype=torch.long)
    for column in tokens.unbind(1):
        index = index * vocab + column
    return index


def rejection_p(world: TableWorld, budget: int, walks: int, mistakes: Mistakes = RIGHT) -> float:
    """p of the first tokens of many seeds."""
    seeds = torch.arange(walks) * 7919 + 12345
    cells = []
    for part in seeds.split(75_000):
        tokens, mean_tokens = rejection_tokens(world, part, budget, COUNT, mistakes)
        assert mean_tokens > 1.2  # the trees do something
        cells.append(cells_of(tokens, world.vocab))
    return p_value(torch.cat(cells), joint_law(world, COUNT))


@pytest.mark.parametrize(
    "vocab,budget,seed", [(3, 1, 0), (3, 3, 1), (3, 5, 2), (4, 4, 3), (4, 5, 4)]
)
def test_rejection_walks_follow_the_target(vocab: int, budget: int, seed: int) -> None:
    assert rejection_p(random_table_world(seed, vocab), budget, walks=100_000) > ALPHA


def test_many_walks_follow_the_target() -> None:
    assert rejection_p(random_table_world(5, 3), budget=3, walks=600_000) > ALPHA


@pytest.mark.parametrize(
    "mistakes,depth_only_draft,budget",
    [
        (Mistakes(keys_by_depth=True), True, 5),
        (Mistakes(keeps_best_nodes=2), False, 4),
        (Mistakes(chooses_tokens=True), False, 3),
    ],
)
def test_mistakes_around_the_kernels_are_noticed(
    mistakes: Mistakes, depth_only_draft: bool, budget: int
) -> None:
    world = random_table_world(2, 3, depth_only_draft=depth_only_draft)
    assert rejection_p(world, budget, walks=100_000) > ALPHA
    assert rejection_p(world, budget, 100_000, mistakes) < ALPHA


def sampled(
    logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """One token per (seed, position) from the same row of logits."""
    count = len(seeds)
    out = torch.empty(count, dtype=torch.int32)
    run_op(
        "sample",
        logits=logits.expand(count, -1).contiguous(),
        row_seq=torch.arange(count, dtype=torch.int32),
        positions=positions.int(),
        sampling=SamplingTables(
            temperature=torch.full((count,), temperature),
            top_k=torch.zeros(count, dtype=torch.int32),
            top_p=torch.ones(count),
            min_p=torch.zeros(count),
            seeds=seeds,
        ),
        out_tokens=out,
        num_rows=torch.tensor([count], dtype=torch.int32),
    )
    return out.long()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_sampled_tokens_follow_the_softmax(temperature: float) -> None:
    logits = torch.randn(37, generator=torch.Generator().manual_seed(1)) * 2
    tokens = sampled(logits, torch.arange(300_000), torch.zeros(300_000), temperature)
    assert p_value(tokens, (logits.double() / temperature).softmax(0)) > ALPHA
    assert p_value(tokens, (logits.double() / temperature / 1.02).softmax(0)) < ALPHA


def test_positions_and_seeds_are_independent() -> None:
    logits = torch.randn(5, generator=torch.Generator().manual_seed(2))
    law = logits.double().softmax(0)
    pair_law = (law[:, None] * law).reshape(-1)
    numbers, nothing = torch.arange(200_000), torch.zeros(200_000, dtype=torch.long)
    for seeds, positions in ((nothing, numbers), (numbers, nothing)):
        pairs = cells_of(sampled(logits, seeds, positions).view(-1, 2), 5)
        assert p_value(pairs, pair_law) > ALPHA


@pytest.mark.parametrize("candidates", [3, 6])
def test_fresh_candidates_are_drawn_without_replacement(candidates: int) -> None:
    logits = torch.randn(6, generator=torch.Generator().manual_seed(3))
    count = 300_000
    tokens = torch.empty(count, candidates, dtype=torch.int32)
    probs = torch.empty(count, candidates)
    run_op(
        "draft_topk",
        noise="fresh",
        logits=logits.expand(count, -1).contiguous(),
        row_seq=torch.zeros(count, dtype=torch.int32),
        positions=torch.zeros(count, dtype=torch.int32),
        temperature=torch.ones(1),
        seeds=torch.tensor([5]),
        out_tokens=tokens,
        out_probs=probs,
        num_rows=torch.tensor([count], dtype=torch.int32),
        node_slots=torch.arange(count, dtype=torch.int32),
        tree_starts=torch.ones(1, dtype=torch.int32),
    )
    support = logits.topk(candidates)
    q = torch.zeros(6, dtype=torch.float64)
    q[support.indices] = support.values.double().softmax(0)
    pair_law = q[:, None] * q / (1 - q)[:, None]
    pair_law.fill_diagonal_(0)
    possible = (pair_law.reshape(-1) > 0).nonzero()[:, 0]
    cells = cells_of(tokens[:, :2].long(), 6)
    assert p_value(torch.searchsorted(possible, cells), pair_law.reshape(-1)[possible]) > ALPHA
    with_replacement = (q[:, None] * q).reshape(-1)[possible]
    wrong = with_replacement / with_replacement.sum()
    assert p_value(torch.searchsorted(possible, cells), wrong) < ALPHA
    expected_probs = q[tokens[:100].long()].float()
    assert torch.allclose(probs[:100], expected_probs, atol=1e-6)
