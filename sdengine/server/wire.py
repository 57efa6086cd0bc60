"""The connection below a `send`: for parts of a body that are written without a task's turn, and
for clients that take nothing."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from sdengine.server.asgi import Answer, Send

__all__ = ["Wire", "wire_below"]


class Wire:
    """One answer's connection.

    Args:
        cycle: the HTTP server's; chunks are written as its `send` does.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def is_open(self) -> bool:
        """Whether the answer is in the middle of a chunked body, and its client reads it."""
        cycle = self._cycle
        return bool(cycle.chunked_encoding) and not (
            cycle.flow.write_paused or cycle.disconnected or cycle.response_complete
        )

    @property
    def is_stuck(self) -> bool:
        """Whether the client does not take what was written before, of an earlier answer mostly."""
        return bool(self._cycle.flow.write_paused)

    def cut(self) -> None:
        """Ends the connection at once: to close it would wait for the client to take the rest."""
        self._cycle.disconnected = True
        self._cycle.transport.abort()

    def write(self, part: bytes) -> None:
        """Writes a part of the body."""
        if not self._cycle.transport.is_closing():
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(part), part))


def wire_below(send: Send) -> Wire | None:
    """The connection below a `send`; None when somebody else's layer, which may change what is
    sent, or another server lies between."""
    while isinstance(layer := getattr(send, "__self__", None), Answer):
        send = layer.inner
    return Wire(layer) if isinstance(layer, RequestResponseCycle) else None
