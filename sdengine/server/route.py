"""Routes whose only input is a JSON body."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import ValidationError

__all__ = ["BodyRoute"]


class BodyRoute(APIRoute):
    """A route that has its body parsed and checked by pydantic in one go.

    The endpoint takes a model as `body`, and possibly the `request`; it is described as every other
    one. FastAPI's own way, for inputs from everywhere, took a quarter of what a request costs the
    event loop.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
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
