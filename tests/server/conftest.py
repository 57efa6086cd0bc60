"""Real servers on loopback, in a thread of the test process; afterwards every KV block is free and
nothing was logged."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from sdengine.async_engine import AsyncEngine
from sdengine.core.config import SpeculationConfig
from sdengine.engine import Engine
from sdengine.server.app import create_app
from sdengine.server.run import DrainingServer, listen, run_in_loop
from sdengine.server.settings import ServerSettings
from tests.engine.conftest import text_checkpoint, tiny

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MODEL = "tiny"
MANY_ANSWERS = 900
"""Of /openapi.json: more than the system keeps for a client that takes nothing."""


@dataclass
class RunningServer:
    """A server under test.

    Args:
        url: its root.
        engine: what it serves.
        log: error records of the server's libraries.
    """

    url: str
    engine: AsyncEngine
    server: DrainingServer
    thread: threading.Thread
    log: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def connect(self) -> socket.socket:
        """A raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def stop(self) -> None:
        """What a signal does."""
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()

    def assert_idle(self) -> None:
        """Waits for requests that were left to be gone; fails when one stays, or a block."""
        for _ in range(2000):
            status = self.engine.status()
            if status.num_requests == 0 and status.num_free_blocks == status.num_blocks:
                break
            threading.Event().wait(0.01)
        assert (status.num_requests, status.num_free_blocks) == (0, status.num_blocks)
        assert httpx.get(f"{self.url}/health").json() == {"status": "ok"}


class ListHandler(logging.Handler):
    def __init__(self, records: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(self.format(record))


@contextmanager
def running(
    engine: Engine, plain: Engine | None = None, **settings: Any
) -> Iterator[RunningServer]:
    """Serves an engine for the length of a block."""
    values = {"model_name": MODEL, "port": 0, "drain_timeout_s": 30.0, **settings}
    server_settings = ServerSettings(**values)
    engines = [
        AsyncEngine(e, max_requests=server_settings.max_requests) for e in (engine, plain) if e
    ]
    app = create_app(engines[0], server_settings, engines[1] if plain else None)
    bound = listen(server_settings)
    has_started = threading.Event()
    server = DrainingServer(app, engines, server_settings, has_started.set)
    thread = threading.Thread(target=lambda: run_in_loop(server.serve([bound])), daemon=True)
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    handle = RunningServer(url, engines[0], server, thread)
    handler = ListHandler(handle.log)
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    thread.start()
    assert has_started.wait(60)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield handle
    finally:
        handle.stop()
        for logger in loggers:
            logger.removeHandler(handler)
    assert handle.log == []
    assert engine.num_free_blocks == engine.num_blocks and not engine.has_unfinished_requests()


def tiny_engine(has_draft: bool = True, **settings: Any) -> Engine:
    """A random model with a byte-level tokenizer and a chat template, and its draft."""
    speculation = SpeculationConfig(max_nodes=6, max_depth=3) if has_draft else None
    return Engine(
        text_checkpoint(chat_template=CHAT_TEMPLATE),
        draft=text_checkpoint(2) if has_draft else None,
        **tiny({"speculation": speculation, **settings}),
    )


@pytest.fixture(scope="package")
def server() -> Iterator[RunningServer]:
    """A tiny model without limits worth mentioning."""
    with running(tiny_engine()) as handle:
        yield handle


@pytest.fixture
def post(server: RunningServer) -> Iterator[Any]:
    """Sends JSON to the server; afterwards it is idle and well."""

    def send(path: str = "/v1/completions", **body: Any) -> httpx.Response:
        text = json.dumps({"model": MODEL, **body})  # lone surrogates are escaped, not refused
        headers = {"content-type": "application/json"}
        return httpx.post(f"{server.url}{path}", content=text, headers=headers, timeout=60)

    yield send
    server.assert_idle()


def ask_and_take_nothing(client: socket.socket, port: int) -> None:
    """Connects a client that asks for more than the system keeps for it, and reads none of it."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    for _ in range(MANY_ANSWERS):
        client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    time.sleep(0.5)
