"""What stands before every endpoint: keys, limits, and bodies that arrive whole and in time.

Plain ASGI, so that streams pass through untouched.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from typing import Any

from starlette.routing import Match

from sdengine.server.asgi import Answer, Message, Receive, Scope, Send
from sdengine.server.deadline import Deadline
from sdengine.server.errors import ApiError, error_response
from sdengine.server.metrics import Metrics
from sdengine.server.settings import ServerSettings, is_loopback
from sdengine.server.wire import wire_below

__all__ = ["Gate"]

OPEN_PATHS = ("/", "/health", "/page.js", "/page.css", "/favicon.svg")
COUNTED_PATHS = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/models",
    "/health",
    "/metrics",
    "/playground/generate",
)
GRACE_S = 30.0
"""Time beyond a request's own for its answer to reach the client: then a reader is too slow."""


class Gate:
    """The outermost layer of the application.

    Args:
        app: what lies behind.
        settings: keys and limits.
        metrics: counts the answers.
    """

    def __init__(self, app: Any, settings: ServerSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._keys = [_digest(key) for key in settings.api_keys]
        self._at_once: Counter[str] = Counter()
        self._checks_host = settings.is_local and not settings.api_keys
        self._longest_s = settings.request_timeout_s + GRACE_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = Answer(send)
        client = ""
        if scope["method"] == "HEAD":  # the server below sends no body, whoever answers
            scope = {**scope, "method": "GET"}
        try:
            client = self._admit(scope)
            await self._pass(scope, receive, answer)
        except ApiError as error:
            await error_response(error)(scope, receive, answer.send)
        finally:
            if client:
                self._leave(client)
            path = scope["path"] if scope["path"] in COUNTED_PATHS else "other"
            self._metrics.requests.labels(path, str(answer.status)).inc()

    async def _pass(self, scope: Scope, receive: Receive, answer: Answer) -> None:
        if scope["method"] == "POST":
            if _has_endpoint(scope):  # otherwise the answer is that there is none
                _check_content_type(scope)
            body = await self._body(scope, receive)
            receive = Replay(body, receive).receive
        try:
            with Deadline(self._longest_s):
                await self._app(scope, receive, answer.send)
        except TimeoutError:
            wire = wire_below(answer.send)
            if wire is not None and (answer.status is not None or wire.is_stuck):
                wire.cut()
            elif answer.status is None:
                raise ApiError(504, "the answer took too long", kind="server_error") from None
            # Elsewhere an answer that is left unfinished makes the server close the connection.

    def _admit(self, scope: Scope) -> str:
        """Checks who is asking; returns whom the request counts for, "" for nobody."""
        if self._checks_host:
            _check_host(scope)
        if scope["path"] in OPEN_PATHS:
            return ""
        client = self._identify(scope)
        if scope["method"] != "POST":
            return ""
        limit = self._settings.max_requests_per_client
        if self._at_once[client] >= limit:
            raise ApiError(
                429,
                f"expected at most {limit} requests at once from one client, got one more",
                kind="rate_limit_error",
                code="rate_limit_exceeded",
            )
        self._at_once[client] += 1
        return client

    def _leave(self, client: str) -> None:
        self._at_once[client] -= 1
        if not self._at_once[client]:
            del self._at_once[client]

    def _identify(self, scope: Scope) -> str:
        if not self._keys:
            return f"address {(scope.get('client') or ('unknown',))[0]}"
        given = _header(scope, b"authorization")
        scheme, _, key = given.partition(" ")
        digest = _digest(key.strip() if scheme.lower() == "bearer" else "")
        # Every key is compared, each in constant time: the answer's time tells nothing.
        matches = [hmac.compare_digest(digest, known) for known in self._keys]
        if not any(matches):
            raise ApiError(
                401,
                "expected a valid API key in the header Authorization: Bearer, got "
                + ("another" if given else "none"),
                kind="authentication_error",
                code="invalid_api_key",
            )
        return f"key {matches.index(True)}"

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        limit = self._settings.max_body_bytes
        length = _header(scope, b"content-length")
        if length.isdecimal() and int(length) > limit:
            raise _too_large(limit)
        try:
            with Deadline(self._settings.body_timeout_s):
                return await _read(receive, limit)
        except TimeoutError:
            raise ApiError(
                408, f"expected a body within {self._settings.body_timeout_s:g} s, got a part of it"
            ) from None


class Replay:
    """A `receive` that gives the body that was read, and then what comes after it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def receive(self) -> Message:
        """The next message."""
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def _read(receive: Receive, limit: int) -> bytes:
    parts, size, is_more = [], 0, True
    while is_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "expected a whole body, got a part of it")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        is_more = message.get("more_body", False)
    return b"".join(parts)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"expected a body of at most {limit} bytes, got a longer one")


def _check_content_type(scope: Scope) -> None:
    """JSON only. A web page of another origin cannot send that without being asked first."""
    kind = _header(scope, b"content-type").partition(";")[0].strip().lower()
    if kind != "application/json":
        got = f"{kind!r:.80}" if kind else "none"
        raise ApiError(415, f"expected the content type application/json, got {got}")
    encoding = _header(scope, b"content-encoding").strip().lower()
    if encoding not in ("", "identity"):
        raise ApiError(415, f"expected a body that is not encoded, got {encoding!r:.80}")


def _has_endpoint(scope: Scope) -> bool:
    """Whether the application answers this path and method."""
    return any(route.matches(scope)[0] is Match.FULL for route in scope["app"].routes)


def _check_host(scope: Scope) -> None:
    """Without a key, a page whose name was pointed at this machine could use the server."""
    host = _header(scope, b"host")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if not is_loopback(name):
        raise ApiError(421, f"expected a loopback address in the header Host, got {host!r:.80}")


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _digest(key: str) -> bytes:
    """Equal lengths for the comparison, whatever was given."""
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
