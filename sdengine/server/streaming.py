"""Answers on the wire: server-sent events, and whole documents that a lost client cancels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.responses import Response

from sdengine.errors import SdengineError
from sdengine.server.asgi import Receive, Scope, Send
from sdengine.server.encoding import Chunks, Document, event
from sdengine.server.errors import api_error
from sdengine.server.forms import Form
from sdengine.server.generation import Generation
from sdengine.server.wire import Wire, wire_below

__all__ = ["EventStream", "answer"]

COMMENT = b": waiting\n\n"
SILENCE_S = 2.0
"""After so long without an event (a queue, a long prompt) a comment is sent, which clients skip: no
proxy or client thinks that the stream is dead (some wait 5 s), and a client that is gone is found
out."""
MANY_BYTES = 64 * 1024
"""Events of so many bytes together are not kept for those that come next."""
# Proxies must neither keep nor collect what is meant to be read as it comes.
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
CLIENT_CLOSED_REQUEST = 499

Item = TypeVar("Item")


async def answer(
    request: Request, generation: Generation, form: Form, is_streamed: bool
) -> Response:
    """The response to a request whose prompts are in the engine.

    Args:
        request: watched for its client leaving.
        generation: begun.
        form: the endpoint's.
        is_streamed: events instead of a document.
    """
    if is_streamed:
        chunks = Chunks(form)

        def end() -> bytes:
            return chunks.end(generation.usage.document)

        events = EventStream(
            generation.deltas(), chunks.encode, generation.aclose, end, generation.is_ready
        )
        generation.relay(events.can_say, events.say)
        return events
    body = await _until_disconnect(request, _collected(generation, Document(form)))
    if body is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(body, media_type="application/json")


class EventStream(Response, Generic[Item]):
    """Events as a response. It begins with the first of them: until then an error has a status of
    its own, and head and event travel together.

    Args:
        items: what the events tell.
        encode: the events of an item, for one write; empty for none.
        close: ends the items; called when the client leaves.
        end: the last events.
        is_ready: whether the next item, or the end, comes at once; what is to be said of it then
            travels with what was said before.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        items: AsyncGenerator[Item, None],
        encode: Callable[[Item], bytes],
        close: Callable[[], Awaitable[None]],
        end: Callable[[], bytes] = bytes,
        is_ready: Callable[[], bool] = bool,
    ) -> None:
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["content-length"]
        self._items = items
        self._encode = encode
        self._close = close
        self._end = end
        self._is_ready = is_ready
        self._send: Send
        self._wire: Wire | None = None
        self._has_begun = False
        self._is_waiting = True
        self._has_spoken = False
        self._timer: asyncio.TimerHandle
        self._comment: asyncio.Future[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events until they end or the client leaves.

        Raises:
            SdengineError: of the events, before the first of them; later it is the last event.
        """
        self._send, self._wire = send, wire_below(send)
        watch = asyncio.ensure_future(self._watch(receive))
        self._break_silence_later()
        unsent = b""
        try:
            async for item in self._items:
                unsent += self._encode(item)
                if unsent and (len(unsent) > MANY_BYTES or not self._is_ready()):
                    part, unsent = unsent, b""
                    await self._write(part)
            unsent += self._end()
        except SdengineError as error:
            if not self._has_begun:
                raise
            unsent += event(api_error(error).document)  # the status has been sent
        finally:
            self._timer.cancel()
            watch.cancel()
            if self._comment is not None and not self._has_begun:
                self._comment.cancel()  # whoever answers now must not find the answer begun
                self._comment = None
            await self._items.aclose()
        await self._write(unsent, more_body=False)

    def can_say(self) -> bool:
        """Whether `say` may be called: the first events have left, and nothing is being sent."""
        is_quiet = self._has_begun and self._is_waiting
        return is_quiet and self._wire is not None and self._wire.is_open

    def say(self, item: Item) -> None:
        """Sends the events of an item at the end of the loop's round, past the task that sends
        the others. All texts of a round are made first and written then: each half runs in warm
        caches, and clients on one machine are woken once."""
        if part := self._encode(item):
            assert self._wire is not None, "said without asking"
            self._has_spoken = True
            asyncio.get_running_loop().call_soon(self._wire.write, part)

    async def _write(self, part: bytes, more_body: bool = True) -> None:
        self._is_waiting = False
        if self._comment is not None and self._comment is not asyncio.current_task():
            await self._comment  # nothing overtakes it
        if not self._has_begun:
            self._has_begun = True
            await self._send(
                {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            )
        await self._send({"type": "http.response.body", "body": part, "more_body": more_body})
        self._is_waiting = self._has_spoken = True

    async def _watch(self, receive: Receive) -> None:
        await _disconnected(receive)
        await self._close()

    def _break_silence_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(SILENCE_S, self._break_silence)

    def _break_silence(self) -> None:
        if self._is_waiting and not self._has_spoken:
            self._comment = asyncio.ensure_future(self._write(COMMENT))
        self._has_spoken = False
        self._break_silence_later()


async def _collected(generation: Generation, document: Document) -> bytes:
    async for delta in generation.deltas():
        document.add(delta)
    return document.end(generation.usage.document)


async def _until_disconnect(request: Request, work: Any) -> bytes | None:
    """What `work` returns; None when the client left before."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
