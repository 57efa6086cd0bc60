"""Admission, draining, failures and ends: nobody hangs, and everybody learns why."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from sdengine.async_engine import AsyncEngine
from sdengine.core.config import SpeculationConfig
from sdengine.core.outputs import RequestOutput
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import ConfigError, EngineBusy, EngineFailed, EngineStopped
from sdengine.model.tokenizer import LONG_TEXT
from tests.async_engine.conftest import Turnstile
from tests.async_engine.test_requests import LONG, last_output, params_for
from tests.engine.conftest import MakeEngine, text_checkpoint
from tests.model.checkpoints import make_checkpoint

SHORT = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)


async def settled() -> None:
    """Gives tasks of this loop their turn."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_full_engine_makes_callers_wait_in_order(make_turnstile) -> None:
    turnstile: Turnstile = make_turnstile()

    async def main() -> None:
        engine = AsyncEngine(turnstile.engine, max_requests=2)
        for _ in range(2):
            await engine.submit([4, 5], SHORT)
        order: list[int] = []

        async def wait_for_place(number: int) -> None:
            async with await engine.submit([4, 5], SHORT):
                order.append(number)

        waiting = [asyncio.create_task(wait_for_place(number)) for number in range(4)]
        while engine.status().num_callers_waiting < 4:
            await asyncio.sleep(0.001)
        assert engine.status().num_requests == 2 and order == []
        with pytest.raises(EngineBusy, match="fewer than 2"):
            await engine.submit([4, 5], SHORT, may_wait=False)
        turnstile.open()
        await asyncio.wait_for(asyncio.gather(*waiting), 60)
        assert order == [0, 1, 2, 3]
        await engine.drain()

    asyncio.run(main())


def test_whoever_waits_takes_the_place_of_a_request_that_is_cancelled(make_turnstile) -> None:
    """Nothing else moves an engine that has become empty."""
    turnstile: Turnstile = make_turnstile()

    async def main() -> None:
        engine = AsyncEngine(turnstile.engine, max_requests=1)
        inside = await engine.submit([4, 5], LONG)
        in_line = asyncio.create_task(engine.submit([4, 5], SHORT))
        await settled()
        await inside.aclose()
        try:
            stream = await asyncio.wait_for(in_line, 20)
            turnstile.open()
            await last_output(stream)
        finally:
            engine.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_caller_that_stops_waiting_leaves_the_line(make_turnstile) -> None:
    turnstile: Turnstile = make_turnstile()

    async def main() -> None:
        engine = AsyncEngine(turnstile.engine, max_requests=1)
        first = await engine.submit([4, 5], SHORT)
        impatient = asyncio.create_task(engine.submit([4, 5], LONG))
        await settled()
        impatient.cancel()
        patient = asyncio.create_task(engine.submit([6], SHORT))
        while engine.status().num_callers_waiting != 1:
            await asyncio.sleep(0.001)
        turnstile.open()
        await last_output(first)
        await asyncio.wait_for(last_output(await patient), 60)
        assert await engine.drain(60)
        assert engine.status().totals.num_steps < 10, "nobody wanted the long one any more"

    asyncio.run(asyncio.wait_for(main(), 60))


def test_drain_finishes_what_was_accepted_and_refuses_the_rest(make_turnstile) -> None:
    turnstile: Turnstile = make_turnstile()

    async def main() -> None:
        engine = AsyncEngine(turnstile.engine, max_requests=1)
        inside = await engine.submit([4, 5], params_for(0))
        in_line = asyncio.create_task(engine.submit([4, 5], params_for(1)))
        await settled()
        draining = asyncio.create_task(engine.drain())
        while engine.status().state == "running":
            await asyncio.sleep(0.001)
        assert engine.status().state == "draining"
        with pytest.raises(EngineStopped):
            await engine.submit([4, 5], params_for(2))
        turnstile.open()
        assert len((await last_output(inside)).outputs[0].token_ids) == 20
        assert len((await last_output(await in_line)).outputs[0].token_ids) == 21
        assert await draining
        assert engine.status().state == "stopped"
        with pytest.raises(EngineStopped, match="shutting down"):
            await engine.submit([4], SHORT)
        assert await engine.drain()  # once more is harmless

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_drain_has_an_end(make_turnstile) -> None:
    turnstile: Turnstile = make_turnstile()

    async def main() -> None:
        engine = AsyncEngine(turnstile.engine, max_requests=1)
        inside = await engine.submit([4, 5], LONG)
        in_line = asyncio.create_task(engine.submit([4, 5], LONG))
        await settled()
        assert not await engine.drain(0.05)
        for reader in (last_output(inside), in_line):
            with pytest.raises(EngineStopped):
                await reader

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_drain_that_is_cancelled_ends_the_thread_all_the_same(make_engine: MakeEngine) -> None:
    engine = make_engine()
    is_stepping, may_go_on, step = threading.Event(), threading.Event(), engine.step

    def held_step(*limits: float) -> list[RequestOutput]:
        is_stepping.set()
        may_go_on.wait(60)
        return step()

    engine.step = held_step  # type: ignore[method-assign]

    async def main() -> None:
        served = AsyncEngine(engine)
        stream = await served.submit([4, 5], LONG)
        await asyncio.to_thread(is_stepping.wait, 60)
        draining = asyncio.create_task(served.drain(0.0))
        while not served._thread._is_stopping:
            await asyncio.sleep(0.001)
        await settled()
        draining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await draining
        assert served.status().state == "draining"
        may_go_on.set()
        with pytest.raises(EngineStopped):
            await last_output(stream)
        assert await served.drain()
        assert served.status().state == "stopped"

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_failing_engine_fails_everybody_and_says_so(make_turnstile) -> None:
    turnstile: Turnstile = make_turnstile()
    step, cause = turnstile.step, MemoryError("no more")

    def failing() -> list:
        raise cause

    async def main() -> None:
        engine = AsyncEngine(turnstile.engine, max_requests=1)
        inside = await engine.submit([4, 5], LONG)
        in_line = asyncio.create_task(engine.submit([4, 5], LONG))
        await settled()
        turnstile.step = failing
        turnstile.open()
        for reader in (last_output(inside), in_line):
            with pytest.raises(EngineFailed, match="MemoryError: no more") as caught:
                await reader
            assert caught.value.__cause__ is cause
        with pytest.raises(EngineFailed):
            await engine.submit([4], SHORT)
        status = engine.status()
        assert (status.state, status.failure, status.num_requests) == ("failed", cause, 0)
        assert not await engine.drain()

    asyncio.run(asyncio.wait_for(main(), 60))
    turnstile.step = step
    turnstile.engine.abort_request("async-0")


def test_a_loop_that_went_away_does_not_hold_its_requests(make_turnstile) -> None:
    turnstile: Turnstile = make_turnstile()
    made: list[AsyncEngine] = []

    async def abandon() -> None:
        made.append(AsyncEngine(turnstile.engine))
        for _ in range(2):
            await made[0].submit([4, 5], LONG)

    async def come_later() -> None:
        async with made[0] as engine:
            turnstile.open()
            await last_output(await engine.submit([4], SHORT))
            assert engine.status().num_requests == 0

    asyncio.run(abandon())
    asyncio.run(asyncio.wait_for(come_later(), 60))


def test_an_object_nobody_holds_ends_its_thread(make_engine: MakeEngine) -> None:
    engine = AsyncEngine(make_engine())
    thread = next(t for t in threading.enumerate() if t.name == "sdengine")
    del engine
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_an_engine_in_use_or_without_room_is_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(ConfigError, match="max_requests"):
        AsyncEngine(make_engine(), max_requests=0)
    engine = make_engine()
    engine.add_request("mine", [4], SHORT)
    with pytest.raises(ConfigError, match="in use"):
        AsyncEngine(engine)
    engine.abort_request("mine")


@pytest.mark.parametrize("end", ["drain", "close"])
@pytest.mark.parametrize("length", [8, 4 * LONG_TEXT])
def test_text_after_the_end_is_refused_as_token_ids_are(
    make_engine: MakeEngine, end: str, length: int
) -> None:
    async def main() -> None:
        engine = AsyncEngine(make_engine(text_checkpoint()))
        if end == "drain":
            await engine.drain()
        else:
            engine.close()
        with pytest.raises(EngineStopped, match="shutting down"):
            await engine.submit("x" * length, SHORT)
        with pytest.raises(EngineStopped, match="shutting down"):
            async for _ in engine.generate("x" * length, SHORT):
                pass

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("end", ["drain", "close"])
def test_long_text_is_not_encoded_after_the_end(make_engine: MakeEngine, end: str) -> None:
    async def main() -> None:
        engine = AsyncEngine(make_engine(text_checkpoint()))
        if end == "drain":
            await engine.drain()
        else:
            engine.close()
        with pytest.raises(EngineStopped, match="shutting down"):
            await engine.encode("x" * 4 * LONG_TEXT)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_text_is_not_encoded_for_an_engine_that_drains(make_turnstile) -> None:
    turnstile: Turnstile = make_turnstile(text_checkpoint())

    async def main() -> None:
        with closing(AsyncEngine(turnstile.engine)) as engine:
            inside = await engine.submit([4, 5], SHORT)
            draining = asyncio.create_task(engine.drain())
            while engine.status().state == "running":
                await asyncio.sleep(0.001)
            with pytest.raises(EngineStopped):  # of its surrogate it would be a RequestError
                await engine.submit("\ud800", SHORT)
            turnstile.open()
            await last_output(inside)
            await draining

    asyncio.run(asyncio.wait_for(main(), 60))


def test_totals_count_every_step(make_engine: MakeEngine) -> None:
    async def main() -> None:
        async with AsyncEngine(make_engine()) as engine:
            await last_output(await engine.submit([4, 5], params_for(0)))
            totals = engine.status().totals
            assert totals.num_steps == totals.num_sequence_steps == 20
            assert totals.num_draft_tokens == 0 and totals.accepted_by_depth == []
            assert 0 < totals.verify_time_s <= totals.step_time_s

    asyncio.run(main())


def test_totals_stay_those_of_the_moment_they_were_asked_for(make_engine: MakeEngine) -> None:
    perfect = SpeculationConfig(max_nodes=4, max_depth=2, adaptive=False)

    async def main() -> None:
        draft = str(make_checkpoint())
        async with AsyncEngine(make_engine(draft=draft, speculation=perfect)) as engine:
            await last_output(await engine.submit([4, 5], params_for(0)))
            totals = engine.status().totals
            by_depth = list(totals.accepted_by_depth)
            await last_output(await engine.submit([4, 5], params_for(0)))
            assert totals.accepted_by_depth == by_depth
            assert engine.status().totals.accepted_by_depth == [2 * n for n in by_depth] != []

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_process_ends_although_requests_are_unfinished() -> None:
    code = (
        "import asyncio\n"
        "from sdengine import AsyncEngine, Engine, SamplingParams\n"
        "async def main():\n"
        "    global engine\n"
        "    engine = AsyncEngine(Engine('python-completion', num_threads=1))\n"
        "    await engine.submit([5, 6], SamplingParams(max_tokens=900, ignore_eos=True))\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_exception_in_the_block_does_not_wait_for_requests(make_turnstile) -> None:
    """Nobody reads them any more, and the engine stands still here until the test is over."""
    turnstile: Turnstile = make_turnstile()

    async def main() -> None:
        with pytest.raises(KeyError):
            async with AsyncEngine(turnstile.engine) as engine:
                stream = await engine.submit([4, 5], LONG)
                raise KeyError
        with pytest.raises(EngineStopped):
            await anext(stream)

    asyncio.run(asyncio.wait_for(main(), 60))
