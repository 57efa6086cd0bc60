"""Iterations in a row: whatever happens in one of them, outputs are those of one iteration a step.

The host sees nothing between them, so stops, limits, joins and broken logits have to be what they
would have been.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import Any

import pytest

from sdengine.controllers.base import AskOutlook
from sdengine.core.config import SpeculationConfig
from sdengine.core.outputs import RequestOutput
from sdengine.core.plan import STREAM_SECONDS, UNSEEN_SECONDS, StepPlan, StepReport
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from sdengine.errors import ConfigError
from sdengine.runner.flight import Commit, Flight
from sdengine.scheduler.scheduler import Schedule
from tests.engine.conftest import (
    ANY_TIME_S,
    MakeEngine,
    MakeLLM,
    related_draft,
    run_outputs,
    text_checkpoint,
)

PROMPTS = [[5, 9, 5, 9, 5, 9, 5], [17], [(7 * i) % 190 + 3 for i in range(45)], [30, 31, 30, 31]]
PARAMS = SamplingParams(max_tokens=40, temperature=0.8, ignore_eos=True)
TREES = SpeculationConfig(max_nodes=6, max_depth=4, adaptive=False, calibrate=False)
SPECULATION = {
    "plain": None,
    "trees": TREES,
    "rejection": replace(TREES, verifier="rejection"),
    "calibrated": replace(TREES, calibrate=True),
    "calibrated rejection": replace(TREES, verifier="rejection", calibrate=True),
    "shared": replace(TREES, verifier="rejection", calibrate=True, max_batch_nodes=9),
    "ngram": SpeculationConfig(method="ngram", max_nodes=6, min_ngram=1, adaptive=False),
}
SAMPLING: dict[str, dict[str, Any]] = {
    "sampled": {},
    "greedy": {"temperature": 0.0},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4},
    "bias": {"logit_bias": {9: 3.0, 30: 2.5}},
    "stop tokens": {"stop_token_ids": list(range(3, 35, 4)), "min_tokens": 3},
}


def make(make_engine: MakeEngine, name: str, **settings: Any) -> Engine:
    speculation = SPECULATION[name]
    needs_draft = speculation is not None and speculation.needs_draft_model
    draft = related_draft() if needs_draft else None
    return make_engine(draft=draft, speculation=speculation, **settings)


def run(
    engine: Engine, params: SamplingParams, max_iterations: int
) -> tuple[list[RequestOutput], int]:
    """Outputs of all prompts, and most iterations of a step."""
    step, most = engine.step, 0

    def counted(*limits: Any) -> list[RequestOutput]:
        nonlocal most
        outputs = step(*limits)
        most = max(most, len(engine.last_reports))
        return outputs

    engine.step = counted  # type: ignore[method-assign]
    seeded = [replace(params, seed=i) for i in range(len(PROMPTS))]
    outputs = run_outputs(engine, PROMPTS, seeded, max_iterations, "all")
    engine.step = step  # type: ignore[method-assign]
    return outputs, most


def counts(output: RequestOutput) -> list[Any]:
    """What must not depend on how many iterations a step had."""
    (completion,) = output.outputs
    stats = output.metrics.speculation
    seen: list[Any] = [completion, completion.from_draft]
    if stats is not None:
        seen += [stats.acceptance_histogram, stats.num_draft_tokens, stats.num_steps]
    return seen


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("name", SPECULATION)
def test_outputs_and_counts_are_those_of_single_iterations(
    make_engine: MakeEngine, name: str, sampling: str
) -> None:
    params = replace(PARAMS, **SAMPLING[sampling])
    expected, most = run(make(make_engine, name), params, 1)
    assert most == 1
    engine = make(make_engine, name)
    outputs, most = run(engine, params, 7)
    assert list(map(counts, outputs)) == list(map(counts, expected))
    assert most == 7 or sampling == "stop tokens"
    assert engine.last_report.num_accepted, "an iteration in which nobody was left is reported"


@pytest.mark.parametrize("sampling", ["sampled", "stop tokens"])
@pytest.mark.parametrize("name", ["plain", "trees"])
def test_a_row_ends_when_nobody_goes_on(
    make_engine: MakeEngine, name: str, sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(make_engine, name)
    rows: list[tuple[int, int, int]] = []
    start, land = engine._runner.start, engine._runner.land

    def started(schedule: Schedule, plan: StepPlan, num_iterations: int = 1) -> Flight:
        flight = start(schedule, plan, num_iterations)
        rows.append((num_iterations, flight.num_iterations, 0))
        return flight

    def landed(flight: Flight) -> list[Commit]:
        commits = land(flight)
        rows[-1] = (*rows[-1][:2], len(engine._runner.reports))
        return commits

    monkeypatch.setattr(engine._runner, "start", started)
    monkeypatch.setattr(engine._runner, "land", landed)
    run(engine, replace(PARAMS, **SAMPLING[sampling]), 30)
    assert all(reported <= done <= reported + 1 for _, done, reported in rows)
    ends_early = name == "trees" or sampling == "stop tokens"  # else its length is foreseen
    assert any(done < most for most, done, _ in rows) == ends_early


def test_the_reference_backend_keeps_what_each_iteration_left(make_engine: MakeEngine) -> None:
    params = replace(PARAMS, max_tokens=8)
    expected, _ = run(make(make_engine, "trees"), params, 1)
    outputs, most = run(make(make_engine, "trees", backend="reference"), params, 3)
    assert list(map(counts, outputs)) == list(map(counts, expected)) and most > 1


@pytest.mark.parametrize("sampling", ["sampled", "stop tokens"])
@pytest.mark.parametrize("name", SPECULATION)
def test_those_who_wait_join_when_they_would(
    make_engine: MakeEngine, name: str, sampling: str
) -> None:
    """Two places for four: whoever ends early ends the row, else trees, and with rejection tokens,
    would depend on the clock."""
    params = replace(PARAMS, **SAMPLING[sampling])
    expected, _ = run(make(make_engine, name, max_num_seqs=2), params, 1)
    outputs, most = run(make(make_engine, name, max_num_seqs=2), params, 7)
    assert list(map(counts, outputs)) == list(map(counts, expected)) and most > 1


@pytest.mark.parametrize("ends", ["string", "many tokens"])
def test_one_at_a_time_where_the_host_alone_can_tell_the_end(make_llm: MakeLLM, ends: str) -> None:
    engine = make_llm().engine
    num_known = engine._runner._stop_tokens.shape[1]
    for num_stops in (num_known, num_known + 1):
        stops = {"stop": "no such text"} if ends == "string" else {}
        params = replace(PARAMS, stop_token_ids=list(range(100, 100 + num_stops)), **stops)
        engine.add_request("r", PROMPTS[0], params)
        for _ in range(3):
            engine.step(4, ANY_TIME_S)
        is_known = ends == "many tokens" and num_stops == num_known
        assert len(engine.last_reports) == (4 if is_known else 1)
        engine.abort_request("r")


@pytest.mark.parametrize("name", ["plain", "trees"])
@pytest.mark.parametrize("max_iterations", [1, 8])
def test_a_stop_string_cuts_in_the_midst(make_llm: MakeLLM, name: str, max_iterations: int) -> None:
    draft = None if name == "plain" else text_checkpoint(2)
    engine = make_llm(draft=draft, speculation=SPECULATION[name]).engine
    free = run_outputs(engine, [[5, 9, 12]], [replace(PARAMS, seed=1)])[0].outputs[0]
    for end in (12, 17, 23):
        params = replace(PARAMS, seed=1, stop=free.text[end - 2 : end])
        output = run_outputs(engine, [[5, 9, 12]], [params], max_iterations)[0]
        (cut,) = output.outputs
        assert cut.finish_reason == "stop" and free.text.startswith(cut.text)
        assert len(cut.text) <= end - 2 and len(cut.token_ids) == len(cut.from_draft)
        assert list(cut.token_ids) == list(free.token_ids[: len(cut.token_ids)])
        assert output.metrics.num_generated_tokens == len(cut.token_ids)
        stats = output.metrics.speculation
        if stats is not None:
            assert sum(cut.from_draft) == stats.num_accepted_draft_tokens
            assert stats.num_steps <= len(cut.token_ids)


@pytest.mark.parametrize("name", ["plain", "trees"])
def test_scarce_blocks_are_not_taken_for_it(make_engine: MakeEngine, name: str) -> None:
    """Thirteen blocks for four sequences: iterations in a row where they fit, preemption where
    nothing does."""
    expected, _ = run(make(make_engine, name), PARAMS, 1)
    outputs, most = run(make(make_engine, name, num_kv_blocks=13), PARAMS, 7)
    assert [o.outputs for o in outputs] == [o.outputs for o in expected] and most > 1


def test_whoever_waits_gets_a_free_place_at_once(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_seqs=2)
    engine.add_request("a", [5, 6], replace(PARAMS, max_tokens=30))
    num_iterations = []
    for _ in range(3):
        engine.step(4, ANY_TIME_S)
        num_iterations.append(len(engine.last_reports))
    assert num_iterations == [1, 1, 4], "a first token is shown at once, the next one is timed"
    engine.add_request("b", [7, 8], PARAMS)
    engine.step(4, ANY_TIME_S)
    assert (engine.num_running, len(engine.last_reports)) == (2, 1)
    engine.step(4, ANY_TIME_S)
    engine.add_request("c", [9], PARAMS)
    num_iterations = []
    while engine.num_waiting:
        engine.step(4, ANY_TIME_S)
        num_iterations.append(len(engine.last_reports))
    # Of 30 tokens "a" has 8. It ends with the last but one of these, which therefore ends itself,
    # and "c" joins in the last.
    assert num_iterations == [4, 4, 4, 4, 4, 2, 1]
    for name in "bc":
        engine.abort_request(name)


@pytest.mark.parametrize("kind", ["trees", "plain"])
def test_logprobs_are_those_of_single_iterations(make_engine: MakeEngine, kind: str) -> None:
    expected, _ = run(make(make_engine, kind), replace(PARAMS, logprobs=2), 1)
    outputs, most = run(make(make_engine, kind), replace(PARAMS, logprobs=2), 7)
    assert [o.outputs for o in outputs] == [o.outputs for o in expected] and most == 7


def test_the_tree_is_that_of_the_last_iteration(make_engine: MakeEngine) -> None:
    engine = make(make_engine, "trees")
    engine.add_request("long", PROMPTS[0], replace(PARAMS, seed=0))
    engine.add_request("short", PROMPTS[1], replace(PARAMS, seed=1, max_tokens=9))
    is_gone_seen = False
    while engine.has_unfinished_requests():
        outputs = {output.request_id: output for output in engine.step(3, ANY_TIME_S)}
        for name, output in outputs.items():
            tree, tokens = engine.step_tree(name), list(output.outputs[0].token_ids)
            if tree is None:
                assert name == "short" and output.finished and len(engine.last_reports) == 3
                is_gone_seen = True
            elif not output.finished:
                accepted = [tree.token_ids[node] for node in tree.accepted]
                assert tokens[-len(accepted) - 1 :] == [*accepted, tree.own_token_id]
    assert is_gone_seen, "it never ended before the last of three"


def test_time_limits_them(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_request("r", PROMPTS[0], PARAMS)
    for _ in range(2):
        engine.step()
    for seconds, expected in ((0.0, 1), (1e-9, 1), (ANY_TIME_S, 6)):
        engine.step(6, seconds)
        assert len(engine.last_reports) == expected
    engine._runner._clock.iteration_s = 1.0
    engine.step(6, 3.5)
    assert len(engine.last_reports) == 3
    engine.abort_request("r")


def test_reports_share_what_the_host_took(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_request("r", PROMPTS[0], PARAMS)
    for _ in range(3):
        start = perf_counter()
        engine.step(5, ANY_TIME_S)
        took = perf_counter() - start
    reports = engine.last_reports
    assert len(reports) == 5 and engine.last_report is reports[-1]
    assert sum(report.step_s for report in reports) < took
    hosts = [r.step_s - r.draft_time_s - r.verify_time_s for r in reports]
    assert all(host == pytest.approx(hosts[0]) and host > 0 for host in hosts)
    assert all(r.is_steady and r.num_rows == 1 and r.num_accepted == [0] for r in reports)
    engine.abort_request("r")


@pytest.mark.parametrize(
    "limits,name",
    [
        ((0, 1.0), "max_iterations"),
        ((2.0, 1.0), "max_iterations"),
        ((1.0,), "max_iterations"),
        ((True,), "max_iterations"),
        ((2, -1.0), "max_seconds"),
    ],
)
def test_limits_that_make_no_sense_are_refused(
    make_engine: MakeEngine, limits: tuple[Any, Any], name: str
) -> None:
    engine = make_engine()
    engine.add_request("r", PROMPTS[0], PARAMS)
    with pytest.raises(ConfigError, match=name):
        engine.step(*limits)
    assert engine.last_reports[0].num_rows == 0, "nothing has begun"
    engine.abort_request("r")


class Scripted:
    """Plans one after the other; notes what it is told."""

    def __init__(self, *plans: StepPlan) -> None:
        self._plans = list(plans)
        self.observed: list[tuple[StepPlan, StepReport]] = []

    def plan(self, num_decoding: int, outlook: AskOutlook | None = None) -> StepPlan:
        return self._plans.pop(0)

    def observe(self, plan: StepPlan, report: StepReport) -> None:
        self.observed.append((plan, report))


def test_a_plan_serves_as_many_as_it_says(make_engine: MakeEngine) -> None:
    """And a draft that catches up does so in the first of them only."""
    engine = make(make_engine, "trees")
    plain, trees = StepPlan(0, 0, num_iterations=4), StepPlan(2, 4, num_iterations=3)
    engine.controller = scripted = Scripted(StepPlan(0, 0), StepPlan(0, 0), plain, trees, plain)
    engine.add_request("r", PROMPTS[0], PARAMS)
    for _ in range(4):
        engine.step(8, ANY_TIME_S)
    plans = [plan for plan, _ in scripted.observed]
    assert plans[2:] == [plain] * 4 + [trees] * 3
    is_steady = [report.is_steady for _, report in scripted.observed]
    assert is_steady[1:] == [True] * 5 + [False, True, True]
    engine.abort_request("r")


def test_calibration_counts_every_iteration(make_engine: MakeEngine) -> None:
    speculation = replace(TREES, calibrate=True)
    engine = make_engine(draft=related_draft(), speculation=speculation)
    engine.add_request("r", PROMPTS[0], PARAMS)
    num_iterations = 0
    for _ in range(4):
        engine.step(3, ANY_TIME_S)
        num_iterations += len(engine.last_reports)
    assert num_iterations > 4 and engine._runner._calibrator._steps == num_iterations
    engine.abort_request("r")


def test_an_open_stream_makes_them_few(make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make_llm()
    step, seconds = llm.engine.step, set()

    def seen(max_iterations: int, max_seconds: float) -> list[RequestOutput]:
        seconds.add(max_seconds)
        return step(max_iterations, max_seconds)

    monkeypatch.setattr(llm.engine, "step", seen)
    llm.generate("import os", PARAMS)
    assert seconds == {UNSEEN_SECONDS}
    stream = llm.stream("the dog", PARAMS)
    seconds.clear()
    llm.generate("import os", PARAMS)
    assert seconds == {STREAM_SECONDS}
    list(stream)
    seconds.clear()
    llm.generate("import os", PARAMS)
    assert seconds == {UNSEEN_SECONDS}
