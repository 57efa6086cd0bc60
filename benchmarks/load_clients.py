"""Clients of a load test: streams that are read, cancelled or dropped, and bodies that are wrong.

All clients are one thread over plain sockets, because they share the machine with the server: what
arrives is only noted with its time while the load runs, and taken apart and compared afterwards.
"""

from __future__ import annotations

import json
import random
import selectors
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter, process_time
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Case", "Mix", "Tally", "run_clients"]

BAD_BODIES = (b"", b"{", b"\xff\xfe", b"[" * 10_000, b'{"prompt": 1}', b'{"model": "?", "n": 0}')
TIMEOUT_S = 120.0
RECEIVE_BYTES = 1 << 16
EVENT, LAST_CHUNK = b"data: ", b"\r\n0\r\n\r\n"


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
        cancelled: leave after some events.
        dropped: leave before the first byte of an answer.
        malformed: send what is no request.
    """

    cancelled: float = 0.15
    dropped: float = 0.05
    malformed: float = 0.1


@dataclass(slots=True)
class Tally:
    """What came of it; times in seconds, `processor_s` those of the clients themselves."""

    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    between_reads_s: list[float] = field(default_factory=list)
    num_events: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    processor_s: float = 0.0

    def add(self, other: Tally) -> None:
        """Adds another's."""
        self.kinds += other.kinds
        self.failures += other.failures
        self.first_token_s += other.first_token_s
        self.between_reads_s += other.between_reads_s
        self.num_events += other.num_events
        self.num_tokens += other.num_tokens
        self.seconds += other.seconds
        self.processor_s += other.processor_s


@dataclass(slots=True)
class Call:
    """One request: what was sent, and every read of the answer with its time.

    Args:
        kind: how its client behaves.
        case: what was asked.
        body: what was sent.
        limit: events after which the client leaves.
        begun_at: when it was sent.
    """

    kind: str
    case: Case
    body: bytes
    limit: int | None
    begun_at: float
    parts: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    error: Exception | None = None

    @property
    def has_left(self) -> bool:
        """Whether a client that leaves early has seen enough."""
        if self.kind != "cancelled":
            return self.kind == "dropped"
        return b"".join(self.parts).count(EVENT) >= (self.limit or 0)

    @property
    def is_whole(self) -> bool:
        """Whether the answer has ended."""
        tail = self.parts[-1]
        if len(tail) < len(LAST_CHUNK):
            tail = b"".join(self.parts[-len(LAST_CHUNK) :])
        return tail.endswith(LAST_CHUNK)


def run_clients(
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
    begin, processor_begin = perf_counter(), process_time()
    end = None if seconds is None else begin + seconds
    calls = _calls(cases, mix or Mix(0, 0, 0), random.Random(seed), end)
    with selectors.DefaultSelector() as selector:
        clients = [Client(url, calls, selector) for _ in range(num_clients)]
        for client in clients:
            client.begin_next()
        while selector.get_map():
            ready = selector.select(TIMEOUT_S)
            now = perf_counter()
            for key, _ in ready:
                key.data.read(now)
            if not ready:
                for client in clients:
                    client.give_up()
    tally = Tally(seconds=perf_counter() - begin, processor_s=process_time() - processor_begin)
    for client in clients:
        for call in client.done:
            _judge(call, tally)
    return tally


def _calls(
    cases: Sequence[Case], mix: Mix, draw: random.Random, end: float | None
) -> Iterator[Call]:
    """What clients do one after the other: every case once, or random ones until `end`."""
    queue = iter(cases)
    while True:
        case = next(queue, None) if end is None else draw.choice(cases)
        if case is None or (end is not None and perf_counter() > end):
            return
        kind = _kind(mix, draw.random())
        body = json.dumps({**case.body, "stream": True}).encode()
        if kind == "malformed":
            body = draw.choice(BAD_BODIES)
        limit = draw.randrange(1, 8) if kind == "cancelled" else None
        yield Call(kind, case, body, limit, perf_counter())


def _kind(mix: Mix, draw: float) -> str:
    for name in ("cancelled", "dropped", "malformed"):
        draw -= getattr(mix, name)
        if draw < 0:
            return name
    return "finished"


class Client:
    """One client: a request at a time, over a connection that is kept while streams end well.

    Args:
        url: root of a server.
        calls: shared by all clients.
        selector: says when something arrived.
    """

    def __init__(self, url: str, calls: Iterator[Call], selector: selectors.BaseSelector) -> None:
        parts = urlsplit(url)
        self.done: list[Call] = []
        self._address = (parts.hostname, parts.port)
        self._host = parts.netloc
        self._calls = calls
        self._selector = selector
        self._socket: socket.socket | None = None
        self._call: Call

    def begin_next(self) -> None:
        """Sends the next request, if there is one."""
        while (call := next(self._calls, None)) is not None:
            self._call = call
            try:
                self._send(call)
            except OSError as error:
                self._end(error)
                continue
            if not call.has_left:
                return
            self._end()
        self._disconnect()

    def read(self, now: float) -> None:
        """Notes what arrived; begins the next request after the last byte of this one's answer."""
        call = self._call
        assert self._socket is not None
        try:
            part = self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            self._end(error)
            self.begin_next()
            return
        if part:
            call.parts.append(part)
            call.times.append(now)
            is_over = call.has_left if call.kind == "cancelled" else call.is_whole
            if not is_over:
                return
        self._end(keeps=bool(part) and call.kind == "finished")
        self.begin_next()

    def give_up(self) -> None:
        """Ends a request that was not answered in time."""
        if self._socket is not None:
            self._end(TimeoutError(f"nothing came for {TIMEOUT_S} s"))

    def _send(self, call: Call) -> None:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=TIMEOUT_S)
            self._selector.register(self._socket, selectors.EVENT_READ, self)
        keeps = "keep-alive" if call.kind == "finished" else "close"
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}\r\nConnection: {keeps}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(call.body)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + call.body)

    def _end(self, error: Exception | None = None, keeps: bool = False) -> None:
        self._call.error = error
        self.done.append(self._call)
        if not keeps:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None


def _judge(call: Call, tally: Tally) -> None:
    """Compares an answer with what it should be, and counts it."""
    try:
        if call.error is not None:
            raise call.error
        if call.kind != "dropped":
            _check(call, tally)
        tally.kinds[call.kind] += 1
    except Exception as error:
        tally.failures.append(f"{call.kind}: {type(error).__name__}: {error}")


def _check(call: Call, tally: Tally) -> None:
    head, _, rest = b"".join(call.parts).partition(b"\r\n\r\n")
    status, expected = int(head.split(b" ", 2)[1]), 400 if call.kind == "malformed" else 200
    if status != expected:
        raise ValueError(f"expected status {expected}, got {status}")
    if call.kind == "malformed":
        json.loads(rest)["error"]["message"]
        return
    documents = [json.loads(event) for event in _events(rest) if event != "[DONE]"]
    for document in documents:
        if "error" in document:
            raise ValueError(document["error"]["message"])
    times = [now for now, part in zip(call.times, call.parts) if EVENT in part]
    tally.num_events += len(documents)
    tally.first_token_s.append(times[0] - call.begun_at)
    tally.between_reads_s += [now - last for last, now in pairwise(times)]
    if call.kind == "cancelled":
        return
    if not rest.endswith(b"data: [DONE]\n\n" + LAST_CHUNK):
        raise ValueError("the stream ended without [DONE]")
    text = "".join(document["choices"][0]["text"] for document in documents)
    if text != call.case.text:
        raise ValueError(f"expected {call.case.text[:60]!r}, got {text[:60]!r}")
    tally.num_tokens += call.case.body["max_tokens"]


def _events(rest: bytes) -> Iterator[str]:
    """Data of the whole server-sent events in a chunked body, which may end anywhere; comments are
    left out."""
    body = b""
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    for event in body.split(b"\n\n")[:-1]:
        if event.startswith(EVENT):
            yield event[len(EVENT) :].decode()
