"""The application: OpenAI's endpoints, health and metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from sdengine import __version__
from sdengine.async_engine import AsyncEngine
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import ConfigError, RequestError
from sdengine.model.chat_template import ChatTemplate, load_chat_template
from sdengine.server.errors import ApiError, install_handlers
from sdengine.server.forms import ChatForm, CompletionForm
from sdengine.server.gate import Gate
from sdengine.server.generation import Generation, longest_sequence
from sdengine.server.metrics import Metrics
from sdengine.server.playground import add_playground
from sdengine.server.protocol import ChatRequest, CompletionRequest, GenerationRequest
from sdengine.server.route import BodyApp, BodyRoute
from sdengine.server.settings import ServerSettings
from sdengine.server.streaming import answer
from sdengine.server.token_texts import TokenTexts

__all__ = ["create_app"]

DEFAULT_MAX_TOKENS = 16
"""Of completions, as OpenAI has it."""
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in (
        (400, "The request is wrong; the message names the field."),
        (401, "No valid API key."),
        (404, "No such model."),
        (408, "The body did not arrive in time."),
        (413, "The body is too large."),
        (415, "The body is not JSON."),
        (421, "The request was meant for another host."),
        (429, "Too many requests at once from this client."),
        (500, "The engine failed."),
        (503, "Too many requests, or shutting down."),
        (504, "The request took too long."),
    )
}


@dataclass(frozen=True, slots=True)
class Service:
    """What the endpoints stand on."""

    engine: AsyncEngine
    settings: ServerSettings
    metrics: Metrics
    chat_template: ChatTemplate | None
    created: int

    def generation(self, body: GenerationRequest, params: SamplingParams) -> Generation:
        """A new request's."""
        return Generation(self.engine, self.settings, self.metrics, params, body.in_own_words)

    def token_texts(self, params: SamplingParams) -> TokenTexts:
        """How a request's log-probabilities write tokens."""
        return TokenTexts(self.engine.engine.tokenizer, params.skip_special_tokens)

    def require_model(self, name: str) -> None:
        """Refuses every model but the one served."""
        if name != self.settings.model_name:
            raise ApiError(
                404,
                f"expected the model {self.settings.model_name!r}, got {name!r:.100}",
                param="model",
                code="model_not_found",
            )


def create_app(
    engine: AsyncEngine, settings: ServerSettings, plain_engine: AsyncEngine | None = None
) -> FastAPI:
    """The server around an engine; who starts it also drains the engine.

    Args:
        engine: answers everything.
        settings: names and limits.
        plain_engine: the same model without speculation, for the page's comparison.

    Raises:
        ConfigError: the checkpoint has no tokenizer: every answer would be empty.
        CheckpointError: its chat template is damaged.
    """
    if engine.engine.tokenizer is None:
        raise ConfigError.from_parts(
            f"a model with tokenizer.json in {engine.engine.target_path}",
            "one without, whose answers would have no text",
            "copy the tokenizer's files there",
        )
    app = BodyApp(
        title="sdengine",
        version=__version__,
        summary="Completions in OpenAI's format.",
        docs_url=None,  # these pages load scripts of a third party
        redoc_url=None,
    )
    service = Service(
        engine,
        settings,
        Metrics(engine),
        load_chat_template(engine.engine.target_path),
        int(time.time()),
    )
    app.state.metrics = service.metrics
    install_handlers(app)
    app.router.route_class = BodyRoute
    app.router.redirect_slashes = False  # a path with one too many is not there, as any other
    _add_openai(app, service)
    _add_operations(app, service)
    add_playground(app, engine, plain_engine, settings, service.metrics)
    app.add_middleware(Gate, settings=settings, metrics=service.metrics)
    return app


def _add_openai(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions", responses=ERRORS)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Continues prompts."""
        service.require_model(body.model)
        defaults = service.engine.engine.default_params
        max_tokens = body.max_new_tokens
        if max_tokens is None:
            max_tokens = _at_most(service, DEFAULT_MAX_TOKENS)
        params = body.sampling_params(defaults, max_tokens, body.logprobs)
        generation = service.generation(body, params)
        await generation.begin(body.prompts)
        form = CompletionForm(body.model, service.token_texts(params), body.includes_usage)
        return await answer(request, generation, form, bool(body.stream))

    @app.post("/v1/chat/completions", responses=ERRORS)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answers a conversation with the checkpoint's chat template."""
        service.require_model(body.model)
        prompt = await _rendered(service, body)
        defaults = service.engine.engine.default_params
        max_tokens = body.max_new_tokens
        if max_tokens is None:
            max_tokens = _room(service, len(prompt))
        params = body.sampling_params(defaults, max_tokens, body.num_logprobs)
        generation = service.generation(body, params)
        await generation.begin([prompt], "messages")
        texts = service.token_texts(params)
        form = ChatForm(body.model, body.num_logprobs, texts, body.includes_usage)
        return await answer(request, generation, form, bool(body.stream))

    @app.get("/v1/models", responses={401: ERRORS[401]})
    async def models() -> dict[str, Any]:
        """The models that can be asked for."""
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}", responses={401: ERRORS[401], 404: ERRORS[404]})
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        service.require_model(name)
        return _model(service)


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses={503: {"description": "Draining or failed."}})
    async def health() -> JSONResponse:
        """Whether requests are taken."""
        status = service.engine.status()
        document = {"status": "ok" if status.state == "running" else status.state}
        if status.failure is not None:
            document["reason"] = type(status.failure).__name__
        return JSONResponse(document, 200 if status.state == "running" else 503)

    @app.get("/metrics", responses={401: ERRORS[401]})
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def _rendered(service: Service, body: ChatRequest) -> list[int]:
    """Token ids of a conversation, ready for the assistant's answer."""
    if service.chat_template is None:
        raise RequestError.from_parts(
            "a model with a chat template", "one without", "use /v1/completions"
        )
    messages = [message.model_dump(exclude_none=True) for message in body.messages]
    text = service.chat_template.render(messages, add_generation_prompt=True)
    return await service.engine.encode(text, add_special_tokens=False)


def _room(service: Service, num_prompt_tokens: int) -> int:
    """Most tokens that can follow a prompt."""
    return _at_most(service, max(longest_sequence(service.engine) - num_prompt_tokens, 1))


def _at_most(service: Service, num_tokens: int) -> int:
    """Tokens for a client that does not say how many: no more than the server allows."""
    limit = service.settings.max_output_tokens
    return num_tokens if limit is None else min(num_tokens, limit)


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.settings.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "sdengine",
        "max_model_len": longest_sequence(service.engine),
    }
