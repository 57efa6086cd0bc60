"""DySpec steps on the compiled kernels, many seeds at once, over tiny worlds of logits tables.

The tree is grown here by the literal slot algorithm (one draw per node and step, all seeds in
parallel); `draft_topk` draws, `tree_verify` walks. Options reproduce known mistakes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdengine.kernels.programs.program import run_op
from sdengine.kernels.sampling_tables import SamplingTables
from sdengine.kernels.token_tree import TokenTree
from sdengine.kernels.verdict import Verdict

MAX_DEPTH = 3


@dataclass(frozen=True)
class TableWorld:
    """Logits of target and draft by context; context c, then token t: context c * V + t + 1.

    Args:
        target: [contexts, V] float32.
        draft: [contexts, V] float32.
    """

    target: torch.Tensor
    draft: torch.Tensor

    @property
    def vocab(self) -> int:
        """V."""
        return self.target.shape[1]


def random_table_world(
    seed: int, vocab: int, spread: float = 1.5, depth_only_draft: bool = False
) -> TableWorld:
    """Random laws for every context of up to six tokens; the draft's may see only its depth."""
    generator = torch.Generator().manual_seed(seed)
    contexts = sum(vocab**depth for depth in range(7))
    target = torch.randn(contexts, vocab, generator=generator) * spread
    noise = torch.randn(contexts, vocab, generator=generator) * spread
    if depth_only_draft:
        first = [sum(vocab**d for d in range(depth)) for depth in range(8)]
        for depth in range(7):
            noise[first[depth] : first[depth + 1]] = noise[first[depth]]
        return TableWorld(target, noise)
    return TableWorld(target, 0.5 * target + 0.8 * noise)


@dataclass(frozen=True)
class Mistakes:
    """What to do wrong.

    Args:
        keys_by_depth: Draft noise is keyed by depth instead of node.
        keeps_best_nodes: Of the drawn nodes, keeps the best by their own value.
        chooses_tokens: Children are the most probable tokens, verified as if they had been drawn.
    """

    keys_by_depth: bool = False
    keeps_best_nodes: int = 0
    chooses_tokens: bool = False


RIGHT = Mistakes()


class Step:
    """One speculative step of B sequences.

    Args:
        world: Laws.
        contexts: [B] int64, current context of each sequence.
        seeds: [B] int64.
        root_position: Position of the roots.
        budget: Nodes of each tree.
        mistakes: What to do wrong.
    """

    def __init__(
        self,
        world: TableWorld,
        contexts: torch.Tensor,
        seeds: torch.Tensor,
        root_position: int,
        budget: int,
        mistakes: Mistakes,
    ):
        self.world, self.seeds, self.mistakes = world, seeds, mistakes
        self.batch, self.budget = len(seeds), budget
        self.tree_starts = torch.full((self.batch,), root_position + 1, dtype=torch.int32)
        self.every = torch.arange(self.batch)
        nodes = budget + 1
        self.context = contexts[:, None].repeat(1, nodes)
        self.parents = torch.full((self.batch, nodes), -1)
        self.depths = torch.zeros(self.batch, nodes, dtype=torch.long)
        self.tokens = torch.full((self.batch, nodes), -1)
        self.probs = torch.zeros(self.batch, nodes)
        self.reach = torch.zeros(self.batch, nodes)
        self.reach[:, 0] = 1
        self.num_children = torch.zeros(self.batch, nodes, dtype=torch.long)
        self.left = torch.zeros(self.batch, nodes)
        self.proposals = torch.full((self.batch, nodes, world.vocab), -1, dtype=torch.int32)
        self.proposal_probs = torch.zeros(self.batch, nodes, world.vocab)

    def grow(self) -> None:
        """Draws one node after the other from the slot of highest value."""
        self.propose(0)
        for node in range(1, self.budget + 1):
            value = self.reach * self.left
            value[self.depths == MAX_DEPTH] = 0
            value[:, node:] = 0
            parent = value.argmax(1)
            rank = self.num_children[self.every, parent]
            self.tokens[:, node] = token = self.proposals[self.every, parent, rank].long()
            self.probs[:, node] = prob = self.proposal_probs[self.every, parent, rank]
            self.parents[:, node] = parent
            self.depths[:, node] = self.depths[self.every, parent] + 1
            self.context[:, node] = self.context[self.every, parent] * self.world.vocab + token + 1
            self.reach[:, node] = self.reach[self.every, parent] * prob
            self.num_children[self.every, parent] += 1
            self.left[self.every, parent] -= prob
            self.propose(node)

    def propose(self, node: int) -> None:
        """Draws the candidates below a node of every sequence."""
        tokens = torch.empty(self.batch, self.world.vocab, dtype=torch.int32)
        probs = torch.empty(self.batch, self.world.vocab)
        keys = (
            self.depths[:, node] if self.mistakes.keys_by_depth else torch.full((self.batch,), node)
        )
        temperature = (
            torch.zeros(self.batch) if self.mistakes.chooses_tokens else torch.ones(self.batch)
        )
        run_op(
            "draft_topk",
            noise="fresh",
            logits=self.world.draft[self.context[:, node]],
            row_seq=self.every.int(),
            positions=self.tree_starts,
            temperature=temperature,
            seeds=self.seeds,
            out_tokens=tokens,
            out_probs=probs,
            num_rows=torch.tensor([self.batch], dtype=torch.int32),
            node_slots=keys.int(),
            tree_starts=self.tree_starts,
        )
        self.proposals[:, node], self.proposal_probs[:, node] = tokens, probs
        self.left[:, node] = 1

    def prune(self, keep: int) -> None:
        """Cuts drawn nodes by their own value; moves the others to the front of the proposals."""
        value = self.reach.clone()
        value[:, 0] = 2
        kept = torch.zeros_like(value, dtype=torch.bool)
        kept.scatter_(1, value.argsort(dim=1, descending=True, stable=True)[:, : keep + 1], True)
        for node in range(1, self.budget + 1):
            self.parents[~kept[:, node], node] = -2
        for node in range(self.budget + 1):
            is_kept = torch.zeros(self.batch, self.world.vocab, dtype=torch.bool)
            for child in range(node + 1, self.budget + 1):
                is_mine = self.parents[:, child] == node
                is_kept |= is_mine[:, None] & (
                    self.proposals[:, node] == self.tokens[:, child, None]
                )
            order = (~is_kept).int().argsort(dim=1, stable=True)
            self.proposals[:, node] = self.proposals[:, node].gather(1, order)
            self.proposal_probs[:, node] = self.proposal_probs[:, node].gather(1, order)

    def token_tree(self) -> TokenTree:
        """The trees as the verifier takes them, nodes in creation order."""
        tree = TokenTree.allocate(self.batch, self.budget)
        nodes = self.budget + 1
        tree.num_nodes[:] = self.budget
        tree.tokens[:] = self.tokens
        tree.parents[:] = self.parents
        tree.depths[:] = self.depths
        tree.probs[:] = self.probs
        tree.estimates[:] = self.probs
        tree.creation_ids[:] = torch.arange(nodes)
        tree.proposal_rows[:] = (self.every[:, None] * nodes + torch.arange(nodes)).int()
        tree.first_child[:], tree.next_sibling[:] = -1, -1
        last = torch.zeros(self.batch, nodes, dtype=torch.long)
        for node in range(1, nodes):
            parent = self.parents[:, node]
            for is_first in (True, False):
                rows = self.every[(parent >= 0) & ((last[self.every, parent] == 0) == is_first)]
                if is_first:
                    tree.first_child[rows, parent[rows]] = node
                else:
                    tree.next_sibling[rows, last[rows, parent[rows]]] = node
            rows = self.every[parent >= 0]
            last[rows, parent[rows]] = node
        return tree

    def verify(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Walks the trees; returns (number of tokens [B], tokens [B, MAX_DEPTH + 1])."""
        nodes, batch = self.budget + 1, self.batch
        verdict = Verdict.allocate(batch, MAX_DEPTH)
        run_op(
            "tree_verify",
            mode="rejection",
            tree=self.token_tree(),
            logit_starts=(self.every * nodes).int(),
            wants_logits=torch.ones(batch, dtype=torch.int32),
            num_seqs=torch.tensor([batch], dtype=torch.int32),
            logits=self.world.target[self.context.reshape(-1)],
            tree_starts=self.tree_starts,
            sampling=SamplingTables(
                temperature=torch.ones(batch),
                top_k=torch.zeros(batch, dtype=torch.int32),
                top_p=torch.ones(batch),
                min_p=torch.zeros(batch),
                seeds=self.seeds,
            ),
            proposal_tokens=self.proposals.reshape(batch * nodes, -1),
            proposal_probs=self.proposal_probs.reshape(batch * nodes, -1),
            verdict=verdict,
        )
        return verdict.num_accepted.long() + 1, verdict.out_tokens.long()


def rejection_tokens(
    world: TableWorld, seeds: torch.Tensor, budget: int, count: int, mistakes: Mistakes = RIGHT
) -> tuple[torch.Tensor, float]:
    """First `count` tokens of every seed, over as many steps as it takes.

    Returns:
        tokens [B, count] int64 and the mean tokens of a first step.
    """
    batch = len(seeds)
    tokens = torch.zeros(batch, count, dtype=torch.long)
    lengths = torch.zeros(batch, dtype=torch.long)
    contexts = torch.zeros(batch, dtype=torch.long)
    mean_tokens = 0.0
    while bool((lengths < count).any()):
        for position in lengths[lengths < count].unique().tolist():
            rows = (lengths == position).nonzero()[:, 0]
            step = Step(world, contexts[rows], seeds[rows], position, budget, mistakes)
            step.grow()
            if mistakes.keeps_best_nodes:
                step.prune(mistakes.keeps_best_nodes)
            emitted, out = step.verify()
            mean_tokens = mean_tokens or float(emitted.float().mean())
            for j in range(MAX_DEPTH + 1):
                here = rows[(emitted > j) & (lengths[rows] + j < count)]
                token = out[(emitted > j) & (lengths[rows] + j < count), j]
                tokens[here, lengths[here] + j] = token
                contexts[here] = contexts[here] * world.vocab + token + 1
            lengths[rows] += emitted
    return tokens, mean_tokens
