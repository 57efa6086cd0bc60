"""Submitting, reading and cancelling: the outputs are the engine's, and nothing stays behind."""

from __future__ import annotations

import asyncio

import pytest

from sdengine.async_engine import AsyncEngine, RequestStream
from sdengine.async_engine import stream as stream_module
from sdengine.core.config import SpeculationConfig
from sdengine.core.outputs import RequestOutput
from sdengine.core.plan import MAX_ITERATIONS
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import RequestError, RequestTimeout, SdengineError
from tests.async_engine.conftest import Turnstile
from tests.engine.conftest import MakeEngine, related_draft, run_all, text_checkpoint
from tests.engine.test_not_finite import poison

PROMPTS = [[5, 9, 140, 33, 7], [3], [(11 * i) % 180 + 5 for i in range(40)], [8, 8, 8], [77, 6]]
LONG = SamplingParams(max_tokens=10_000, temperature=0, ignore_eos=True)


def params_for(index: int) -> SamplingParams:
    return SamplingParams(max_tokens=20 + index, temperature=0.9, seed=index, ignore_eos=True)


async def last_output(stream: RequestStream) -> RequestOutput:
    async with stream:
        outputs = [output async for output in stream]
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    return outputs[-1]


@pytest.mark.parametrize("is_speculative", [False, True])
def test_concurrent_requests_get_the_engine_s_own_tokens(
    make_engine: MakeEngine, is_speculative: bool
) -> None:
    speculation = SpeculationConfig(max_nodes=6, max_depth=3) if is_speculative else None
    draft = related_draft() if is_speculative else None
    params = [params_for(i) for i in range(len(PROMPTS))]
    expected = run_all(make_engine(), PROMPTS, params)

    async def main() -> list[list[int]]:
        async with AsyncEngine(make_engine(draft=draft, speculation=speculation)) as engine:

            async def one(prompt: list[int], sampling: SamplingParams) -> list[int]:
                output = await last_output(await engine.submit(prompt, sampling))
                return list(output.outputs[0].token_ids)

            return await asyncio.gather(*map(one, PROMPTS, params))

    assert asyncio.run(main()) == expected


def test_text_prompts_keep_their_text(make_engine: MakeEngine) -> None:
    async def main() -> None:
        async with AsyncEngine(make_engine(text_checkpoint())) as engine:
            params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
            output = await last_output(await engine.submit("def f(x):", params))
            assert output.prompt == "def f(x):"
            assert output.prompt_token_ids == await engine.encode("def f(x):")
            by_ids = await last_output(await engine.submit(output.prompt_token_ids, params))
            assert by_ids.prompt is None
            assert by_ids.outputs[0].text == output.outputs[0].text
            with pytest.raises(RequestError):
                await engine.encode(5)  # type: ignore[arg-type]

    asyncio.run(main())


def test_every_completion_of_a_request_arrives(make_engine: MakeEngine) -> None:
    params = SamplingParams(n=3, max_tokens=9, temperature=1.0, seed=4, ignore_eos=True)

    async def main() -> None:
        async with AsyncEngine(make_engine()) as engine:
            ended = {}
            async for output in engine.generate([4, 5, 6], params):
                completion = output.outputs[0]
                if completion.is_finished:
                    ended[completion.index] = tuple(completion.token_ids)
            assert sorted(ended) == [0, 1, 2]
            assert len(set(ended.values())) == 3 and {len(ids) for ids in ended.values()} == {9}

    asyncio.run(main())


def test_a_bad_request_is_refused_and_the_others_go_on(make_turnstile) -> None:
    turnstile: Turnstile = make_turnstile(text_checkpoint())

    async def main() -> None:
        async with AsyncEngine(turnstile.engine) as engine:
            good = await engine.submit([4, 5], params_for(0))
            for prompt in ("\ud800", [], [10**6], [1] * 10_000, 3.5, object()):
                with pytest.raises(RequestError):
                    await engine.submit(prompt, params_for(1))  # type: ignore[arg-type]
            with pytest.raises(RequestError, match="request_id"):
                await engine.submit([4], params_for(1), request_id=good.request_id)
            turnstile.open()
            assert len((await last_output(good)).outputs[0].token_ids) == 20
            assert engine.status().num_requests == 0

    asyncio.run(main())


def test_text_without_a_tokenizer_is_refused(make_engine: MakeEngine) -> None:
    async def main() -> None:
        async with AsyncEngine(make_engine()) as engine:
            with pytest.raises(RequestError, match="tokenizer"):
                await engine.submit("text", params_for(1))

    asyncio.run(main())


@pytest.mark.parametrize("way", ["aclose", "break", "cancel the task"])
def test_a_reader_that_leaves_frees_its_blocks(make_turnstile, way: str) -> None:
    turnstile: Turnstile = make_turnstile()

    async def read(engine: AsyncEngine, is_reading: asyncio.Event) -> None:
        if way == "break":
            async for _ in engine.generate([4, 5, 6], LONG):
                break
            is_reading.set()
            return
        stream = await engine.submit([4, 5, 6], LONG)
        async with stream:
            async for _ in stream:
                is_reading.set()
                if way == "aclose":
                    return

    async def main() -> None:
        async with AsyncEngine(turnstile.engine) as engine:
            is_reading = asyncio.Event()
            task = asyncio.create_task(read(engine, is_reading))
            turnstile.open(3)
            await is_reading.wait()
            assert turnstile.engine.num_running == 1 or way != "cancel the task"
            if way == "cancel the task":
                task.cancel()
            await asyncio.wait([task])
            while engine.status().num_requests:
                await asyncio.sleep(0.001)
            status = engine.status()
            assert status.num_free_blocks == status.num_blocks
            turnstile.open()
            await last_output(await engine.submit([1, 2], params_for(0)))

    asyncio.run(asyncio.wait_for(main(), 60))


def test_closing_twice_or_after_the_end_is_harmless(make_engine: MakeEngine) -> None:
    async def main() -> None:
        async with AsyncEngine(make_engine()) as engine:
            stream = await engine.submit([4, 5, 6], params_for(0), request_id="same")
            await last_output(stream)
            other = await engine.submit([4, 5, 6], params_for(0), request_id="same")
            await stream.aclose()  # must not end the request that has its id now
            await last_output(other)
            await other.aclose()
            with pytest.raises(StopAsyncIteration):
                await other.__anext__()

    asyncio.run(main())


def test_a_slow_reader_gets_the_newest_state_and_holds_nobody_up(make_engine: MakeEngine) -> None:
    async def main() -> None:
        async with AsyncEngine(make_engine()) as engine:
            slow = await engine.submit([4, 5, 6], params_for(5))
            await last_output(await engine.submit([7, 8], params_for(9)))  # longer: slow has ended
            outputs = [output async for output in slow]
            assert len(outputs) == 1 and outputs[0].finished
            assert len(outputs[0].outputs[0].token_ids) == 25

    asyncio.run(main())


def test_a_busy_event_loop_is_woken_once(make_turnstile) -> None:
    turnstile = make_turnstile()

    async def main() -> None:
        async with AsyncEngine(turnstile.engine) as engine:
            stream = await engine.submit([4, 5, 6], params_for(0))
            calls = []
            receive = stream.receive
            stream.receive = lambda *args: calls.append(args) or receive(*args)
            turnstile.open()
            while engine.status().num_requests:  # blocks the loop: nothing can be delivered
                pass
            assert (await last_output(stream)).finished
            assert len(calls) == 1

    asyncio.run(main())


def test_first_and_last_outputs_do_not_wait(
    make_turnstile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "PAUSE_PER_WORK", 1e9)
    monkeypatch.setattr(stream_module, "LONGEST_PAUSE_S", 600.0)
    turnstile = make_turnstile()

    async def main() -> None:
        async with AsyncEngine(turnstile.engine) as engine:
            early = await engine.submit([4, 5, 6], LONG)
            turnstile.open(1)
            await anext(early)  # and a pause begins
            late = await engine.submit([7, 8], params_for(0))
            turnstile.open(1)
            first = await anext(late)  # before more steps: a newer output would replace it
            turnstile.open()
            outputs = [first] + [output async for output in late]
            assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 20]
            assert not early.is_ready
            await early.aclose()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_request_that_takes_too_long_is_ended(make_turnstile) -> None:
    turnstile = make_turnstile()

    async def main() -> None:
        async with AsyncEngine(turnstile.engine, max_requests=1) as engine:
            stream = await engine.submit([4, 5, 6], LONG, timeout_s=0.05)
            with pytest.raises(RequestTimeout, match=r"0\.05 s"):
                await stream.__anext__()
            async with await engine.submit([4, 5, 6], LONG):
                with pytest.raises(RequestTimeout):  # it never finds a place
                    await engine.submit([4, 5, 6], LONG, timeout_s=0.05)
            turnstile.open()
            await last_output(await engine.submit([4], params_for(0), timeout_s=60))

    asyncio.run(main())


def test_logits_that_are_not_finite_raise(make_engine: MakeEngine) -> None:
    engine = make_engine()
    poison(engine, [5])

    async def main() -> None:
        async with AsyncEngine(engine) as asynchronous:
            stream = await asynchronous.submit([4, 5, 6], params_for(0))
            with pytest.raises(SdengineError, match="not finite"):
                await last_output(stream)

    asyncio.run(main())


def test_trees_follow_the_outputs(make_engine: MakeEngine) -> None:
    speculation = SpeculationConfig(max_nodes=6, max_depth=3, adaptive=False)
    engine = make_engine(draft=related_draft(), speculation=speculation)
    step, num_iterations = engine.step, []

    def seen(max_iterations: int, max_seconds: float) -> list[RequestOutput]:
        num_iterations.append(max_iterations)
        return step(max_iterations, max_seconds)

    engine.step = seen  # type: ignore[method-assign]

    async def main() -> None:
        async with AsyncEngine(engine) as asynchronous:
            stream = await asynchronous.submit([4, 5, 6], params_for(10), wants_trees=True)
            sizes = []
            async for _ in stream:
                assert stream.step_tree is not None
                sizes.append(len(stream.step_tree.token_ids))
            assert max(sizes) > 0
            assert set(num_iterations) == {1}, "each one's tree is shown"
            plain = await asynchronous.submit([4, 5, 6], params_for(10))
            async for _ in plain:
                assert plain.step_tree is None
            assert num_iterations[-1] == MAX_ITERATIONS

    asyncio.run(main())
