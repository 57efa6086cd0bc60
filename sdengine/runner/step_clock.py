"""How long steps take: on the device, on the host, and for whom."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from sdengine.core.plan import StepReport
from sdengine.runner.flight import Commit, Flight
from sdengine.scheduler.scheduler import Schedule


class StepClock:
    """Times steps and shares what they took out to their sequences.

    Args:
        times_ns: [3] int64, of the last step that was read: start, after proposing, end.
    """

    def __init__(self, times_ns: np.ndarray) -> None:
        self._times_ns = memoryview(times_ns)
        self._read_at = 0.0

    def begin(self, schedule: Schedule) -> float:
        """Now, when a step begins to be prepared."""
        if len(schedule.admitted) == len(schedule.scheduled):
            self._read_at = 0.0  # nobody was waiting: the time since the last step was idle
        return perf_counter()

    def end(self, flight: Flight, commits: list[Commit]) -> StepReport:
        """What a step did, once it has been read.

        A step that was started before the last one was read took the time since then.
        """
        start_ns, proposed_ns, end_ns = self._times_ns.tolist()
        draft_s, verify_s = (proposed_ns - start_ns) * 1e-9, (end_ns - proposed_ns) * 1e-9
        scheduled = flight.schedule.scheduled
        now, last = perf_counter(), self._read_at
        self._read_at = now if scheduled else 0.0
        other_s = max(now - (last or flight.prepared_at) - draft_s - verify_s, 0.0)
        num_nodes = 0
        for commit in commits:
            sequence = commit.sequence
            sequence.draft_time_s += draft_s
            sequence.verify_time_s += verify_s
            sequence.other_time_s += other_s
            num_nodes += commit.num_nodes
        return StepReport(
            num_accepted=[commit.num_accepted for commit in commits],
            num_nodes=num_nodes,
            num_rows=flight.num_tokens + num_nodes,
            draft_time_s=draft_s,
            verify_time_s=verify_s,
            step_s=now - max(flight.prepared_at, last),
            is_steady=flight.num_tokens == len(commits) and not flight.is_catching_up,
        )
