"""Connections whose request never gets to its body, or is answered before the body has come.

The head is bounded in length and in time: the parser keeps an unfinished line and puts every read
behind it, so the work for a line of 30 MB grows with its square, on the event loop, before anybody
has been asked for a key. A client that is refused while it sends gets its answer all the same.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    RequestResponseCycle,
)

from sdengine.server.connections import Connections
from sdengine.server.errors import RETRY_AFTER_S, ApiError
from sdengine.server.plain_http import PlainHttpProtocol

__all__ = ["BoundedHeadProtocol"]

MAX_HEAD_BYTES = 64 * 1024
"""Most bytes before a body, and between or behind its parts: other servers allow 8 to 64 kB."""
HEAD_TIMEOUT_S = 30.0
"""Longest time for a head to arrive, as for a body by default."""
LINGER_S = 1.0
"""So long a refused client may go on sending: closed at once, it would see a reset, no answer."""
MAX_DISCARDED_BYTES = 256 * 2**20
"""Most bytes that are taken from it in that time."""


class BoundedHeadProtocol(PlainHttpProtocol):
    """uvicorn's HTTP protocol, which by itself takes heads of any length and any number of
    connections, and waits for ever.

    Args:
        connections: those of the server.
        **given: what uvicorn gives.
    """

    _num_unheard = 0  # bytes since the parser last said something
    _num_discarded = 0  # bytes that came behind a refusal
    _awaits_head = True
    _is_refused = False
    _is_surplus = False
    _running: RequestResponseCycle | None = None  # of several, the one whose answer is next
    _head_timer: asyncio.TimerHandle | None = None

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._connections = connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first head, if there is room for a connection."""
        super().connection_made(transport)
        if self._connections.admit(self):
            self._start_head_timer()
        elif self._connections.may_explain(self):
            self._is_surplus = True  # some clients take an answer before their question amiss
            self.loop.call_later(LINGER_S, self.transport.close)
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no more."""
        self._stop_head_timer()
        self._connections.forget(self)
        if self._running is not None and self._running is not self.cycle:
            self._running.disconnected = True  # uvicorn tells the newest request alone
            self._running.message_event.set()
        super().connection_lost(exc)
        for cycle in (self._running, self.cycle):
            if cycle is not None:
                cycle.transport = self.transport  # leaves no circle for the collector

    def data_received(self, data: bytes) -> None:
        """Hands data to the parser; the first part of it counts towards the limit."""
        if self._is_surplus and not self._is_refused:
            self._is_refused = True
            self.transport.write(_response(_too_many()))
        if self._is_refused:
            self._discard(data)
            return
        room = MAX_HEAD_BYTES - self._num_unheard
        counted, rest = data[:room], data[room:]  # usually all of it, which copies nothing
        self._num_unheard += len(counted)
        super().data_received(counted)
        if rest and not self.transport.is_closing():
            if self._num_unheard >= MAX_HEAD_BYTES:
                self._refuse(_too_long())
                return
            super().data_received(rest)
        if self._awaits_head and self._num_unheard and self._head_timer is None:
            self._start_head_timer()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._num_unheard = max(self._num_unheard, 1)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A head ends."""
        self._awaits_head = False
        self._num_unheard = 0
        self._stop_head_timer()
        self._connections.work(self)
        super().on_headers_complete()
        if self.cycle is not None:  # None: an offer of another protocol
            self.cycle.transport = AnswerTransport(self.transport, self._close_behind_answer)
        if not self.pipeline:
            self._running = self.cycle

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._num_unheard = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A body ends; the next request may follow."""
        self._awaits_head = True
        self._num_unheard = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer ends; unless another request waits for its own, the connection does."""
        if self.pipeline:  # the request at its end is next
            self._running = self.pipeline[-1][0]
        super().on_response_complete()
        if not self._is_answering():
            self._connections.wait(self)

    def shutdown(self) -> None:
        """The server ends: a request that is not whole is none that it has."""
        if self._is_refused:
            return  # is closed as soon as its answer has been read
        is_alone = self._running is self.cycle  # no earlier request's answer is due
        if self._is_answering() and self.cycle.more_body and is_alone:
            self._refuse(_stopping())
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused in the same form as everything else."""
        self._refuse(ApiError(400, "expected a request of HTTP/1.1, got something else"))

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        if self._is_answering():
            self._start_head_timer()  # the next request is slow, but the last one's answer goes on
        elif self._num_unheard:
            self._refuse(ApiError(408, f"expected a request within {HEAD_TIMEOUT_S:g} s, got less"))
        else:
            self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: ApiError) -> None:
        """Answers, unless another answer is due or has begun, and closes."""
        self._is_refused = True
        self._stop_head_timer()
        if self._is_answering():
            if self.cycle.response_started or not self.cycle.more_body:
                self.transport.close()
                return
            self.cycle.disconnected = True  # whoever waits for the body learns that none comes
            self.cycle.message_event.set()
        self._connections.count_refusal(error.status)
        self.transport.write(_response(error))
        self._linger()

    def _close_behind_answer(self) -> None:
        """Closes; where the answered request's body has not been read, when the client is done."""
        request = self._running
        if request is None or not request.more_body or self.transport.is_closing():
            self.transport.close()
            return
        self._is_refused = True
        self.transport.write_eof()  # nothing follows: no later request than this one has come
        self._linger()

    def _linger(self) -> None:
        """Closes when the client has had time to read its answer."""
        self.flow.resume_reading()
        self.loop.call_later(LINGER_S, self.transport.close)

    def _discard(self, data: bytes) -> None:
        self._num_discarded += len(data)
        if self._num_discarded > MAX_DISCARDED_BYTES:
            self.transport.close()


class AnswerTransport:
    """A connection as the answers on it see it.

    Args:
        transport: the connection.
        close: takes the place of its own.
    """

    __slots__ = ("abort", "close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.abort = transport.abort
        self.is_closing = transport.is_closing
        self.close = close


def _too_long() -> ApiError:
    return ApiError(431, f"expected a head of at most {MAX_HEAD_BYTES} bytes, got a longer one")


def _stopping() -> ApiError:
    message = "expected a whole request before the server's end, got a part of it"
    return ApiError(503, message, kind="server_error", code="shutting_down")


def _too_many() -> ApiError:
    message = "expected fewer connections at once, got one more; try again later"
    return ApiError(503, message, kind="server_error", code="overloaded")


def _response(error: ApiError) -> bytes:
    body = json.dumps(error.document).encode()
    retry = b"retry-after: %d\r\n" % RETRY_AFTER_S if error.status == 503 else b""
    return (
        b"%bcontent-type: application/json\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n%b"
        % (STATUS_LINE[error.status], len(body), retry, body)
    )
