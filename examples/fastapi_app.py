"""An endpoint of your own in a FastAPI app: the next line of a Python file, and why it ended.

    uvicorn examples.fastapi_app:app

Run as a script, it serves one request on loopback and prints the answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

from sdengine import AsyncEngine, Engine, SamplingParams
from sdengine.errors import RequestError


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncEngine(Engine("python-completion"), max_requests=64) as engine:
        app.state.engine = engine
        yield  # leaving drains: requests that were accepted are finished


app = FastAPI(lifespan=lifespan)


class Source(BaseModel):
    """The file so far."""

    text: str


@app.post("/next-line")
async def next_line(source: Source, request: Request) -> dict[str, str | None]:
    params = SamplingParams(max_tokens=40, temperature=0, stop="\n")
    try:
        async for output in request.app.state.engine.generate(source.text, params, timeout_s=30):
            completion = output.outputs[0]
    except RequestError as error:
        raise HTTPException(400, str(error)) from None
    return {"line": completion.text, "finish_reason": completion.finish_reason}


def ask(port: int, text: str) -> dict[str, str]:
    body = json.dumps({"text": text}).encode()
    url, headers = f"http://127.0.0.1:{port}/next-line", {"Content-Type": "application/json"}
    with urlopen(HttpRequest(url, body, headers)) as response:
        return json.load(response)


async def demonstrate() -> None:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    print(await asyncio.to_thread(ask, port, "import os\nimport "))
    server.should_exit = True
    await serving


if __name__ == "__main__":
    asyncio.run(demonstrate())
