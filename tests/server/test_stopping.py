"""Signals, and addresses that cannot be had."""

from __future__ import annotations

import signal
import socket
import threading
import time

import httpx
import pytest

from sdengine.errors import ConfigError
from sdengine.server import run
from sdengine.server.run import listen
from sdengine.server.settings import ServerSettings
from tests.server.conftest import MODEL, ask_and_take_nothing, running, tiny_engine

LONG = {"model": MODEL, "prompt": "x", "max_tokens": 200, "ignore_eos": True, "stream": True}


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_does_not_wait(first: signal.Signals) -> None:
    engine = tiny_engine()
    engine.step = lambda *_: time.sleep(0.001) or []  # type: ignore[method-assign]
    with running(engine, drain_timeout_s=100.0) as handle:
        said: list[str] = []

        def read() -> None:
            with httpx.stream("POST", f"{handle.url}/v1/completions", json=LONG) as response:
                said.extend(response.iter_text())

        reader = threading.Thread(target=read)
        reader.start()
        while not handle.engine.status().num_requests:
            time.sleep(0.001)
        handle.server.handle_exit(first, None)
        handle.thread.join(1.0)
        assert handle.thread.is_alive()  # it waits for the request
        handle.server.handle_exit(signal.SIGINT, None)
        handle.thread.join(10.0)
        has_ended = not handle.thread.is_alive()
        if not has_ended:
            handle.engine.close()  # so that the test ends
        reader.join(30)
        assert has_ended
        assert '"code":"shutting_down"' in "".join(said)


def test_a_second_interrupt_leaves_clients_that_do_not_read() -> None:
    engine = tiny_engine()
    engine.step = lambda *_: time.sleep(0.001) or []  # type: ignore[method-assign]
    with running(engine, drain_timeout_s=100.0) as handle, handle.connect() as half:
        half.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
            b"Content-Type: application/json\r\n\r\n{"  # its body never ends
        )
        time.sleep(0.3)
        for _ in range(2):
            handle.server.handle_exit(signal.SIGINT, None)
        handle.thread.join(10.0)
        assert not handle.thread.is_alive()


def test_a_taken_address_is_told_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            listen(ServerSettings(model_name="m", port=port))
    message = str(caught.value)
    assert message.count("got") == 1 and f"'127.0.0.1' port {port}: " in message
    assert "in use" in message


@pytest.mark.parametrize("host", ["a..b", "x" * 300, "a\0b"])
def test_a_host_that_is_no_name_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="free address"):
        listen(ServerSettings(model_name="m", host=host, allow_public=True))


@pytest.mark.parametrize("given", [b"{", b""])
def test_a_request_that_is_not_whole_does_not_hold_up_the_end(given: bytes) -> None:
    with running(tiny_engine(), drain_timeout_s=100.0) as handle, handle.connect() as half:
        half.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
            b"Content-Type: application/json\r\n\r\n" + given
        )
        time.sleep(0.3)
        handle.server.handle_exit(signal.SIGTERM, None)
        answer = b"".join(iter(lambda: half.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 503 ") and b'"code": "shutting_down"' in answer
        handle.thread.join(10.0)
        assert not handle.thread.is_alive()


def test_a_client_that_takes_nothing_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "LAST_WORDS_S", 0.5)
    with running(tiny_engine(), drain_timeout_s=0.5) as handle, socket.socket() as client:
        ask_and_take_nothing(client, handle.port)
        handle.server.handle_exit(signal.SIGTERM, None)
        handle.thread.join(10.0)
        assert not handle.thread.is_alive()
