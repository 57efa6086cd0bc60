"""What one caller gets wrong is refused where it comes in, and is nobody else's trouble."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing
from typing import Any

import pytest

from sdengine.async_engine import AsyncEngine, RequestStream
from sdengine.async_engine.stream import Outbox
from sdengine.async_engine.thread import EngineThread
from sdengine.errors import ConfigError, RequestError, RequestTimeout
from tests.async_engine.conftest import Turnstile
from tests.async_engine.test_lifecycle import SHORT
from tests.async_engine.test_requests import LONG, last_output, params_for
from tests.engine.conftest import MakeEngine, seen_groups, text_checkpoint


@pytest.mark.parametrize("way", ["submit", "generate", "enqueue"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"request_id": ["x"]},
        {"request_id": 7},
        {"request_id": b"x"},
        {"timeout_s": "abc"},
        {"timeout_s": 2**2000},
        {"timeout_s": float("nan")},
        {"timeout_s": float("inf")},
        {"timeout_s": -1},
        {"timeout_s": True},
        {"group": 7},
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_before_anything_begins(
    make_turnstile, way: str, wrong: dict[str, Any]
) -> None:
    turnstile: Turnstile = make_turnstile()

    async def send(engine: AsyncEngine) -> None:
        if way == "generate":
            async for _ in engine.generate([4, 5], params_for(1), **wrong):
                pass
        elif way == "submit":
            await engine.submit([4, 5], params_for(1), **wrong)
        else:
            engine.enqueue([4, 5], params_for(1), **wrong)

    async def main() -> None:
        with closing(AsyncEngine(turnstile.engine)) as engine:
            good = await engine.submit([4, 5], params_for(0))
            with pytest.raises(RequestError, match=f"expected {next(iter(wrong))} to be"):
                await send(engine)
            assert engine.status().num_requests == 1
            turnstile.open()
            assert len((await last_output(good)).outputs[0].token_ids) == 20

    asyncio.run(asyncio.wait_for(main(), 60))


class Undecided:
    """Neither true nor false, as an array of several."""

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")


@pytest.mark.parametrize("name", ["may_wait", "wants_trees"])
def test_a_flag_that_is_none_is_refused(make_turnstile, name: str) -> None:
    turnstile: Turnstile = make_turnstile()

    async def main() -> None:
        with closing(AsyncEngine(turnstile.engine, max_requests=1)) as engine:
            good = await engine.submit([4, 5], params_for(0))
            with pytest.raises(RequestError, match=f"expected {name} to be True or False"):
                flag: dict[str, Any] = {name: Undecided()}
                await asyncio.wait_for(engine.submit([4], params_for(1), **flag), 10)
            turnstile.open()
            assert len((await last_output(good)).outputs[0].token_ids) == 20

    asyncio.run(asyncio.wait_for(main(), 60))


def test_names_that_are_made_up_are_nobody_s(make_turnstile) -> None:
    turnstile: Turnstile = make_turnstile()

    async def main() -> None:
        with closing(AsyncEngine(turnstile.engine)) as engine:
            mine = {
                name: await engine.submit([4, 5], params_for(0), request_id=name)
                for name in ("async-0", "async-1")
            }
            late = engine.enqueue([4, 5], params_for(3), request_id="async-3")
            others = [await engine.submit([4, 5], params_for(i)) for i in (1, 2)]
            streams = [*mine.values(), *others, late]
            assert len({stream.request_id for stream in streams}) == 5
            turnstile.open()
            outputs = [await last_output(stream) for stream in streams]
            assert [o.request_id for o in outputs] == [stream.request_id for stream in streams]
            assert [len(o.outputs[0].token_ids) for o in outputs] == [20, 20, 21, 22, 23]
            assert mine.keys() == {stream.request_id for stream in mine.values()}

    asyncio.run(asyncio.wait_for(main(), 60))


def test_the_engine_is_told_who_is_waited_for_together(make_turnstile) -> None:
    turnstile: Turnstile = make_turnstile()
    groups = seen_groups(turnstile.engine)

    async def main() -> None:
        with closing(AsyncEngine(turnstile.engine)) as engine:
            turnstile.open()
            await last_output(await engine.submit([4, 5], SHORT, group="a"))
            await last_output(engine.enqueue([4, 5], SHORT, group="b"))
            async for _ in engine.generate([4, 5], SHORT, group="c"):
                pass
            await last_output(await engine.submit([4, 5], SHORT))

    asyncio.run(asyncio.wait_for(main(), 60))
    assert groups == ["a", "b", "c", None]


@pytest.mark.parametrize("timeout_s", ["a", float("nan"), 2**2000, -1.0, True])
def test_a_drain_with_a_wrong_timeout_does_not_begin(
    make_engine: MakeEngine, timeout_s: float
) -> None:
    async def main() -> None:
        with closing(AsyncEngine(make_engine())) as engine:
            with pytest.raises(ConfigError, match="timeout_s"):
                await engine.drain(timeout_s)
            assert engine.status().state == "running"
            await last_output(await engine.submit([4, 5], SHORT))

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_request_without_a_usable_name_ends_alone(make_turnstile) -> None:
    """The thread's own defence, should such a name come past `submit`."""
    turnstile: Turnstile = make_turnstile()

    async def main() -> None:
        thread = EngineThread(turnstile.engine, 4)
        thread.start()
        outbox = Outbox(asyncio.get_running_loop())

        def stream(name: Any) -> RequestStream:
            return RequestStream(name, None, [4, 5], SHORT, outbox, thread.cancel, False)

        good, bad = stream("good"), stream(["x"])
        for one in (good, bad):
            thread.submit(one, True)
        with pytest.raises(RequestError, match="request_id"):
            await anext(bad)
        turnstile.open()
        await last_output(good)
        thread.join()
        assert thread.failure is None

    asyncio.run(asyncio.wait_for(main(), 60))


def test_what_is_no_engine_is_refused() -> None:
    for wrong in ("python-completion", None, 5):
        with pytest.raises(ConfigError, match="expected an Engine, got"):
            AsyncEngine(wrong)  # type: ignore[arg-type]


def test_a_list_that_changes_after_the_call_does_not_change_the_prompt(make_turnstile) -> None:
    turnstile: Turnstile = make_turnstile()

    async def main() -> None:
        with closing(AsyncEngine(turnstile.engine)) as engine:
            prompt = [4, 5, 6]
            stream = engine.enqueue(prompt, params_for(0))
            prompt[:] = [7]
            turnstile.open()
            assert (await last_output(stream)).prompt_token_ids == [4, 5, 6]
            with pytest.raises(RequestError, match="a prompt of text or of token ids"):
                engine.enqueue(7, params_for(0))
            with pytest.raises(RequestError, match="token_ids to be a list of any kind, got text"):
                engine.enqueue("text", params_for(0))

    asyncio.run(main())


def test_time_runs_while_a_long_text_is_tokenised(make_engine: MakeEngine, monkeypatch) -> None:
    engine = make_engine(text_checkpoint())
    may_end = threading.Event()
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    encode = type(tokenizer).encode

    def slow(self, text: str, **options: bool) -> list[int]:
        assert may_end.wait(60)
        return encode(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "encode", slow)

    async def main() -> None:
        with closing(AsyncEngine(engine)) as asynchronous:
            with pytest.raises(RequestTimeout, match=r"within 0\.05 s"):
                await asynchronous.submit("x" * 10_000, params_for(0), timeout_s=0.05)
            may_end.set()
            with pytest.raises(RequestTimeout, match=r"within 0 s"):
                await last_output(await asynchronous.submit("x", LONG, timeout_s=0))

    asyncio.run(main())


def test_loops_of_two_threads_have_outboxes_of_their_own(make_turnstile, monkeypatch) -> None:
    """The second loop comes in between the first one's look for its outbox and its use."""
    turnstile: Turnstile = make_turnstile()
    loops, made = [], []
    other_is_in = threading.Event()

    class SlowOutbox(Outbox):
        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            super().__init__(loop)
            made.append(loop)
            if len(made) == 1:
                thread.start()
                assert other_is_in.wait(60)

    monkeypatch.setattr("sdengine.async_engine.engine.Outbox", SlowOutbox)

    async def ask(engine: AsyncEngine) -> None:
        stream = engine.enqueue([4, 5], params_for(0))
        loops.append((stream.loop, asyncio.get_running_loop()))
        other_is_in.set()
        turnstile.open()
        await last_output(stream)

    with closing(AsyncEngine(turnstile.engine)) as engine:
        thread = threading.Thread(target=lambda: asyncio.run(ask(engine)))
        asyncio.run(ask(engine))
        thread.join()
    assert len(loops) == 2 and all(of_stream is running for of_stream, running in loops)
