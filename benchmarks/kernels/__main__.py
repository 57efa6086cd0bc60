"""Microbenchmarks of all ops: `python -m benchmarks.kernels [--op linear ...]`.

Each kernel must agree with its reference before it is timed. Times are medians with the tenth and
ninetieth percentile; the last column is the share of what the machine's read bandwidth and
arithmetic peak, measured beside, would allow (blank where a case declares neither bytes nor
operations: integer work on trees).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict

import torch

from benchmarks.kernels.harness import Measurement, WrongResult, check_case, measure_case
from sdengine.kernels.backends import load_cpu
from sdengine.kernels.machine_limits import LimitProbe
from sdengine.kernels.program import make_pool
from sdengine.kernels.registry import OP_NAMES, get_op
from sdengine.kernels.spec import Op

HEADER = (
    f"{'case':40} {'median us':>10} {'p10':>9} {'p90':>9} {'torch us':>10} {'GB/s':>6}"
    f" {'GFLOP/s':>8} {'% of limit':>10}"
)


def row(m: Measurement) -> str:
    """One line of the table; blank where there is nothing to say."""

    def number(value: float, width: int, digits: int = 1) -> str:
        return f"{value:{width}.{digits}f}" if value else " " * width

    plain = number(m.torch.median_us if m.torch else 0.0, 10)
    return (
        f"{m.label:40} {m.cpu.median_us:10.2f} {m.cpu.p10_us:9.2f} {m.cpu.p90_us:9.2f} {plain}"
        f" {number(m.gbps, 6)} {number(m.gflops, 8)} {number(m.percent_of_limit, 10, 0)}"
    )


def chosen_ops(names: list[str]) -> list[Op]:
    """The ops asked for by name; otherwise all that have a kernel and cases."""
    ops = []
    for name in names or OP_NAMES:
        try:
            op = get_op(name)
        except ModuleNotFoundError:
            if names:
                raise
            continue
        if op.cpu is not None and op.bench_cases is not None:
            ops.append(op)
    return ops


def run_op(op: Op, options: argparse.Namespace, pool: object, probe: LimitProbe) -> bool:
    """Checks and times all cases of an op; False when one is wrong."""
    assert op.bench_cases is not None
    print(f"\n{op.name}\n{HEADER}")
    for case in op.bench_cases():
        try:
            check_case(op, case, pool)
        except WrongResult as error:
            print(f"WRONG  {error}")
            return False
        measured = measure_case(op, case, pool, probe, options.seconds, not options.no_torch)
        print(row(measured), flush=True)
        if options.json:
            print(json.dumps(asdict(measured)), flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", metavar="OP", help="ops to run; default all")
    parser.add_argument("--op", action="append", default=[], help="the same, as an option")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=1.0, help="measuring time of a case")
    parser.add_argument("--no-torch", action="store_true", help="do not time plain torch")
    parser.add_argument(
        "--json", action="store_true", help="also print each measurement as a line of JSON"
    )
    options = parser.parse_args()
    unknown = [name for name in options.ops + options.op if name not in OP_NAMES]
    if unknown:
        parser.error(f"op: expected some of {', '.join(OP_NAMES)}, got {', '.join(unknown)}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    pool = make_pool(options.threads)
    probe = LimitProbe(pool)
    limits = probe.limits()
    print(
        f"{load_cpu().selected_isa()}, {options.threads} threads; limits now:"
        f" DRAM {limits.dram_gbps:.1f} GB/s, cache {limits.cache_gbps:.1f} GB/s,"
        f" fp32 {limits.fp32_gflops:.0f} GFLOP/s, bf16 {limits.bf16_gflops:.0f} GFLOP/s"
    )
    right = [run_op(op, options, pool, probe) for op in chosen_ops(options.ops + options.op)]
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
