"""Decodes with a TreeLab, step by step, and counts what every step commits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.tree_methods.lab import TreeLab
from sdengine.core.sampling_params import SamplingParams
from sdengine.kernels.token_tree import ROOT_AND_NODES
from sdengine.runner.verifier import walk_results

__all__ = ["CoupledWalk", "RejectionWalk", "decode", "plain_texts"]


def plain_texts(
    lab: TreeLab, prompts: Sequence[Sequence[int]], params: SamplingParams
) -> list[list[int]]:
    """The target's own continuation of every prompt, prompts included: `params.max_tokens` tokens,
    drawn with the noise of the coupled walk."""
    lab.start(prompts, params)
    slots = range(len(prompts))
    for _ in range(params.max_tokens):
        lab.score(slots)
        for slot, token in zip(slots, lab.iteration.verdict.out_tokens[:, 0].tolist()):
            lab.tokens[slot].append(token)
    return [list(tokens) for tokens in lab.tokens]


def decode(
    lab: TreeLab,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    texts: Sequence[Sequence[int]] | None = None,
    *,
    is_replayed: bool = False,
) -> list[list[int]]:
    """Decodes until every sequence has `params.max_tokens` new tokens.

    Args:
        lab: coupled or rejection.
        prompts: token ids, one per slot.
        params: temperature, seed, max_tokens.
        texts: what the target says (`plain_texts`), needed and used by the coupled walk; with room
            for a whole tree behind max_tokens.
        is_replayed: a rejection walk commits as many tokens as it accepts, but those of `texts`. So
            all methods meet the same contexts; which text a method happens to sample matters more
            than what it does with it.

    Returns:
        Tokens committed by each step, by sequence.
    """
    is_coupled = not lab.growth.is_rejection or params.is_greedy
    is_given = is_coupled or is_replayed
    assert not is_given or texts is not None, "the walk follows the target's text"
    walk = CoupledWalk(lab, texts or ()) if is_coupled else RejectionWalk(lab)
    lab.start(prompts, params)
    ends = [len(prompt) + params.max_tokens for prompt in prompts]
    committed: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    while active:
        known = [len(tokens) for tokens in lab.tokens]
        lab.grow(active)
        for slot, count in zip(active, walk.step(active)):
            committed[slot].append(count)
            if is_replayed and not is_coupled:
                lab.force(slot, (texts or ())[slot][: known[slot] + count], known[slot])
        lab.calibrator.observe()
        active = [slot for slot in active if len(lab.tokens[slot]) < ends[slot]]
    return committed


class CoupledWalk:
    """The target's tokens are known beforehand: no tree changes them."""

    def __init__(self, lab: TreeLab, texts: Sequence[Sequence[int]]) -> None:
        self._lab = lab
        self._texts = [torch.tensor(text, dtype=torch.int32) for text in texts]
        batch, nodes = lab.sizes.max_num_seqs, lab.sizes.max_nodes + 1
        self._target_tokens = torch.zeros(batch, nodes, dtype=torch.int32)
        self._walks = torch.zeros(batch, dtype=torch.int32)
        self._program = lab.program()
        self._program.launch(
            "tree_verify",
            mode="coupled",
            logit_starts=torch.arange(batch, dtype=torch.int32) * nodes,
            wants_logits=self._walks,
            target_tokens=self._target_tokens.view(-1),
            **walk_results(lab.workspace, lab.iteration.verdict),
        )

    def step(self, slots: Sequence[int]) -> list[int]:
        """Walks the trees of these slots; returns what each committed."""
        lab, depths = self._lab, self._lab.workspace.token_tree.depths
        self._walks.zero_()
        for slot in slots:
            self._walks[slot] = ROOT_AND_NODES
            end = int(lab.workspace.token_tree.num_nodes[slot]) + 1
            places = len(lab.tokens[slot]) + depths[slot, :end].long()
            self._target_tokens[slot, :end] = self._texts[slot][places]
        self._program.replay()
        committed = (lab.iteration.verdict.num_accepted + 1).tolist()
        for slot in slots:
            start = len(lab.tokens[slot])
            lab.tokens[slot] += self._texts[slot][start : start + committed[slot]].tolist()
        return [committed[slot] for slot in slots]


class RejectionWalk:
    """The walk is repeated while it reaches nodes that the target has not scored yet: its coins are
    keyed, so that what was decided before is decided again."""

    def __init__(self, lab: TreeLab) -> None:
        self._lab = lab
        batch, self._stride = lab.sizes.max_num_seqs, lab.sizes.max_nodes + 1
        proposals = lab.drafter.proposals
        self._logits = torch.zeros(batch * self._stride, lab.sizes.vocab_size)
        self._tree_starts = torch.zeros(batch, dtype=torch.int32)
        self._walks = torch.zeros(batch, dtype=torch.int32)
        self._program = lab.program()
        self._program.launch(
            "tree_verify",
            mode="rejection",
            logit_starts=torch.arange(batch, dtype=torch.int32) * self._stride,
            wants_logits=self._walks,
            logits=self._logits,
            tree_starts=self._tree_starts,
            sampling=lab.workspace.state.sampling,
            proposal_tokens=proposals.tokens,
            proposal_probs=proposals.probs,
            **walk_results(lab.workspace, lab.iteration.verdict),
        )

    def step(self, slots: Sequence[int]) -> list[int]:
        """Walks the trees of these slots; returns what each committed."""
        lab, verdict = self._lab, self._lab.iteration.verdict
        self._walks.zero_()
        for slot in slots:
            self._walks[slot] = ROOT_AND_NODES
            self._tree_starts[slot] = len(lab.tokens[slot])
        tried, accepted = verdict.tried.clone(), verdict.accepted.clone()
        nodes = {slot: [0] for slot in slots}  # visited and scored, from the root
        moving = list(slots)
        while moving:
            rows = lab.score(moving)
            for slot, row in zip(moving, rows):
                self._logits[slot * self._stride + nodes[slot][-1]] = row
            verdict.tried.copy_(tried)
            verdict.accepted.copy_(accepted)
            self._program.replay()
            moving = [slot for slot in moving if self._advance(slot, nodes[slot])]
        for slot in slots:
            last = int(verdict.num_accepted[slot])
            lab.tokens[slot].append(int(verdict.out_tokens[slot, last]))
        return [len(nodes[slot]) for slot in slots]

    def _advance(self, slot: int, nodes: list[int]) -> bool:
        """Appends the next accepted node; False when the walk ends at the last scored one."""
        verdict = self._lab.iteration.verdict
        done = len(nodes) - 1
        if int(verdict.num_accepted[slot]) == done:
            return False
        nodes.append(int(verdict.path[slot, done]))
        self._lab.tokens[slot].append(int(verdict.out_tokens[slot, done]))
        return True
