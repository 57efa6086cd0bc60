"""Decoding beside busy processes: do more threads than one still pay when others use the cores?

    python -m benchmarks.busy_machine --neighbours 0 1 2 4

An engine with every core and one with a single thread decode the same requests in turns, beside so
many processes that never sleep. Workers in lockstep are as fast as the slowest: without care, a
neighbour costs the engine with every core far more than its share of the machine.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import numpy as np

from benchmarks.conditions import as_lines, describe_machine
from sdengine import LLM, SamplingParams
from sdengine.cli.main import run_alone
from sdengine.cli.measure import run_request
from sdengine.cli.options import BUNDLED_MODEL, LineParser, add_debug, integer, number
from sdengine.cli.prompts import PROMPTS
from sdengine.core.argument import check_float, check_int
from sdengine.errors import ConfigError

BUSY_LOOP = "while True: pass"
MAX_NEIGHBOURS = 256
SETTLE_S = 0.5
"""For the scheduler to spread the neighbours."""


@contextmanager
def neighbours(num: int) -> Iterator[None]:
    """So many busy processes, for a while."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(num)]
    try:
        time.sleep(SETTLE_S if processes else 0.0)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(engines: dict[str, LLM], params: SamplingParams, seconds: float) -> dict[str, list]:
    """Decoding speeds in tokens per second, requests in turns."""
    speeds: dict[str, list] = {name: [] for name in engines}
    end = time.monotonic() + seconds
    for prompt in itertools.cycle(PROMPTS):
        for name, llm in engines.items():
            run = run_request(llm, prompt.text, params)
            speeds[name].append(run.tokens_per_s)
        if time.monotonic() > end:
            return speeds
    raise AssertionError("unreachable")


def build_parser() -> LineParser:
    """The command line."""
    parser = LineParser(
        prog="python -m benchmarks.busy_machine",
        description=(__doc__ or "").partition("\n\n")[0],
    )
    parser.add_argument("--neighbours", type=integer, nargs="+", default=[0, 1, 2, 4], metavar="N")
    parser.add_argument("--seconds", type=number, default=8.0, help="per row (%(default)s)")
    parser.add_argument("--max-tokens", type=integer, default=64, help="a request (%(default)s)")
    parser.add_argument("--model", default=BUNDLED_MODEL, metavar="DIR", help="(%(default)s)")
    add_debug(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures and returns the exit code."""
    return run_alone(build_parser(), run, argv)


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses what could not be measured.

    Raises:
        ConfigError: a number is out of range.
    """
    for num in args.neighbours:
        check_int(ConfigError, "--neighbours", num, 0, MAX_NEIGHBOURS)
    check_float(ConfigError, "--seconds", args.seconds, 0.0)
    check_int(ConfigError, "--max-tokens", args.max_tokens, 2, way_out="the first is not timed")


def run(args: argparse.Namespace) -> int:
    """Measures and prints the table."""
    check_arguments(args)
    params = SamplingParams(max_tokens=args.max_tokens, temperature=0.8, seed=1, ignore_eos=True)
    engines = {
        "every core": LLM(args.model, speculation=None, max_num_seqs=1),
        "one thread": LLM(args.model, speculation=None, max_num_seqs=1, num_threads=1),
    }
    measure(engines, params, 0.0)
    print(as_lines(describe_machine("python -m benchmarks.busy_machine", None, with_limits=False)))
    print("busy processes  engine       tok/s: p10  median    p90  of one thread's")
    for num in args.neighbours:
        with neighbours(num):
            speeds = measure(engines, params, args.seconds)
        alone = median(speeds["one thread"])
        for name, values in speeds.items():
            low, middle, high = np.percentile(values, (10, 50, 90))
            print(
                f"{num:14d}  {name:10s}  {low:11.0f}  {middle:6.0f}"
                f"  {high:5.0f}  {middle / alone:15.2f}x",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
