"""Text past the tasks: exact, behind what others wrote, and only where nobody lies between."""

from __future__ import annotations

import asyncio
import json
import threading
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from sdengine.async_engine import stream as stream_module
from sdengine.server.gate import Answer
from sdengine.server.streaming import EventStream
from sdengine.server.wire import Wire, wire_below
from tests.server.conftest import MODEL, RunningServer, running, tiny_engine

BODY = {"model": MODEL, "prompt": "def f", "max_tokens": 200, "temperature": 0.9, "seed": 5}
STREAM = {**BODY, "stream": True}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What goes past the tasks."""
    parts: list[bytes] = []
    write = Wire.write

    def noting(wire: Wire, part: bytes) -> None:
        parts.append(part)
        write(wire, part)

    monkeypatch.setattr(Wire, "write", noting)
    monkeypatch.setattr(stream_module, "LONGEST_PAUSE_S", 0.001)  # many events, however fast
    return parts


@pytest.fixture
def patient(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Has the engine wait with a stream's second output until the first has left its task, and with
    each later one until the event loop has seen that before: so there is something to go past the
    task, however fast the engine is."""
    has_begun = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    write, step = EventStream._write, server.engine.engine.step
    has_output = False

    async def noting(events: EventStream[Any], part: bytes, more_body: bool = True) -> None:
        await write(events, part, more_body)
        loops.append(asyncio.get_running_loop())
        has_begun.set()

    def waiting(*arguments: Any) -> Any:
        nonlocal has_output
        if has_output:
            has_begun.wait(60)
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loops[0]).result(60)
        outputs = step(*arguments)
        has_output = has_output or bool(outputs)
        return outputs

    monkeypatch.setattr(EventStream, "_write", noting)
    monkeypatch.setattr(server.engine.engine, "step", waiting)
    return has_begun


class Shouting:
    """A user's own middleware, which changes what is sent."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def shout(message: Any) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": message["body"].replace(b"finish", b"FINISH")}
            await send(message)

        await self._app(scope, receive, shout)


def streamed(url: str, **changes: Any) -> str:
    """The text of a stream."""
    answer = httpx.post(f"{url}/v1/completions", json={**STREAM, **changes}, timeout=60)
    assert answer.text.endswith("data: [DONE]\n\n")
    events = [line for line in answer.text.split("\n") if line.startswith("data: {")]
    return "".join(json.loads(line[6:])["choices"][0]["text"] for line in events)


def whole(server: RunningServer, **changes: Any) -> str:
    """The text of a document."""
    answer = httpx.post(f"{server.url}/v1/completions", json={**BODY, **changes}, timeout=60)
    return answer.json()["choices"][0]["text"]


@pytest.mark.parametrize("changes", [{}, {"stop": ["e", "ab"]}, {"logprobs": 2}])
def test_a_stream_goes_past_its_task_and_stays_exact(
    server: RunningServer,
    patient: threading.Event,
    written: list[bytes],
    changes: dict[str, Any],
) -> None:
    assert streamed(server.url, **changes) == whole(server, **changes)
    assert patient.is_set()
    assert changes.get("stop") or written
    assert all(part.startswith(b"data: ") and b"[DONE]" not in part for part in written)
    server.assert_idle()


def test_the_end_of_a_stream_is_one_write(server: RunningServer) -> None:
    body = json.dumps({**STREAM, "max_tokens": 1}).encode()
    with server.connect() as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        rest = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")[2]
    size, _, chunks = rest.partition(b"\r\n")
    assert chunks.startswith(b"data: {")
    assert chunks[int(size, 16) :] == b"\r\n0\r\n\r\n"
    assert chunks[: int(size, 16)].endswith(b"data: [DONE]\n\n")


def test_a_layer_of_the_user_s_sees_every_event(written: list[bytes]) -> None:
    with running(tiny_engine()) as handle:
        handle.server.config.app.add_middleware(Shouting)
        answer = httpx.post(f"{handle.url}/v1/completions", json=STREAM, timeout=60)
        assert b"FINISH_reason" in answer.content and b"finish_reason" not in answer.content
        assert written == []


def test_a_client_that_does_not_read_gets_the_newest_text_later(
    server: RunningServer, written: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is full all the time: everything waits for the task, which waits for it."""
    monkeypatch.setattr(Wire, "is_open", property(lambda wire: False))
    assert streamed(server.url) == whole(server)
    assert written == []


class Transport:
    """Notes what is written."""

    def __init__(self, is_closing: bool) -> None:
        self.is_closing = lambda: is_closing
        self.parts: list[bytes] = []
        self.write = self.parts.append


def make_cycle(transport: Transport, **changes: Any) -> Any:
    values = {"chunked_encoding": True, "disconnected": False, "response_complete": False}
    flow = SimpleNamespace(write_paused=changes.pop("write_paused", False))
    return SimpleNamespace(transport=transport, flow=flow, **{**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"write_paused": True},
        {"disconnected": True},
        {"response_complete": True},
        {"chunked_encoding": False},
        {"chunked_encoding": None},
    ],
)
def test_a_wire_is_open_in_the_middle_of_a_body_that_is_read(changes: dict[str, Any]) -> None:
    assert Wire(make_cycle(Transport(False))).is_open
    assert not Wire(make_cycle(Transport(False), **changes)).is_open


@pytest.mark.parametrize("is_closing", [False, True])
def test_chunks_are_framed_and_a_closing_connection_is_left_alone(is_closing: bool) -> None:
    transport = Transport(is_closing)
    Wire(make_cycle(transport)).write(b"data: seventeen.\n")
    assert transport.parts == ([] if is_closing else [b"11\r\ndata: seventeen.\n\r\n"])


def test_foreign_sends_have_no_wire() -> None:
    async def send(message: Any) -> None:
        """Somebody else's."""

    assert wire_below(send) is None
    assert wire_below(Answer(Answer(send).send).send) is None
