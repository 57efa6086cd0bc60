"""`sdengine bench`: measurements; thin, the harnesses are in the clone's `benchmarks/`."""

from __future__ import annotations

import argparse
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import sdengine
from sdengine.cli.options import DEBUG, add_passed_on_options
from sdengine.errors import ConfigError

__all__ = ["HELP", "add_arguments", "run"]

HELP = "measure kernels, speculative decoding, or whether it pays for a pair"
MODULES = {
    "kernels": "benchmarks.kernels",
    "generate": "benchmarks.generate",
    "probe": "benchmarks.probe",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments; those of a harness are its own."""
    parser.add_argument(
        "what",
        choices=sorted(MODULES),
        help="kernels: every op beside the machine's limits; generate: whole requests, plain "
        "against speculative; probe: whether speculation pays for a pair here, and with which tree",
    )
    add_passed_on_options(parser, "options of the harness, e.g. sdengine bench generate --help")


def run(args: argparse.Namespace) -> int:
    """Entry of the command: runs the harness in this process.

    Raises:
        ConfigError: sdengine was installed without its clone.
    """
    module = MODULES[args.what]
    clone = Path(sdengine.__file__).resolve().parents[1]
    if (clone / "benchmarks").is_dir() and str(clone) not in sys.path:
        sys.path.insert(0, str(clone))
    if find_spec("benchmarks") is None or find_spec(module) is None:
        raise ConfigError.from_parts(
            f"a clone of the repository, which holds {module.replace('.', '/')}",
            "an installation without it",
            "clone it and install it from there with pip install -e .",
        )
    debug = [DEBUG] if args.debug else []
    sys.argv = [f"sdengine bench {args.what}", *debug, *args.options]
    runpy.run_module(module, run_name="__main__", alter_sys=False)
    return 0
