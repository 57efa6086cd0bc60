"""Enlarges a checkpoint, keeping what it says: `python -m benchmarks.upscale 8b OUT`."""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path
from time import perf_counter

from benchmarks.upscale import SHAPES, enlarge, resolve_shape
from benchmarks.upscale.enlarge import STORED_DTYPES
from sdengine.cli.main import run_alone
from sdengine.cli.options import BUNDLED_MODEL, LineParser, add_debug, integer
from sdengine.cli.terminal import is_terminal
from sdengine.errors import ConfigError
from sdengine.model.registry import resolve_model


def build_parser() -> LineParser:
    """The command line."""
    parser = LineParser(prog="python -m benchmarks.upscale", description=__doc__)
    parser.add_argument("shape", help=f"{', '.join(SHAPES)}, or a config.json")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory of the large model")
    parser.add_argument(
        "--model", default=BUNDLED_MODEL, metavar="DIR", help="the small model (%(default)s)"
    )
    parser.add_argument("--draft", action="store_true", help="take the pair's draft instead")
    parser.add_argument("--dtype", choices=STORED_DTYPES, default="bfloat16")
    parser.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    parser.add_argument("--seed", type=integer, default=0)
    parser.add_argument("--plain", action="store_true", help="do not rotate the residual stream")
    add_debug(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_alone(build_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    """Writes the checkpoint and says what it took."""
    shape = resolve_shape(args.shape)
    paths = resolve_model(args.model)
    source = paths.draft if args.draft else paths.target
    if source is None:
        raise ConfigError.from_parts("a model with a draft of its own, for --draft", args.model)
    started = perf_counter()
    enlarge(
        source,
        args.out,
        shape,
        seed=args.seed,
        dtype=args.dtype,
        is_rotated=not args.plain,
        device=args.device,
        on_shard=show_progress if is_terminal(sys.stderr) else lambda done, total: None,
    )
    seconds = perf_counter() - started
    size = sum(file.stat().st_size for file in args.out.iterdir())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
    print(
        f"{args.out}: {shape.num_parameters / 1e9:.2f} billion weights, {size / 1e9:.2f} GB, "
        f"{seconds:.0f} s, peak memory of the process {peak / 1e9:.2f} GB"
    )
    return 0


def show_progress(done: int, total: int) -> None:
    """One line on a terminal, written over."""
    end = "\n" if done == total else "\r"
    print(f"file {done} of {total}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
