"""Ctrl-C at any line: nothing is lost for good, and the next call finds an engine in order."""

from __future__ import annotations

import sys
from collections.abc import Callable
from linecache import getline
from types import FrameType
from typing import Any

import pytest

from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from sdengine.errors import RequestError
from sdengine.llm import LLM

from .conftest import MakeEngine, MakeLLM, text_checkpoint

PROMPTS = [[5, 6, 7] * 7, [9, 10] * 9, [11] * 5]
PARAMS = SamplingParams(max_tokens=24, temperature=0.7, seed=3, n=2, ignore_eos=True)
ALONE = SamplingParams(max_tokens=24, temperature=0.7, seed=3, ignore_eos=True)
FILES = (
    *("engine.py", "llm.py", "scheduler.py", "block_pool.py", "request.py", "runner.py"),
    *("step_reader.py", "step_clock.py", "penalties.py", "adaptive.py", "tree_size.py"),
)
CHAIN = SpeculationConfig(method="chain", max_nodes=6, max_depth=6)
# Not all that have a slot find blocks to the end: sequences are preempted.
SMALL: dict[str, Any] = {"num_kv_blocks": 12, "block_size": 8, "max_num_seqs": 3}


class Interrupt:
    """Raises KeyboardInterrupt before line number `at` that the engine's bookkeeping gets to.

    Not before a `with`, which a traced function gets to a second time when it leaves the block:
    signals are not looked at there, between the block's end and the release of its lock.
    """

    def __init__(self, at: int = 0, files: str | tuple[str, ...] = FILES) -> None:
        self.at, self.num_lines, self._files = at, 0, files

    def __enter__(self) -> Interrupt:
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _called(self, frame: FrameType, event: str, _: object) -> Any:
        path = frame.f_code.co_filename
        is_ours = "sdengine" in path or "/kernels/" in path
        return self._reached if is_ours and path.endswith(self._files) else None

    def _reached(self, frame: FrameType, event: str, _: object) -> Any:
        line = getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not line.lstrip().startswith("with "):
            self.num_lines += 1
            if self.num_lines == self.at:
                raise KeyboardInterrupt
        return self._reached


def completions(llm: LLM) -> list[list[int]]:
    outputs = llm.generate(PROMPTS, PARAMS)
    return [completion.token_ids for output in outputs for completion in output.outputs]


def penalised(llm: LLM) -> list[list[int]]:
    """Tokens of requests with and without tables that change their logits: the first slot goes
    from one with a bias to one without, the next time this is called."""
    bias = SamplingParams(
        max_tokens=6, temperature=0, logit_bias={40: 100.0, 41: 99.0}, presence_penalty=2.0
    )
    least = SamplingParams(max_tokens=6, temperature=0, min_tokens=3)
    plain = SamplingParams(max_tokens=6, temperature=0)
    found = []
    for params in ([plain, least], [bias, least], [least, plain, bias]):
        outputs = llm.generate(PROMPTS[: len(params)], params)
        found += [list(output.outputs[0].token_ids) for output in outputs]
    return found


def assert_empty(engine: Engine) -> None:
    assert not engine.has_unfinished_requests() and len(engine._book) == 0
    assert engine.num_free_blocks == engine.num_blocks
    assert engine.num_running == engine.num_waiting == 0


@pytest.mark.parametrize("part", range(3))
def test_generate_after_an_interrupt_at_any_line(make_llm: MakeLLM, part: int) -> None:
    llm = make_llm(**SMALL)
    expected = completions(llm)
    with Interrupt() as whole:
        assert completions(llm) == expected
    step = whole.num_lines // 25
    assert step > 20
    for at in range(1 + part * step // 3, whole.num_lines, step):
        with pytest.raises(KeyboardInterrupt), Interrupt(at):
            completions(llm)
        assert_empty(llm.engine)
        assert completions(llm) == expected, f"after line {at}"


@pytest.mark.parametrize("call", ["step", "abort_request", "close"])
def test_an_engine_after_an_interrupted_call(make_engine: MakeEngine, call: str) -> None:
    """Whoever steps by hand: the next call ends what is in doubt, and says what there was."""
    at, was_interrupted, engine = 0, True, make_engine(**SMALL)
    while was_interrupted:
        at += 1
        if call == "close":
            engine = make_engine(**SMALL)
        for name in ("a", "b"):
            engine.add_request(name, [7, 8, 9], ALONE)
        engine.step()
        work = {
            "step": engine.step,
            "abort_request": lambda engine=engine: engine.abort_request("a"),
            "close": engine.close,
        }[call]
        try:
            with Interrupt(at):
                work()
            was_interrupted = False
        except KeyboardInterrupt:
            pass
        for name in ("a", "b"):
            if engine.has_request(name):
                output = engine.abort_request(name)
                assert output.finished and len(output.outputs[0].token_ids) >= 1
        assert_empty(engine)
    assert at > 5


def test_requests_after_an_interrupted_one(make_engine: MakeEngine) -> None:
    """An interrupted `add_request` disturbs nobody; the request is there as a whole or not."""
    at, was_interrupted, engine = 0, True, make_engine(**SMALL)
    engine.add_request("a", [7, 8, 9], ALONE)
    while engine.has_unfinished_requests():
        expected = engine.step()
    while was_interrupted:
        at += 1
        engine.add_request("a", [7, 8, 9], ALONE)
        engine.step()
        try:
            with Interrupt(at):
                engine.add_request("b", [5, 6], ALONE)
            was_interrupted = False
        except KeyboardInterrupt:
            pass
        assert engine.has_request("b") == (engine.num_waiting == 1)
        if engine.has_request("b"):
            engine.abort_request("b")
        else:
            with pytest.raises(RequestError):
                engine.abort_request("b")
        outputs = []
        while engine.has_unfinished_requests():
            outputs = engine.step()
        assert outputs[0].outputs[0].token_ids == expected[0].outputs[0].token_ids
        assert_empty(engine)
    assert at > 5


@pytest.mark.parametrize(
    ("work", "files"),
    [
        (completions, ("step_clock.py", "adaptive.py", "tree_size.py", "pace.py", "accounts.py")),
        (completions, "calibration.py"),
        (penalised, "penalties.py"),
    ],
)
def test_what_is_learned_and_what_was_asked_for_survive_an_interrupt(
    make_llm: MakeLLM, work: Callable[[LLM], list[list[int]]], files: str | tuple[str, ...]
) -> None:
    """A static tree's controller counts depths, and a slot's penalties must not be its next
    sequence's."""
    llm = make_llm(draft=text_checkpoint(num_layers=2), speculation=CHAIN)
    expected = work(llm)
    with Interrupt(files=files) as whole:
        assert work(llm) == expected
    for at in range(1, whole.num_lines, max(whole.num_lines // 120, 1)):
        try:  # what a controller does depends on the clock: so does the number of lines
            with Interrupt(at, files):
                work(llm)
        except KeyboardInterrupt:
            assert_empty(llm.engine)
        assert work(llm) == expected, f"after line {at}"
