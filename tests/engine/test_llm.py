"""LLM: calls that share an engine with streams, with one another and with requests of the caller's
own; one that is interrupted takes no text of the others' along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import RequestError, SdengineError
from sdengine.llm import LLM
from tests.engine.conftest import MakeLLM, text_checkpoint

GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
TREES = SpeculationConfig(max_nodes=8, max_depth=4, adaptive=False)
PROMPTS = ["import os", "the quick brown", "the dog"]
CUT_SHORT = "every step to run to its end, got one cut short by {}; send the request again"


def llm_with(make_llm: MakeLLM, speculates: bool) -> LLM:
    """An LLM with or without trees."""
    return make_llm(draft=text_checkpoint(2), speculation=TREES) if speculates else make_llm()


def interrupt(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: BaseException, is_late: bool
) -> None:
    """Lets the next call of a method raise, before or after it did its work."""
    method: Callable[..., Any] = getattr(owner, name)

    def interrupted(*args: Any) -> Any:
        monkeypatch.setattr(owner, name, method)
        if is_late:
            method(*args)
        raise error

    monkeypatch.setattr(owner, name, interrupted)


# Interrupts


@pytest.mark.parametrize("speculates", [False, True])
@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("place", ["schedule", "prepare", "start", "land", "step"])
def test_an_interrupted_step_ends_every_open_stream_with_its_reason(
    make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch, place: str, is_late: bool, speculates: bool
) -> None:
    llm = llm_with(make_llm, speculates)
    expected = [output.outputs for output in llm.generate(PROMPTS, GREEDY)]
    streams = [llm.stream(prompt, GREEDY) for prompt in PROMPTS[:2]]
    for stream in streams:
        next(stream)
    engine = llm.engine
    owner = {"schedule": engine._scheduler, "step": engine}.get(place, engine._runner)
    interrupt(monkeypatch, owner, place, KeyboardInterrupt(), is_late)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS[2], GREEDY)
    assert not engine.has_unfinished_requests() and len(engine._book) == 0
    again = llm.stream(PROMPTS[2], GREEDY)  # the engine goes on meanwhile
    next(again)
    for stream in streams:
        with pytest.raises(SdengineError, match=CUT_SHORT.format("KeyboardInterrupt")):
            list(stream)
        assert list(stream) == []
    assert [d.output for d in again][-1].outputs == expected[2]  # type: ignore[union-attr]
    assert [output.outputs for output in llm.generate(PROMPTS, GREEDY)] == expected
    assert not llm._inboxes


def test_an_error_in_a_step_reaches_the_caller_as_it_is(
    make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = make_llm()
    other, stream = (llm.stream(prompt, GREEDY) for prompt in PROMPTS[:2])
    next(stream)
    interrupt(monkeypatch, llm.engine, "step", ZeroDivisionError("no"), False)
    with pytest.raises(ZeroDivisionError, match="no"):
        next(stream)
    with pytest.raises(SdengineError, match=CUT_SHORT.format("ZeroDivisionError")):
        list(other)


def test_what_had_come_before_an_interrupt_is_still_delivered(
    make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdengine.llm.MAX_ITERATIONS", 1)
    llm = make_llm()
    short = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
    expected = [llm.generate(PROMPTS[0], params)[0].outputs for params in (short, GREEDY)]
    finished, unread = llm.stream(PROMPTS[0], short), llm.stream(PROMPTS[0], GREEDY)
    running = llm.stream(PROMPTS[1], GREEDY)
    for _ in range(5):
        next(running)
    interrupt(monkeypatch, llm.engine, "step", KeyboardInterrupt(), False)
    with pytest.raises(KeyboardInterrupt):
        next(running)
    *_, last = finished
    assert last.output is not None and last.output.outputs == expected[0]
    tokens: list[int] = []
    with pytest.raises(SdengineError, match=CUT_SHORT.format("KeyboardInterrupt")):
        for delta in unread:
            tokens += delta.token_ids
    assert tokens == expected[1][0].token_ids[:5]


# Ids


def test_ids_of_the_caller_s_own_requests_are_left_alone(make_llm: MakeLLM) -> None:
    llm = make_llm()
    expected = [output.outputs for output in llm.generate(PROMPTS, GREEDY)]
    for i in (3, 4, 6):
        llm.engine.add_request(f"llm-{i}", PROMPTS[0], GREEDY)
    assert [output.outputs for output in llm.generate(PROMPTS, GREEDY)] == expected
    assert not llm.engine.has_unfinished_requests(), "all were of one length"


def test_an_id_is_the_caller_s_again_once_its_request_has_finished(make_llm: MakeLLM) -> None:
    llm = make_llm()
    short = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
    finished, running = llm.stream(PROMPTS[0], short), llm.stream(PROMPTS[1], GREEDY)
    while llm.engine.has_request("llm-0"):
        next(running)
    llm.engine.add_request("llm-0", PROMPTS[2], GREEDY)
    next(running)
    assert [d.output is not None for d in finished] == [True]  # both of its tokens at once
    assert llm.engine.has_request("llm-0")
    llm.engine.abort_request("llm-0")
    list(running)


# Prompts


@pytest.mark.parametrize(
    "prompts,name",
    [
        (b"class A:", "bytes"),
        (bytearray(b"abc"), "bytearray"),
        (5, "int"),
        (True, "bool"),
        (None, "NoneType"),
        ({5, 6}, "set"),
        (frozenset({"a"}), "frozenset"),
        ({5: 6}, "dict"),
        ({"a": 1}.keys(), "dict_keys"),
        (np.array(5), "ndarray"),
        (torch.tensor(5), "Tensor"),
        (["fine", np.array(5)], "ndarray"),
        (["fine", b"abc"], "bytes"),
    ],
)
def test_what_is_no_prompt_and_no_list_is_refused(
    make_llm: MakeLLM, prompts: Any, name: str
) -> None:
    llm = make_llm()
    with pytest.raises(RequestError, match=f"a prompt of text or of token ids, got {name}"):
        llm.generate(prompts, GREEDY)
    assert not llm.engine.has_unfinished_requests()


def test_params_that_are_no_list_are_refused(make_llm: MakeLLM) -> None:
    for params in (np.array(5), {"max_tokens": 3}, "x", 7):
        words = f"one SamplingParams, or 1 for 1 prompts, got {type(params).__name__}"
        with pytest.raises(RequestError, match=words):
            make_llm().generate("fine", params)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"one SamplingParams, or 2 for 2 prompts, got 0$"):
        make_llm().generate(["fine", "also"], [])


def test_every_kind_of_list_is_a_list_of_prompts_or_of_token_ids(make_llm: MakeLLM) -> None:
    llm = make_llm()
    one = SamplingParams(max_tokens=1, ignore_eos=True)
    for prompts in ((5, 6), np.array([5, 6]), torch.tensor([5, 6]), iter([5, 6]), range(5, 7)):
        (output,) = llm.generate(prompts, one)  # type: ignore[arg-type]
        assert output.prompt_token_ids == [5, 6]
    for column in (np.array([[5], [6]]), torch.tensor([[5], [6]])):
        outputs = llm.generate(column, one)  # type: ignore[arg-type]
        assert [output.prompt_token_ids for output in outputs] == [[5], [6]]
    for several in (np.array([[5, 6], [7, 8]]), (p for p in ([5, 6], [7, 8]))):
        outputs = llm.generate(several, one)  # type: ignore[arg-type]
        assert [output.prompt_token_ids for output in outputs] == [[5, 6], [7, 8]]
