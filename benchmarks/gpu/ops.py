"""Slice tree-ops: every other op on its microbenchmark cases, and on those of a served model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.cases import check, device_args, time_launch
from benchmarks.gpu.records import Recorder, Skip, slice_main
from benchmarks.gpu.timing import Limits, Stopwatch, measure_limits
from sdengine.kernels import backends, kv_compact, tree_expand, tree_verify
from sdengine.kernels.registry import OP_NAMES, get_op
from sdengine.kernels.spec import Case

OWN_SLICES = ("linear", "tree_attention")


def large_cases(op: str) -> Iterator[Case]:
    """Cases of a served model, beyond the op's own."""
    if op == "tree_verify":
        yield tree_verify.bench_case(32, 8, 128256, draws=True)
    if op == "tree_expand":
        yield tree_expand.bench_case(1, 64, 8, 8)
        yield tree_expand.bench_case(32, 64, 8, 8)
    if op == "kv_compact":
        yield kv_compact.bench_case(1, 32, 8, 128)
        yield kv_compact.bench_case(32, 32, 8, 128)


def cases_of(op: str) -> Iterator[Case]:
    """All cases of an op, the large ones first."""
    yield from large_cases(op)
    own = get_op(op).bench_cases
    assert own is not None
    yield from own()


def measure(op: str, backend: str, case: Case, watch: Stopwatch, limits: Limits) -> dict[str, Any]:
    """Checks a case against the reference, then times it."""
    reason = backends.why_unavailable(backend)
    if reason is not None:
        raise Skip(reason)
    check(op, backend, case.args)
    args = device_args(op, case.args)
    launch = get_op(op).backends[backend]
    timing = time_launch(op, args, lambda: launch(**args), watch)
    if not case.bytes_moved:
        return timing.values()
    return {**timing.values(), **limits.beside(timing, case.bytes_moved)}


def run(recorder: Recorder, _: argparse.Namespace) -> None:
    """Every kernel of every op that has no slice of its own."""
    torch.manual_seed(0)
    limits, watch = measure_limits(), Stopwatch()
    for op in dict.fromkeys(("tree_verify", "tree_expand", "kv_compact", *OP_NAMES)):
        if op in OWN_SLICES or not get_op(op).backends:
            continue
        for case in cases_of(op):
            for backend in get_op(op).backends:
                name = f"{op} {backend} {case.label}"
                recorder.run(name, partial(measure, op, backend, case, watch, limits))


if __name__ == "__main__":
    sys.exit(slice_main(run, case_limit_s=120.0))
