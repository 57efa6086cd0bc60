"""The words of ASGI, and an answer that remembers how it began."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["Answer", "Message", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Answer:
    """A `send` that remembers the status, around another."""

    def __init__(self, send: Send) -> None:
        self.status: int | None = None
        self.inner = send

    async def send(self, message: Message) -> None:
        """Passes a message on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self.inner(message)
