"""Errors as OpenAI's clients expect them: a status and {"error": {message, type, param, code}}."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sdengine import errors
from sdengine.server.complaints import complaint
from sdengine.server.protocol import field_of

__all__ = [
    "ApiError",
    "api_error",
    "as_response",
    "error_response",
    "install_handlers",
    "surprise_response",
]

RETRY_AFTER_S = 1
INTERNAL = "the server failed; its log says where"
# What a client can do about it decides the status.
STATUS_OF: tuple[tuple[type[errors.SdengineError], int, str, str | None], ...] = (
    (errors.RequestError, 400, "invalid_request_error", None),
    (errors.EngineBusy, 503, "server_error", "overloaded"),
    (errors.EngineStopped, 503, "server_error", "shutting_down"),
    (errors.RequestTimeout, 504, "server_error", "timeout"),
    (errors.EngineFailed, 500, "server_error", "engine_failed"),
    (errors.SdengineError, 500, "server_error", None),
)


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        message: what was expected, what came, and the way out.
        kind: OpenAI's "type".
        param: the field at fault.
        code: for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code

    @property
    def document(self) -> dict[str, Any]:
        """The body of the answer."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


def api_error(error: errors.SdengineError | ApiError) -> ApiError:
    """The answer to an error of the engine."""
    if isinstance(error, ApiError):
        return error
    status, kind, code = next(
        (status, kind, code) for cls, status, kind, code in STATUS_OF if isinstance(error, cls)
    )
    param = field_of(str(error)) if status == 400 else None
    return ApiError(status, str(error), kind=kind, param=param, code=code)


def error_response(error: ApiError) -> JSONResponse:
    """An error as a response."""
    headers = {}
    if error.status in (429, 503):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.document, error.status, headers)


def as_response(error: Exception) -> JSONResponse | None:
    """The answer to an error that was expected; None to one that was not."""
    if isinstance(error, (ApiError, errors.SdengineError)):
        return error_response(api_error(error))
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    return None


def surprise_response() -> JSONResponse:
    """The answer to an error that nobody expected."""
    return error_response(ApiError(500, INTERNAL, kind="server_error"))


def install_handlers(app: FastAPI) -> None:
    """Makes every error of an app one of this form."""
    for kind in (ApiError, errors.SdengineError, RequestValidationError):
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_surprise)


async def _answer(request: Request, error: Any) -> JSONResponse:
    answer = as_response(error)
    assert answer is not None, "a handler gets the errors it was installed for"
    return answer


def _invalid(error: RequestValidationError) -> JSONResponse:
    """The first thing that is wrong with a body."""
    first = complaint(error.errors()[0])
    return error_response(ApiError(400, first.message, param=first.field))


async def _answer_http(request: Request, error: Any) -> JSONResponse:
    if error.status_code == 400:  # a body that no JSON parser takes (too deep, not UTF-8)
        return error_response(ApiError(400, "expected a body of JSON, got something else"))
    message = {
        404: f"there is nothing at {request.url.path}",
        405: f"{request.method} is not possible at {request.url.path}",
    }.get(error.status_code, str(error.detail))
    response = error_response(ApiError(error.status_code, message))
    response.headers.update(error.headers or {})
    return response


async def _answer_surprise(request: Request, error: Any) -> JSONResponse:
    return surprise_response()
