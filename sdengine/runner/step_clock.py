"""How long steps take: on the device, on the host, and for whom."""

from __future__ import annotations

from math import inf
from time import perf_counter

import numpy as np

from sdengine.core.plan import StepReport
from sdengine.core.sequence import Sequence
from sdengine.runner.flight import Commit, Flight
from sdengine.scheduler.scheduler import Schedule


class StepClock:
    """Times steps and shares what they took out to their sequences.

    Args:
        times_ns: [3] int64, of the iteration that was read last: start, after proposing, end.
        layer_ends_ns: [D] int64, of the draft's layers; earlier than the start of those that did
            not run.

    Attributes:
        iteration_s: what the kernels took for the last one; infinite unless only decoding was done.
    """

    def __init__(self, times_ns: np.ndarray, layer_ends_ns: np.ndarray) -> None:
        self._times_ns = memoryview(times_ns)
        self._layer_ends_ns = memoryview(layer_ends_ns)
        self._read_at = 0.0
        # Of each iteration: start, proposed, end, ends of layers, then accepted tokens and nodes. A
        # plain tuple: a class of its own would be another call in every step.
        self._noted: list[tuple[int, int, int, list[int], list[int], int]] = []
        self.iteration_s = inf

    def begin(self, schedule: Schedule) -> float:
        """Now, when a step begins to be prepared."""
        if len(schedule.admitted) == len(schedule.scheduled):
            self._read_at = 0.0  # nobody was waiting: the time since the last step was idle
        self._noted.clear()  # of a step that was cut short
        return perf_counter()

    def note(self, num_accepted: list[int], num_nodes: int) -> None:
        """Takes the times of an iteration that was read; `StepReport` has the arguments."""
        ends = self._layer_ends_ns.tolist()
        self._noted.append((*self._times_ns.tolist(), ends, num_accepted, num_nodes))

    def end(self, flight: Flight, commits: dict[int, Commit]) -> list[StepReport]:
        """What the iterations of a step did, once all have been read.

        A step that was started before the last one was read took the time since then. Its time
        counts once for a request, however many completions that has.
        """
        noted, self._noted = self._noted, []
        now, last = perf_counter(), self._read_at
        self._read_at = now if flight.schedule.scheduled else 0.0
        draft_s = verify_s = 0.0
        for start, proposed, end, _, _, _ in noted:
            draft_s += (proposed - start) * 1e-9
            verify_s += (end - proposed) * 1e-9
        other_s = max(now - (last or flight.prepared_at) - draft_s - verify_s, 0.0)
        of_request: dict[str, Sequence] = {}
        for commit in commits.values():
            of_request[commit.sequence.request_id] = commit.sequence
        for sequence in of_request.values():
            sequence.draft_time_s += draft_s
            sequence.verify_time_s += verify_s
            sequence.other_time_s += other_s
        host_s = (now - max(flight.prepared_at, last) - draft_s - verify_s) / len(noted)
        reports: list[StepReport] = []
        for start, proposed, end, layer_ends, num_accepted, num_nodes in noted:
            is_first = not reports
            if not (is_first or num_accepted):
                break  # everybody had ended before
            num_layers = 0
            for layer_end in layer_ends:
                num_layers += layer_end > start
            num_tokens = flight.num_tokens if is_first else len(num_accepted)
            reports.append(
                StepReport(
                    num_accepted=num_accepted,
                    num_nodes=num_nodes,
                    num_rows=num_tokens + num_nodes,
                    draft_time_s=(proposed - start) * 1e-9,
                    verify_time_s=(end - proposed) * 1e-9,
                    step_s=(end - start) * 1e-9 + host_s,
                    is_steady=num_tokens == len(num_accepted)
                    and not (is_first and flight.is_catching_up),
                    num_layers=num_layers,
                    first_layer_s=(layer_ends[0] - start) * 1e-9 if num_layers else 0.0,
                )
            )
        newest = reports[-1]
        is_usual = newest.is_steady and bool(newest.num_accepted)
        self.iteration_s = newest.draft_time_s + newest.verify_time_s if is_usual else inf
        return reports
