"""Prints the machine limits for 1 to n threads: `python -m benchmarks.machine_limits --threads
2`."""

from __future__ import annotations

import argparse
import sys

from sdengine.cli.main import run_alone
from sdengine.cli.options import LineParser, add_debug, integer
from sdengine.core.argument import check_int
from sdengine.core.config import MAX_THREADS
from sdengine.core.env import usable_cores
from sdengine.errors import ConfigError
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.machine_limits import LimitProbe
from sdengine.kernels.programs.program import make_pool


def build_parser() -> LineParser:
    """The command line."""
    parser = LineParser(prog="python -m benchmarks.machine_limits", description=__doc__)
    parser.add_argument(
        "--threads",
        type=integer,
        default=usable_cores(),
        metavar="N",
        help="measure 1 to this many threads (all usable cores)",
    )
    parser.add_argument("--repeats", type=integer, default=5, metavar="N", help="(%(default)s)")
    add_debug(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures and returns the exit code."""
    return run_alone(build_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    """Prints a table, a line for every number of threads."""
    check_int(ConfigError, "--threads", args.threads, 1, MAX_THREADS)
    check_int(ConfigError, "--repeats", args.repeats, 1)
    print(f"instruction set: {load_cpu().selected_isa()}")
    print("threads  DRAM GB/s  cache GB/s  fp32 GFLOP/s  bf16 GFLOP/s  barrier ns")
    for threads in range(1, args.threads + 1):
        found = LimitProbe(make_pool(threads)).limits(args.repeats)
        print(
            f"{threads:7d}  {found.dram_gbps:9.1f}  {found.cache_gbps:10.1f}"
            f"  {found.fp32_gflops:12.0f}  {found.bf16_gflops:12.0f}  {found.barrier_ns:10.0f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
