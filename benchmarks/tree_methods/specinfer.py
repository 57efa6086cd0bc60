"""SpecInfer: k chains drawn independently from the draft, merged into a tree, walked by multi-step
speculative sampling.

Draws at a node are independent (with replacement), so a rejection subtracts the draft's whole law
and does not change it. Published comparisons drew without replacement and verified by this rule,
which is biased; here the chains are independent. At temperature 0 the draft draws at 0.6 and the
walk follows the target's choices, as in DySpec's comparison.

Source: Miao et al., SpecInfer, arXiv 2305.09781, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks.tree_methods.lab import Growth, TreeLab
from benchmarks.tree_methods.pairs import Pair
from sdengine.core.sampling_params import SamplingParams
from sdengine.policies.static import StaticPolicy

__all__ = ["GREEDY_DRAFT_TEMPERATURE", "decode_specinfer", "walk_node"]

GREEDY_DRAFT_TEMPERATURE = 0.6
SUPPORT = 64  # tokens that a draft row is drawn from, as in the engine's rejection drafts


def walk_node(
    target: np.ndarray, draft: np.ndarray, draws: Sequence[int], uniform: Callable[[], float]
) -> tuple[int, bool]:
    """Tests independent draws one after another.

    Args:
        target: [V] probabilities.
        draft: [V] probabilities that every draw came from.
        draws: tokens.
        uniform: a fresh number in [0, 1) at every call.

    Returns:
        The token, and whether it is one of the draws.
    """
    residual = target
    for token in draws:
        if uniform() * draft[token] < residual[token]:
            return token, True
        left = np.maximum(residual - draft, 0.0)
        residual = left / left.sum()
    edges = residual.cumsum()
    return int(np.searchsorted(edges, uniform() * edges[-1], side="right")), False


def decode_specinfer(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    num_chains: int,
    depth: int,
) -> list[list[int]]:
    """Decodes prompt after prompt; num_chains chains of `depth` tokens a step.

    Returns:
        Tokens committed by each step, by prompt.
    """
    temperature = GREEDY_DRAFT_TEMPERATURE if params.is_greedy else params.temperature
    growth = Growth(
        StaticPolicy((1,) * depth, "uniform_slot"),
        depth,
        depth,
        SUPPORT,
        is_rejection=True,
        draft_temperature=temperature,
    )
    longest = max(map(len, prompts)) + params.max_tokens + depth + 1
    lab = TreeLab(pair, growth, num_chains, longest)
    generator = np.random.default_rng(params.seed)
    committed: list[list[int]] = []
    for prompt in prompts:
        lab.start([prompt] * num_chains, params)
        end = len(prompt) + params.max_tokens
        committed.append([])
        while len(lab.tokens[0]) < end:
            lab.grow(range(num_chains))
            count = _step(lab, params.temperature, params.is_greedy, generator.random)
            committed[-1].append(count)
    return committed


def _step(lab: TreeLab, temperature: float, is_greedy: bool, uniform: Callable[[], float]) -> int:
    """Walks the chains below the last token; every slot gets the committed tokens."""
    tree, proposals = lab.workspace.token_tree, lab.drafter.proposals
    drawn, lengths = tree.tokens.numpy(), tree.num_nodes.tolist()
    members = list(range(len(lengths)))
    count = 0
    while True:
        logits = lab.score([0])[0].double().numpy()
        draws = [m for m in members if lengths[m] > count]
        tokens = [int(drawn[m, count + 1]) for m in draws]
        if is_greedy:
            token = int(logits.argmax())
            is_drawn = token in tokens
        else:
            draft = _draft_law(proposals, tree, draws[0], count, len(logits)) if draws else logits
            target = np.exp((logits - logits.max()) / temperature)
            token, is_drawn = walk_node(target / target.sum(), draft, tokens, uniform)
        lab.tokens[0].append(token)
        count += 1
        if not is_drawn:
            break
        members = [m for m, other in zip(draws, tokens) if other == token]
    for slot in range(1, len(lengths)):
        lab.tokens[slot] = list(lab.tokens[0])
    return count


def _draft_law(
    proposals: object, tree: object, slot: int, node: int, vocab_size: int
) -> np.ndarray:
    """[V] float64: what the children of a chain's node were drawn from."""
    row = int(tree.proposal_rows[slot, node])  # type: ignore[attr-defined]
    tokens = proposals.tokens[row].long()  # type: ignore[attr-defined]
    is_token = tokens >= 0
    law = torch.zeros(vocab_size, dtype=torch.float64)
    law[tokens[is_token]] = proposals.probs[row][is_token].double()  # type: ignore[attr-defined]
    return (law / law.sum()).numpy()
