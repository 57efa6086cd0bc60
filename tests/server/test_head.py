"""What comes before a body is bounded, in length and in time."""

from __future__ import annotations

import socket
import threading
import time

import httpx
import pytest

from sdengine.server import head
from tests.server.conftest import RunningServer

START = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def answer_to(server: RunningServer, *parts: bytes) -> bytes:
    """What a client that sends these parts one by one reads until the server closes."""
    with server.connect() as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:  # the server has closed
                break
            time.sleep(0.02)
        return b"".join(iter(lambda: read(connection), b""))


def read(connection: socket.socket) -> bytes:
    try:
        return connection.recv(4096)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize(
    "parts",
    [
        [START + b"X: ", *[b"a" * 20_000] * 5, b"\r\n\r\n"],
        [START + b"X: " + b"a" * 100_000 + b"\r\n\r\n"],
        [START, *[b"X: a\r\n" * 5000] * 4],
        [b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n"],
        [b"\r\n" * 40_000],
    ],
    ids=["one line", "at once", "many lines", "a long path", "empty lines"],
)
def test_a_long_head_is_refused(server: RunningServer, parts: list[bytes]) -> None:
    answer = answer_to(server, *parts)
    assert answer.startswith(b"HTTP/1.1 431 ") and b"65536 bytes" in answer
    assert answer.partition(b"\r\n\r\n")[2].startswith(b'{"error":')
    server.assert_idle()


def test_a_head_below_the_limit_is_none(server: RunningServer) -> None:
    with httpx.Client(headers={"x": "a" * 60_000}) as client:
        for _ in range(3):  # on one connection: each request has a head of its own
            assert client.get(f"{server.url}/health").status_code == 200


def test_lines_behind_a_body_are_bounded_too(server: RunningServer) -> None:
    head_of_body = (
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX: "
    )
    assert b" 431 " in answer_to(server, head_of_body, *[b"a" * 20_000] * 5)
    server.assert_idle()


def test_a_long_head_holds_nobody_up(server: RunningServer) -> None:
    with server.connect() as connection:
        connection.settimeout(5)
        try:
            connection.sendall(START + b"X: ")
            for _ in range(300):
                connection.sendall(b"a" * 100_000)
        except OSError:
            pass
        begin = time.monotonic()
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert time.monotonic() - begin < 1.0


WHOLE = START + b"\r\n"


@pytest.mark.parametrize(
    "parts,status",
    [
        ([b""], b""),
        ([b"GET"], b"408"),
        ([START], b"408"),
        ([WHOLE + START], b"408"),
        ([WHOLE, START], b"408"),
        ([WHOLE, b"\r\n"], b"408"),
    ],
)
def test_a_head_that_never_ends_is_given_up(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, parts: list[bytes], status: bytes
) -> None:
    monkeypatch.setattr(head, "HEAD_TIMEOUT_S", 0.3)
    begin = time.monotonic()
    answer = answer_to(server, *parts)
    assert time.monotonic() - begin < 5
    assert answer.count(b" 200 OK") == b"".join(parts).count(WHOLE)
    assert answer.rpartition(b"HTTP/1.1 ")[2].startswith(status)
    server.assert_idle()


def test_an_answer_outlives_the_wait_for_the_next_head(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "HEAD_TIMEOUT_S", 0.1)
    engine = server.engine.engine
    step = engine.step
    body = b'{"model": "tiny", "prompt": "x", "max_tokens": 2}'
    request = (
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    engine.step = lambda *_: time.sleep(0.001) or []  # type: ignore[method-assign]
    threading.Timer(0.5, lambda: setattr(engine, "step", step)).start()
    answer = answer_to(server, request + body, b"GET / HT")
    assert answer.startswith(b"HTTP/1.1 200 OK") and b" 408 " in answer
    server.assert_idle()
