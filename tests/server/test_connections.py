"""Connections are limited: idle and slow ones give way, those at work go on, all are counted."""

from __future__ import annotations

import json
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from sdengine.server import connections, gate, head
from sdengine.server import run as server_run
from tests.server.conftest import (
    MODEL,
    RunningServer,
    ask_and_take_nothing,
    running,
    tiny_engine,
)
from tests.server.test_metrics import scrape

LIMIT = 3
GET = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
LONG = {"model": MODEL, "prompt": "x", "max_tokens": 240, "ignore_eos": True}


def request(**changes: Any) -> bytes:
    """A completion of 240 tokens."""
    body = json.dumps({**LONG, **changes}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    """A server for three connections, which may be displaced after 0.2 s."""
    monkeypatch.setattr(connections, "LEAST_WAIT_S", 0.2)
    with running(tiny_engine(), max_connections=LIMIT) as handle:
        yield handle


def ask(connection: socket.socket, text: bytes = GET) -> bytes:
    """What a connection is answered."""
    connection.sendall(text)
    return connection.recv(4096)


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed a connection, without reading what it may have said."""
    if not select.select([connection], [], [], 0.05)[0]:
        return False
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except ConnectionResetError:
        return True


def seen(server: RunningServer, *name: str) -> float:
    """A metric, read over a connection that was open before."""
    return scrape(server).get(name, 0.0)


@pytest.mark.parametrize(
    "said", [b"", b"GET / HT", GET], ids=["nothing", "half a head", "a request"]
)
def test_a_newcomer_takes_the_place_of_who_has_waited_longest(
    small: RunningServer, said: bytes
) -> None:
    idle = []
    for _ in range(LIMIT):
        idle.append(small.connect())
        idle[-1].sendall(said)
        time.sleep(0.05)
    time.sleep(0.3)
    with small.connect() as newcomer:
        assert ask(newcomer).startswith(b"HTTP/1.1 200 OK")
        if said == GET:
            assert all(b" 200 OK" in connection.recv(4096) for connection in idle)
        assert [is_closed(connection) for connection in idle] == [True, False, False]
    for connection in idle:
        connection.close()
    assert seen(small, "sdengine_connections_displaced_total") == 1


def test_who_asked_again_has_not_waited_longest(small: RunningServer) -> None:
    first, *others = [small.connect() for _ in range(LIMIT)]
    time.sleep(0.3)
    assert b" 200 OK" in ask(first)
    with small.connect() as newcomer:
        assert b" 200 OK" in ask(newcomer)
        assert [is_closed(c) for c in (first, *others)] == [False, True, False]
    for connection in (first, *others):
        connection.close()


def test_where_all_are_at_work_a_newcomer_is_refused_and_they_go_on(small: RunningServer) -> None:
    engine = small.engine.engine
    step, engine.step = engine.step, lambda *_: time.sleep(0.001) or []  # type: ignore[method-assign]
    busy = [small.connect() for _ in range(LIMIT)]
    for connection in busy:
        connection.sendall(request())
    time.sleep(0.4)
    for _ in range(2):
        with small.connect() as newcomer:
            newcomer.sendall(GET[:20])
            time.sleep(0.05)
            newcomer.sendall(GET[20:])  # is not answered with a reset
            answer = b"".join(iter(lambda: newcomer.recv(4096), b""))
            assert answer.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: 1\r\n" in answer
            error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
            assert (error["type"], error["code"]) == ("server_error", "overloaded")
    engine.step = step  # type: ignore[method-assign]
    for connection in busy:
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200 OK") and b'"completion_tokens":240' in answer
        connection.close()
    small.assert_idle()
    assert seen(small, "sdengine_connections_refused_total", "503") == 2
    assert seen(small, "sdengine_connections") == 1  # the one that asks


def test_connections_of_a_moment_ago_are_left_alone(small: RunningServer) -> None:
    fresh = [small.connect() for _ in range(LIMIT)]
    with small.connect() as newcomer:
        assert b" 503 " in ask(newcomer)
    assert b" 200 OK" in ask(fresh[0])
    for connection in fresh:
        connection.close()


def test_refusals_are_limited_too(small: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_REFUSED", 2)
    monkeypatch.setattr(connections, "LEAST_WAIT_S", 1e6)
    opened = [small.connect() for _ in range(LIMIT + 5)]
    assert [is_closed(c) for c in opened] == [False] * (LIMIT + 2) + [True] * 3
    time.sleep(head.LINGER_S)
    assert [is_closed(c) for c in opened] == [False] * LIMIT + [True] * 5  # said nothing in time
    for connection in opened:
        connection.close()
    with small.connect() as newcomer:
        assert b" 200 OK" in ask(newcomer)


def test_a_client_that_takes_nothing_is_dropped_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "GRACE_S", 0.2)
    monkeypatch.setattr(server_run, "STUCK_TICKS", 2)
    with running(tiny_engine(), request_timeout_s=0.8) as server, socket.socket() as client:
        ask_and_take_nothing(client, server.port)
        assert seen(server, "sdengine_connections") == 2
        for _ in range(100):
            time.sleep(0.1)
            if seen(server, "sdengine_connections") == 1:
                break
        assert seen(server, "sdengine_connections") == 1


@pytest.mark.parametrize(
    "text,status",
    [
        (b"\x16\x03\x01\x02\x00", "400"),
        (b"GET / HTTP/9.9\r\n\r\n", "400"),
        (b"\r\n" * 40_000, "431"),
    ],
)
def test_what_is_refused_before_it_is_a_request_is_told_counted_and_not_logged(
    text: bytes, status: str
) -> None:
    with running(tiny_engine()) as server:
        with server.connect() as connection:
            connection.sendall(text)
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 " + status.encode())
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
        assert seen(server, "sdengine_connections_refused_total", status) == 1


LIMITED = (
    "import resource, sys\n"
    "resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
    "from sdengine.errors import ConfigError\n"
    "from sdengine.server.connections import reserve_descriptors\n"
    "try:\n"
    "    reserve_descriptors({wanted})\n"
    "except ConfigError as error:\n"
    "    sys.exit(str(error))\n"
    "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
)


def test_the_limit_of_open_files_follows_that_of_connections() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert hard == resource.RLIM_INFINITY or hard >= 2048

    def run(soft: int, hard: int, wanted: int) -> subprocess.CompletedProcess[str]:
        code = LIMITED.format(soft=soft, hard=hard, wanted=wanted)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert run(256, 2048, 1000).stdout == "1192\n"
    assert run(2048, 2048, 1000).stdout == "2048\n"
    refused = run(256, 1024, 1000)
    assert refused.stderr.startswith("expected max_connections of at most 832, ")
    assert "may open 1024 files, got 1000; " in refused.stderr
