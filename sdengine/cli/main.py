"""`sdengine`: finds the command, runs it, and turns every failure into one line and an exit code.

0 done, 1 failed at run time, 2 wrong arguments or unusable input, 130 interrupted, 141 when the
reader of a pipe went away. A traceback appears only with --debug. No command imports torch before
its arguments are parsed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from typing import TYPE_CHECKING

from sdengine import __version__
from sdengine.cli import exit_codes
from sdengine.cli.watched_stream import StdoutError, WatchedStream
from sdengine.errors import SdengineError

if TYPE_CHECKING:
    import argparse

    from sdengine.cli.options import LineParser

__all__ = ["build_parser", "main"]

MAX_SURPRISE = 300  # characters of an error that nobody wrote for a reader
COMMANDS = ("generate", "chat", "serve", "bench", "train", "info")
"""Modules of `sdengine.cli`. Imported by `build_parser`: an interrupt while that takes its tenth of
a second is as quiet as a later one."""


def build_parser() -> LineParser:
    """The whole command line; importing and building it loads no model and no torch."""
    from sdengine.cli.options import LineParser, add_debug

    parser = LineParser(
        prog="sdengine", description="Low-latency generation with lossless speculative decoding."
    )
    parser.add_argument("--version", action="version", version=f"sdengine {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        command = import_module(f"sdengine.cli.{name}")
        child = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(child)
        add_debug(child)
        child.set_defaults(run=command.run, parser=child)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
        argv: arguments without the program's name; None takes the process's.

    Returns:
        The exit code.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    open_closed_streams()
    try:
        return run_guarded(parse(argv))
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except SystemExit as stop:  # argparse: help, version, usage errors; a harness that is done
        if isinstance(stop.code, str):
            print(f"sdengine: {stop.code}", file=sys.stderr)
            return exit_codes.FAILED
        return flushed(stop.code or 0)
    except OSError as error:  # of argparse's printing
        return unprinted(error)


def flushed(code: int) -> int:
    """The exit code of a command that is done, once what it printed has left. What cannot leave is
    told once, and not again by the interpreter's own flush at exit."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if not code:
            return unprinted(error)
        _discard_stdout()
    return code


def unprinted(error: OSError) -> int:
    """The exit code when standard output takes no more: a full disk, a closed pipe."""
    _discard_stdout()
    if isinstance(error, BrokenPipeError):
        return exit_codes.BROKEN_PIPE
    return report(str(error), exit_codes.FAILED, debug=False)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line's arguments; --debug is found behind options that are passed on, too."""
    from sdengine.cli.options import DEBUG

    args: argparse.Namespace = build_parser().parse_args(argv)
    if DEBUG in getattr(args, "options", ()):
        args.options.remove(DEBUG)
        args.debug = True
    return args


def run_alone(
    parser: LineParser, run: Callable[[argparse.Namespace], int], argv: Sequence[str] | None
) -> int:
    """Runs a program of one command: `run` on what `parser` finds in `argv` (None: the process's).

    Returns:
        The exit code.
    """
    args = parser.parse_args(argv)
    args.run = run
    return run_guarded(args)


def run_guarded(args: argparse.Namespace) -> int:
    """Runs `args.run(args)`; failures become one line on standard error and a code."""
    return flushed(_run_guarded(args))


def _run_guarded(args: argparse.Namespace) -> int:
    try:
        open_closed_streams()
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # an ASCII locale must not end a stream half-way
                stream.reconfigure(errors="replace")
        with redirect_stdout(WatchedStream(sys.stdout)):
            code: int = args.run(args)
        return code
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except (BrokenPipeError, StdoutError) as error:
        return unprinted(error)
    except SdengineError as error:
        return report(str(error), exit_codes.USAGE, args.debug)
    except Exception as error:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        short = what if len(what) <= MAX_SURPRISE else what[: MAX_SURPRISE - 3] + "..."
        return report(f"{short} (--debug shows where)", exit_codes.FAILED, args.debug)


def open_closed_streams() -> None:
    """Lets a standard stream that is closed be an empty one: Python leaves None in its place, and
    its descriptor to the next file that is opened."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def report(message: str, code: int, debug: bool) -> int:
    """Prints the current exception as one line, with `debug` its traceback before; returns
    `code`.
    """
    if debug:
        import traceback

        traceback.print_exc()
    print(f"sdengine: {' '.join(message.split())}", file=sys.stderr)
    return code


def _discard_stdout() -> None:
    """Points standard output at nothing, so that the flush at exit does not complain once more."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # a replaced stream without a descriptor
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
