"""Calls of an engine from several threads, from finalizers in the middle of a step, and in forked
processes: refused with a reason, and the call that was under way is none the worse."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from sdengine.async_engine import AsyncEngine
from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from sdengine.errors import EngineBusy, EngineFailed
from sdengine.llm import LLM
from tests.engine.conftest import MakeEngine, MakeLLM, text_checkpoint

GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
TREES = SpeculationConfig(max_nodes=8, max_depth=4, adaptive=False)
PROMPTS = ["import os", "the quick brown", "the dog"]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")


def in_the_middle_of_a_step(engine: Engine, action: Callable[[], Any]) -> list[Any]:
    """Lets an action run once, between the kernels of the next step and its commits; returns what
    came of it, filled in then."""
    land, came = engine._runner.land, []

    def landing(*args: Any) -> Any:
        engine._runner.land = land  # type: ignore[method-assign]
        landed = land(*args)
        try:
            came.append(action())
        except BaseException as error:
            came.append(error)
        return landed

    engine._runner.land = landing  # type: ignore[method-assign]
    return came


def in_a_thread(action: Callable[[], Any]) -> Callable[[], Any]:
    """The same action, in a thread of its own."""

    def run() -> Any:
        came: list[Any] = []

        def catch() -> None:
            try:
                came.append(action())
            except Exception as error:
                came.append(error)

        thread = threading.Thread(target=catch)
        thread.start()
        thread.join(60)
        return came[0]

    return run


@pytest.mark.parametrize("call", ["add", "abort", "step"])
@pytest.mark.parametrize("where", ["here", "thread"])
def test_a_call_in_the_middle_of_a_step_is_refused(
    make_engine: MakeEngine, call: str, where: str
) -> None:
    engine = make_engine()
    calls: dict[str, Callable[[], Any]] = {
        "add": lambda: engine.add_request("second", [7, 8], GREEDY),
        "abort": lambda: engine.abort_request("first"),
        "step": engine.step,
    }
    expected = []
    for is_disturbed in (False, True):
        engine.add_request("first", [4, 5, 6], GREEDY)
        engine.step()
        action = in_a_thread(calls[call]) if where == "thread" else calls[call]
        came = in_the_middle_of_a_step(engine, action) if is_disturbed else []
        while engine.has_unfinished_requests():
            (output,) = engine.step()
        expected.append(output.outputs)
    assert isinstance(came[0], EngineBusy) and "one call" in str(came[0])
    assert expected[0] == expected[1]
    engine.add_request("second", [7, 8], GREEDY)  # the same call works later
    engine.abort_request("second")


def test_another_thread_s_generate_is_refused_and_the_first_goes_on(make_llm: MakeLLM) -> None:
    llm = make_llm(draft=text_checkpoint(2), speculation=TREES)
    expected = [output.outputs for output in llm.generate(PROMPTS, GREEDY)]
    open_stream = llm.stream(PROMPTS[0], GREEDY)
    next(open_stream)
    came = in_the_middle_of_a_step(llm.engine, in_a_thread(lambda: next(open_stream)))
    assert [output.outputs for output in llm.generate(PROMPTS, GREEDY)] == expected
    assert isinstance(came[0], EngineBusy)
    came = in_the_middle_of_a_step(
        llm.engine, in_a_thread(lambda: llm.generate(PROMPTS[1], GREEDY))
    )
    assert [output.outputs for output in llm.generate(PROMPTS, GREEDY)] == expected
    assert isinstance(came[0], EngineBusy) and not llm._inboxes


def test_many_threads_never_get_a_wrong_text(make_llm: MakeLLM) -> None:
    llm = make_llm(draft=text_checkpoint(2), speculation=TREES)
    expected = {prompt: llm.generate(prompt, GREEDY)[0].outputs for prompt in PROMPTS}
    wrong: list[Any] = []
    num_right = 0

    def generate(prompt: str) -> None:
        nonlocal num_right
        for _ in range(6):
            try:
                got = llm.generate(prompt, GREEDY)[0].outputs
            except EngineBusy:
                continue
            except BaseException as error:
                wrong.append(error)
                continue
            num_right += 1
            if got != expected[prompt]:
                wrong.append(got)

    threads = [threading.Thread(target=generate, args=(prompt,)) for prompt in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong and num_right
    assert [o.outputs for o in llm.generate(PROMPTS, GREEDY)] == [*expected.values()]
    assert not llm._inboxes and not llm.engine.has_unfinished_requests()


def test_a_stream_collected_in_the_middle_of_a_step_is_ended_after_it(make_llm: MakeLLM) -> None:
    llm = make_llm(draft=text_checkpoint(2), speculation=TREES)
    expected = [output.outputs for output in llm.generate(PROMPTS[:1], GREEDY)]
    dropped = [llm.stream(PROMPTS[1], GREEDY)]
    next(dropped[0])
    came = in_the_middle_of_a_step(llm.engine, dropped.clear)  # what the collector does with cycles
    *_, last = llm.stream(PROMPTS[0], GREEDY)
    assert came == [None] and last.output is not None
    assert last.output.outputs == expected[0]
    assert not llm._inboxes and not llm._left


def test_an_engine_that_has_an_owner_is_called_by_it_alone(make_engine: MakeEngine) -> None:
    engine = make_engine()

    async def main() -> None:
        async with AsyncEngine(engine) as owner:
            stream = await owner.submit([4, 5], GREEDY)
            for call in (engine.step, lambda: engine.add_request("mine", [4], GREEDY)):
                with pytest.raises(EngineBusy, match="from another thread"):
                    call()
            assert [o async for o in stream][-1].finished

    asyncio.run(asyncio.wait_for(main(), 60))
    engine.add_request("mine", [4], GREEDY)
    engine.abort_request("mine")


@needs_fork
def test_a_forked_process_is_told_and_ends(make_llm: MakeLLM) -> None:
    llm = make_llm(num_threads=2)
    expected = llm.generate(PROMPTS[0], GREEDY)[0].outputs
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()

    def child() -> None:
        try:
            answers.put(llm.generate(PROMPTS[0], GREEDY))
        except EngineFailed as error:
            answers.put(error)

    process = fork.Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    answer = answers.get()
    assert isinstance(answer, EngineFailed) and "spawn" in str(answer)
    assert llm.generate(PROMPTS[0], GREEDY)[0].outputs == expected


FORKING = (sys.executable, "-W", "ignore::DeprecationWarning", "-c")  # Python 3.12: of threads
FORKED_ALONE = """
import os, sys
from sdengine.core.sampling_params import SamplingParams
from sdengine.llm import LLM

params = SamplingParams(max_tokens=8, temperature=0.0)
ask = lambda: LLM({model!r}, num_threads=2, speculation=None).generate([4, 5], params)
mine = ask()[0].outputs[0].token_ids
child = os.fork()
if child:
    sys.exit(os.waitpid(child, 0)[1])
assert ask()[0].outputs[0].token_ids == mine
"""


@needs_fork
def test_a_forked_process_makes_an_engine_of_its_own() -> None:
    """torch's threads were not forked along, and its first parallel loop would wait for them."""
    code = FORKED_ALONE.format(model=text_checkpoint(vocab_size=40_000))
    done = subprocess.run([*FORKING, code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


STEPS_FOR_EVER = """
import threading, time
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine

engine = Engine({model!r}, num_threads=1)
params = SamplingParams(max_tokens=100, ignore_eos=True)
begun = threading.Event()


def loop():
    number = 0
    while True:
        engine.add_request(str(number), [4, 5], params)
        while engine.has_unfinished_requests():
            engine.step()
            begun.set()
        number += 1


threading.Thread(target=loop, daemon=True).start()
begun.wait()
"""


def test_a_process_ends_while_a_daemon_thread_steps_an_engine() -> None:
    """Python ends such a thread where it takes the interpreter's lock back."""
    code = STEPS_FOR_EVER.format(model=text_checkpoint())
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")


FORKED = """
import asyncio, os, sys
from sdengine.async_engine import AsyncEngine
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from sdengine.errors import EngineFailed

engine = Engine({model!r}, num_threads=3, speculation=None)
asynchronous = AsyncEngine(engine)


async def ask():
    try:
        await asynchronous.submit([4, 5], SamplingParams(max_tokens=3))
    except EngineFailed as error:
        print(error, asynchronous.status().state)
    await asynchronous.drain()


child = os.fork()
if child:
    sys.exit(os.waitpid(child, 0)[1])
asyncio.run(ask())
"""


@needs_fork
def test_a_forked_process_with_an_async_engine_is_told_and_exits_as_usual() -> None:
    code = FORKED.format(model=text_checkpoint())
    done = subprocess.run([*FORKING, code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "before a fork" in done.stdout and done.stdout.endswith(" failed\n")


def test_an_llm_shared_by_hand_between_threads_is_no_mistake(make_llm: MakeLLM) -> None:
    llm: LLM = make_llm()
    expected = llm.generate(PROMPTS[0], GREEDY)[0].outputs
    assert in_a_thread(lambda: llm.generate(PROMPTS[0], GREEDY)[0].outputs)() == expected


def test_an_engine_is_neither_copied_nor_pickled(make_llm: MakeLLM) -> None:
    llm = make_llm()
    for action in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="make another one from its `config`"):
            action(llm.engine)
    for action in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="make another one from its `config`"):
            action(llm)
