"""How long steps take, on the device and on the host."""

from __future__ import annotations

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
        program had to be recorded, which happens once, says nothing of what such steps take: as a part of the first
        tree's time (14 ms, 40 plain steps) it had every third engine give speculation up at the
        first request with penalties.

        Args:
            flight: the step.
            commits: of its sequences.
            recording_s: that recording programs has taken by now, all in all.
        """
        num_iterations, is_drafting = flight.num_iterations, flight.is_drafting
        times = self._times_ns.after(num_iterations)[: 3 * num_iterations].tolist()
        starts, all_proposed, ends = times[::3], times[1::3], times[2::3]
        now, last = perf_counter(), self._read_at
        self._read_at = now if flight.schedule.scheduled else 0.0
        draft_s = (sum(all_proposed) - sum(starts)) * 1e-9
        verify_s = (sum(ends) - sum(all_proposed)) * 1e-9
        other_s = max(now - (last or flight.prepared_at) - draft_s - verify_s, 0.0)
        if commits:
            self.spent.add(draft_s, verify_s, other_s)
        taken_s = now - max(flight.prepared_at, last) - (recording_s - self._recording_s)
        self._recording_s = recording_s
        host_s = (taken_s - draft_s - verify_s) / num_iterations
        all_layer_ends = self._layer_ends_ns.after(num_iterations)
        stride = self._layer_ends_ns.stride
        reports: list[StepReport] = []
        for replay, (start, proposed, end) in enumerate(zip(starts, all_proposed, ends)):
            num_accepted: list[int] = []
            num_nodes = num_layers = 0
            first_layer_s = 0.0
            for commit in commits:
                if replay < len(commit.num_accepted):
                    num_accepted.append(commit.num_accepted[replay])
                    num_nodes += commit.num_nodes[replay]
            is_first = replay == 0
            if not (is_first or num_accepted):
                break  # everybody had ended before
            if is_drafting:
                layer_ends = all_layer_ends[replay * stride : (replay + 1) * stride].tolist()
                for layer_end in layer_ends:
                    num_layers += layer_end > start
                if num_layers:
                    first_layer_s = (layer_ends[0] - start) * 1e-9
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
                    first_layer_s=first_layer_s,
                )
            )
        newest = reports[-1]
        is_usual = newest.is_steady and bool(newest.num_accepted)
        self.iteration_s = newest.draft_time_s + newest.verify_time_s if is_usual else inf
        return reports
