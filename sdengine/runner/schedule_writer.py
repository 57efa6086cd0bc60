"""Schedules into slots: how many tokens of whom, whose tree has room, and which blocks."""

from __future__ import annotations

from sdengine.core.sequence import Sequence
from sdengine.kernels.programs.replay_copies import flat_items
from sdengine.runner.batch_state import HostView
from sdengine.scheduler.scheduler import Schedule


class ScheduleWriter:
    """Writes what differs from what the slots hold. The same schedule again needs nothing but
    blocks.

    Args:
        host: the slots.
        max_num_seqs: how many they are.

    Attributes:
        num_tokens: pending tokens of the schedule written last.
        num_decoding: of its sequences, how many draw a token.
    """

    def __init__(self, host: HostView, max_num_seqs: int) -> None:
        self._host = host
        self._scheduled_lens = flat_items(host.scheduled_lens)
        self._can_draft = flat_items(host.can_draft)
        self._written: Schedule | None = None
        self._written_blocks = [0] * max_num_seqs
        self.num_tokens = self.num_decoding = 0

    def write(self, schedule: Schedule, is_ahead: bool) -> None:
        """Writes a schedule, the next to run.

        Args:
            schedule: its sequences have been admitted.
            is_ahead: whether others than its sequences may still have a part in the slots, because
                the step before has not been read.
        """
        for slot in schedule.shrunk_slots:
            self._written_blocks[slot] = 0
        if is_ahead:
            self._host.scheduled_lens[:] = 0
        if schedule is self._written and not is_ahead:
            for sequence in schedule.grown:
                self._write_blocks(sequence)
        else:
            self._write_parts(schedule)
            self._written = schedule

    def release(self, slot: int) -> None:
        """Forgets what a slot holds, which was emptied."""
        self._written_blocks[slot] = 0
        self._written = None

    def _write_parts(self, schedule: Schedule) -> None:
        scheduled_lens, can_draft = self._scheduled_lens, self._can_draft
        num_decoding = num_tokens = 0
        for entry in schedule.scheduled:
            self._write_blocks(entry.sequence)
            slot = entry.sequence.slot
            scheduled_lens[slot] = entry.num_tokens
            can_draft[slot] = entry.can_draft
            num_tokens += entry.num_tokens
            num_decoding += entry.decodes
        self.num_tokens, self.num_decoding = num_tokens, num_decoding

    def _write_blocks(self, sequence: Sequence) -> None:
        slot, num_blocks = sequence.slot, len(sequence.block_table)
        if num_blocks != self._written_blocks[slot]:
            self._host.set_blocks(slot, sequence.block_table)
            self._written_blocks[slot] = num_blocks
