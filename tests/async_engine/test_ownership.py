"""One engine, one thread: a second owner is refused until the first has ended."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sdengine.async_engine import AsyncEngine
from sdengine.errors import ConfigError
from tests.async_engine.test_lifecycle import SHORT
from tests.async_engine.test_requests import last_output
from tests.engine.conftest import MakeEngine


def test_one_engine_has_one_owner(make_engine: MakeEngine) -> None:
    inner = make_engine()

    async def main() -> None:
        first = AsyncEngine(inner)
        with pytest.raises(ConfigError, match="another AsyncEngine"):
            AsyncEngine(inner)
        async with first:
            assert (await last_output(await first.submit([4, 5], SHORT))).finished
        async with AsyncEngine(inner) as second:  # a drained one has given it back
            assert (await last_output(await second.submit([4, 5], SHORT))).finished
        AsyncEngine(inner).close()
        del first, second
        gc.collect()
        third = AsyncEngine(inner)
        with pytest.raises(ConfigError, match="another AsyncEngine"):
            AsyncEngine(inner)
        del third  # and so has one that nobody holds
        gc.collect()
        AsyncEngine(inner).close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_engine_refused_for_its_requests_can_be_had_later(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_request("mine", [4], SHORT)
    with pytest.raises(ConfigError, match="in use"):
        AsyncEngine(engine)
    engine.abort_request("mine")
    AsyncEngine(engine).close()


def test_of_many_that_want_an_engine_at_once_one_gets_it(make_engine: MakeEngine) -> None:
    inner, barrier = make_engine(), threading.Barrier(8)

    def take(_: int) -> AsyncEngine | None:
        barrier.wait()
        try:
            return AsyncEngine(inner)
        except ConfigError:
            return None

    with ThreadPoolExecutor(8) as threads:
        taken = [engine for engine in threads.map(take, range(8)) if engine is not None]
    assert len(taken) == 1
    taken[0].close()


def test_a_thread_that_does_not_start_leaves_the_engine(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            AsyncEngine(engine)
    AsyncEngine(engine).close()
