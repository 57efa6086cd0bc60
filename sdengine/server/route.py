"""Routes whose only input is a JSON body, and the short way to them.

FastAPI describes them and checks nothing: a body is parsed by pydantic in one go. Their requests do
not pass the layers that FastAPI has for dependencies, forms and redirections, which took a quarter
of what a request costs the event loop; the application's own middleware they do pass.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from sdengine.server.asgi import Answer
from sdengine.server.errors import as_response, surprise_response

__all__ = ["BodyApp", "BodyRoute"]

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class BodyRoute(APIRoute):
    """A route whose endpoint takes a model as `body`, and possibly the `request`."""

    def get_route_handler(self) -> Handler:
        """What answers a request; an endpoint without a body is left to FastAPI."""
        if self.body_field is None:
            return super().get_route_handler()
        endpoint, hints = self.endpoint, get_type_hints(self.endpoint)
        model, takes_request = hints["body"], "request" in hints

        async def handle(request: Request) -> Response:
            try:
                body = model.model_validate_json(await request.body())
            except ValidationError as error:
                raise RequestValidationError(error.errors()) from None
            response: Response = await (
                endpoint(body, request) if takes_request else endpoint(body)
            )
            return response

        return handle


class BodyApp(FastAPI):
    """An application whose requests with a body go straight to their `BodyRoute`."""

    def build_middleware_stack(self) -> ASGIApp:
        """The middleware that was added, around the short way and FastAPI's own."""
        added, self.user_middleware = self.user_middleware, []
        app: ASGIApp = ShortWay(super().build_middleware_stack(), self.routes)
        self.user_middleware = added
        for middleware, args, kwargs in reversed(added):
            app = middleware(app, *args, **kwargs)
        return app


class ShortWay:
    """Answers requests to body routes; all others go on.

    Args:
        app: what answers the others.
        routes: the application's.
    """

    def __init__(self, app: ASGIApp, routes: list[Any]) -> None:
        self._app = app
        self._handlers: dict[tuple[str, str], Handler] = {
            (method, route.path): route.get_route_handler()
            for route in routes
            if isinstance(route, BodyRoute) and route.body_field is not None
            for method in route.methods
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        handler = self._handlers.get((scope.get("method", ""), scope.get("path", "")))
        if handler is None:
            await self._app(scope, receive, send)
            return
        answer = Answer(send)
        try:
            response = await handler(Request(scope, receive))
            await response(scope, receive, answer.send)
        except Exception as error:
            has_begun = answer.status is not None
            expected = None if has_begun else as_response(error)
            if not has_begun:
                await (expected or surprise_response())(scope, receive, send)
            if expected is None:
                raise  # the server logs it
