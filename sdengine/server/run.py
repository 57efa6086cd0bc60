"""Runs the server until it is told to stop, and then drains it."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from importlib.util import find_spec
from math import ceil
from time import monotonic
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from sdengine.async_engine import AsyncEngine
from sdengine.engine import Engine
from sdengine.errors import ConfigError
from sdengine.server.app import create_app
from sdengine.server.connections import Connections, reserve_descriptors
from sdengine.server.half_close import HalfCloseProtocol
from sdengine.server.settings import ServerSettings

__all__ = ["DrainingServer", "listen", "run_in_loop", "serve"]

SWITCH_INTERVAL_S = 0.0005
"""The engine's thread and the event loop pass the interpreter to each other this often; with
Python's 5 ms either would make the other wait for several steps."""
KEEP_ALIVE_S = 30
BACKLOG = 512
STUCK_TICKS = 100
"""Tenths of a second: so long, or twice as long, a client may take nothing of an answer behind
which its connection is to be closed."""
NEW_OBJECTS_PER_COLLECTION = 20_000
"""A request's objects end with their last reference; with Python's 700 the search for cycles took a
twentieth of the event loop's time."""
LAST_WORDS_S = 5.0
"""For the last events of requests that a drain ended."""
TICK_S = 0.1
"""How often a shutdown looks whether it has been told to hurry, as uvicorn's own waiting does."""


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains its engines while it shuts down.

    Args:
        app: what it serves.
        engines: to be drained.
        settings: limits.
        on_start: called when connections are accepted.
    """

    def __init__(
        self,
        app: FastAPI,
        engines: list[AsyncEngine],
        settings: ServerSettings,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self._connections = Connections(settings.max_connections)
        app.state.metrics.register(self._connections)
        protocol: Any = partial(HalfCloseProtocol, self._connections)
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                access_log=False,
                log_level="error",  # its warnings are about what clients send, as often as they do
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                # Never in use: connections are cut off before.
                timeout_graceful_shutdown=ceil(settings.drain_timeout_s + 3 * LAST_WORDS_S),
            )
        )
        self._engines = engines
        self._drain_timeout_s = settings.drain_timeout_s
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections."""
        await super().startup(sockets)
        self._on_start()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second while the server runs."""
        if counter % STUCK_TICKS == 0:
            self._connections.drop_stuck()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts nothing more, lets requests finish, and ends the engines' threads."""
        hurry = asyncio.ensure_future(self._hurry_when_forced())
        end = asyncio.ensure_future(self._end_when_drained())
        try:
            await super().shutdown(sockets)
        finally:
            if not self.force_exit:
                hurry.cancel()
                await end
        if self.force_exit:  # uvicorn's part leaves its tasks behind then
            await asyncio.gather(hurry, end)

    async def _end_when_drained(self) -> None:
        """Ends the engines, and later connections whose clients do not take the last words."""
        await asyncio.gather(*(engine.drain(self._drain_timeout_s) for engine in self._engines))
        begin = monotonic()
        while self.server_state.connections and monotonic() - begin < LAST_WORDS_S:
            await asyncio.sleep(TICK_S)
        self._cut_off()

    def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def _hurry_when_forced(self) -> None:
        """After a second interrupt: ends the requests after the running step, and then the
        connections that are still open, whose clients do not read or have not said all."""
        while not self.force_exit:
            await asyncio.sleep(TICK_S)
        await asyncio.gather(*(engine.drain(0.0) for engine in self._engines))
        await asyncio.sleep(TICK_S)  # for the last events
        self._cut_off()
        if tasks := list(self.server_state.tasks):
            await asyncio.wait(tasks, timeout=LAST_WORDS_S)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; a second one, if it is an interrupt, does not wait."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


def listen(settings: ServerSettings) -> socket.socket:
    """A bound socket, so that a taken port is refused before a model is loaded.

    Raises:
        ConfigError: the address cannot be bound.
    """
    host = settings.host.strip("[]")
    try:
        infos = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return _bound(*infos[0])
    except (OSError, ValueError) as error:  # ValueError: not even a name (empty labels, NUL)
        raise ConfigError.from_parts(
            "a free address of this machine",
            f"{settings.host!r:.100} port {settings.port}: {error}",
            "choose another --host or --port",
        ) from None


def _bound(family: int, kind: int, protocol: int, _: str, address: Any) -> socket.socket:
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def serve(
    settings: ServerSettings, make_engine: Callable[[], Engine], make_plain: Callable | None
) -> None:
    """Loads the model, serves it, and returns when a signal has ended the server.

    Args:
        settings: the server's.
        make_engine: loads the model.
        make_plain: loads it again without speculation, for the page; None for no comparison.

    Raises:
        ConfigError: the address cannot be bound.
        CheckpointError, BackendUnavailable, CacheFull: as `Engine`.
    """
    reserve_descriptors(settings.max_connections)
    bound = listen(settings)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    engine = AsyncEngine(make_engine(), max_requests=settings.max_requests)
    plain = None
    if make_plain is not None:
        plain = AsyncEngine(make_plain(), max_requests=settings.max_requests)
    app = create_app(engine, settings, plain)
    engines = [engine] if plain is None else [engine, plain]
    server = DrainingServer(app, engines, settings, lambda: _announce(settings, bound))
    gc.collect()
    gc.freeze()  # torch and the model are no garbage: collections need not walk through them
    gc.set_threshold(NEW_OBJECTS_PER_COLLECTION)
    run_in_loop(server.serve([bound]))


def run_in_loop(main: Coroutine[Any, Any, None]) -> None:
    """Runs the server in uvloop where that is installed: an event costs less there."""
    if find_spec("uvloop") is None:
        asyncio.run(main)
        return
    import uvloop

    uvloop.run(main)


def _announce(settings: ServerSettings, bound: socket.socket) -> None:
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"sdengine: {settings.model_name} on http://{shown}:{port}", file=sys.stderr, flush=True)
