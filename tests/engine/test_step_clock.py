"""StepClock: whose time a step was."""

from __future__ import annotations

from time import perf_counter

from sdengine.core.outputs import SpeculationStats
from sdengine.core.sampling_params import SamplingParams
from tests.engine.conftest import MakeEngine, related_draft


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
