"""llama.cpp through its server: plain, and with a draft model; one process per mode.

The checkpoints become GGUF files in the work directory. Prompts are sent as token ids and the
server's own timings are taken, so that HTTP costs it nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.peers.contestant import Answer, Contestant, Settings, Task
from benchmarks.peers.gguf_file import write_gguf
from sdengine.errors import ConfigError
from sdengine.model.config_file import load_model_config

__all__ = ["LlamaCppPeer"]

SERVER = "llama-server"
START_S = 300.0
REQUEST_S = 600.0
DRAFT_FLAGS = (("--spec-draft-n-max",), ("--draft-max",))
"""The option's name in this year's servers and in last year's."""


class LlamaServer:
    """A running server with one slot."""

    def __init__(self, name: str, configuration: str, command: list[str], log: Path) -> None:
        self.name = name
        self.configuration = configuration
        self._end: list[int] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        port = self._url.rpartition(":")[2]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", port],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait(log)
        except BaseException:
            self.close()
            raise

    def mask(self, tokens: list[int]) -> None:
        """Tokens that are never to be generated."""
        self._end = tokens

    def answer(self, task: Task) -> Answer:
        """As `Contestant.answer`."""
        found = self._request("/completion", completion_body(task, self._end))
        return parse_completion(found)

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + START_S
        while True:
            if self._process.poll() is not None:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise ConfigError.from_parts(
                    f"{SERVER} to start", f"exit code {self._process.returncode}: {' '.join(last)}"
                )
            try:
                self._request("/health", None)
                return
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > deadline:
                    raise ConfigError.from_parts(
                        f"{SERVER} to be ready within {START_S:.0f} s", f"nothing; see {log}"
                    ) from None
                time.sleep(0.2)

    def _request(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._url + path, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=REQUEST_S) as response:
            parsed: dict[str, Any] = json.load(response)
        return parsed


def completion_body(task: Task, end: list[int]) -> dict[str, Any]:
    """The request: greedy, no end, nothing reused from the last one."""
    return {
        "prompt": list(task.prompt),
        "n_predict": task.max_tokens,
        "temperature": 0.0,
        "top_k": 1,
        "ignore_eos": True,
        "logit_bias": [[token, False] for token in end],
        "cache_prompt": False,
        "return_tokens": True,
    }


def parse_completion(found: dict[str, Any]) -> Answer:
    """Tokens and times of the server's answer; its clock starts at the first token.

    Raises:
        ConfigError: the server is older than the fields that are needed.
    """
    timings = found.get("timings", {})
    if not found.get("tokens") or "predicted_ms" not in timings:
        raise ConfigError.from_parts(
            "tokens and timings in the server's answer", ", ".join(sorted(found)), "use a newer one"
        )
    tokens = tuple(found["tokens"])
    return Answer(tokens, timings["predicted_ms"] / 1e3, timings["predicted_n"] - 1)


class LlamaCppPeer:
    """The server from PATH or --llama-server."""

    name = "llama.cpp"

    def why_unavailable(self, settings: Settings) -> str | None:
        """No server, or no `gguf` package to convert with."""
        if find_spec("gguf") is None:
            return "the conversion needs the gguf package (pip install gguf)"
        if _server(settings) is None:
            return f"no {SERVER} in PATH (build llama.cpp, or name it with --llama-server)"
        return None

    def contestants(self, settings: Settings) -> Iterator[Contestant]:
        """Plain, then each draft length."""
        server = _server(settings)
        assert server is not None, "asked although unavailable"
        target = _converted(settings.target, settings)
        draft = _converted(settings.draft, settings)
        base = server_command(server, target, settings)
        shown = f"{settings.dtype} GGUF, {settings.num_threads} threads, {_version(server)}"
        yield self._start("plain", base, shown, settings)
        for length in settings.draft_lengths:
            command = [*base, *draft_options(_help(server), draft, length)]
            options = " ".join(command[len(base) :]).replace(str(draft), "DRAFT")
            yield self._start(f"draft {length}", command, f"{shown}, {options}", settings)

    def _start(self, mode: str, command: list[str], shown: str, settings: Settings) -> LlamaServer:
        log = settings.work_dir / f"llama-server-{mode.replace(' ', '-')}.log"
        server = LlamaServer(f"{self.name} {mode}", shown, command, log)
        server.mask(list(load_model_config(settings.target).eos_token_ids))
        return server


def server_command(server: Path, model: Path, settings: Settings) -> list[str]:
    """One sequence, the same threads for everything, flash attention as the server likes it."""
    threads = str(settings.num_threads)
    return [
        str(server),
        *("--model", str(model)),
        *("--ctx-size", str(settings.max_model_len)),
        *("--threads", threads),
        *("--threads-batch", threads),
        *("--parallel", "1"),
    ]


def draft_options(help_text: str, draft: Path, length: int) -> list[str]:
    """Options of a draft model, by the names that this server knows.

    Raises:
        ConfigError: it knows none of them.
    """
    options = ["--model-draft", str(draft)]
    if "--spec-type" in help_text:
        options += ["--spec-type", "draft-simple"]
    for (flag,) in DRAFT_FLAGS:
        if flag in help_text:
            # As long as the draft goes on; its own threshold would end most drafts at once.
            return [*options, flag, str(length), "--draft-p-min", "0"]
    raise ConfigError.from_parts(
        f"a {SERVER} with one of {', '.join(flag for (flag,) in DRAFT_FLAGS)}", "neither in --help"
    )


def _server(settings: Settings) -> Path | None:
    if settings.llama_server is not None:
        return settings.llama_server if settings.llama_server.is_file() else None
    found = shutil.which(SERVER)
    return None if found is None else Path(found)


def _help(server: Path) -> str:
    return subprocess.run([server, "--help"], capture_output=True, text=True, check=False).stdout


def _version(server: Path) -> str:
    done = subprocess.run([server, "--version"], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return next((line for line in lines if line.startswith("version")), "version unknown")


def _converted(source: Path, settings: Settings) -> Path:
    """The checkpoint as a GGUF file of the work directory, made unless it is there."""
    newest = max(file.stat().st_mtime_ns for file in source.iterdir())
    key = hashlib.sha256(f"{source.resolve()} {newest} {settings.dtype}".encode()).hexdigest()[:16]
    file = settings.work_dir / f"{source.name}-{key}.gguf"
    if not file.is_file():
        write_gguf(source, file, settings.dtype)
    return file
