"""What lies between the thread and the reader keeps the newest output of each completion, in the
order in which they were made."""

from __future__ import annotations

import asyncio

import pytest

from sdengine.async_engine import stream as stream_module
from sdengine.async_engine.stream import LONGEST_PAUSE_S, Outbox, RequestStream
from sdengine.core.outputs import CompletionOutput, RequestMetrics, RequestOutput
from sdengine.errors import SdengineError


def output(index: int, num_tokens: int, is_finished: bool = False) -> RequestOutput:
    reason = "length" if is_finished else None
    completion = CompletionOutput(index, "", [7] * num_tokens, finish_reason=reason)
    return RequestOutput("r", None, [1], [completion], is_finished, RequestMetrics(0.0))


def make_stream(outbox: Outbox) -> RequestStream:
    return RequestStream("r", None, [1], None, outbox, lambda stream: None, False)


async def read(stream: RequestStream) -> list[tuple[int, int]]:
    completions = [item.outputs[0] async for item in stream]
    return [(completion.index, len(completion.token_ids)) for completion in completions]


@pytest.mark.parametrize("is_read_late", [False, True])
def test_the_newest_outputs_come_and_the_last_one_comes_last(is_read_late: bool) -> None:
    steps = [output(2, 1), output(0, 1), output(2, 2), output(0, 2), output(2, 3, True)]

    async def main() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        stream = make_stream(outbox)
        for step in steps:
            outbox.post([(stream, step, None)])
            if is_read_late:  # delivered one by one, read together
                await asyncio.sleep(2 * LONGEST_PAUSE_S)
        assert await asyncio.wait_for(read(stream), 10) == [(0, 2), (2, 3)]

    asyncio.run(main())


def test_only_first_and_last_outputs_interrupt_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "PAUSE_PER_WORK", 1e9)
    monkeypatch.setattr(stream_module, "LONGEST_PAUSE_S", 60.0)

    async def main() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        early, late = make_stream(outbox), make_stream(outbox)

        def post(stream: RequestStream, num_tokens: int, is_finished: bool = False) -> None:
            urgent = [stream] if num_tokens == 1 or is_finished else []
            outbox.post([(stream, output(0, num_tokens, is_finished), None)], urgent)

        async def num_tokens(stream: RequestStream) -> int:
            return len((await asyncio.wait_for(anext(stream), 10)).outputs[0].token_ids)

        post(early, 1)
        assert await num_tokens(early) == 1  # and a pause begins
        post(early, 2)
        post(late, 1)
        assert await num_tokens(late) == 1
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(early), 0.05)
        post(early, 3)
        post(early, 4, is_finished=True)
        assert await asyncio.wait_for(read(early), 10) == [(0, 4)]

    asyncio.run(main())


def test_a_loop_without_outputs_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    num_deliveries = 0
    deliver = Outbox._deliver

    def counted(outbox: Outbox) -> None:
        nonlocal num_deliveries
        num_deliveries += 1
        deliver(outbox)

    monkeypatch.setattr(Outbox, "_deliver", counted)

    async def main() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        stream = make_stream(outbox)
        outbox.post([(stream, output(0, 1), None)])
        assert len((await asyncio.wait_for(anext(stream), 10)).outputs) == 1
        await asyncio.sleep(4 * LONGEST_PAUSE_S)
        assert num_deliveries == 2, "the output, and what came during the pause after it: nothing"

    asyncio.run(main())


def test_outputs_pass_a_reader_that_does_not_wait_for_them() -> None:
    taken: list[int] = []
    takes = True

    def take(item: RequestOutput) -> bool:
        if takes:
            taken.append(len(item.outputs[0].token_ids))
        return takes

    async def main() -> None:
        nonlocal takes
        stream = make_stream(Outbox(asyncio.get_running_loop()))
        stream.relay(take)
        reader = asyncio.create_task(read(stream))
        await asyncio.sleep(0)
        for num_tokens in (1, 2):
            stream.receive(output(0, num_tokens), None)
        await asyncio.sleep(0)
        assert taken == [1, 2] and not stream.is_ready
        takes = False
        stream.receive(output(0, 3), None)
        takes = True
        stream.receive(output(0, 4), None)  # must not overtake the third
        stream.receive(output(1, 4), None)
        stream.receive(output(1, 5, True), None)  # an end is always read
        assert taken == [1, 2] and stream.is_ready
        assert await asyncio.wait_for(reader, 10) == [(0, 4), (1, 5)]
        assert stream.is_ready

    asyncio.run(main())


def test_an_end_is_not_taken() -> None:
    async def main() -> None:
        stream = make_stream(Outbox(asyncio.get_running_loop()))
        stream.relay(lambda item: True)
        stream.receive(output(0, 5, True), None)
        assert await asyncio.wait_for(read(stream), 10) == [(0, 5)]

    asyncio.run(main())


def test_what_comes_after_the_end_is_not_read() -> None:
    async def main() -> None:
        stream = make_stream(Outbox(asyncio.get_running_loop()))
        await stream.aclose()
        stream.receive(output(0, 1), None)
        assert await asyncio.wait_for(read(stream), 10) == []

    asyncio.run(main())


def test_a_reader_whose_take_fails_learns_it_and_the_others_go_on() -> None:
    def fail(item: RequestOutput) -> bool:
        raise ZeroDivisionError("of the reader's own")

    async def main() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        broken, sound = make_stream(outbox), make_stream(outbox)
        broken.relay(fail)
        for num_tokens in (1, 2):
            step = output(0, num_tokens, is_finished=num_tokens == 2)
            outbox.post([(broken, step, None), (sound, step, None)])
            await asyncio.sleep(2 * LONGEST_PAUSE_S)
        with pytest.raises(ZeroDivisionError, match="own"):
            await asyncio.wait_for(read(broken), 10)
        assert await asyncio.wait_for(read(sound), 10) == [(0, 2)]

    asyncio.run(main())


def test_a_closed_loop_is_reported_every_time() -> None:
    async def make() -> tuple[Outbox, RequestStream]:
        outbox = Outbox(asyncio.get_running_loop())
        return outbox, make_stream(outbox)

    outbox, stream = asyncio.run(make())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            outbox.post([(stream, output(0, 1), None)])


def test_a_second_reader_is_refused_and_the_first_goes_on() -> None:
    """It took the first one's place, who then waited for ever."""

    async def main() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        stream = make_stream(outbox)
        first = asyncio.ensure_future(read(stream))
        await asyncio.sleep(0)
        with pytest.raises(SdengineError, match="one reader of a stream at a time"):
            await anext(stream)
        outbox.post([(stream, output(0, 3, True), None)])
        assert await asyncio.wait_for(first, 10) == [(0, 3)]

    asyncio.run(main())


def test_a_reader_that_was_cancelled_leaves_its_place() -> None:
    async def main() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        stream = make_stream(outbox)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        outbox.post([(stream, output(0, 3, True), None)])
        assert await asyncio.wait_for(read(stream), 10) == [(0, 3)]

    asyncio.run(main())
