"""The gate alone, before apps that never finish."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sdengine.server import gate
from sdengine.server.metrics import Metrics
from sdengine.server.settings import ServerSettings

SCOPE = {
    "type": "http",
    "method": "GET",
    "path": "/metrics",
    "headers": [(b"host", b"127.0.0.1")],
    "client": ("127.0.0.1", 5),
}


class NoEngine:
    """Metrics need one to be scraped, not to count."""

    def status(self) -> Any:
        raise AssertionError


def through(app: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a client gets from an app behind the gate."""
    monkeypatch.setattr(gate, "GRACE_S", 0.0)
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def main() -> None:
        monkeypatch.setattr(gate.Metrics, "__init__", metrics_without_engine)
        settings = ServerSettings(model_name="m", request_timeout_s=0.05)
        middleware = gate.Gate(app, settings, Metrics(NoEngine()))  # type: ignore[arg-type]
        await asyncio.wait_for(middleware(dict(SCOPE), no_body, send), 30)

    asyncio.run(main())
    return sent


def metrics_without_engine(self: Metrics, engine: Any) -> None:
    from prometheus_client import CollectorRegistry, Counter

    self.requests = Counter("requests", "", ["path", "status"], registry=CollectorRegistry())


async def no_body() -> dict[str, Any]:
    return {"type": "http.disconnect"}


def test_an_app_that_never_answers_is_answered_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3600)

    sent = through(silent, monkeypatch)
    assert sent[0]["status"] == 504


def test_a_reader_that_never_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(3600)  # as a `send` does while the client's buffers are full

    assert [message["type"] for message in through(stuck, monkeypatch)] == ["http.response.start"]


@pytest.mark.parametrize(
    "host,status",
    [
        (b"127.0.0.1", 200), (b"127.0.0.1:8000", 200), (b"localhost:1", 200), (b"[::1]", 200),
        (b"[::1]:80", 200), (b"LocalHost:80", 200), (b"evil.example", 421),
        (b"127.0.0.1.evil.example:80", 421), (b"", 421),
    ],
)  # fmt: skip
def test_hosts(monkeypatch: pytest.MonkeyPatch, host: bytes, status: int) -> None:
    async def fine(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    monkeypatch.setitem(SCOPE, "headers", [(b"host", host)])
    assert through(fine, monkeypatch)[0]["status"] == status
