"""StepClock: whose time a step was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from sdengine.core.outputs import SpeculationStats
from sdengine.core.sampling_params import SamplingParams
from sdengine.runner import iteration, step_clock
from tests.engine.conftest import MakeEngine, related_draft, run_all, run_outputs
from tests.model.checkpoints import make_checkpoint

PENALISED = SamplingParams(max_tokens=12, temperature=0.8, seed=1, repetition_penalty=1.2)


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


def test_a_request_has_the_time_from_its_first_token_on(make_engine: MakeEngine) -> None:
    """Of those that came before it is nobody's any more."""
    engine = make_engine(draft=related_draft(), speculation="dyspec")
    params = SamplingParams(max_tokens=20, temperature=0.8, seed=1, ignore_eos=True)
    run_outputs(engine, [[5, 6, 7]], [params])
    start = perf_counter()
    (output,) = run_outputs(engine, [[5, 6, 8]], [params])
    stats, took = output.metrics.speculation, perf_counter() - start
    assert stats is not None
    assert 0.0 < stats.draft_time_s + stats.verify_time_s + stats.other_time_s <= took


def test_recording_a_program_is_no_step_s_time(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first trees with penalties were blamed for it, and speculation was given up."""
    passed_s = 0.0
    for module in (iteration, step_clock):
        monkeypatch.setattr(module, "perf_counter", lambda: perf_counter() + passed_s)
    engine = make_engine(draft=related_draft(), speculation="dyspec")
    describe = engine.iteration._describe

    def slowly(*args: Any) -> None:
        nonlocal passed_s
        passed_s += 1000.0
        describe(*args)

    monkeypatch.setattr(engine.iteration, "_describe", slowly)
    engine.add_request("r", [5, 6, 7], PENALISED)
    steps: list[float] = []
    while engine.has_unfinished_requests():
        outputs = engine.step()
        steps.extend(report.step_s for report in engine._runner.reports)
    assert passed_s >= 1000.0, "nothing was recorded"
    assert all(0.0 < seconds < 500.0 for seconds in steps)
    stats = outputs[-1].metrics.speculation
    assert stats is not None and stats.other_time_s > 500.0, "whoever waited for it knows"


@pytest.mark.parametrize("is_default", [True, False])
def test_what_a_checkpoint_s_defaults_need_is_recorded_before_the_first_request(
    make_engine: MakeEngine, tmp_path: Path, is_default: bool
) -> None:
    target = tmp_path / "target"
    shutil.copytree(make_checkpoint(), target)
    given = {"do_sample": True, "repetition_penalty": 1.2 if is_default else 1.0}
    (target / "generation_config.json").write_text(json.dumps(given), encoding="utf-8")
    engine = make_engine(str(target), related_draft(), speculation="dyspec")
    before = engine.iteration.recording_s
    run_all(engine, [[5, 6, 7]], [PENALISED])
    assert before > 0.0 and (engine.iteration.recording_s == before) == is_default
