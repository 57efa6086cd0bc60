"""Clients that close their sending side after the request, and still want the answer.

Such a client and one that is gone look the same at first: both have sent FIN. Only what is written
to them tells: a machine whose client is gone answers it with RST. So the answer goes on, and until
it has begun, what is written is "100 Continue", which every HTTP/1.1 client skips.
"""

from __future__ import annotations

import select

from sdengine.server.head import BoundedHeadProtocol

__all__ = ["HalfCloseProtocol"]

PROBE_S = 0.5
"""How often a client that has closed its side is asked whether it is still there."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HalfCloseProtocol(BoundedHeadProtocol):
    """uvicorn's HTTP protocol, which by itself drops a connection at its end of file."""

    def eof_received(self) -> bool | None:
        """Keeps the connection for the answers that it still waits for; whether there are any."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return None  # nobody waits, or the request will never be whole
        cycle.keep_alive = False  # the newest request's: nothing can follow its answer
        self._probe()
        return True

    def _probe(self) -> None:
        if self.transport.is_closing():
            return
        if self._is_reset():
            self.transport.abort()
            return
        cycle = self._running or self.cycle  # to which the next thing said belongs
        if cycle.scope["http_version"] == "1.1" and not cycle.response_started:
            self.transport.write(CONTINUE)
        self.loop.call_later(PROBE_S, self._probe)

    def _is_reset(self) -> bool:
        """Whether the client's machine has said that nobody is there any more."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), 0)
        return bool(poll.poll(0))  # POLLERR and POLLHUP are always reported
