"""Slice linear: the layers of two model shapes, beside the floor and cuBLAS (torch.matmul)."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.cases import SCRATCH_ROWS, expect_close
from benchmarks.gpu.records import Recorder, slice_main
from benchmarks.gpu.timing import Limits, Stopwatch, measure_limits
from sdengine.kernels.dense_weight import DenseWeight
from sdengine.kernels.registry import get_op
from sdengine.runner.forward import NUM_COUNTERS

# Features and inputs of every layer.
SHAPES = {
    "8B qkv": (6144, 4096),
    "8B o": (4096, 4096),
    "8B gate_up": (28672, 4096),
    "8B down": (4096, 14336),
    "8B lm_head": (128256, 4096),
    "1B qkv": (3072, 2048),
    "1B o": (2048, 2048),
    "1B gate_up": (16384, 2048),
    "1B down": (2048, 8192),
    "1B lm_head": (128256, 2048),
}
ROW_COUNTS = (1, 8, 16, 64, 128, 256)


def measure(shape: str, rows: int, watch: Stopwatch, limits: Limits) -> dict[str, Any]:
    """Ours, checked against cuBLAS, and cuBLAS, which leaves the activation of a gate out."""
    features, inputs = SHAPES[shape]
    weight = (torch.randn(features, inputs, device="cuda") / inputs**0.5).bfloat16()
    x = torch.randn(rows, inputs, device="cuda").bfloat16()
    is_gated = shape.endswith("gate_up")
    args = {
        "x": x,
        "weight": DenseWeight(weight, is_gated),
        "out": torch.empty(rows, features // 2 if is_gated else features, device="cuda"),
        "num_rows": torch.tensor([rows], dtype=torch.int32, device="cuda"),
        "activation": "silu_gate" if is_gated else None,
        "scratch": torch.empty(SCRATCH_ROWS * features, device="cuda"),
        "counters": torch.zeros(NUM_COUNTERS, dtype=torch.int32, device="cuda"),
    }
    product = torch.empty(rows, features, dtype=torch.bfloat16, device="cuda")
    launch = get_op("linear").backends["triton"]
    launch(**args)
    torch.matmul(x, weight.T, out=product)
    expected = product.float()
    if is_gated:
        gate, up = expected.chunk(2, dim=-1)
        expected = torch.nn.functional.silu(gate) * up
    expect_close("linear", args["out"], expected)
    mine = watch.time(lambda: launch(**args))
    theirs = watch.time(lambda: torch.matmul(x, weight.T, out=product))
    # What a program per part of K gains over one that adds up all of its parts; else the same.
    together = watch.time(lambda: launch(**{**args, "scratch": None}))
    moved = 2 * features * inputs + rows * (2 * inputs + 4 * features)
    return {
        **mine.values(),
        **limits.beside(mine, moved, 2 * rows * features * inputs),
        **theirs.values("cuBLAS "),
        **together.values("one program "),
        "cuBLAS / ours": round(theirs.cold_us / mine.cold_us, 3),
    }


def run(recorder: Recorder, _: argparse.Namespace) -> None:
    """Every layer at every number of rows."""
    limits, watch = measure_limits(), Stopwatch(samples=30)
    for shape in SHAPES:
        for rows in ROW_COUNTS:
            recorder.run(f"{shape} M={rows}", partial(measure, shape, rows, watch, limits))


if __name__ == "__main__":
    sys.exit(slice_main(run, case_limit_s=120.0))
