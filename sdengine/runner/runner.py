"""Runs steps: writes what the host decides into the slots, replays programs, reads what was
committed.

The programs themselves are described once per depth and variant; see `iteration.py`.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from sdengine.core.outputs import StepTree
from sdengine.core.plan import StepPlan, StepReport
from sdengine.core.sequence import Sequence
from sdengine.runner.batch_state import HostView
from sdengine.runner.calibration import Calibrator
from sdengine.runner.iteration import Iteration, Variant
from sdengine.runner.logprobs import append_logprobs
from sdengine.runner.penalties import PenaltyTables
from sdengine.scheduler.scheduler import Schedule, ScheduledSequence

WAKE_US = 200
"""How long a woken worker spins for the program that the host is preparing."""

MAX_STEADY_PENDING = 2
"""Tokens that a draft in step has to compute: the last accepted one, if it was a leaf, and the
root."""
ROOT_ONLY = 2
"""`wants_logits` of a sequence that decodes without a tree."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What a step committed for one sequence.

    Args:
        sequence: whose.
        token_ids: in order; empty while its prompt is being prefilled; a last token of -1 marks
            logits that are not finite.
        num_accepted: how many of them are draft tokens (all but the last).
        num_nodes: draft tokens that were verified.
        logit_rows: row of the step's logits that each token was drawn from; only when logprobs were
            asked for.
        slot: where it ran.
    """

    sequence: Sequence
    token_ids: list[int]
    num_accepted: int
    num_nodes: int
    logit_rows: SequenceOf[int]
    slot: int


class Runner:
    """Steps of one engine.

    Args:
        iteration: describes and replays programs over the engine's buffers.
        pool: native thread pool, woken while the host prepares; None for the reference backend.
    """

    def __init__(self, iteration: Iteration, pool: Any) -> None:
        self.iteration = iteration
        self._pool = pool
        workspace = iteration.workspace
        self._sizes = workspace.sizes
        host = workspace.memory.host
        self._host = HostView(workspace.state, workspace.memory)
        self._thresholds = host(workspace.thresholds)
        self._min_layer_gain = host(workspace.min_layer_gain)
        self._total_budget = host(workspace.total_budget)
        self._stop_tokens = host(workspace.stop_tokens)
        self._num_nodes = host(workspace.token_tree.num_nodes)
        self._cu_logits = host(workspace.cu_logits)
        self._written_blocks = [0] * self._sizes.max_num_seqs
        self._penalties = PenaltyTables(iteration.penalties, workspace.memory)
        verdict = iteration.verdict
        self._num_accepted = host(verdict.num_accepted)
        self._out_tokens = host(verdict.out_tokens)
        self._path = host(verdict.path)
        self._times_ns = host(iteration.times_ns)
        self._calibrator = Calibrator(
            host(workspace.calibration),
            host(verdict.tried),
            host(verdict.accepted),
            by_rank=iteration.verifier.tests_in_order,
        )
        self._has_drafter = iteration.drafter is not None
        self._has_draft_cache = self._has_drafter and iteration.drafter.cache is not None
        self._is_drafting = False
        self._needs_catch_up = False
        self._is_catching_up = False
        self._row_costs: np.ndarray | None = None
        self._draft_layer_s = 0.0
        self._prepared_at = 0.0
        self._finished_at = 0.0
        self.report = StepReport((), 0, 0, 0.0, 0.0, 0.0, False)

    @property
    def pool_capacity_tokens(self) -> int:
        """Tokens that fit into the whole KV cache."""
        return self._sizes.num_blocks * self._sizes.block_size

    def prepare(self, schedule: Schedule) -> int:
        """Writes a schedule into the slots.

        Returns:
            How many sequences decode in this step (draw a token).
        """
        self._prepared_at = perf_counter()
        if self._pool is not None:
            self._pool.prepare(WAKE_US)
        if len(schedule.admitted) == len(schedule.scheduled):
            self._finished_at = 0.0  # nobody was waiting: the time since the last step was idle
        for slot in schedule.preempted_slots:
            self.release(slot)
        for sequence in schedule.admitted:
            self._admit(sequence)
        room = self._sizes.max_batched_tokens
        self._needs_catch_up = self._is_catching_up = False
        num_decoding = 0
        for entry in schedule.scheduled:
            room -= self._prepare_entry(entry, room)
            num_decoding += entry.num_tokens == entry.sequence.num_pending
        return num_decoding

    def run(self, plan: StepPlan) -> None:
        """Runs the iteration: grows trees, passes them through the target, verifies, commits."""
        self._is_drafting = self._has_drafter and plan.depth > 0
        catches_up = False
        if self._is_drafting:
            limits = self._host.depth_limits
            np.minimum(limits, plan.depth, out=limits)
            self._write_prices(plan)
        else:
            catches_up = self._propose_nothing()
        limit = self._row_limit() if self.iteration.has_row_limits else None
        variant = Variant(self._is_drafting, self._penalties.is_needed, catches_up, limit)
        self.iteration.program(variant).replay()

    def commit(self, schedule: Schedule) -> list[Commit]:
        """Reads the step's results and applies them to the sequences' computed lengths."""
        accepted = self._num_accepted.tolist()
        tokens = self._out_tokens.tolist()
        computed = self._host.computed_lens.tolist()
        draft_computed = self._host.draft_computed_lens.tolist()
        nodes = self._num_nodes.tolist() if self._is_drafting else None
        commits = []
        for entry in schedule.scheduled:
            sequence, slot = entry.sequence, entry.sequence.slot
            sequence.num_computed = computed[slot]
            sequence.num_draft_computed = draft_computed[slot]
            if self._host.wants_logits[slot]:
                num_nodes = nodes[slot] if nodes is not None else 0
                committed = tokens[slot][: accepted[slot] + 1]
                commits.append(self._commit_of(sequence, committed, num_nodes))
        self._finish_step(schedule, commits)
        return commits

    def record_logprobs(self, commit: Commit, num_tokens: int, codec: Any) -> None:
        """Adds the target's log-probabilities of the first `num_tokens` committed tokens."""
        if commit.sequence.logprobs is not None:
            append_logprobs(
                commit.sequence,
                commit.token_ids[:num_tokens],
                self.iteration.workspace.logits[list(commit.logit_rows[:num_tokens])],
                codec,
            )

    def step_tree(self, commit: Commit) -> StepTree:
        """The tree of a sequence in the last step; `commit` must be one of that step's."""
        slot, end = commit.slot, commit.num_nodes + 1
        tree = self.iteration.workspace.token_tree
        return StepTree(
            token_ids=tree.tokens[slot, 1:end].tolist(),
            parents=(tree.parents[slot, 1:end] - 1).tolist(),
            accepted=(self._path[slot, : commit.num_accepted] - 1).tolist(),
            own_token_id=commit.token_ids[-1],
        )

    def num_shareable(self, sequence: Sequence) -> int:
        """Tokens whose keys and values are in every cache that a later request would need."""
        if not self._has_draft_cache:
            return sequence.num_computed
        return min(sequence.num_computed, sequence.num_draft_computed)

    def release(self, slot: int) -> None:
        """Empties a slot; nothing to do for a sequence that never ran."""
        if slot >= 0:
            self._host.release(slot)
            self._penalties.release(slot)
            self._written_blocks[slot] = 0

    def _row_limit(self) -> int | None:
        """Rows for which this step needs a program: its passes have no more."""
        host, sizes = self._host, self._sizes
        num_rows = int(host.pending_lens.sum())
        if self._has_draft_cache:
            num_rows = max(num_rows, int(host.draft_pending_lens.sum()))
        if self._is_drafting:
            num_trees = int(np.count_nonzero(host.node_budgets))
            num_rows = max(num_rows + num_trees * sizes.max_nodes, num_trees * sizes.max_width)
        return self.iteration.row_limit(num_rows)

    def _propose_nothing(self) -> bool:
        """Every root stands alone. The draft only follows prompts, so that later steps can draft;
        returns whether it does."""
        self._host.wants_logits *= ROOT_ONLY
        if self._has_draft_cache and self._needs_catch_up:
            return True
        self._host.draft_pending_lens[:] = 0
        return False

    def _admit(self, sequence: Sequence) -> None:
        slot = sequence.slot
        self._host.admit(sequence)
        self._penalties.admit(sequence)
        self._calibrator.assign(slot, sequence.params)
        stops = sorted(sequence.stop_token_ids)[: self._stop_tokens.shape[1]]
        self._stop_tokens[slot] = -1
        self._stop_tokens[slot, : len(stops)] = stops

    def _prepare_entry(self, entry: ScheduledSequence, room: int) -> int:
        """Writes one sequence's part; returns the draft rows it takes of `room`."""
        sequence, host = entry.sequence, self._host
        slot = sequence.slot
        if len(sequence.block_table) != self._written_blocks[slot]:
            self._host.set_blocks(slot, sequence.block_table)
            self._written_blocks[slot] = len(sequence.block_table)
        decodes = entry.num_tokens == sequence.num_pending
        host.pending_lens[slot] = entry.num_tokens
        host.wants_logits[slot] = decodes
        host.max_emit[slot] = sequence.max_total_tokens - sequence.num_tokens
        if not self._has_drafter:
            return 0
        end = sequence.num_computed + entry.num_tokens
        pending = min(end - sequence.num_draft_computed, room)
        drafts = decodes and entry.can_draft and sequence.num_draft_computed + pending == end
        # A tree below the last token that may still be emitted would be cut off: depth is capped.
        depth = host.max_emit[slot] - 1 if drafts else 0
        host.draft_pending_lens[slot] = pending
        host.draft_wants_logits[slot] = depth > 0
        host.node_budgets[slot] = self._sizes.max_nodes if depth > 0 else 0
        host.depth_limits[slot] = min(depth, self._sizes.max_depth)
        self._needs_catch_up |= not decodes
        self._is_catching_up |= pending > MAX_STEADY_PENDING
        return pending

    def _write_prices(self, plan: StepPlan) -> None:
        self._total_budget[0] = plan.max_batch_nodes
        if plan.costs is not None:
            self._row_costs = plan.costs.row_costs(self._sizes.max_target_rows)
            self._draft_layer_s = plan.costs.draft_layer_s
        if self._row_costs is None or plan.tokens_per_s == 0.0:
            self._thresholds[:] = 0.0
            self._min_layer_gain[0] = 0.0
        else:
            self._thresholds[:] = self._row_costs * plan.tokens_per_s
            self._min_layer_gain[0] = self._draft_layer_s * plan.tokens_per_s

    def _commit_of(self, sequence: Sequence, tokens: list[int], num_nodes: int) -> Commit:
        num_accepted = len(tokens) - 1
        rows: list[int] = []
        if sequence.logprobs is not None:
            first = int(self._cu_logits[sequence.slot])
            path = self._path[sequence.slot, :num_accepted].tolist()
            rows = [first, *(first + node for node in path)]
        return Commit(sequence, tokens, num_accepted, num_nodes, rows, sequence.slot)

    def _finish_step(self, schedule: Schedule, commits: list[Commit]) -> None:
        start_ns, proposed_ns, end_ns = self._times_ns.tolist()
        draft_s, verify_s = (proposed_ns - start_ns) * 1e-9, (end_ns - proposed_ns) * 1e-9
        now = perf_counter()
        since_last = now - (self._finished_at or self._prepared_at)
        self._finished_at = now if len(schedule.scheduled) else 0.0
        other_s = max(since_last - draft_s - verify_s, 0.0)
        for commit in commits:
            sequence = commit.sequence
            sequence.draft_time_s += draft_s
            sequence.verify_time_s += verify_s
            sequence.other_time_s += other_s
        num_nodes = sum(commit.num_nodes for commit in commits)
        num_pending = sum(entry.num_tokens for entry in schedule.scheduled)
        self.report = StepReport(
            num_accepted=[commit.num_accepted for commit in commits],
            num_nodes=num_nodes,
            num_rows=num_pending + num_nodes,
            draft_time_s=draft_s,
            verify_time_s=verify_s,
            step_s=now - self._prepared_at,
            is_steady=num_pending == len(commits)
            and not (self._is_drafting and self._is_catching_up),
        )
        if self._is_drafting:
            self._calibrator.observe()
