"""HTTP/1 and nothing else: offers to change the protocol are declined, and clients of HTTP/1.0 get
answers that they can read.
"""

from __future__ import annotations

import sys
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

__all__ = ["PlainHttpProtocol"]

OFFERS = (b"upgrade", b"http2-settings")
"""Headers, and words of the header Connection, by which a client offers another protocol."""


class PlainHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which by itself loses the body of a request that comes with the
    header Upgrade, and answers HTTP/1.0 in chunks.

    A server may ignore Upgrade (RFC 9110, 7.8), and most clients that send it, Java's own among
    them, then go on with HTTP/1.1. The parser has stopped behind the head by then: a new one is
    given the same head without the offer, and what followed it.
    """

    _is_offer = False
    _fed = b""

    def data_received(self, data: bytes) -> None:
        """Hands data to the parser."""
        self._fed = data
        super().data_received(data)
        self._fed = b""  # nothing is kept for a connection that waits

    def on_headers_complete(self) -> None:
        """A head ends."""
        if self.parser.should_upgrade():
            self._is_offer = True
            return
        super().on_headers_complete()
        if self.scope.get("http_version") == "1.0":
            self.cycle.__class__ = CloseDelimitedCycle

    def on_message_complete(self) -> None:
        """A body ends."""
        if not self._is_offer:
            super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Called where the parser stops at an offer, and by uvicorn's own account only tells so."""
        stop = sys.exc_info()[1]
        assert isinstance(stop, httptools.HttpParserUpgrade), stop
        rest, method = self._fed[stop.args[0] :], self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("this is no proxy")
            return
        head = b"%b %b HTTP/%b\r\n" % (method, self.url, self.parser.get_http_version().encode())
        head += b"".join(b"%b: %b\r\n" % header for header in without_offers(self.headers))
        self._is_offer = False
        self.parser = httptools.HttpRequestParser(self)
        PlainHttpProtocol.data_received(self, head + b"\r\n" + rest)


def without_offers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """A request's headers as if it offered no other protocol."""
    kept = []
    for name, value in headers:
        if name == b"connection":
            words = [word.strip() for word in value.split(b",")]
            value = b", ".join(word for word in words if word.lower() not in OFFERS)
        if name not in OFFERS:
            kept.append((name, value))
    return kept


class CloseDelimitedCycle(RequestResponseCycle):
    """A request of HTTP/1.0, which knows no chunks: where an answer has no length, the end of the
    connection is its end."""

    _ends_with_connection = False

    async def send(self, message: Any) -> None:
        """As uvicorn's, for answers without a length."""
        if message["type"] == "http.response.start" and not self.response_started:
            names = {name.lower() for name, _ in message.get("headers", ())}
            self._ends_with_connection = b"content-length" not in names
        if not self._ends_with_connection:
            await super().send(message)
            return
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            self.response_started, self.keep_alive = True, False
            headers = [*self.default_headers, *message.get("headers", ())]
            lines = [b"%b: %b\r\n" % header for header in (*headers, (b"connection", b"close"))]
            self.transport.write(b"".join([STATUS_LINE[message["status"]], *lines, b"\r\n"]))
            return
        self.transport.write(message.get("body", b""))
        if not message.get("more_body", False):
            self.response_complete = True
            self.message_event.set()
            self.transport.close()
            self.on_response()
