"""Clients of a load test: streams that are read, cancelled or dropped, and bodies that are wrong.

Plain sockets and a few lines of HTTP/1.1, because the clients share the machine with the server.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Case", "Mix", "Tally", "run_clients"]

BAD_BODIES = (b"", b"{", b"\xff\xfe", b"[" * 10_000, b'{"prompt": 1}', b'{"model": "?", "n": 0}')
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Case:
    """A request and the text that it must give.

    Args:
        body: of /v1/completions.
        text: the offline engine's.
    """

    body: dict[str, Any]
    text: str


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of what clients do; the rest reads its stream to the end.

    Args:
        cancelled: leave after some chunks.
        dropped: leave before the first byte of an answer.
        malformed: send what is no request.
    """

    cancelled: float = 0.15
    dropped: float = 0.05
    malformed: float = 0.1


@dataclass(slots=True)
class Tally:
    """What came of it; times in seconds."""

    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    between_tokens_s: list[float] = field(default_factory=list)
    num_tokens: int = 0
    seconds: float = 0.0


async def run_clients(
    url: str,
    cases: Sequence[Case],
    num_clients: int,
    *,
    seconds: float | None = None,
    mix: Mix | None = None,
    seed: int = 0,
) -> Tally:
    """Sends requests from so many clients at once.

    Args:
        url: root of a server.
        cases: what to ask.
        num_clients: requests at once.
        seconds: stop beginning requests then; None sends every case exactly once.
        mix: how clients behave; None: all read to the end.
        seed: of the clients' choices.
    """
    tally, queue = Tally(), list(reversed(cases))
    end = None if seconds is None else perf_counter() + seconds

    async def client(number: int) -> None:
        draw = random.Random(f"{seed} {number}")
        while queue if end is None else perf_counter() < end:
            case = queue.pop() if end is None else draw.choice(cases)
            kind = _kind(mix or Mix(0, 0, 0), draw.random())
            try:
                await asyncio.wait_for(_act(url, case, kind, draw, tally), TIMEOUT_S)
                tally.kinds[kind] += 1
            except Exception as error:
                tally.failures.append(f"{kind}: {type(error).__name__}: {error}")

    begin = perf_counter()
    await asyncio.gather(*map(client, range(num_clients)))
    tally.seconds = perf_counter() - begin
    return tally


def _kind(mix: Mix, draw: float) -> str:
    for name in ("cancelled", "dropped", "malformed"):
        draw -= getattr(mix, name)
        if draw < 0:
            return name
    return "finished"


async def _act(url: str, case: Case, kind: str, draw: random.Random, tally: Tally) -> None:
    body = json.dumps({**case.body, "stream": True}).encode()
    if kind == "malformed":
        body = draw.choice(BAD_BODIES)
    begin = perf_counter()
    reader, writer = await _post(url, body)
    try:
        if kind == "dropped":
            return
        status = await _head(reader)
        expected = 400 if kind == "malformed" else 200
        if status != expected:
            raise ValueError(f"expected status {expected}, got {status}")
        if kind == "malformed":
            json.loads(await reader.read())["error"]["message"]
            return
        limit = draw.randrange(1, 8) if kind == "cancelled" else None
        await _read_stream(reader, case, begin, limit, tally)
    finally:
        writer.close()


async def _post(url: str, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer


async def _head(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1])


async def _read_stream(
    reader: asyncio.StreamReader, case: Case, begin: float, limit: int | None, tally: Tally
) -> None:
    """Reads a stream, or its first `limit` events; compares the text of a whole one."""
    texts: list[str] = []
    last = None
    async for event in _events(reader):
        now = perf_counter()
        if event == "[DONE]":
            break
        document = json.loads(event)
        if "error" in document:
            raise ValueError(document["error"]["message"])
        texts.append(document["choices"][0]["text"])
        if last is None:
            tally.first_token_s.append(now - begin)
        else:
            tally.between_tokens_s.append(now - last)
        last = now
        if limit is not None and len(texts) >= limit:
            return
    else:
        raise ValueError("the stream ended without [DONE]")
    if limit is None:
        tally.num_tokens += case.body["max_tokens"]
        if "".join(texts) != case.text:
            raise ValueError(f"expected {case.text[:60]!r}, got {''.join(texts)[:60]!r}")


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """Data of server-sent events out of a chunked body."""
    rest = b""
    while size := int((await reader.readline()) or b"0", 16):
        rest += (await reader.readexactly(size + 2))[:-2]
        *events, rest = rest.split(b"\n\n")
        for event in events:
            yield event.decode().removeprefix("data: ")
