"""Slice attention-tiles: tree_attention with other row tiles, warps and stages of its first kernel
than the table's (`kernels/triton/tree_attention.py`). What the table is made from.

Both kernels in a graph of many, as a decode step runs them: each may begin before the one in front
has ended. Hot: the cache of a layer that fits into L2 stays there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.attention import CASES
from benchmarks.gpu.records import Recorder, slice_main
from benchmarks.gpu.timing import HOT_LAUNCHES, graph_of, median_us
from benchmarks.gpu.trees import AttentionCase, AttentionInputs, make_inputs
from benchmarks.gpu.tries import compile_side_by_side, time_each
from sdengine.kernels.programs.launch_chain import chained
from sdengine.kernels.triton import tree_attention
from sdengine.kernels.triton.launch import Launch, arch_of_device
from sdengine.kernels.triton.tree_attention import Config

CONFIGS = tuple(
    Config(rows, warps, stages)
    for rows, warps, stages in (
        (64, 4, 3),
        (64, 4, 2),
        (64, 8, 2),
        (32, 4, 3),
        (32, 4, 2),
        (16, 4, 3),
    )
)
COMPILED_CONTEXT = 128  # a kernel does not depend on the context
Timer = Callable[[Sequence[Launch]], float]


def label(config: Config) -> str:
    """As a column's name."""
    return f"{config.max_rows} x {config.num_warps} x {config.num_stages}"


def time_us(launches: Sequence[Launch]) -> float:
    """Microseconds of the launches, one round of many."""

    def run() -> None:
        for launch in launches:
            launch.run()

    return median_us(graph_of(run, HOT_LAUNCHES).replay) / HOT_LAUNCHES


def launches_of(inputs: AttentionInputs, arch: int, config: Config | None = None) -> list[Launch]:
    """Both kernels, with a config or the table's."""
    table = tree_attention.NARROW_CONFIGS
    try:
        if config is not None:
            tree_attention.NARROW_CONFIGS = {arch: config}
        with chained():
            return tree_attention.launches(arch, **inputs.args)
    finally:
        tree_attention.NARROW_CONFIGS = table


def measure(
    case: AttentionCase, arch: int, timer: Timer = time_us, device: str = "cuda"
) -> dict[str, Any]:
    """Both kernels with the table's config and with every other; of the table's the first by
    itself. A config for which there is too little shared memory is left out, and counted."""
    inputs = make_inputs(case, device)
    if device == "cuda":
        torch.cuda.synchronize()  # kernels that begin early read what is written by now
    times, left_out = time_each(CONFIGS, lambda config: timer(launches_of(inputs, arch, config)))
    best = min(times, key=lambda config: times[config])
    plan = launches_of(inputs, arch)
    return {
        "table us": round(timer(plan), 2),
        "first kernel us": round(timer(plan[::2]), 2),
        "best us": round(times[best], 2),
        "best": label(best),
        **{label(config): round(took, 2) for config, took in times.items()},
        "left out": left_out,
    }


def compile_one(job: tuple[AttentionCase, Config]) -> None:
    """Compiles a kernel, which Triton keeps on disk for the other processes."""
    case, config = job
    torch.set_num_threads(1)
    inputs = make_inputs(case)
    torch.cuda.synchronize()
    for launch in launches_of(inputs, arch_of_device(), config):
        launch.run()


def compile_all() -> None:
    """Every config for every case, in processes side by side."""
    short = {
        AttentionCase(c.batch, c.nodes, COMPILED_CONTEXT, c.heads, c.kv_heads, c.dim) for c in CASES
    }
    jobs = [(case, config) for case in short for config in CONFIGS]
    compile_side_by_side(compile_one, jobs)


def run(recorder: Recorder, _: argparse.Namespace) -> None:
    """Every case."""
    arch = arch_of_device()
    compile_all()
    for case in CASES:
        recorder.run(case.label, partial(measure, case, arch))


if __name__ == "__main__":
    sys.exit(slice_main(run, case_limit_s=120.0))
