"""Microbenchmarks of all ops; also `sdengine bench kernels`.

    sdengine bench kernels                                  # every op, its usual cases
    sdengine bench kernels linear tree_attention --shape 8b --cache both
    sdengine bench kernels --out old; sdengine bench kernels --compare old/kernels.json

Each kernel must agree with its reference before it is timed. Times are medians with the tenth and
ninetieth percentile; the last column is the share of what the machine's read bandwidth and
arithmetic peak, measured beside, would allow (blank where a case declares neither bytes nor
operations: integer work on trees).

With --device cuda both of a GPU's kernels of an op run, in CUDA graphs: cold launches after the L2
cache was swept, held against the device's limits; warm ones many in a graph, which ops that change
what they read do not have.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.conditions import as_lines, describe_machine, is_gpu
from benchmarks.kernels.baselines import BASELINES
from benchmarks.kernels.harness import Measurement, WrongResult
from benchmarks.kernels.places import OnCpu, OnDevice, Place
from benchmarks.kernels.report import HEADER, compare, read, row, write
from benchmarks.kernels.shapes import cases_of
from benchmarks.shapes import SHAPES, Shape, resolve_shape
from sdengine.cli.main import run_alone
from sdengine.cli.options import (
    DEFAULT_THREADS,
    LineParser,
    add_debug,
    add_device_option,
    integer,
    number,
)
from sdengine.core.argument import check_float, check_int
from sdengine.core.config import MAX_THREADS, EngineConfig
from sdengine.core.env import choose_num_threads, read_environment
from sdengine.errors import ConfigError
from sdengine.kernels.registry import OP_NAMES, get_op
from sdengine.kernels.spec import Case, Op
from sdengine.runner.placement import choose_placement
from sdengine.train.directories import make_directory

CACHES = {"warm": ("warm",), "cold": ("cold",), "both": ("warm", "cold")}
SHOWN_NAMES = 8  # of cases, in an error


def build_parser() -> LineParser:
    """The command line."""
    parser = LineParser(
        prog="sdengine bench kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ops", nargs="*", metavar="OP", help="ops to run; default all")
    parser.add_argument(
        "--shape",
        metavar="MODEL",
        help=f"sizes of a model: {', '.join(SHAPES)}, or a config.json (each op's own cases)",
    )
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases with TEXT in them")
    parser.add_argument("--cache", choices=sorted(CACHES), default="warm", help="(%(default)s)")
    add_device_option(parser)
    parser.add_argument("--baseline", choices=BASELINES, default="torch", help="(%(default)s)")
    parser.add_argument(
        "--num-threads",
        "--threads",  # as in the commands of published results
        dest="threads",
        type=integer,
        metavar="N",
        help=f"CPU threads ({DEFAULT_THREADS})",
    )
    parser.add_argument(
        "--seconds", type=number, default=1.0, help="measuring time of a case (%(default)s)"
    )
    parser.add_argument("--compare", type=Path, metavar="FILE", help="kernels.json of another run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write kernels.json and .csv there")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    add_debug(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    return run_alone(build_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    """Checks and times every case that was asked for.

    Returns:
        0, or 1 when a kernel is wrong (its cases are not timed).

    Raises:
        ConfigError: as `check_arguments`, or as `check_case_names`.
    """
    check_arguments(args)
    args.threads = choose_num_threads(args.threads, read_environment())
    old = None if args.compare is None else read(args.compare)
    shape = None if args.shape is None else resolve_shape(args.shape)
    ops = [get_op(name) for name in args.ops or OP_NAMES]
    check_case_names(ops, shape, args.case)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    place = open_place(args)
    conditions = describe_machine(
        "sdengine bench kernels", args.threads, with_limits=True, device=args.device
    )
    say(args, "\n".join([as_lines(conditions), *(f"left out: {why}" for why in place.left_out())]))
    found: list[Measurement] = []
    results = [run_op(args, op, shape, place, found) for op in ops]
    if args.out is not None:
        write(args.out, conditions, found)
    if args.json:
        document = {"conditions": conditions, "measurements": [asdict(m) for m in found]}
        print(json.dumps(document, indent=1))
    if old is not None:
        say(args, "\n".join(["", f"against {args.compare}", *compare(old, found)]))
    return 1 if False in results else 0


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses what could not work before anything is measured.

    Raises:
        ConfigError: an unknown op, a number out of range, no such device, or a directory that
            cannot be written to.
        BackendUnavailable: no kernels for that device here.
    """
    unknown = [name for name in args.ops if name not in OP_NAMES]
    if unknown:
        raise ConfigError.from_parts(f"ops among {', '.join(OP_NAMES)}", ", ".join(unknown))
    if args.threads is not None:
        check_int(ConfigError, "--num-threads", args.threads, 1, MAX_THREADS)
    check_float(ConfigError, "--seconds", args.seconds, 0.0, low_is_open=True)
    choose_placement(EngineConfig("kernels alone", device=args.device), None)
    if args.out is not None:
        make_directory("--out", args.out)


def check_case_names(ops: Sequence[Op], shape: Shape | None, text: str) -> None:
    """Refuses a --case of none of the ops before the machine's limits take minutes. Cases are made
    for it, up to the first that will run.

    Raises:
        ConfigError: no case has the text in its name.
    """
    if not text:
        return
    names: list[str] = []
    for op in ops:
        for case in chosen_cases(op, shape, ""):
            if text in case.label:
                return
            names.append(case.label)
    shown = "; ".join(names[:SHOWN_NAMES]) + ("; ..." if len(names) > SHOWN_NAMES else "")
    raise ConfigError.from_parts(
        "a --case that is part of a case's name", repr(text), f"the names are {shown}"
    )


def say(args: argparse.Namespace, text: str) -> None:
    """Prints what a person reads; with --json to standard error."""
    print(text, file=sys.stderr if args.json else sys.stdout, flush=True)


def open_place(args: argparse.Namespace) -> Place:
    """Where the cases run."""
    if is_gpu(args.device):
        return OnDevice.open(args.device, args.baseline)
    return OnCpu(args.threads, args.seconds, args.baseline)


def run_op(
    args: argparse.Namespace,
    op: Op,
    shape: Shape | None,
    place: Place,
    found: list[Measurement],
) -> bool | None:
    """Checks and times the cases of an op; False when one is wrong, None when there is none."""
    result = None
    for backend in place.backends(op):
        for case in chosen_cases(op, shape, args.case):
            if result is None:
                say(args, f"\n{op.name}\n{HEADER}")
            try:
                place.check(op, backend, case)
            except WrongResult as error:
                say(args, f"WRONG  {error}")
                return False
            for cache in CACHES[args.cache]:
                measured = place.measure(op, backend, case, cache)
                if measured is not None:
                    found.append(replace(measured, command=command_of(args, op, case, cache)))
                    say(args, row(found[-1]))
            result = True
    return result


def chosen_cases(op: Op, shape: Shape | None, text: str) -> Iterator[Case]:
    """The op's cases of the shape, or its own."""
    make = None if shape is None else cases_of(op.name, shape)
    make = make or op.bench_cases
    assert make is not None
    return (case for case in make() if text in case.label)


def command_of(args: argparse.Namespace, op: Op, case: Case, cache: str) -> str:
    """One line that measures a case again."""
    words = ["sdengine", "bench", "kernels", op.name, "--case", case.label, "--cache", cache]
    words += ["--num-threads", str(args.threads), "--seconds", f"{args.seconds:g}"]
    words += ["--baseline", args.baseline]
    words += ["--device", args.device] if is_gpu(args.device) else []
    words += [] if args.shape is None else ["--shape", args.shape]
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())
