"""The page at `/`: its files, and the endpoint that streams tokens with where they came from."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse, Response

from sdengine.async_engine import AsyncEngine, RequestStream
from sdengine.core.outputs import RequestOutput, StepTree
from sdengine.model.tokenizer import Tokenizer
from sdengine.server.encoding import event
from sdengine.server.errors import ApiError
from sdengine.server.generation import check_prompt
from sdengine.server.metrics import Metrics
from sdengine.server.protocol import PlaygroundRequest
from sdengine.server.settings import ServerSettings
from sdengine.server.streaming import EventStream

__all__ = ["add_playground"]

PAGE_DIR = Path(__file__).resolve().parent / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def add_playground(
    app: FastAPI,
    engine: AsyncEngine,
    plain_engine: AsyncEngine | None,
    settings: ServerSettings,
    metrics: Metrics,
) -> None:
    """Adds the page, what it asks for, and nothing to the API's description."""
    for path, (name, kind) in FILES.items():
        app.add_api_route(path, _serve_file(name, kind), include_in_schema=False)

    @app.get("/playground/about", include_in_schema=False)
    async def about() -> JSONResponse:
        return JSONResponse(
            {
                "model": settings.model_name,
                "can_compare": plain_engine is not None,
                "is_speculative": engine.engine.config.speculation is not None,
            }
        )

    @app.post("/playground/generate", include_in_schema=False)
    async def generate(body: PlaygroundRequest) -> Response:
        chosen = plain_engine if body.is_plain else engine
        if chosen is None:
            raise ApiError(400, "is_plain: expected a server started with --compare, got another")
        stream = await _submit(chosen, body, settings, metrics)
        return EventStream(_documents(chosen, stream, metrics), event, stream.aclose)


def _serve_file(name: str, kind: str) -> Any:
    async def serve() -> FileResponse:
        return FileResponse(PAGE_DIR / name, media_type=kind, headers=HEADERS)

    return serve


async def _submit(
    engine: AsyncEngine, body: PlaygroundRequest, settings: ServerSettings, metrics: Metrics
) -> RequestStream:
    token_ids = await engine.encode(body.prompt)
    check_prompt(len(token_ids), engine, settings)
    limit = settings.max_output_tokens
    max_tokens = body.max_tokens if limit is None else min(body.max_tokens, limit)
    params = replace(
        engine.engine.default_params,
        max_tokens=max_tokens,
        min_tokens=0,
        temperature=body.temperature,
        seed=body.seed,
    )
    stream = await engine.submit(
        token_ids,
        params,
        may_wait=False,
        timeout_s=settings.request_timeout_s,
        wants_trees=True,
    )
    metrics.prompt_tokens += len(token_ids)
    return stream


async def _documents(
    engine: AsyncEngine, stream: RequestStream, metrics: Metrics
) -> AsyncGenerator[dict[str, Any], None]:
    tokenizer = engine.engine.tokenizer
    assert tokenizer is not None, "the prompt was text"
    detokenizer = tokenizer.detokenizer(skip_special_tokens=True, continues_text=True)
    num_told = 0
    async with stream:
        async for output in stream:
            completion = output.outputs[0]
            pieces = [
                {"text": detokenizer.push([token]), "draft": is_draft}
                for token, is_draft in zip(
                    completion.token_ids[num_told:], completion.from_draft[num_told:]
                )
            ]
            metrics.generated_tokens += len(completion.token_ids) - num_told
            num_told = len(completion.token_ids)
            if output.finished:
                pieces.append({"text": detokenizer.finish(), "draft": False})
            tree = _tree_document(stream.step_tree, tokenizer)
            yield {"pieces": pieces, "tree": tree, "end": _end_document(output)}


def _tree_document(tree: StepTree | None, tokenizer: Tokenizer) -> dict[str, Any] | None:
    if tree is None:
        return None
    return {
        "nodes": _texts(tree.token_ids, tokenizer),
        "parents": list(tree.parents),
        "accepted": list(tree.accepted),
        "own": _texts([tree.own_token_id], tokenizer)[0],
    }


def _texts(token_ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.token_text(token) for token in token_ids]


def _end_document(output: RequestOutput) -> dict[str, Any] | None:
    """Speed and acceptance by the engine's own clock, once it is finished."""
    metrics, stats = output.metrics, output.metrics.speculation
    if not output.finished or metrics.finished_time is None or metrics.first_token_time is None:
        return None
    return {
        "num_tokens": metrics.num_generated_tokens,
        "seconds": metrics.finished_time - metrics.arrival_time,
        "decode_seconds": metrics.finished_time - metrics.first_token_time,
        "finish_reason": output.outputs[0].finish_reason,
        "acceptance_length": None if stats is None else stats.mean_acceptance_length,
        "acceptance_rate": None if stats is None else stats.draft_acceptance_rate,
    }
