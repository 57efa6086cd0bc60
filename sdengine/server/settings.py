"""The server's settings, validated once; the engine has its own (`EngineConfig`)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from functools import lru_cache

from sdengine.core.argument import check_bool, check_float, check_int
from sdengine.errors import ConfigError

__all__ = ["KEY", "ServerSettings", "is_key", "is_loopback"]

KEY = "ASCII text without spaces around"
"""What `is_key` accepts; errors never show a key."""
MAX_SECONDS = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How a server is reached and what it allows.

    Args:
        model_name: what clients call the model.
        host: address to bind.
        port: port to bind; 0 takes a free one.
        api_keys: a request must carry one of them; empty lets everybody in.
        allow_public: whether an address that others can reach may be bound without a key.
        max_connections: most connections; beyond it a new one takes the place of the one that has
            waited longest without a request, or is answered with 503.
        max_requests: most unfinished prompts; more are answered with 503, more in one request with
            400, because that would never fit.
        max_requests_per_client: most requests at once of one key, or of one address without keys;
            more are answered with 429.
        max_body_bytes: longest request body.
        max_prompt_tokens: longest prompt; None leaves it to the model's context.
        max_output_tokens: most tokens to ask for per completion; None leaves it to the context.
        max_completions: most completions of one request, over all its prompts.
        request_timeout_s: longest time from a request's body to its last token.
        body_timeout_s: longest time for a body to arrive.
        drain_timeout_s: how long a stopping server waits for unfinished requests.

    Raises:
        ConfigError: a value is of the wrong type or out of range, or a public address has no key.
    """

    model_name: str
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allow_public: bool = False
    max_connections: int = 512
    max_requests: int = 256
    max_requests_per_client: int = 128
    max_body_bytes: int = 4 * 2**20
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    max_completions: int = 128
    request_timeout_s: float = 600.0
    body_timeout_s: float = 30.0
    drain_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        error = ConfigError
        if not self.model_name.strip():
            raise error.from_parts("model_name to be a name", repr(self.model_name))
        check_int(error, "port", self.port, 0, 65535)
        check_bool(error, "allow_public", self.allow_public)
        for name in ("connections", "requests", "requests_per_client", "body_bytes", "completions"):
            check_int(error, f"max_{name}", getattr(self, f"max_{name}"), 1)
        for name in ("max_prompt_tokens", "max_output_tokens"):
            if getattr(self, name) is not None:
                check_int(error, name, getattr(self, name), 1)
        for name in ("request_timeout_s", "body_timeout_s", "drain_timeout_s"):
            check_float(error, name, getattr(self, name), 0.0, MAX_SECONDS, low_is_open=True)
        if not all(map(is_key, self.api_keys)):
            raise error.from_parts(f"every one of api_keys to be {KEY}", "another text")
        if not (is_loopback(self.host) or self.api_keys or self.allow_public):
            raise error.from_parts(
                "an API key to listen on an address that others can reach",
                f"host {self.host!r} without one",
                "set SDENGINE_API_KEY, pass --api-key-file, or --allow-public to do without",
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_key(text: str) -> bool:
    """Whether a client could send this key in a header."""
    return bool(text) and text.isascii() and text == text.strip()


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether an address, or the name localhost, is this machine's own; other names are not asked
    for and count as public. Names ignore case."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
