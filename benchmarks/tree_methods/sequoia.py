"""Sequoia's static tree: positional acceptance, measured on other prompts than the compared ones.

`acceptance[j]` is the probability that a node's j-th candidate is the accepted one, whatever the
node. The tree of n nodes with the largest sum of products is the dynamic programme's (`best_sum`);
for a never increasing vector it is the best-first one, which `tree_expand` grows from the vector
itself (`DraftModelDrafter.positional_acceptance`).

Source: Chen et al., Sequoia, arXiv 2402.12374, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.tree_methods.lab import Growth, TreeLab
from benchmarks.tree_methods.pairs import Pair
from benchmarks.tree_methods.walks import RejectionWalk
from sdengine.core.sampling_params import SamplingParams
from sdengine.policies.static import StaticPolicy

__all__ = ["best_sum", "non_increasing", "positional_acceptance"]


def positional_acceptance(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    is_rejection: bool,
    num_children: int,
    num_candidates: int,
) -> torch.Tensor:
    """Measures acceptance by rank at every position of some texts.

    Args:
        pair: the models.
        prompts, texts: `texts` begin with `prompts` and are the target's own.
        params: temperature, seed; max_tokens positions of each text are used.
        is_rejection: the rule that will verify.
        num_children: ranks to measure.
        num_candidates: K of a draft row; ranks from num_children on get 0.

    Returns:
        [num_candidates] float32, never increasing.
    """
    rule = "uniform_slot" if is_rejection else "uniform"
    growth = Growth(
        StaticPolicy((num_children,), rule), num_children, 1, num_candidates, is_rejection
    )
    longest = max(map(len, texts))
    lab = TreeLab(pair, growth, len(prompts), longest + 1)
    lab.start(prompts, params)
    walk = RejectionWalk(lab) if is_rejection and not params.is_greedy else None
    accepted = np.zeros(num_candidates)
    slots = list(range(len(prompts)))
    for step in range(params.max_tokens):
        lab.grow(slots)
        drafted = lab.workspace.token_tree.tokens[:, 1 : num_children + 1].numpy().copy()
        said = [texts[slot][len(prompts[slot]) + step] for slot in slots]
        if walk is not None:
            walk.step(slots)
            nodes, counts = lab.iteration.verdict.path[:, 0], lab.iteration.verdict.num_accepted
            ranks = [int(node) - 1 for node, n in zip(nodes, counts) if n]
        else:
            ranks = [r for slot in slots for r in np.flatnonzero(drafted[slot] == said[slot])]
        np.add.at(accepted, ranks, 1)
        for slot in slots:
            known = len(prompts[slot]) + step
            lab.force(slot, texts[slot][: known + 1], known)
    rates = non_increasing(accepted[:num_children] / (params.max_tokens * len(prompts)))
    vector = torch.zeros(num_candidates)
    vector[:num_children] = torch.from_numpy(rates).float()
    return vector


def non_increasing(rates: np.ndarray) -> np.ndarray:
    """The nearest never increasing vector in least squares (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for rate in rates.tolist():
        blocks.append((rate, 1))
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [((a * m + b * n) / (m + n), m + n)]
    return np.concatenate([np.full(count, mean) for mean, count in blocks])


def best_sum(acceptance: Sequence[float], num_nodes: int, max_depth: int) -> float:
    """Largest expected number of accepted nodes of a static tree: Sequoia's dynamic programme.

    Args:
        acceptance: by rank, in any order.
        num_nodes: nodes below the root.
        max_depth: deepest of them.
    """
    # below[n]: best sum of a subtree of n nodes whose own root counts 1, by remaining depth
    below = np.array([-np.inf, 1.0] + [-np.inf] * num_nodes)
    for _ in range(max_depth):
        full = np.full(num_nodes + 2, -np.inf)  # every rank so far has a child
        full[1] = 1.0
        best = full.copy()
        for rate in acceptance:
            grown = np.full(num_nodes + 2, -np.inf)
            for m in np.flatnonzero(np.isfinite(below[: num_nodes + 1])):
                grown[m + 1 :] = np.maximum(grown[m + 1 :], full[1:-m] + rate * below[m])
            full = grown
            best = np.maximum(best, full)
        below = best
    return float(below.max()) - 1.0
