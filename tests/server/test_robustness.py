"""Clients that misbehave: each is answered properly, and the server is alive and empty after it."""

from __future__ import annotations

import gc
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from sdengine.async_engine import RequestStream
from sdengine.llm import LLM
from sdengine.server import half_close, run, streaming
from tests.server.conftest import MODEL, RunningServer, running, tiny_engine

LONG = {"model": MODEL, "prompt": "x", "max_tokens": 240, "ignore_eos": True}
JSON = "application/json"


def post_raw(server: RunningServer, body: bytes, kind: str = JSON) -> httpx.Response:
    headers = {"content-type": kind}
    return httpx.post(f"{server.url}/v1/completions", content=body, headers=headers, timeout=60)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe\x00",
        b'{"model": "tiny", "prompt": "\xff\xff"}',
        b'{"model": "tiny", "prompt": NaN}',
        b'{"model": "tiny", "prompt": "x", "temperature": Infinity}',
        b'{"model": "tiny", "prompt": "x", "seed": 1' + b"0" * 5000 + b"}",
        b"[" * 10_000 + b"]" * 10_000,
        b'{"model": "tiny", "prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        json.dumps({"model": MODEL, "prompt": "a" * 2**20}).encode(),
        json.dumps({"model": MODEL, "prompt": [5] * 200_000}).encode(),
    ],
    ids=lambda body: f"{body[:24]!r}-{len(body)}",
)
def test_bodies_that_nobody_should_send(server: RunningServer, body: bytes) -> None:
    response = post_raw(server, body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert len(response.content) < 2000
    server.assert_idle()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_wrong_content_types(server: RunningServer, kind: str) -> None:
    response = post_raw(server, json.dumps(LONG).encode(), kind)
    assert response.status_code == 415 and JSON in response.json()["error"]["message"]
    assert post_raw(server, b'{"model": "tiny"}', f"{JSON}; charset=utf-8").status_code == 400


def send_request(server: RunningServer, version: str = "1.1", **changes: Any) -> socket.socket:
    body = json.dumps({**LONG, **changes}).encode()
    connection = server.connect()
    connection.sendall(
        f"POST /v1/completions HTTP/{version}\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return connection


@pytest.fixture(params=["asyncio", "uvloop"])
def held_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server whose engine does nothing before `release` is called; on both event loops."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop", reason="the extra `server` has no uvloop here")
    else:
        monkeypatch.setattr(run, "find_spec", lambda name: None)
    monkeypatch.setattr(streaming, "SILENCE_S", 0.3)
    monkeypatch.setattr(half_close, "PROBE_S", 0.1)
    engine = tiny_engine()
    step, engine.step = engine.step, lambda *_: time.sleep(0.001) or []  # type: ignore[method-assign]

    def release() -> None:
        engine.step = step  # type: ignore[method-assign]

    with running(engine) as handle:
        handle.release = release
        yield handle
        release()


def wait_for_request(server: RunningServer) -> None:
    while not server.engine.status().num_requests:
        time.sleep(0.001)


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("way", ["close", "read and close", "reset", "half-close and reset"])
def test_clients_that_leave_are_forgotten(held_server: Any, way: str, is_streamed: bool) -> None:
    connection = send_request(held_server, stream=is_streamed)
    wait_for_request(held_server)
    if way == "read and close" and is_streamed:
        assert b"200 OK" in connection.recv(4096)  # with nothing unread, closing sends no reset
    if way.startswith("half-close"):
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.05)
    if way.endswith("reset"):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    held_server.assert_idle()  # the engine is held: only a cancelled request can go


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_clients_that_close_their_side_are_answered(
    held_server: Any, version: str, is_streamed: bool
) -> None:
    body = {"temperature": 0.9, "seed": 3, "max_tokens": 40, "stream": is_streamed}
    connection = send_request(held_server, version=version, **body)
    wait_for_request(held_server)
    connection.shutdown(socket.SHUT_WR)
    time.sleep(0.5)  # several probes
    assert held_server.engine.status().num_requests == 1
    held_server.release()
    answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()  # closed by the server
    connection.close()
    probes, _, rest = answer.partition("HTTP/1.1 200 OK\r\n")
    assert (
        probes
        == probes[: len(probes) // 25 * 25]
        == half_close.CONTINUE.decode() * (len(probes) // 25)
    )
    if version == "1.0":
        assert not probes  # it would not know what they are
    elif not is_streamed:  # a stream may have begun before the first probe, or not
        assert probes
    expected = post_raw(held_server, json.dumps({**LONG, **body, "stream": False}).encode())
    text = expected.json()["choices"][0]["text"]
    if is_streamed:
        assert ": waiting" in rest and rest.rstrip("\r\n0").endswith("data: [DONE]")
        lines = [line for line in rest.split("\n") if line.startswith("data: {")]
        choices = [json.loads(line[len("data: ") :])["choices"][0] for line in lines]
        assert "".join(choice["text"] for choice in choices) == text
    else:
        assert json.loads(rest.partition("\r\n\r\n")[2])["choices"][0]["text"] == text
    held_server.assert_idle()


def test_half_a_request_is_dropped(server: RunningServer) -> None:
    with server.connect() as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"model"'
        )
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(4096) == b""
    server.assert_idle()


def test_a_slow_reader_holds_nobody_up_and_misses_nothing(server: RunningServer) -> None:
    changes = {"stream": True, "temperature": 0.9, "seed": 3, "logprobs": 20}
    slow = send_request(server, **changes)
    server.assert_idle()  # the engine is done with it although nothing has been read
    fast = httpx.post(f"{server.url}/v1/completions", json={**LONG, **changes, "stream": False})
    text = b""
    while b"[DONE]" not in text:
        part = slow.recv(4096)
        assert part
        text += part
    slow.close()
    lines = [line for line in text.decode().split("\n") if line.startswith("data: {")]
    choices = [json.loads(line[len("data: ") :])["choices"][0] for line in lines]
    assert "".join(choice["text"] for choice in choices) == fast.json()["choices"][0]["text"]
    server.assert_idle()


def test_nonsense_on_the_wire(server: RunningServer) -> None:
    for text in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 100):
        with server.connect() as connection:
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(4096)
    server.log.clear()  # the parser's warnings about what is no HTTP
    server.assert_idle()


def test_a_stream_that_times_out_as_it_breaks_its_silence_has_one_answer(
    held_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--timeout 2` ends a request in the very moment of its first comment."""
    monkeypatch.setattr(streaming, "SILENCE_S", 0.4)
    end = RequestStream.expire_after
    monkeypatch.setattr(
        RequestStream, "expire_after", lambda stream, _, begun: end(stream, 0.4, begun)
    )
    for _ in range(4):
        response = httpx.post(f"{held_server.url}/v1/completions", json={**LONG, "stream": True})
        assert response.status_code in (200, 504) and '"code":"timeout"' in response.text
    gc.collect()  # what nobody heard of is told now: see the fixture's log


def test_a_drain_that_takes_too_long_ends_streams_with_a_reason() -> None:
    engine = tiny_engine()
    engine.step = lambda *_: time.sleep(0.001) or []  # type: ignore[method-assign]
    with running(engine, drain_timeout_s=0.2) as handle:
        body = {**LONG, "stream": True}
        with httpx.stream("POST", f"{handle.url}/v1/completions", json=body) as response:
            handle.server.should_exit = True
            assert '"code":"shutting_down"' in "".join(response.iter_text())


COMMAND = [sys.executable, "-m", "sdengine.cli", "serve", "--num-threads", "1", "--port"]
BUNDLED = {"model": "python-completion", "prompt": "class A:\n", "temperature": 0.8, "seed": 4}


def start(port: str) -> tuple[subprocess.Popen[str], str]:
    """A server in a process of its own, and its URL."""
    process = subprocess.Popen(
        [*COMMAND, port], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("sdengine: python-completion on http://127.0.0.1:"), line
    return process, line.split()[-1]


def read_stream(url: str, result: dict[str, str], has_begun: threading.Event) -> None:
    body = {**BUNDLED, "max_tokens": 600, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as response:
        for part in response.iter_text():
            result["text"] = result.get("text", "") + part
            has_begun.set()


def test_a_killed_server_is_replaced_and_a_signal_drains() -> None:
    killed, url = start("0")
    killed.kill()
    killed.communicate(timeout=60)
    process, same_url = start(url.rpartition(":")[2])
    assert same_url == url
    result: dict[str, str] = {}
    has_begun = threading.Event()
    reader = threading.Thread(target=read_stream, args=(url, result, has_begun))
    reader.start()
    assert has_begun.wait(120)
    process.send_signal(signal.SIGTERM)
    reader.join(120)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (0, "", "")
    assert result["text"].endswith("data: [DONE]\n\n")
    lines = [line for line in result["text"].split("\n") if line.startswith("data: {")]
    text = "".join(json.loads(line[len("data: ") :])["choices"][0]["text"] for line in lines)
    llm = LLM("python-completion", speculation=None, num_threads=1, max_num_seqs=1)
    changes = {"max_tokens": 600, "temperature": 0.8, "seed": 4, "ignore_eos": True}
    params = replace(llm.engine.default_params, **changes)
    assert text == llm.generate("class A:\n", params)[0].outputs[0].text
