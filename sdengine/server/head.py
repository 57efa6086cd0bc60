"""Connections whose request never gets to its body: the head is bounded in length and in time.

The parser keeps an unfinished line and puts every read behind it, so the work for a line of 30 MB
grows with its square, on the event loop, before anybody has been asked for a key.
"""

from __future__ import annotations

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sdengine.server.errors import ApiError

__all__ = ["BoundedHeadProtocol"]

MAX_HEAD_BYTES = 64 * 1024
"""Most bytes before a body, and between or behind its parts: other servers allow 8 to 64 kB."""
HEAD_TIMEOUT_S = 30.0
"""Longest time for a head to arrive, as for a body by default."""
LINGER_S = 1.0
"""So long a refused client may go on sending: closed at once, it would see a reset, no answer."""


class BoundedHeadProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which by itself takes heads of any length, and waits for ever."""

    _num_unheard = 0  # bytes since the parser last said something
    _awaits_head = True
    _is_refused = False
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first head."""
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no more."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Hands data to the parser; the first part of it counts towards the limit."""
        if self._is_refused:
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
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._num_unheard = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A body ends; the next request may follow."""
        self._awaits_head = True
        self._num_unheard = 0
        super().on_message_complete()

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
        self.transport.write(_response(error))
        self.loop.call_later(LINGER_S, self.transport.close)


def _too_long() -> ApiError:
    return ApiError(431, f"expected a head of at most {MAX_HEAD_BYTES} bytes, got a longer one")


def _response(error: ApiError) -> bytes:
    body = json.dumps(error.document).encode()
    return (
        b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
        % (
            STATUS_LINE[error.status],
            len(body),
            body,
        )
    )
