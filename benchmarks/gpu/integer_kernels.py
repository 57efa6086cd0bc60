"""One integer op on the device, against its reference: what compute-sanitizer watches.

compute-sanitizer --tool racecheck python -m benchmarks.gpu.integer_kernels tree_verify
"""

from __future__ import annotations

import sys
from itertools import islice

import torch

from benchmarks.gpu.cases import check
from sdengine.kernels.launches import STRUCT_OPS
from sdengine.kernels.registry import get_op

MOST_CASES = 4


def main() -> int:
    """Runs the first cases of the op that the command line names."""
    (op,) = sys.argv[1:]
    assert op in STRUCT_OPS, f"expected one of {', '.join(STRUCT_OPS)}, got {op}"
    cases = get_op(op).bench_cases
    assert cases is not None
    for case in islice(cases(), MOST_CASES):
        # Several rows of one root share what is noted there: a race by construction of the case.
        if op == "tree_expand" and "rows=1 " not in case.label:
            continue
        if op == "kv_compact":
            case.args["kv_cache"].view(torch.int16).random_(0, 1000)
        check(op, "cuda", case.args)
        print(f"{op} {case.label}: equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
