"""What a step costs in Python: counted, because calls do not depend on the machine; and outputs
that share their lists with the engine stay as they were."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from statistics import median

import pytest

from benchmarks.host_overhead import CallCounter
from sdengine.core.config import SpeculationConfig
from sdengine.core.outputs import RequestOutput
from sdengine.core.sampling_params import SamplingParams
from sdengine.llm import LLM
from tests.engine.conftest import MakeLLM, text_checkpoint

PARAMS = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
FIXED = SpeculationConfig(max_nodes=4, max_depth=4, adaptive=False)
# Seen on Python 3.11: 37, with trees 40, and 8 per further sequence.
MOST_CALLS, MOST_CALLS_PER_FURTHER_SEQUENCE = 46, 11


def calls_per_step(llm: LLM, num_sequences: int) -> float:
    """Calls of Python functions in a step in which all of them decode."""
    engine, counter = llm.engine, CallCounter()
    for index in range(num_sequences):
        engine.add_request(f"r{index}", f"prompt {index}", PARAMS)
    for _ in range(3):
        engine.step()
    counts = [counter.count(engine.step)[0] for _ in range(9)]
    assert engine.num_running == num_sequences
    for index in range(num_sequences):
        engine.abort_request(f"r{index}")
    return median(counts)


def check_calls(llm: LLM) -> None:
    one, five = calls_per_step(llm, 1), calls_per_step(llm, 5)
    assert one <= MOST_CALLS
    assert five - one <= 4 * MOST_CALLS_PER_FURTHER_SEQUENCE


def test_a_plain_step_makes_few_calls(make_llm: MakeLLM) -> None:
    check_calls(make_llm(max_num_seqs=5))


def test_a_step_with_trees_makes_hardly_more(make_llm: MakeLLM) -> None:
    check_calls(make_llm(draft=text_checkpoint(2), max_num_seqs=5, speculation=FIXED))


def moves(llm: LLM, params: SamplingParams) -> Iterator[RequestOutput]:
    """Outputs of a request, as they come."""
    engine = llm.engine
    engine.add_request("r", "some text", params)
    while engine.has_unfinished_requests():
        yield from engine.step()


@pytest.mark.parametrize("stop", [None, ["never to be seen"]])
def test_outputs_looked_at_later_are_those_of_their_step(
    make_llm: MakeLLM, stop: list[str] | None
) -> None:
    params = SamplingParams(
        max_tokens=40, temperature=0.9, seed=3, n=2, logprobs=1, ignore_eos=True, stop=stop
    )
    settings = {"draft": text_checkpoint(2), "speculation": FIXED}
    at_once, later, backwards = [], [], []
    for output in moves(make_llm(**settings), params):
        at_once.append((output.metrics.num_generated_tokens, copy.deepcopy(output.outputs)))
    for output in moves(make_llm(**settings), params):
        later.append(output)
    for output in reversed(list(moves(make_llm(**settings), params))):
        backwards.append((output.metrics.num_generated_tokens, output.outputs))
    assert len(at_once) > 20
    assert [(out.metrics.num_generated_tokens, out.outputs) for out in later] == at_once
    assert backwards[::-1] == at_once


def test_outputs_stay_as_they_were(make_llm: MakeLLM) -> None:
    engine = make_llm(draft=text_checkpoint(2), speculation=FIXED).engine
    params = SamplingParams(max_tokens=20, temperature=0.9, seed=3, n=2, logprobs=1)
    engine.add_request("r", "some text", params)
    seen: list[tuple[RequestOutput, bytes]] = []
    while engine.has_unfinished_requests():
        seen += [(output, pickle.dumps(output)) for output in engine.step()]
    assert len(seen) > 4
    for output, dumped in seen:
        assert output == pickle.loads(dumped)
        (completion,) = output.outputs
        sizes = {len(completion.token_ids), len(completion.from_draft)}
        assert completion.logprobs is not None and sizes == {len(completion.logprobs)}
        is_list = [type(part) is list for part in (completion.token_ids, completion.from_draft)]
        assert is_list == [completion.is_finished] * 2
