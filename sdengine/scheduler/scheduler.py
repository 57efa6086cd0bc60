"""Admission, chunked prefill, preemption and finishing: who runs in the next step, and with how
many tokens.

Two queues and one limit per line. Never touches a tensor. Running sequences come first, oldest
first; prompts are prefilled in chunks beside them; when blocks run out, tree room is given up first
and then the youngest sequence is preempted: its blocks are freed and its tokens recomputed later.

On a device a step may be scheduled while the one before it runs (`schedule_ahead`). What a sequence
leaves behind while a step is under way is held until that step has ended (`hold`, `let_go`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from sdengine.cache.block_pool import BlockPool
from sdengine.core.outputs import FinishReason
from sdengine.core.sequence import Sequence, SequenceStatus


@dataclass(slots=True)
class ScheduledSequence:
    """One sequence's part in a step.

    Args:
        sequence: who.
        num_tokens: pending tokens to compute in this step (a chunk of the prompt, or 1).
        decodes: whether these are all, so that the step draws a token.
        can_draft: whether blocks for a tree are reserved.
    """

    sequence: Sequence
    num_tokens: int
    decodes: bool
    can_draft: bool


@dataclass(slots=True)
class Schedule:
    """A step: who runs, who joined, which slots were taken back, which of their blocks, whether
    others wait for a place, and who got blocks since this schedule was last handed out."""

    scheduled: list[ScheduledSequence] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    preempted_slots: list[int] = field(default_factory=list)
    shrunk_slots: list[int] = field(default_factory=list)
    has_waiting: bool = False
    grown: list[Sequence] = field(default_factory=list)


class Scheduler:
    """Continuous batching over fixed slots.

    Args:
        pool: blocks of the KV cache.
        max_num_seqs: slots.
        max_num_batched_tokens: most pending tokens per step.
        tree_room: logical KV slots that a tree may use beyond the committed tokens.
    """

    def __init__(
        self, pool: BlockPool, max_num_seqs: int, max_num_batched_tokens: int, tree_room: int
    ) -> None:
        self.pool = pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._tree_room = tree_room
        self._free_slots: list[int] = []
        self._held: list[tuple[int, list[int]]] = []
        self._steady: Schedule | None = None
        self.reset()

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that no sequence has, those included that are held."""
        if not self._held:
            return self.pool.num_free
        held = {block for _, blocks in self._held for block in blocks}
        in_use = {block for sequence in self.running for block in sequence.block_table}
        return self.pool.num_free + len(held - in_use)

    def add(self, *sequences: Sequence) -> None:
        """Queues sequences behind those already waiting, all at once."""
        self.waiting.extend(sequences)

    def has(self, sequence: Sequence) -> bool:
        """Whether it waits or runs."""
        return sequence in self.waiting or sequence in self.running

    def has_unfinished(self) -> bool:
        """Whether anyone waits or runs."""
        return bool(self.running or self.waiting)

    def schedule(self) -> Schedule:
        """Decides the next step and reserves its blocks. It is the very object of the step before
        as long as the same sequences decode and nothing else happens."""
        if self._steady is not None and not self.waiting and self._can_repeat(self._steady):
            return self._steady
        step = Schedule()
        budget = self._max_num_batched_tokens - len(self.running)  # not negative: a row for each
        block_size, tree_room = self.pool.block_size, self._tree_room
        for sequence in list(self.running):
            if sequence.status is not SequenceStatus.RUNNING:
                continue  # preempted for an older one in this very loop
            num_tokens, num_slots = len(sequence.token_ids), len(sequence.block_table) * block_size
            extra = num_tokens - sequence.num_computed - 1
            if extra == 0 and num_tokens + tree_room <= num_slots:
                # Most steps: it decodes, in the blocks that it has.
                step.scheduled.append(ScheduledSequence(sequence, 1, True, True))
                continue
            extra = min(extra, budget)
            entry = self._reserve(sequence, 1 + extra, step)
            if entry is not None:
                budget -= extra
                step.scheduled.append(entry)
        if self.waiting:
            if not step.preempted_slots:
                self._admit(step, budget)
            step.has_waiting = bool(self.waiting)
        self._steady = step if self._is_steady(step) else None
        return step

    def schedule_ahead(self, running: Schedule, max_tokens: int) -> Schedule | None:
        """Decides the step after `running`, which has not ended: one in which its sequences decode.

        Args:
            running: the step under way.
            max_tokens: most tokens that it commits of a sequence.

        Returns:
            None when it has to end first: a sequence may join, a prompt goes on, blocks for the
            longest outcome and a tree are not to be had, or no sequence can go on.
        """
        if self.waiting and (self._free_slots or self._held):
            return None
        entries = [entry for entry in running.scheduled if not entry.sequence.is_finished]
        if len(entries) != len(self.running) or not all(entry.decodes for entry in entries):
            return None
        step = Schedule(has_waiting=bool(self.waiting))
        for entry in entries:
            sequence = entry.sequence
            if sequence.num_tokens + 1 >= sequence.max_total_tokens:
                continue  # ends with the first token of the step under way
            if not self._grow(sequence, self._slots_ahead(sequence, max_tokens)):
                return None
            step.scheduled.append(ScheduledSequence(sequence, 1, True, True))
        return step if step.scheduled else None

    def num_in_a_row(self, step: Schedule, most: int, max_tokens: int) -> int:
        """How many iterations may follow one another before the next schedule, and their blocks.

        Args:
            step: the first one.
            most: of them.
            max_tokens: most tokens that one commits of a sequence.

        Returns:
            1 when a sequence joins or may do so, or a prompt goes on; otherwise `most`, or as many
            as the longest sequence lasts at a token each, or as there are blocks for the longest
            outcome and trees.
        """
        if not step.scheduled or step.admitted or (self.waiting and self._free_slots):
            return 1
        longest = 0
        for entry in step.scheduled:
            sequence = entry.sequence
            if entry.num_tokens > 1 or not entry.decodes:
                return 1
            longest = max(longest, sequence.max_total_tokens - sequence.num_tokens)
        most = min(most, longest)
        while most > 1 and not self._are_ahead(step, most * max_tokens):
            most //= 2
        if most > 1:
            for entry in step.scheduled:
                slots = self._slots_ahead(entry.sequence, most * max_tokens)
                self._grow(entry.sequence, slots)
                step.grown.append(entry.sequence)
        return max(most, 1)

    def hold(self) -> None:
        """A step is under way: keeps the slots and blocks that sequences leave until `let_go`."""
        self._is_holding = True

    def let_go(self) -> None:
        """No step is under way that knows of what is held: frees it."""
        self._is_holding = False
        for slot, blocks in self._held:
            self.pool.free(blocks)
            self._free_slots.append(slot)
        self._held.clear()

    def finish(
        self, sequence: Sequence, reason: FinishReason, stop_reason: str | int | None = None
    ) -> None:
        """Ends a sequence, wherever it is, and frees its blocks."""
        # An interrupt may have left it in neither, whatever its status says.
        if sequence in self.running:
            self._leave(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason
        sequence.stop_reason = stop_reason

    def reset(self) -> None:
        """Forgets every sequence and what all blocks hold, in whatever state it is."""
        self.pool.reset()
        self.waiting.clear()
        self.running.clear()
        self._free_slots = list(range(self._max_num_seqs - 1, -1, -1))
        self._is_holding = False
        self._held.clear()
        self._steady = None

    def _is_steady(self, step: Schedule) -> bool:
        """Whether the next step is the same unless somebody comes, ends or runs out of blocks."""
        entries = step.scheduled
        if step.admitted or step.shrunk_slots or step.has_waiting:
            return False
        if len(entries) != len(self.running):
            return False
        return all(e.num_tokens == 1 and e.decodes and e.can_draft for e in entries)

    def _can_repeat(self, step: Schedule) -> bool:
        """Reserves the blocks of a step once more; False: who gets them has to be decided."""
        block_size, tree_room = self.pool.block_size, self._tree_room
        step.grown.clear()
        for entry in step.scheduled:
            sequence = entry.sequence
            end = len(sequence.token_ids) + tree_room
            if end > len(sequence.block_table) * block_size:
                if not self._grow(sequence, end):
                    return False
                step.grown.append(sequence)
        return True

    def _publish(self, sequence: Sequence) -> None:
        """Lets later requests reuse its full blocks."""
        # Tokens that were computed and cut off at the end are nobody's.
        num_known, size, table = sequence.num_tokens, self.pool.block_size, sequence.block_table
        full = min(sequence.num_computed, num_known) // size
        if full > sequence.num_hashed_blocks:
            self.pool.publish(sequence.token_ids, table, sequence.num_hashed_blocks, full)
            sequence.num_hashed_blocks = full
        drafted = min(sequence.num_draft_computed, num_known) // size
        if drafted > sequence.num_drafted_blocks:
            self.pool.mark_drafted(table[sequence.num_drafted_blocks : drafted])
            sequence.num_drafted_blocks = drafted

    def _admit(self, step: Schedule, budget: int) -> None:
        if self._free_slots and budget > 0:
            for sequence in self.running:
                self._publish(sequence)
        while self.waiting and self._free_slots and budget > 0:
            sequence = self.waiting[0]
            if self._waits_for_twin(sequence):
                break
            sequence.block_table = self.pool.match_prefix(sequence.token_ids)
            reused = len(sequence.block_table)
            drafted = self.pool.num_drafted(sequence.block_table)
            sequence.num_computed = reused * self.pool.block_size
            sequence.num_draft_computed = drafted * self.pool.block_size
            sequence.num_hashed_blocks, sequence.num_drafted_blocks = reused, drafted
            num_tokens = min(sequence.num_pending, budget)
            end = sequence.num_computed + num_tokens
            if not self._grow_at_cost_of_trees(sequence, end, step):
                self.pool.free(sequence.block_table)
                sequence.release()
                break
            self.waiting.popleft()
            sequence.slot = self._free_slots.pop()
            sequence.status = SequenceStatus.RUNNING
            self.running.append(sequence)
            step.admitted.append(sequence)
            can_draft = self._grow(sequence, end + self._tree_room)
            decodes = num_tokens == sequence.num_pending
            step.scheduled.append(ScheduledSequence(sequence, num_tokens, decodes, can_draft))
            budget -= num_tokens

    def _waits_for_twin(self, sequence: Sequence) -> bool:
        """A further completion of a request waits until the first one's prompt can be shared."""
        return sequence.index > 0 and any(
            other.request_id == sequence.request_id and other.num_pending > 1
            for other in self.running
        )

    def _reserve(
        self, sequence: Sequence, num_tokens: int, step: Schedule
    ) -> ScheduledSequence | None:
        end = sequence.num_computed + num_tokens
        decodes = end == sequence.num_tokens
        if self._grow(sequence, end + self._tree_room):
            return ScheduledSequence(sequence, num_tokens, decodes, True)
        while not self._grow_at_cost_of_trees(sequence, end, step):
            victim = self.running[-1]
            self._preempt(victim, step)
            if victim is sequence:
                return None
        return ScheduledSequence(sequence, num_tokens, decodes, False)

    def _grow_at_cost_of_trees(self, sequence: Sequence, num_slots: int, step: Schedule) -> bool:
        """Blocks for committed tokens, which come before anybody's tree; but nobody loses a tree to
        one for whom all of them are not enough."""
        if self._grow(sequence, num_slots):
            return True
        rooms = [] if self._is_holding else self._tree_rooms(sequence, step)
        missing = self._num_missing(sequence, num_slots) - self.pool.num_free
        if missing > sum(num_blocks for _, _, num_blocks in rooms):
            return False
        for other, entry, num_blocks in rooms:
            room = other.block_table[-num_blocks:]
            del other.block_table[-num_blocks:]
            self.pool.free(room)
            step.shrunk_slots.append(other.slot)
            if entry is not None:
                entry.can_draft = False
            if self._grow(sequence, num_slots):
                return True
        return False

    def _tree_rooms(
        self, wanting: Sequence, step: Schedule
    ) -> list[tuple[Sequence, ScheduledSequence | None, int]]:
        """The other sequences that have blocks for a tree, the youngest first, with their part in
        the step and the number of these blocks."""
        entries = {entry.sequence.slot: entry for entry in step.scheduled}
        rooms = []
        for sequence in reversed(self.running):
            entry = entries.get(sequence.slot)
            end = sequence.num_computed + (1 if entry is None else entry.num_tokens)
            num_blocks = len(sequence.block_table) - self._num_blocks(end)
            if sequence is not wanting and num_blocks > 0:
                rooms.append((sequence, entry, num_blocks))
        return rooms

    def _num_blocks(self, num_slots: int) -> int:
        return -(-num_slots // self.pool.block_size)

    def _num_missing(self, sequence: Sequence, num_slots: int) -> int:
        return -(-num_slots // self.pool.block_size) - len(sequence.block_table)

    def _grow(self, sequence: Sequence, num_slots: int) -> bool:
        missing = self._num_missing(sequence, num_slots)
        if missing <= 0:
            return True
        if missing > self.pool.num_free:
            return False
        sequence.block_table += self.pool.allocate(missing)
        return True

    def _slots_ahead(self, sequence: Sequence, num_tokens: int) -> int:
        """Slots of so many more tokens, unless it ends before, and a tree."""
        length = min(sequence.num_tokens + num_tokens, sequence.max_total_tokens)
        return length + self._tree_room

    def _are_ahead(self, step: Schedule, num_tokens: int) -> bool:
        """Whether there are blocks for so many more tokens of everybody in a step."""
        at_most = self._num_blocks(num_tokens + self._tree_room) + 1  # of one that decodes
        if len(step.scheduled) * at_most <= self.pool.num_free:
            return True  # as nearly always: no need to look at each
        missing = 0
        for entry in step.scheduled:
            slots = self._slots_ahead(entry.sequence, num_tokens)
            missing += max(self._num_missing(entry.sequence, slots), 0)
        return missing <= self.pool.num_free

    def _preempt(self, sequence: Sequence, step: Schedule) -> None:
        # It is the youngest: whoever has a part in the step already is older.
        step.preempted_slots.append(sequence.slot)
        self._leave(sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _leave(self, sequence: Sequence) -> None:
        self._steady = None
        self.running.remove(sequence)
        self._publish(sequence)
        if self._is_holding:
            self._held.append((sequence.slot, sequence.block_table))
        else:
            self.pool.free(sequence.block_table)
            self._free_slots.append(sequence.slot)
        sequence.release()
