"""`sdengine serve`: an OpenAI-compatible HTTP server; thin, the work is in `sdengine.server`."""

from __future__ import annotations

import argparse
import os
import re
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sdengine.cli.options import (
    DEFAULT_THREADS,
    add_model_options,
    integer,
    model_paths,
    number,
)
from sdengine.core.config import EngineConfig
from sdengine.core.env import read_environment
from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from sdengine.server.settings import ServerSettings

__all__ = ["HELP", "add_arguments", "run"]

HELP = "serve a model over HTTP in OpenAI's format"
LIBRARIES = ("fastapi", "uvicorn", "httptools", "prometheus_client")
DEFAULT_SEQS = 16
BATCHED_TOKENS = 512
"""As an EngineConfig has by itself; more where every sequence needs a row of a forward."""
OPTION_OF = {
    "model_name": "--name",
    "request_timeout_s": "--timeout",
    "drain_timeout_s": "--drain-timeout",
}
"""Options whose settings of the server have other names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_model_options(parser)
    for name, kind, default, text in (
        ("--name", str, None, "what clients call the model (the last part of --model)"),
        ("--host", str, "127.0.0.1", "address to listen on (%(default)s)"),
        ("--port", integer, 8000, "port to listen on; 0 takes a free one (%(default)s)"),
        ("--max-num-seqs", integer, DEFAULT_SEQS, "sequences that run at once (%(default)s)"),
        ("--num-kv-blocks", integer, None, "blocks of the KV cache (as many as are needed)"),
        ("--num-threads", integer, None, f"CPU threads ({DEFAULT_THREADS})"),
        ("--seed", integer, None, "for requests without one (a fresh one)"),
        ("--max-connections", integer, 512, "connections; more get 503 (%(default)s)"),
        ("--max-requests", integer, 256, "unfinished prompts; more get 503 (%(default)s)"),
        (
            "--max-requests-per-client",
            integer,
            128,
            "requests at once of a client; more get 429 (%(default)s)",
        ),
        ("--max-body-bytes", integer, 4 * 2**20, "longest request body (%(default)s)"),
        ("--max-prompt-tokens", integer, None, "longest prompt (the context)"),
        ("--max-output-tokens", integer, None, "largest max_tokens (the context)"),
        ("--timeout", number, 600.0, "seconds for a request (%(default)s)"),
        ("--drain-timeout", number, 30.0, "seconds for the last requests (%(default)s)"),
    ):
        parser.add_argument(name, type=kind, default=default, metavar="X", help=text)
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="keys that clients must send, one per line; blank lines and those that begin with # "
        "are none (SDENGINE_API_KEY holds one)",
    )
    parser.add_argument(
        "--allow-public",
        action="store_true",
        help="listen on an address that others can reach without asking for a key",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="load the model a second time without speculation, so that the page can compare",
    )


def run(args: argparse.Namespace) -> int:
    """Entry of the command; returns when a signal ended the server and it has drained.

    Raises:
        ConfigError, CheckpointError, BackendUnavailable, CacheFull: unusable settings or model.
    """
    if args.compare and args.speculation == "off":
        raise ConfigError.from_parts(
            "a kind of speculation to compare with plain decoding", "--speculation off"
        )
    model_paths(args)  # a misspelt name is answered before anything is loaded
    require_libraries()
    try:
        settings = server_settings(args)
    except ConfigError as error:
        raise ConfigError(in_options(str(error))) from None
    config = engine_config(args)
    from sdengine.engine import Engine
    from sdengine.server.run import serve

    plain = config.with_changes(speculation=None, max_num_seqs=1) if args.compare else None
    serve(settings, partial(Engine, config), None if plain is None else partial(Engine, plain))
    return 0


def server_settings(args: argparse.Namespace) -> ServerSettings:
    """The server that the command line describes.

    Raises:
        ConfigError: a value is out of range, or a file of keys is of no use.
    """
    from sdengine.server.settings import ServerSettings

    return ServerSettings(
        model_name=Path(os.path.abspath(args.model)).name if args.name is None else args.name,
        host=args.host,
        port=args.port,
        api_keys=api_keys(args.api_key_file),
        allow_public=args.allow_public,
        max_connections=args.max_connections,
        max_requests=args.max_requests,
        max_requests_per_client=args.max_requests_per_client,
        max_body_bytes=args.max_body_bytes,
        max_prompt_tokens=args.max_prompt_tokens,
        max_output_tokens=args.max_output_tokens,
        request_timeout_s=args.timeout,
        drain_timeout_s=args.drain_timeout,
    )


def in_options(message: str) -> str:
    """A message about settings that names the options they were typed as."""
    expected, comma, rest = message.partition(", ")
    for setting, option in OPTION_OF.items():
        expected = re.sub(rf"\b{setting}\b", option, expected)
    return expected + comma + rest


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """The engine that the command line describes.

    Raises:
        ConfigError: a value is out of range.
    """
    from sdengine.cli.options import fresh_seed

    return EngineConfig(
        args.model,
        args.draft,
        device=args.device,
        dtype=args.dtype,
        speculation=args.speculation,
        max_num_seqs=args.max_num_seqs,
        max_model_len=args.max_model_len,
        max_num_batched_tokens=max(BATCHED_TOKENS, args.max_num_seqs),
        num_kv_blocks=args.num_kv_blocks,
        num_threads=args.num_threads,
        seed=fresh_seed() if args.seed is None else args.seed,
    )


def api_keys(file: Path | None) -> tuple[str, ...]:
    """Keys of the environment and of a file.

    Raises:
        ConfigError: the file cannot be read, or holds none; or a key could not stand in a header.
    """
    from sdengine.server.settings import KEY, is_key

    key = read_environment().api_key
    keys = {} if key is None else {"SDENGINE_API_KEY": key}
    if file is not None:
        keys |= keys_in(file)
    for source, key in keys.items():
        if not is_key(key):
            raise ConfigError.from_parts(f"{source} to be {KEY}", "another text")
    return tuple(keys.values())


def keys_in(file: Path) -> dict[str, str]:
    """Keys of a file, by the lines where they stand."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError.from_parts(f"a readable file of API keys {file}", str(error)) from None
    texts = {f"line {number} of {file}": line.strip() for number, line in enumerate(lines, 1)}
    found = {source: text for source, text in texts.items() if text and not text.startswith("#")}
    if not found:
        raise ConfigError.from_parts(
            f"an API key in {file}", "only blank lines and comments" if lines else "an empty file"
        )
    return found


def require_libraries() -> None:
    """Refuses an installation without the extra.

    Raises:
        ConfigError: a library is missing.
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise ConfigError.from_parts(
            "the libraries of the extra `server`",
            f"an installation without {', '.join(missing)}",
            "pip install 'sdengine[server]'",
        )
