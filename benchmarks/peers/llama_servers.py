"""Starting llama.cpp's server: a program on this machine, or the one inside the xllamacpp wheel."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from sdengine.errors import ConfigError

__all__ = ["PACKAGE", "PROGRAM", "Launcher", "Server", "ServerOptions", "find_launcher"]

PROGRAM = "llama-server"
PACKAGE = "xllamacpp"
START_S = 300.0
LENGTH_FLAGS = ("--spec-draft-n-max", "--draft-max")
"""The option's name in this year's programs and in last year's."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What a server is started with; everything else stays as llama.cpp has it.

    Args:
        model: GGUF file.
        context: tokens of a sequence.
        num_threads: of the prompts' pass, of decoding and of the draft.
        num_sequences: at the same time.
        draft: GGUF file of the draft model, None for plain decoding.
        draft_length: draft tokens of a step.
    """

    model: Path
    context: int
    num_threads: int
    num_sequences: int = 1
    draft: Path | None = None
    draft_length: int = 0


class Server(Protocol):
    """A running server.

    Attributes:
        url: where it listens.
    """

    url: str

    def close(self) -> None:
        """Ends it."""
        ...


class Launcher(Protocol):
    """Starts servers of one build of llama.cpp."""

    def version(self) -> str:
        """What the report calls the build, with what it says of the processor."""
        ...

    def start(self, options: ServerOptions, log: Path) -> Server:
        """Starts a server and waits until it answers.

        Raises:
            ConfigError: it does not start.
        """
        ...


def find_launcher(program: Path | None) -> Launcher | None:
    """The program that was named, the one in PATH, the package, or None."""
    if program is not None:
        return ProgramLauncher(program) if program.is_file() else None
    found = shutil.which(PROGRAM)
    if found is not None:
        return ProgramLauncher(Path(found))
    return PackageLauncher() if find_spec(PACKAGE) is not None else None


class ProgramServer:
    """A process of `llama-server`."""

    def __init__(self, command: list[str], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port)],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait(log)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """As `Server.close`."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                code = self._process.returncode
                raise ConfigError.from_parts(
                    f"{PROGRAM} to start", f"exit code {code}: {' '.join(last)}"
                )
            if time.monotonic() > deadline:
                raise ConfigError.from_parts(
                    f"{PROGRAM} to be ready within {START_S:.0f} s", f"nothing; see {log}"
                )
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=10):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False


class ProgramLauncher:
    """A `llama-server` program."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def version(self) -> str:
        """As `Launcher.version`."""
        done = self._output("--version")
        named = [line for line in done.splitlines() if line.startswith("version")]
        return f"{PROGRAM} {named[0] if named else 'of unknown version'}"

    def start(self, options: ServerOptions, log: Path) -> Server:
        """As `Launcher.start`."""
        return ProgramServer(command(self._program, options, self._output("--help")), log)

    def _output(self, option: str) -> str:
        done = subprocess.run([self._program, option], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr


def command(program: Path, options: ServerOptions, help_text: str) -> list[str]:
    """The command line, in the options that this program knows.

    Raises:
        ConfigError: it knows no option for the draft's length.
    """
    threads = str(options.num_threads)
    words = [
        str(program),
        *("--model", str(options.model)),
        *("--ctx-size", str(options.context * options.num_sequences)),
        *("--threads", threads),
        *("--threads-batch", threads),
        *("--parallel", str(options.num_sequences)),
    ]
    if options.draft is None:
        return words
    flag = next((flag for flag in LENGTH_FLAGS if flag in help_text), None)
    if flag is None:
        raise ConfigError.from_parts(
            f"a {PROGRAM} with {' or '.join(LENGTH_FLAGS)}", "neither in its --help"
        )
    if "--spec-type" in help_text:
        words += ["--spec-type", "draft-simple"]
    # No threshold of its own on the draft's probabilities: the length is what is swept.
    length = str(options.draft_length)
    return [*words, "--model-draft", str(options.draft), flag, length, "--draft-p-min", "0"]


class PackageServer:
    """A server inside this process."""

    def __init__(self, parameters: Any) -> None:
        import xllamacpp

        self._server: Any = xllamacpp.Server(parameters)
        self.url: str = self._server.listening_address

    def close(self) -> None:
        """As `Server.close`: the object's end is the server's."""
        self._server = None


class PackageLauncher:
    """The server of the xllamacpp wheel: no compiler needed, but built for AVX2 at most."""

    def version(self) -> str:
        """As `Launcher.version`."""
        import xllamacpp

        features = [
            part.split("=")[0].strip()
            for part in xllamacpp.get_system_info().replace("CPU :", "").split("|")
            if part.strip().endswith("= 1")
        ]
        return f"{PACKAGE} {xllamacpp.__version__} ({', '.join(features)})"

    def start(self, options: ServerOptions, log: Path) -> Server:
        """As `Launcher.start`; it writes no log."""
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(options.model)
        parameters.n_ctx = options.context * options.num_sequences
        parameters.n_parallel = options.num_sequences
        parameters.port = 0
        parameters.verbosity = 0
        for cores in (parameters.cpuparams, parameters.cpuparams_batch):
            cores.n_threads = options.num_threads
        if options.draft is not None:
            draft = parameters.speculative.draft
            draft.mparams.path = str(options.draft)
            draft.n_max, draft.n_min, draft.p_min = options.draft_length, 0, 0.0
            for cores in (draft.cpuparams, draft.cpuparams_batch):
                cores.n_threads = options.num_threads
            kinds = xllamacpp.common_speculative_type
            parameters.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        try:
            return PackageServer(parameters)
        except RuntimeError as error:
            raise ConfigError.from_parts(f"{PACKAGE} to start a server", str(error)) from None
