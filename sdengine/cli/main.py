"""`sdengine`: finds the command, runs it, and turns every failure into one line and an exit code.

0 done, 1 failed at run time, 2 wrong arguments or unusable input, 130 interrupted, 141 when the
reader of a pipe went away. A traceback appears only with --debug. No command imports torch before
its arguments are parsed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from sdengine import __version__
from sdengine.cli import bench, chat, generate, info, serve, train
from sdengine.cli.options import DEBUG, EXIT_USAGE, LineParser, add_debug
from sdengine.errors import SdengineError

__all__ = ["build_parser", "main"]

EXIT_FAILED = 1
EXIT_INTERRUPTED = 128 + 2
EXIT_BROKEN_PIPE = 128 + 13
MAX_SURPRISE = 300  # characters of an error that nobody wrote for a reader
COMMANDS = (generate, chat, serve, bench, train, info)


def build_parser() -> LineParser:
    """The whole command line; importing and building it loads no model and no torch."""
    parser = LineParser(
        prog="sdengine", description="Low-latency generation with lossless speculative decoding."
    )
    parser.add_argument("--version", action="version", version=f"sdengine {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
        child = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(child)
        add_debug(child)
        child.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
        argv: arguments without the program's name; None takes the process's.

    Returns:
        The exit code.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = build_parser().parse_args(argv)
        if DEBUG in getattr(args, "options", ()):  # behind options that are passed on
            args.options.remove(DEBUG)
            args.debug = True
        return run_guarded(args)
    except SystemExit as stop:  # argparse: help, version, usage errors; a harness that is done
        if isinstance(stop.code, str):
            print(f"sdengine: {stop.code}", file=sys.stderr)
            return EXIT_FAILED
        return stop.code or 0


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
    try:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # an ASCII locale must not end a stream half-way
                stream.reconfigure(errors="replace")
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_stdout()
        return EXIT_BROKEN_PIPE
    except SdengineError as error:
        return report(str(error), EXIT_USAGE, args.debug)
    except Exception as error:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        short = what if len(what) <= MAX_SURPRISE else what[: MAX_SURPRISE - 3] + "..."
        return report(f"{short} (--debug shows where)", EXIT_FAILED, args.debug)


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
