"""llama.cpp through its server: plain, and with a draft model; one server per mode.

The checkpoints become GGUF files in the work directory. The prompts of a batch are sent as token
ids in one request, so that they start together, and the server's own timings are taken, so that
HTTP costs it nothing. (Its streams leave out tokens that end within a character.)
"""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.peers.contestant import Answer, Contestant, Settings, Task
from benchmarks.peers.gguf_file import write_gguf
from benchmarks.peers.llama_servers import (
    PACKAGE,
    PROGRAM,
    Launcher,
    Server,
    ServerOptions,
    find_launcher,
)
from sdengine.errors import ConfigError
from sdengine.model.config_file import load_model_config

__all__ = ["LlamaCppPeer"]

REQUEST_S = 600.0
TIMES = {"prompt_ms", "predicted_ms"}


class LlamaCppContestant:
    """A server, and the tokens that it must not generate."""

    def __init__(self, mode: str, shown: str, server: Server, masked: tuple[int, ...]) -> None:
        self.name = f"llama.cpp {mode}"
        self.configuration = shown
        self._server = server
        self._masked = masked

    def answer(self, task: Task) -> Answer:
        """As `Contestant.answer`."""
        request = urllib.request.Request(
            f"{self._server.url}/completion",
            json.dumps(completion_body(task, self._masked)).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_S) as response:
                return parse_completions(json.load(response))
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")[:200]
            raise ConfigError.from_parts("llama.cpp to answer", f"{error.code}: {text}") from None

    def close(self) -> None:
        """Ends the server."""
        self._server.close()


def completion_body(task: Task, masked: tuple[int, ...]) -> dict[str, Any]:
    """The request: greedy, no end, nothing kept from the last one."""
    return {
        "prompt": [list(prompt) for prompt in task.prompts],
        "n_predict": task.max_tokens,
        "temperature": 0.0,
        "top_k": 1,
        "ignore_eos": True,
        "logit_bias": [[token, False] for token in masked],
        "cache_prompt": False,
        "return_tokens": True,
    }


def parse_completions(found: Any) -> Answer:
    """Tokens and times of the server's answer, which is a list where there are several prompts.

    Its clock runs for each prompt apart. They begin together and, unless they are longer than a
    batch of the server's, have their first tokens in the same pass; if they are, tokens that came
    before everybody had one are counted, in the server's favour.

    Raises:
        ConfigError: the server is older than the fields that are needed.
    """
    results = found if isinstance(found, list) else [found]
    for result in results:
        if not result.get("tokens") or not set(result.get("timings", {})) >= TIMES:
            raise ConfigError.from_parts(
                "tokens and timings in llama.cpp's answer",
                ", ".join(sorted(result)),
                "use a newer one",
            )
    results.sort(key=lambda result: result.get("index", 0))
    first = [result["timings"]["prompt_ms"] for result in results]
    last = [ms + result["timings"]["predicted_ms"] for ms, result in zip(first, results)]
    tokens = tuple(tuple(result["tokens"]) for result in results)
    return Answer(tokens, (max(last) - max(first)) / 1e3, sum(map(len, tokens)) - len(tokens))


class LlamaCppPeer:
    """`llama-server` from --llama-server or PATH, else the server of the xllamacpp package."""

    name = "llama.cpp"

    def why_unavailable(self, settings: Settings) -> str | None:
        """No server, or nothing to convert with."""
        if find_spec("gguf") is None:
            return "the conversion needs the gguf package (pip install gguf)"
        if settings.llama_server is not None and not settings.llama_server.is_file():
            return f"no program at {settings.llama_server}"
        if find_launcher(settings.llama_server) is None:
            return f"neither {PROGRAM} in PATH nor the package {PACKAGE} (pip install {PACKAGE})"
        return None

    def contestants(self, settings: Settings) -> Iterator[Contestant]:
        """Plain, then each draft length."""
        launcher = find_launcher(settings.llama_server)
        assert launcher is not None, "asked although unavailable"
        target, draft = (converted(path, settings) for path in (settings.target, settings.draft))
        shown = f"{settings.dtype} GGUF, {settings.num_threads} threads, {launcher.version()}"
        yield _start("plain", launcher, shown, settings, target)
        for length in settings.draft_lengths:
            text = f"{shown}, draft model, {length} draft tokens, any probability"
            yield _start(f"draft {length}", launcher, text, settings, target, draft, length)


def _start(
    mode: str,
    launcher: Launcher,
    shown: str,
    settings: Settings,
    target: Path,
    draft: Path | None = None,
    length: int = 0,
) -> LlamaCppContestant:
    log = settings.work_dir / f"llama-server-{mode.replace(' ', '-')}.log"
    options = ServerOptions(
        model=target,
        context=settings.max_model_len,
        num_threads=settings.num_threads,
        num_sequences=settings.batch_size,
        draft=draft,
        draft_length=length,
    )
    masked = load_model_config(settings.target).eos_token_ids
    return LlamaCppContestant(mode, shown, launcher.start(options, log), masked)


def converted(source: Path, settings: Settings) -> Path:
    """The checkpoint as a GGUF file of the work directory, made unless it is there."""
    newest = max(file.stat().st_mtime_ns for file in source.iterdir())
    key = hashlib.sha256(f"{source.resolve()} {newest} {settings.dtype}".encode()).hexdigest()[:16]
    file = settings.work_dir / f"{source.name}-{key}.gguf"
    if not file.is_file():
        write_gguf(source, file, settings.dtype)
    return file
