"""The short way to routes with a body: middleware, errors, and everything else."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from sdengine.errors import EngineBusy
from sdengine.server.errors import install_handlers
from sdengine.server.route import BodyApp, BodyRoute


class Word(BaseModel):
    """A body."""

    text: str


class Noting:
    """Middleware of a user's own."""

    def __init__(self, app: Any, paths: list[str]) -> None:
        self._app = app
        self._paths = paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._paths.append(scope["path"])
        await self._app(scope, receive, send)


class Breaking(Response):
    """A response that fails after its head."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        raise OSError("half")


def make_app() -> BodyApp:
    app = BodyApp()
    install_handlers(app)
    app.router.route_class = BodyRoute

    @app.post("/say")
    async def say(body: Word, request: Request) -> JSONResponse:
        if body.text == "busy":
            raise EngineBusy.from_parts("room", "none")
        if body.text == "bug":
            raise OSError("a bug")
        if body.text == "half":
            return Breaking()  # type: ignore[return-value]
        return JSONResponse({"said": body.text, "path": request.url.path})

    @app.get("/state")
    async def state() -> dict[str, str]:
        return {"state": "fine"}

    return app


def ask(app: BodyApp, method: str, path: str, **body: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path, **body)

    return asyncio.run(main())


@pytest.mark.parametrize(
    "method,path,body,status,document",
    [
        ("POST", "/say", {"json": {"text": "a"}}, 200, {"said": "a", "path": "/say"}),
        ("GET", "/state", {}, 200, {"state": "fine"}),
    ],
)
def test_both_ways_pass_the_middleware_once(
    method: str, path: str, body: dict, status: int, document: dict
) -> None:
    app, paths = make_app(), []
    app.add_middleware(Noting, paths=paths)
    answer = ask(app, method, path, **body)
    assert (answer.status_code, answer.json(), paths) == (status, document, [path])


@pytest.mark.parametrize(
    "method,path,body,status,kind",
    [
        ("POST", "/say", {"json": {"text": 1}}, 400, "invalid_request_error"),
        ("POST", "/say", {"content": b"{"}, 400, "invalid_request_error"),
        ("POST", "/say", {"json": {"text": "busy"}}, 503, "server_error"),
        ("POST", "/say", {"json": {"text": "bug"}}, 500, "server_error"),
        ("GET", "/say", {}, 405, "invalid_request_error"),
        ("POST", "/nowhere", {"json": {}}, 404, "invalid_request_error"),
    ],
)
def test_errors_look_alike_on_both_ways(
    method: str, path: str, body: dict, status: int, kind: str
) -> None:
    answer = ask(make_app(), method, path, **body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert "bug" not in answer.text


@pytest.mark.parametrize("text", ["bug", "half"])
def test_what_nobody_expected_reaches_the_servers_log(text: str) -> None:
    app = make_app()

    async def main() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            with pytest.raises(OSError, match=text):
                await client.post("/say", json={"text": text})

    asyncio.run(main())
