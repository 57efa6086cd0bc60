"""Prints the machine limits for 1 to n threads: `python -m benchmarks.machine_limits --threads
2`."""

from __future__ import annotations

import argparse
import os

from sdengine.kernels.backends import load_cpu
from sdengine.kernels.machine_limits import LimitProbe
from sdengine.kernels.program import make_pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="measure 1 to this many threads"
    )
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"instruction set: {load_cpu().selected_isa()}")
    print("threads  DRAM GB/s  cache GB/s  fp32 GFLOP/s  bf16 GFLOP/s")
    for threads in range(1, options.threads + 1):
        found = LimitProbe(make_pool(threads)).limits(options.repeats)
        print(
            f"{threads:7d}  {found.dram_gbps:9.1f}  {found.cache_gbps:10.1f}"
            f"  {found.fp32_gflops:12.0f}  {found.bf16_gflops:12.0f}"
        )


if __name__ == "__main__":
    main()
