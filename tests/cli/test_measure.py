"""Speeds, acceptance and identity of runs; alternation of plain and speculative."""

from __future__ import annotations

from functools import partial

import pytest

from sdengine.cli import measure
from sdengine.cli.measure import Comparison, alternate, run_request, short
from sdengine.core.sampling_params import SamplingParams
from sdengine.llm import StreamDelta
from tests.cli.fakes import FakeLLM

GREEDY = SamplingParams(temperature=0.0, max_tokens=100, min_tokens=50)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that advances one second whenever it is read."""
    times = iter(range(10_000))
    monkeypatch.setattr(measure, "perf_counter", lambda: float(next(times)))


@pytest.mark.usefixtures("ticking")
def test_the_first_commit_does_not_count_as_decoding() -> None:
    run = run_request(FakeLLM(steps=("ab", "c", "def")), "x", GREEDY)
    assert (run.first_token_s, run.decode_s, run.num_decoded) == ([1.0], 2.0, 4)
    assert run.tokens_per_s == 2.0
    assert list(run.gaps_s) == pytest.approx([1.0, 1 / 3, 1 / 3, 1 / 3])
    assert run.output.outputs[0].text == "abcdef"


@pytest.mark.usefixtures("ticking")
def test_a_request_of_one_commit_has_the_speed_of_the_whole() -> None:
    run = run_request(FakeLLM(steps=("abc",)), "x", GREEDY)
    assert run.num_decoded == 0 and run.tokens_per_s == 3.0


def test_every_delta_is_handed_on() -> None:
    texts: list[str] = []
    run_request(FakeLLM(), "x", GREEDY, lambda delta: texts.append(delta.text))
    assert texts == ["ab", "c", "def"]


def test_a_request_that_is_interrupted_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the last reference to its stream goes: an engine runs it until then."""
    llm = FakeLLM()
    stream = llm.stream("x", GREEDY)
    monkeypatch.setattr(llm, "stream", lambda prompt, params: stream)

    def interrupt(delta: StreamDelta) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_request(llm, "x", GREEDY, interrupt)
    assert next(stream, None) is None


def test_sides_alternate_and_take_turns_in_going_first() -> None:
    log: list[str] = []
    plain = FakeLLM(is_speculative=False, log=log, name="plain")
    speculative = FakeLLM(log=log, name="spec")
    comparison = alternate(
        partial(run_request, plain, "x", GREEDY),
        partial(run_request, speculative, "x", GREEDY),
        repeats=3,
    )
    assert log == ["plain", "spec", "spec", "plain", "plain", "spec"]
    assert len(comparison.plain) == len(comparison.speculative) == 3
    assert comparison.mean_acceptance_length == 2.0
    assert comparison.is_identical


@pytest.mark.usefixtures("ticking")
def test_a_speed_without_prefill_is_not_compared_with_one_that_has_it() -> None:
    """As of a short answer that the side with trees gives whole with the prompt's own step."""
    comparison = alternate(
        partial(run_request, FakeLLM(steps=("a", "bc"), is_speculative=False), "x", GREEDY),
        partial(run_request, FakeLLM(steps=("abc",)), "x", GREEDY),
        repeats=2,
    )
    assert comparison.plain[0].tokens_per_s == 2.0
    assert (comparison.plain_tokens_per_s, comparison.speculative_tokens_per_s) == (1.5, 3.0)
    assert comparison.ratio == 2.0


def test_measuring_ends_after_a_pair_when_time_is_over() -> None:
    once = partial(run_request, FakeLLM(), "x", GREEDY)
    comparison = alternate(once, once, 9, lambda: True)
    assert len(comparison.plain) == len(comparison.speculative) == 1


def test_other_tokens_in_any_run_are_not_identical() -> None:
    same, other = (run_request(FakeLLM(steps=s), "x", GREEDY) for s in (("ab", "c"), ("ab", "d")))
    assert Comparison([same], [same]).is_identical
    assert not Comparison([same], [other]).is_identical
    assert not Comparison([same, same], [same, other]).is_identical
    assert not Comparison([same, other], [same, same]).is_identical


def test_warming_up_is_short() -> None:
    params = short(GREEDY)
    assert params.max_tokens == measure.WARM_UP_TOKENS and params.min_tokens == 0
