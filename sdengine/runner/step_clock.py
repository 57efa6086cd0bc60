"""How long steps take, on the device and on the host."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from math import inf
from time import perf_counter

from sdengine.core.plan import StepReport
from sdengine.core.spent_time import SpentTime
from sdengine.kernels.programs.replay_copies import LeftBehind
from sdengine.runner.flight import Commit, Flight
from sdengine.scheduler.scheduler import Schedule


class StepClock:
    """Times steps.

    Args:
        times_ns: [3] int64, of each iteration: start, after proposing, end.
        layer_ends_ns: [D] int64, of the draft's layers; earlier than the start of those that did
            not run.
        recording_s: that recording programs has taken up to now.

    Attributes:
        spent: by the steps that committed tokens.
        iteration_s: what the kernels took for the last one; infinite unless only decoding was done.
    """

    def __init__(self, times_ns: LeftBehind, layer_ends_ns: LeftBehind, recording_s: float) -> None:
        self._times_ns, self._layer_ends_ns = times_ns, layer_ends_ns
        self._read_at = 0.0
        self._recording_s = recording_s
        self.spent = SpentTime()
        self.iteration_s = inf

    def begin(self, schedule: Schedule) -> float:
        """Now, when a step begins to be prepared."""
        if len(schedule.admitted) == len(schedule.scheduled):
            self._read_at = 0.0  # nobody was waiting: the time since the last step was idle
        return perf_counter()

    def end(self, flight: Flight, commits: list[Commit], recording_s: float) -> list[StepReport]:
        """What the iterations of a step did.

        A step that was started before the last one was read took the time since then. That a
        program had to be recorded, which happens once, says nothing of what such steps take: as a
        part of the first tree's time (14 ms, 40 plain steps) it had every third engine give
        speculation up at the first request with penalties.

        Args:
            flight: the step.
            commits: of its sequences.
            recording_s: that recording programs has taken by now, all in all.
        """
        num_iterations = flight.num_iterations
        if num_iterations == 1:
            # By itself: all of a step's code is cold, and the loop's is more of it (11 us, not 8).
            start, proposed, end = self._times_ns.newest.tolist()
            host_s = self._share(flight, commits, proposed - start, end - proposed, recording_s)
            layer_ends = self._layer_ends_ns.newest.tolist() if flight.is_drafting else ()
            accepted, num_nodes = [], 0
            for commit in commits:
                accepted.append(commit.num_accepted[0])
                num_nodes += commit.num_nodes[0]
            reports = [
                _report(
                    *(accepted, num_nodes, flight.num_tokens, not flight.is_catching_up),
                    *(start, proposed, end, layer_ends, host_s),
                )
            ]
        else:
            reports = self._reports_in_a_row(flight, commits, recording_s)
        newest = reports[-1]
        is_usual = newest.is_steady and bool(newest.num_accepted)
        self.iteration_s = newest.draft_time_s + newest.verify_time_s if is_usual else inf
        return reports

    def _reports_in_a_row(
        self, flight: Flight, commits: list[Commit], recording_s: float
    ) -> list[StepReport]:
        num_iterations = flight.num_iterations
        times = self._times_ns.rows[: 3 * num_iterations].tolist()
        starts, all_proposed, ends = times[::3], times[1::3], times[2::3]
        draft_ns, verify_ns = sum(all_proposed) - sum(starts), sum(ends) - sum(all_proposed)
        host_s = self._share(flight, commits, draft_ns, verify_ns, recording_s)
        all_layer_ends, stride = self._layer_ends_ns.rows, self._layer_ends_ns.stride
        reports: list[StepReport] = []
        for replay, (start, proposed, end) in enumerate(zip(starts, all_proposed, ends)):
            accepted, num_nodes = [], 0
            for commit in commits:
                if replay < len(commit.num_accepted):
                    accepted.append(commit.num_accepted[replay])
                    num_nodes += commit.num_nodes[replay]
            is_first = replay == 0
            if not (is_first or accepted):
                break  # everybody had ended before
            layer_ends: SequenceOf[int] = ()
            if flight.is_drafting:
                layer_ends = all_layer_ends[replay * stride : (replay + 1) * stride].tolist()
            num_tokens = flight.num_tokens if is_first else len(accepted)
            is_in_step = not (is_first and flight.is_catching_up)
            reports.append(
                _report(
                    *(accepted, num_nodes, num_tokens, is_in_step),
                    *(start, proposed, end, layer_ends, host_s),
                )
            )
        return reports

    def _share(
        self,
        flight: Flight,
        commits: list[Commit],
        draft_ns: int,
        verify_ns: int,
        recording_s: float,
    ) -> float:
        """Counts what a step took; returns the host's share of each of its iterations."""
        now, last = perf_counter(), self._read_at
        self._read_at = now if flight.schedule.scheduled else 0.0
        draft_s, verify_s = draft_ns * 1e-9, verify_ns * 1e-9
        if commits:
            other_s = now - (last or flight.prepared_at) - draft_s - verify_s
            self.spent.add(draft_s, verify_s, max(other_s, 0.0))
        taken_s = now - max(flight.prepared_at, last) - (recording_s - self._recording_s)
        self._recording_s = recording_s
        return (taken_s - draft_s - verify_s) / flight.num_iterations


def _report(
    accepted: list[int],
    num_nodes: int,
    num_tokens: int,
    is_in_step: bool,
    start: int,
    proposed: int,
    end: int,
    layer_ends: SequenceOf[int],
    host_s: float,
) -> StepReport:
    """What an iteration did.

    Args:
        accepted: draft tokens, per decoding sequence.
        num_nodes: tree nodes verified.
        num_tokens: rows beside them.
        is_in_step: whether the draft had only to compute what every iteration leaves to it.
        start, proposed, end: nanoseconds.
        layer_ends: of the draft's layers, nanoseconds; before `start` where one did not run.
        host_s: outside the kernels.
    """
    num_layers, first_layer_s = 0, 0.0
    for layer_end in layer_ends:
        num_layers += layer_end > start
    if num_layers:
        first_layer_s = (layer_ends[0] - start) * 1e-9
    return StepReport(
        accepted,
        num_nodes,
        num_rows=num_tokens + num_nodes,
        draft_time_s=(proposed - start) * 1e-9,
        verify_time_s=(end - proposed) * 1e-9,
        step_s=(end - start) * 1e-9 + host_s,
        is_steady=is_in_step and num_tokens == len(accepted),
        num_layers=num_layers,
        first_layer_s=first_layer_s,
    )
