"""Exit codes, one-line errors, and that arguments are parsed before torch is imported."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sdengine import __version__
from sdengine.cli import main as cli
from sdengine.errors import CacheFull, CheckpointError, RequestError, SdengineError


def run_with(action, debug: bool = False) -> int:
    def run(args: argparse.Namespace) -> int:
        return action()

    return cli.run_guarded(argparse.Namespace(run=run, debug=debug))


def raiser(error: BaseException):
    def action() -> int:
        raise error

    return action


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["no-such-command"],
        ["generate", "--no-such-flag"],
        ["generate", "--max-tokens", "many", "x"],
        ["generate", "--max-tokens", "0", "x"],
        ["generate", "--temperature", "nan", "x"],
        ["generate", "--seed", "0.5", "x"],
        ["generate", "--speculation", "magic", "x"],
        ["generate", "--speculation", "off", "--compare", "x"],
        ["generate", "--speculation", "off", "--draft", ".", "x"],
        ["generate", "--speculation", "ngram", "--draft", ".", "x"],
        ["generate", "--max-model-len", "many", "x"],
        ["generate", "--dtype", "int4", "x"],
        ["generate", "--device", "tpu", "x"],
        ["chat", "--device", "cuda:many"],
        ["generate", "--max-model-len", "1", "x"],
        ["generate", "--num-threads", "0", "x"],
        ["generate", "--num-threads", "many", "x"],
        ["generate", "--model", "no/such/model", "x"],
        ["generate", ""],
        ["generate", "\udcff"],
        ["chat"],
        ["chat", "--model", "no/such/model"],
        ["bench", "nothing"],
        ["train", "nothing"],
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(argv: list[str], capfd) -> None:
    assert cli.main(argv) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("sdengine: ") and err.count("\n") == 1, err
    assert "Traceback" not in err


def test_an_unknown_option_leads_to_the_help_of_its_command(capfd) -> None:
    assert cli.main(["generate", "x", "--foo"]) == 2
    err = capfd.readouterr().err
    assert err == "sdengine: unrecognized arguments: --foo; see sdengine generate --help\n"


@pytest.mark.parametrize("error_class", [SdengineError, RequestError, CheckpointError, CacheFull])
def test_unusable_input_exits_2_on_one_line(error_class, capfd) -> None:
    assert run_with(raiser(error_class("first line\n  second line"))) == 2
    assert capfd.readouterr().err == "sdengine: first line second line\n"


@pytest.mark.parametrize("error", [ValueError("odd"), KeyError(), OSError(28, "No space left")])
def test_failures_at_run_time_exit_1_on_one_line(error: Exception, capfd) -> None:
    assert run_with(raiser(error)) == 1
    err = capfd.readouterr().err
    assert err.startswith(f"sdengine: {type(error).__name__}") and err.count("\n") == 1


def test_a_long_surprise_is_cut(capfd) -> None:
    assert run_with(raiser(TypeError("x" * 5000))) == 1
    assert len(capfd.readouterr().err) < 400


def test_debug_shows_the_traceback_before_the_line(capfd) -> None:
    assert run_with(raiser(RequestError("no")), debug=True) == 2
    err = capfd.readouterr().err
    assert "Traceback" in err and err.endswith("sdengine: no\n")


def test_debug_is_found_behind_passed_on_options(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setattr("sdengine.cli.bench.find_spec", lambda name: None)
    assert cli.main(["bench", "kernels", "--debug", "--op", "embed"]) == 2
    assert "Traceback" in capfd.readouterr().err


def test_ctrl_c_is_quiet(capfd) -> None:
    assert run_with(raiser(KeyboardInterrupt())) == 130
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_during_the_imports_is_quiet() -> None:
    code = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name in ('sdengine.cli.generate', 'sdengine.core.config'):\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt)\n"
        "from sdengine.cli.main import main\n"
        "sys.exit(main(['info']))\n"
    )
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("options", "code", "err"),
    [
        ("generate - <&-", 2, "sdengine: expected a prompt, got an empty one\n"),
        ("info >&-", 0, ""),
        ("--version >&-", 0, ""),
        ("info 2>&-", 0, ""),
        ("chat <&- 2>&-", 2, ""),
    ],
)
def test_a_closed_stream_is_an_empty_one(options: str, code: int, err: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m sdengine.cli {options}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, err)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "options", ["--version", "generate --help", "info", "generate x --max-tokens 5"]
)
def test_output_that_cannot_be_written_is_a_failure(options: str, unbuffered: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("the system has no /dev/full")
    command = f"{shlex.quote(sys.executable)} -m sdengine.cli {options} > /dev/full"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr == "sdengine: [Errno 28] No space left on device\n"


class FullStream(io.StringIO):
    """Takes nothing."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_standard_output_is_told_apart_from_other_files(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    full = FullStream()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert run_with(lambda: print("x")) == 1
        assert sys.stdout is full
    assert capsys.readouterr().err == "sdengine: [Errno 28] No space left on device\n"
    assert run_with(lambda: FullStream().write("x")) == 1
    err = capsys.readouterr().err
    assert err == "sdengine: OSError: [Errno 28] No space left on device (--debug shows where)\n"


def test_what_info_cannot_tell_is_an_error_and_nothing_else() -> None:
    environment = {**os.environ, "SDENGINE_ISA": "none"}
    command = [sys.executable, "-m", "sdengine.cli", "info"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_exit_of_a_harness_is_passed_on(capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    for code, expected in ((None, 0), (0, 0), (3, 3), ("text", 1)):
        monkeypatch.setattr("sdengine.cli.info.run", raiser_of(SystemExit(code)))
        assert cli.main(["info"]) == expected


def raiser_of(error: BaseException):
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_a_closed_pipe_is_quiet() -> None:
    code = (
        "import argparse, os, sys\n"
        "from sdengine.cli.main import run_guarded\n"
        "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)\n"
        "run = lambda args: print('x') or 0\n"
        "sys.exit(run_guarded(argparse.Namespace(run=run, debug=False)))\n"
    )
    done = python(code)
    assert done.returncode == 141
    assert done.stderr == ""


def test_help_and_errors_do_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from sdengine.cli.main import main\n"
        "for argv in (['--help'], ['generate', '--help'], ['generate', '--max-tokens', '0', 'x'],\n"
        "             ['generate', '--model', 'no/such/model', 'x'], ['bench', 'x'], ['chat'],\n"
        "             ['serve', '--host', '0.0.0.0'], ['serve', '--max-num-seqs', '0']):\n"
        "    main(argv)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["sdengine", "sdengine.cli"])
def test_the_package_is_the_command(module: str) -> None:
    words = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"sdengine {__version__}\n"), done.stderr


def test_help_names_every_command(capfd) -> None:
    assert cli.main(["--help"]) == 0
    out = capfd.readouterr().out
    for name in ("generate", "chat", "serve", "bench", "train", "info"):
        assert name in out
