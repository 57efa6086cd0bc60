"""Answers on the wire: server-sent events, and whole documents that a lost client cancels."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from sdengine.errors import SdengineError
from sdengine.server.errors import api_error
from sdengine.server.forms import Form
from sdengine.server.generation import Delta, Generation

__all__ = ["answer", "event", "event_stream"]

DONE = b"data: [DONE]\n\n"
# Proxies must neither keep nor collect what is meant to be read as it comes.
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
CLIENT_CLOSED_REQUEST = 499
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


async def answer(
    request: Request, generation: Generation, form: Form, is_streamed: bool, has_usage: bool
) -> Response:
    """The response to a request whose prompts are in the engine.

    Args:
        request: watched for its client leaving.
        generation: begun.
        form: the endpoint's.
        is_streamed: events instead of a document.
        has_usage: whether a stream ends with counts.
    """
    if is_streamed:
        return event_stream(_events(generation, form, has_usage))
    deltas = await _until_disconnect(request, _collected(generation))
    if deltas is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONResponse(form.document(deltas, generation.usage.document))


def event_stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    """Events as a response; a client that leaves cancels their iterator."""
    return StreamingResponse(events, media_type="text/event-stream", headers=STREAM_HEADERS)


def event(document: dict[str, Any]) -> bytes:
    """One server-sent event."""
    text = ENCODER.encode(document)
    # Half of a surrogate pair cannot come from a tokenizer, but must not end a stream if it did.
    return f"data: {text}\n\n".encode("utf-8", "replace")


async def _events(generation: Generation, form: Form, has_usage: bool) -> AsyncIterator[bytes]:
    opened: set[int] = set()
    deltas = generation.deltas()
    try:
        async for delta in deltas:
            if delta.choice not in opened:
                opened.add(delta.choice)
                if (opening := form.opening(delta.choice)) is not None:
                    yield event(opening)
            if delta.text or delta.finish_reason or delta.logprobs:
                yield event(form.chunk(delta))
        if has_usage:
            yield event(form.counts(generation.usage.document))
        yield DONE
    except SdengineError as error:  # the status has been sent: the error is the last event
        yield event(api_error(error).document)
    finally:
        await deltas.aclose()  # type: ignore[attr-defined]
        await generation.aclose()


async def _collected(generation: Generation) -> list[Delta]:
    return [delta async for delta in generation.deltas()]


async def _until_disconnect(request: Request, work: Any) -> list[Delta] | None:
    """What `work` returns; None when the client left before."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
