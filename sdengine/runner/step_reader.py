"""What the iterations of a step left behind, read at once when the last one is over."""

from __future__ import annotations

from sdengine.kernels.programs.replay_copies import flat_items
from sdengine.runner.flight import Commit, Flight
from sdengine.runner.iteration import Iteration

NO_TOKEN = -1
"""In place of a token: the logits that it was to be drawn from are not finite."""

NO_DRAFT = (0,)
"""Tokens from a draft, and nodes of it, of one iteration that decodes plainly."""


class StepReader:
    """Reads what a step committed. All in one function: between two steps none of its code is in
    the caches, and a call costs as much as what it does.

    Args:
        iteration: whose programs leave it behind.
        has_draft_cache: whether a draft's computed tokens are counted, too.
    """

    def __init__(self, iteration: Iteration, has_draft_cache: bool) -> None:
        workspace, verdict = iteration.workspace, iteration.verdict
        state, memory = workspace.state, workspace.memory
        self._has_draft_cache = has_draft_cache
        self._computed_lens = flat_items(memory.host(state.computed_lens))
        self._draft_computed_lens = flat_items(memory.host(state.draft_computed_lens))
        left = [
            memory.left_behind(tensor)
            for tensor in (
                *(state.pending_lens, verdict.num_accepted),
                *(workspace.token_tree.num_nodes, verdict.out_tokens),
            )
        ]
        self._newest = tuple(tensor.newest for tensor in left)
        self._rows = tuple(tensor.rows for tensor in left)
        self._num_slots, self._most_tokens = verdict.out_tokens.shape

    def read(self, flight: Flight) -> list[Commit]:
        """Reads a step that has landed, and applies it to the computed lengths of those sequences
        that have not ended meanwhile."""
        num_slots, most_tokens = self._num_slots, self._most_tokens
        num_items, row = flight.num_iterations * num_slots, num_slots * most_tokens
        is_single = flight.num_iterations == 1
        is_plain = is_single and not flight.is_drafting
        left = self._newest if is_single else self._rows
        all_pending, all_accepted, all_nodes, out_tokens = left
        commits: list[Commit] = []
        for entry in flight.schedule.scheduled:
            sequence = entry.sequence
            slot = sequence.slot
            if slot < 0:
                continue  # it ended while this step was under way
            sequence.num_computed = self._computed_lens[slot]
            if self._has_draft_cache:
                sequence.num_draft_computed = self._draft_computed_lens[slot]
            if not entry.decodes:
                continue
            if is_plain:  # most single steps: a token each, read without slices
                if all_pending[slot]:
                    tokens = [out_tokens[slot * most_tokens]]
                    commits.append(Commit(sequence, tokens, NO_DRAFT, NO_DRAFT, slot))
                continue
            accepted = all_accepted[slot : slot + num_items : num_slots].tolist()
            pending = all_pending[slot : slot + num_items : num_slots].tolist()
            if not pending[-1]:
                del accepted[pending.index(0) :]  # of iterations after the one that ended it
                if not accepted:
                    continue
            num_run, first = len(accepted), slot * most_tokens
            if flight.is_drafting:
                num_nodes = all_nodes[slot : slot + num_items : num_slots].tolist()
                tokens = []
                for num_accepted in accepted:
                    tokens += out_tokens[first : first + num_accepted + 1].tolist()
                    first += row
                del num_nodes[num_run:]
            else:
                tokens = out_tokens[first : first + num_run * row : row].tolist()
                num_nodes = [0] * num_run
            commit = Commit(sequence, tokens, accepted, num_nodes, slot)
            if num_run > 1 and NO_TOKEN in tokens:
                commit.end_with(tokens.index(NO_TOKEN))
            commits.append(commit)
        return commits
