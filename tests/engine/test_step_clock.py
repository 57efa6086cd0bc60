"""StepClock: whose time a step was, and that of a step that was cut short."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from sdengine.core.outputs import SpeculationStats
from sdengine.core.plan import StepPlan
from sdengine.core.sampling_params import SamplingParams
from sdengine.runner.flight import Commit, Flight
from sdengine.runner.step_clock import StepClock
from sdengine.scheduler.scheduler import Schedule
from tests.engine.conftest import MakeEngine, related_draft


def test_a_step_that_was_cut_short_leaves_no_times_behind() -> None:
    """An interrupt between `note` and `end`: the next step had reports of both under its plan."""
    clock = StepClock(np.array([10, 20, 50]), np.zeros(0, dtype=np.int64))
    clock.note([3], 4)
    begun = clock.begin(Schedule())
    clock.note([1], 2)
    flight = Flight(Schedule(), StepPlan(2, 2), 1, True, False, 0, False, 1, begun)
    commits: dict[int, Commit] = {}
    assert [report.num_accepted for report in clock.end(flight, commits)] == [[1]]


def test_a_step_counts_once_for_a_request_of_several_completions(make_engine: MakeEngine) -> None:
    engine = make_engine(draft=related_draft(), speculation="dyspec")
    params = SamplingParams(n=3, max_tokens=30, temperature=0.8, seed=1, ignore_eos=True)
    start = perf_counter()
    engine.add_request("r", [5, 6, 7], params)
    while engine.has_unfinished_requests():
        outputs = engine.step()
    took = perf_counter() - start
    stats = outputs[-1].metrics.speculation
    assert isinstance(stats, SpeculationStats)
    times = stats.draft_time_s + stats.verify_time_s + stats.other_time_s
    assert 0.3 * took < times <= took
