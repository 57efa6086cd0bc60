"""Many replicas behind one address: sdengine's own HTTP server as a Ray Serve deployment.

    PYTHONPATH=examples serve run ray_serve:build num_replicas=4 num_threads=8

Run as a script, it starts two replicas on loopback, asks both for the same texts, and stops them.
Needs the extra `ray`; docs/server.md says how it goes on a cluster.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import ray
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve

from sdengine import AsyncEngine, Engine
from sdengine.core.env import read_environment
from sdengine.server.app import create_app
from sdengine.server.run import SWITCH_INTERVAL_S
from sdengine.server.settings import ServerSettings

LAST_WORDS_S = 15.0
"""Beyond the longest request: Serve looks every 2 s whether a stopping replica is still busy."""

LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # none is written to the home directory
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # a busy machine takes longer than 5 s
}


class ReplicaSettings(BaseModel, extra="forbid"):
    """What `serve run` takes as name=value, and a configuration file as `args`."""

    model: str = "python-completion"
    draft: str | None = None
    num_replicas: int = 2
    num_threads: int = 1
    """CPU threads of a replica, and the CPUs that Ray reserves for it."""
    max_num_seqs: int = 16
    max_requests: int = 64
    """Unfinished requests of a replica; as many again wait in each proxy, more get 503."""
    request_timeout_s: float = 120.0


class Replica:
    """One engine; `self.app` is the application that `serve.ingress` made in this process."""

    async def check_health(self) -> None:
        """Serve replaces a replica that raises here: an engine that failed stays failed."""
        status = self.app.state.engine.status()
        if status.failure is not None:
            raise RuntimeError("the engine failed") from status.failure

    async def __del__(self) -> None:
        """Called when a stopping replica has answered everything it had accepted."""
        await self.app.state.engine.drain()


class NamesReplica:
    """Middleware: every answer says which replica gave it. Plain ASGI, so that streams pass."""

    def __init__(self, app: Callable[..., Awaitable[None]], name: str) -> None:
        self._app = app
        self._header = (b"x-replica", name.encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_named(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], self._header]
            await send(message)

        await self._app(scope, receive, send_named)


def make_app(settings: ReplicaSettings) -> FastAPI:
    """Loads the model; called in each replica's process."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    key = read_environment().api_key
    server_settings = ServerSettings(
        model_name=Path(settings.model).name,
        api_keys=(key,) if key else (),  # without one, only requests to localhost are answered
        max_requests=settings.max_requests,
        max_requests_per_client=settings.max_requests,
        request_timeout_s=settings.request_timeout_s,
    )
    engine = Engine(
        settings.model,
        draft=settings.draft,
        max_num_seqs=settings.max_num_seqs,
        num_threads=settings.num_threads,
        seed=secrets.randbits(63),  # requests without a seed differ between replicas
    )
    async_engine = AsyncEngine(engine, max_requests=settings.max_requests)
    app = create_app(async_engine, server_settings)
    app.state.engine = async_engine
    app.add_middleware(NamesReplica, name=serve.get_replica_context().replica_id.unique_id)
    return app


def build(given: ReplicaSettings | dict[str, Any]) -> serve.Application:
    """The application, for `serve run`, `serve deploy` (these give a dict) and `serve.run`."""
    settings = ReplicaSettings.model_validate(given)
    deployment = serve.deployment(
        serve.ingress(lambda: make_app(settings))(Replica),
        name="Replica",
        num_replicas=settings.num_replicas,
        max_ongoing_requests=settings.max_requests,
        max_queued_requests=settings.max_requests,
        graceful_shutdown_timeout_s=settings.request_timeout_s + LAST_WORDS_S,
        ray_actor_options={"num_cpus": settings.num_threads},
    )
    return deployment.bind()


@contextmanager
def local_ray(num_cpus: int) -> Iterator[str]:
    """Ray and Serve for the length of a block, reached from this machine only; gives the URL."""
    for name, value in LOCAL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray.init(
        "local",
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        logging_level="warning",
        log_to_driver=False,
        _node_ip_address="127.0.0.2",  # loopback; Ray would replace 127.0.0.1 by a public one
    )
    try:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def ask(url: str, seed: int) -> tuple[int, str, str]:
    """Seed, replica and text."""
    sampling = {"max_tokens": 32, "temperature": 0.8, "seed": seed}
    body = {"model": "python-completion", "prompt": "class Node:", **sampling}
    headers = {"Content-Type": "application/json"}
    request = Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    with urlopen(request, timeout=60) as response:
        return seed, response.headers["x-replica"], json.load(response)["choices"][0]["text"]


def demonstrate() -> None:
    replicas, texts = set(), defaultdict(set)
    with local_ray(num_cpus=2) as url, ThreadPoolExecutor(16) as pool:
        serve.run(build(ReplicaSettings()), name="sdengine")
        for seed, replica, text in pool.map(ask, [url] * 32, [0, 1] * 16):
            replicas.add(replica)
            texts[seed].add(text)
    print(f"{len(replicas)} replicas answered")
    for seed, found in texts.items():
        print(f"--- seed {seed}: {'same text' if len(found) == 1 else 'DIFFERENT TEXTS'}")
        print("class Node:" + found.pop())


if __name__ == "__main__":
    demonstrate()
