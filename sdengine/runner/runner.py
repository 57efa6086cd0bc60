"""Runs steps: writes what the host decides into the slots, starts programs, reads what was
committed.

The programs themselves are described once per variant; see `iteration.py`. A step that is started
before the last one was read (`after`) gets everything that depends on that one's results from the
device itself.
"""

from __future__ import annotations

from typing import Any

from sdengine.core.outputs import StepTree
from sdengine.core.plan import Outlook, StepPlan, StepReport
from sdengine.core.sequence import Sequence
from sdengine.core.spent_time import SpentTime
from sdengine.kernels.acceptance_fit import AcceptanceTables, NativeAcceptanceTables
from sdengine.kernels.programs.limits import NO_LIMITS
from sdengine.kernels.programs.memory import StagedMemory
from sdengine.kernels.programs.replay_copies import flat_items
from sdengine.kernels.row_prices import native_row_prices, write_row_prices
from sdengine.runner.batch_state import HostView
from sdengine.runner.calibration import Calibrator
from sdengine.runner.demand import Demand
from sdengine.runner.flight import Commit, Flight
from sdengine.runner.iteration import Iteration
from sdengine.runner.logprobs import LogprobTables, TokenText
from sdengine.runner.penalties import PenaltyTables
from sdengine.runner.prices import Prices
from sdengine.runner.schedule_writer import ScheduleWriter
from sdengine.runner.step_clock import StepClock
from sdengine.runner.step_reader import StepReader
from sdengine.runner.variant import Variant
from sdengine.scheduler.scheduler import Schedule, ScheduledSequence

WAKE_US = 200
"""How long a woken worker spins for the program that the host is preparing."""

MAX_STEADY_PENDING = 2
"""Tokens that a draft in step has to compute: the last accepted one, if it was a leaf, and the
root."""


class Runner:
    """Steps of one engine.

    Args:
        iteration: describes and replays programs over the engine's buffers.
        pool: native thread pool, woken while the host prepares; None for the reference backend.
        calibrates: whether acceptance estimates are fitted to what was accepted.
    """

    def __init__(self, iteration: Iteration, pool: Any, *, calibrates: bool = True) -> None:
        self.iteration = iteration
        self._pool = pool
        workspace = iteration.workspace
        self._sizes = workspace.sizes
        host = workspace.memory.host
        self._memory = workspace.memory
        self._host = HostView(workspace.state, workspace.memory)
        is_native = iteration.backend == "cpu"
        self._prices = Prices(workspace, native_row_prices() if is_native else write_row_prices)
        self._depth_limit = flat_items(host(workspace.depth_limit))
        self._node_limit = flat_items(host(workspace.node_limit))
        self._min_running = flat_items(host(workspace.min_running))
        self._is_balanced = flat_items(host(workspace.is_balanced))
        self._stop_tokens = host(workspace.stop_tokens)
        self._tree_tokens = host(workspace.token_tree.tokens)
        self._tree_parents = host(workspace.token_tree.parents)
        self._writer = ScheduleWriter(self._host, self._sizes.max_num_seqs)
        self._most_missing = [0] * self._sizes.max_num_seqs
        self._penalties = PenaltyTables(workspace.penalties, workspace.memory)
        self._logprobs = LogprobTables(iteration.logprobs, workspace.memory)
        self._filtered_slots: set[int] = set()  # with top-k, top-p or min-p, if the drafter minds
        verdict = iteration.verdict
        self._path = host(verdict.path)
        make_tables = NativeAcceptanceTables if is_native else AcceptanceTables
        self._calibrator = Calibrator(
            make_tables(
                host(workspace.calibration),
                host(verdict.tried),
                host(verdict.accepted),
                by_rank=iteration.verifier.draws_children,
            )
        )
        self._calibrates = calibrates
        # Whether a step runs while the host does something else.
        self.runs_ahead = isinstance(workspace.memory, StagedMemory)
        self._has_drafter = iteration.drafter is not None
        self._has_draft_cache = self._has_drafter and iteration.drafter.cache is not None
        self._uses_filters = self._has_drafter and iteration.drafter.uses_filters
        self._reader = StepReader(iteration, self._has_draft_cache)
        self._clock = StepClock(
            self._memory.left_behind(iteration.times_ns),
            self._memory.left_behind(workspace.layer_ends_ns),
            iteration.recording_s,
        )
        self._num_missing = self._longest_missing = 0  # draft tokens of the step that is prepared
        self._most_ahead = 0  # tokens that the step under way may add to each
        self._prepared_at = 0.0
        self.reports = [StepReport((), 0, 0, 0.0, 0.0, 0.0, False)]  # of the last step

    @property
    def pool_capacity_tokens(self) -> int:
        """Tokens that fit into the whole KV cache."""
        return self._sizes.num_blocks * self._sizes.block_size

    @property
    def spent(self) -> SpentTime:
        """Time of the steps so far that committed tokens."""
        return self._clock.spent

    def can_follow(self, flight: Flight) -> bool:
        """Whether the next step can be started before `flight` is read: its draft is not left
        behind by an unknown part."""
        return flight.num_missing <= self._sizes.max_batched_tokens

    def prepare(self, schedule: Schedule, after: Flight | None = None) -> int:
        """Writes a schedule into the slots.

        Args:
            schedule: the next step.
            after: the step that it is to follow while that is under way.

        Returns:
            How many sequences decode in this step (draw a token).
        """
        self._prepared_at = self._clock.begin(schedule)
        if self._pool is not None:
            self._pool.prepare(WAKE_US)
        for slot in schedule.preempted_slots:
            self.release(slot)
        for sequence in schedule.admitted:
            self._admit(sequence)
        self._writer.write(schedule, is_ahead=after is not None)
        if self.runs_ahead and self._has_draft_cache:
            self._count_missing(schedule, after)  # from step to step; else it can be looked up
        self._most_ahead = 0 if after is None else after.max_tokens
        return self._writer.num_decoding

    def outlook(self, schedule: Schedule) -> Outlook:
        """What the sequences of a schedule, prepared, have before them."""
        entries = schedule.scheduled
        backlog = 0
        if self._has_draft_cache:
            if not self.runs_ahead:
                self._count_missing(schedule)
            backlog = sum(self._most_missing[entry.sequence.slot] for entry in entries)
        decoding = [entry.sequence for entry in entries if entry.decodes]
        left = sum(sequence.max_total_tokens - sequence.num_tokens for sequence in decoding)
        return Outlook(backlog, left / max(len(decoding), 1))

    def most_in_a_row(self, schedule: Schedule, limit: int, seconds: float) -> int:
        """How many iterations may follow one another, the first one being that of `schedule`: 1
        where the host has to read each of them, or so many of those that were last seen that they
        fit into `seconds`."""
        if self.runs_ahead or any(self._is_watched(e.sequence) for e in schedule.scheduled):
            return 1
        return max(int(min(limit, seconds / self._clock.iteration_s)), 1)

    def _is_watched(self, sequence: Sequence) -> bool:
        """Whether the host alone can tell when the sequence ends; what came after that would be in
        vain, and cost others time."""
        num_stops, num_known_stops = len(sequence.stop_token_ids), self._stop_tokens.shape[1]
        return bool(sequence.params.stop_strings) or num_stops > num_known_stops

    @property
    def max_step_tokens(self) -> int:
        """Most tokens that an iteration commits of a sequence."""
        return self._sizes.max_depth + 1

    def start(self, schedule: Schedule, plan: StepPlan, num_iterations: int = 1) -> Flight:
        """Starts the iteration that was prepared: grows trees, passes them through the target,
        verifies, commits; and at most so many in a row. On a CPU they are over when this
        returns."""
        scheduled = schedule.scheduled
        is_drafting = self._has_drafter and plan.depth > 0
        catches_up = (
            not is_drafting and self._has_draft_cache and self._writer.num_decoding < len(scheduled)
        )
        is_following = self._has_draft_cache and (is_drafting or catches_up)
        if is_following and not self.runs_ahead:
            self._count_missing(schedule)
        if is_drafting:
            self._depth_limit[0] = min(plan.depth, self._sizes.max_depth)
            self._node_limit[0] = min(plan.max_seq_nodes, self._sizes.max_nodes)
            # Who waits gets the place of whoever ends first: then the sum of all is what counts.
            self._is_balanced[0] = not schedule.has_waiting
            self._prices.write(plan)
            if self._calibrates:
                # Estimates change after the same steps however many the clock lets follow one
                # another, so the same requests grow the same trees.
                num_iterations = min(num_iterations, self._calibrator.steps_to_refresh)
        flight = Flight(
            schedule,
            plan,
            num_iterations,
            is_drafting,
            is_following,
            num_missing=self._num_missing if is_following else 0,
            is_catching_up=is_drafting and self._longest_missing > MAX_STEADY_PENDING,
            num_tokens=self._writer.num_tokens,
            prepared_at=self._prepared_at,
        )
        # An iteration in which anybody's place became free would keep it from those who wait.
        is_awaited = num_iterations > 1 and schedule.has_waiting
        self._min_running[0] = len(scheduled) if is_awaited else 0
        is_sized = self.iteration.is_on_device
        limits = self.iteration.limits(self._demand(flight)) if is_sized else NO_LIMITS
        variant = Variant(
            is_drafting,
            self._penalties.is_needed,
            catches_up,
            self._logprobs.is_needed,
            is_drafting and bool(self._filtered_slots),
            limits,
        )
        flight.num_iterations = self.iteration.program(variant).start(num_iterations)
        return flight

    def land(self, flight: Flight) -> list[Commit]:
        """Waits for the first step that was started and not read, and applies its results to the
        computed lengths of those sequences that have not ended meanwhile."""
        if self.runs_ahead:
            self._memory.land()
        commits = self._reader.read(flight)
        self.reports = self._clock.end(flight, commits, self.iteration.recording_s)
        if flight.is_drafting and self._calibrates:
            self._calibrator.observe(len(self.reports))
        return commits

    def drain(self) -> None:
        """Waits for whatever is under way; nobody needs its results."""
        self._memory.drain()

    def record_logprobs(self, commit: Commit, codec: TokenText | None) -> None:
        """Adds the target's log-probabilities of the newest tokens of a sequence of the last step
        that asks for them."""
        self._logprobs.append(commit.sequence, commit.slot, codec)

    def step_tree(self, commit: Commit) -> StepTree:
        """The tree of a sequence in the last step; `commit` must be one of that step's."""
        slot, end = commit.slot, commit.num_nodes[-1] + 1
        return StepTree(
            token_ids=self._tree_tokens[slot, 1:end].tolist(),
            parents=(self._tree_parents[slot, 1:end] - 1).tolist(),
            accepted=(self._path[slot, : commit.num_accepted[-1]] - 1).tolist(),
            own_token_id=commit.token_ids[-1],
        )

    def release(self, slot: int) -> None:
        """Empties a slot; nothing to do for a sequence that never ran."""
        if slot >= 0:
            self._host.release(slot)
            self._penalties.release(slot)
            self._logprobs.release(slot)
            self._filtered_slots.discard(slot)
            self._writer.release(slot)

    def release_all(self) -> None:
        """Empties every slot."""
        for slot in range(self._sizes.max_num_seqs):
            self.release(slot)

    def _demand(self, flight: Flight) -> Demand:
        """The most that a step comes to."""
        entries = flight.schedule.scheduled
        num_trees = num_nodes = depth = 0
        if flight.is_drafting:
            depth = min(flight.plan.depth, self._sizes.max_depth)
            num_trees = sum(entry.decodes and entry.can_draft for entry in entries)
            most = min(flight.plan.max_seq_nodes, self._sizes.max_nodes)
            num_nodes = min(num_trees * most, flight.plan.max_batch_nodes)
        return Demand(
            num_tokens=flight.num_tokens,
            num_seqs=len(entries),
            num_keys=max(map(self._num_keys, entries), default=1),
            num_trees=num_trees,
            num_nodes=num_nodes,
            num_missing=flight.num_missing if flight.is_following else None,
            depth=depth,
        )

    def _num_keys(self, entry: ScheduledSequence) -> int:
        """Most tokens of a sequence when its next step has computed those that are pending."""
        sequence = entry.sequence
        if self._most_ahead:
            return sequence.num_tokens + self._most_ahead
        return sequence.num_computed + entry.num_tokens

    def _admit(self, sequence: Sequence) -> None:
        slot = sequence.slot
        self._host.admit(sequence)
        self._penalties.admit(sequence)
        self._logprobs.admit(sequence)
        if self._uses_filters and sequence.params.has_filters:
            self._filtered_slots.add(slot)
        self._calibrator.assign(slot, sequence.params)
        stops = sorted(sequence.stop_token_ids)[: self._stop_tokens.shape[1]]
        self._stop_tokens[slot] = -1
        self._stop_tokens[slot, : len(stops)] = stops

    def _count_missing(self, schedule: Schedule, after: Flight | None = None) -> None:
        """Notes how many tokens the draft's cache lacks of every sequence, at most."""
        total = longest = 0
        for entry in schedule.scheduled:
            sequence = entry.sequence
            if after is None:
                end = sequence.num_computed + entry.num_tokens
                missing = end - sequence.num_draft_computed
            elif after.is_following:
                missing = MAX_STEADY_PENDING
            else:
                missing = self._most_missing[sequence.slot] + 1  # what a plain step commits
            self._most_missing[sequence.slot] = missing
            total += missing
            if missing > longest:
                longest = missing
        self._num_missing, self._longest_missing = total, longest
