"""A closed engine has freed its memory and threads, says so when it is asked for more, and leaves
what it handed out."""

from __future__ import annotations

import asyncio
import gc
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import pytest

from sdengine.async_engine import AsyncEngine
from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from sdengine.errors import EngineBusy, EngineFailed, RequestError
from sdengine.factory import shared_weights
from tests.engine.conftest import MakeEngine, MakeLLM, related_draft, text_checkpoint
from tests.engine.test_one_call_at_a_time import in_a_thread, in_the_middle_of_a_step

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
TREES = SpeculationConfig(max_nodes=8, max_depth=4, adaptive=False)
PROMPT = [4, 5, 6, 4, 5]


def num_os_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_memory_and_threads_go_at_once(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_weights, "_loaded", WeakValueDictionary())
    engine = make_engine(draft=related_draft(), speculation=TREES, num_threads=3)
    engine.add_request("r", PROMPT, GREEDY)
    engine.step()
    iteration = engine.iteration
    held = [weakref.ref(iteration), weakref.ref(iteration.weights.layers[0].qkv.storage)]
    del iteration
    expected = num_os_threads() - 2
    gc.disable()  # no reference is left to it to find
    try:
        engine.close()
        assert [ref() for ref in held] == [None, None]
    finally:
        gc.enable()
    deadline = time.monotonic() + 10
    while num_os_threads() > expected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert num_os_threads() == expected
    engine.close()


CALLS: dict[str, Callable[[Engine], Any]] = {
    "add": lambda engine: engine.add_request("next", PROMPT, GREEDY),
    "abort": lambda engine: engine.abort_request("r"),
    "step": lambda engine: engine.step(),
    "tree": lambda engine: engine.step_tree("r"),
    "report": lambda engine: engine.last_report,
    "iteration": lambda engine: engine.iteration,
    "controller": lambda engine: engine.controller,
}


@pytest.mark.parametrize("call", CALLS)
def test_whatever_needs_an_open_engine_says_so(make_engine: MakeEngine, call: str) -> None:
    with make_engine() as engine:
        engine.add_request("r", PROMPT, GREEDY)
        (output,) = engine.step()
    with pytest.raises(EngineFailed, match="an open engine, got a closed one"):
        CALLS[call](engine)
    assert len(output.outputs[0].token_ids) == 1
    assert not engine.has_request("r") and not engine.has_unfinished_requests()
    assert (engine.num_running, engine.num_waiting) == (0, 0)
    assert engine.num_free_blocks == engine.num_blocks


def test_streams_of_a_closed_llm_end_with_an_error(make_llm: MakeLLM) -> None:
    with make_llm(draft=text_checkpoint(2), speculation=TREES) as llm:
        stream = llm.stream("import os", GREEDY)
        first = next(stream)
    assert first.token_ids
    with pytest.raises(RequestError, match="got an aborted one"):
        list(stream)
    with pytest.raises(EngineFailed, match="a closed one"):
        llm.generate("import os", GREEDY)


@pytest.mark.parametrize("where", ["here", "thread"])
def test_closing_in_the_middle_of_a_step_is_refused(make_engine: MakeEngine, where: str) -> None:
    engine = make_engine()
    engine.add_request("r", PROMPT, GREEDY)
    came = in_the_middle_of_a_step(
        engine, in_a_thread(engine.close) if where == "thread" else engine.close
    )
    outputs = [engine.step()[0] for _ in range(GREEDY.max_tokens)]
    assert isinstance(came[0], EngineBusy)
    assert outputs[-1].finished and len(outputs[-1].outputs[0].token_ids) == GREEDY.max_tokens
    engine.close()


def test_a_call_that_comes_just_after_the_end_says_so(make_engine: MakeEngine) -> None:
    """It was let in while nothing ran, and found the engine closed when its turn came."""
    engine = make_engine()
    let_in = engine._check_call

    def close_first() -> None:
        let_in()
        engine._check_call = let_in  # type: ignore[method-assign]
        engine.close()

    engine._check_call = close_first  # type: ignore[method-assign]
    with pytest.raises(EngineFailed, match="a closed one"):
        engine.step()


def test_an_engine_is_closed_after_its_async_engine(make_engine: MakeEngine) -> None:
    async def run(engine: Engine) -> None:
        async with AsyncEngine(engine) as around:
            stream = await around.submit(PROMPT, GREEDY)
            with pytest.raises(EngineBusy):
                engine.close()
            *_, last = [output async for output in stream]
            assert len(last.outputs[0].token_ids) == GREEDY.max_tokens
        engine.close()
        with pytest.raises(EngineFailed, match="a closed one"):
            AsyncEngine(engine)

    asyncio.run(run(make_engine()))
