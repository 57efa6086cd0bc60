"""The curve that decides what a tree can gain: M rows in one forward against one row, for the linear layers of a model.

`python -m benchmarks.kernels.linear` runs the layers of a 1.1B model's shape (TinyLlama's) on seeded random weights and
prints, for each M, the time, T(M) / T(1), and T(M) / floor(M) with floor(M) = max(weight bytes / DRAM bandwidth,
operations / peak); both limits are measured between the timings of the same run, because they drift.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from sdengine.kernels.backends import load_cpu
from sdengine.kernels.machine_limits import LimitProbe
from sdengine.kernels.packed_weight import PackedWeight, pack_weight
from sdengine.kernels.program import Program, make_pool, make_program

ROW_COUNTS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of the linear layers of a Llama-family model."""

    hidden_size: int
    ffn_size: int
    qkv_size: int
    vocab_size: int
    num_layers: int


SHAPES = {
    "1.1b": ModelShape(2048, 5632, 2560, 32000, 6),  # 6 of 22 layers: 0.66 GB, far beyond any cache
    "pair-target": ModelShape(256, 704, 512, 2048, 8),
    "pair-draft": ModelShape(128, 352, 256, 2048, 2),
}


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One row count: medians over the rounds, times in milliseconds."""

    num_rows: int
    time_ms: float
    best_ms: float
    floor_ms: float
    over_floor: float
    over_one_row: float
    gbps: float
    gflops: float


class LinearLayers:
    """The packed weights of a model and one program that runs all its linear layers on the rows of one buffer."""

    def __init__(self, shape: ModelShape, dtype: torch.dtype, pool: Any) -> None:
        self._pool = pool
        generator = torch.Generator().manual_seed(0)

        def pack(num_outputs: int, num_inputs: int, gated: bool = False) -> PackedWeight:
            dense = torch.randn(num_outputs, num_inputs, generator=generator) / num_inputs**0.5
            return pack_weight(dense, dtype, interleave_gate_up=gated, pool=pool)

        size, ffn = shape.hidden_size, shape.ffn_size
        self.layers = [
            (pack(shape.qkv_size, size), pack(size, size), pack(2 * ffn, size, True), pack(size, ffn))
            for _ in range(shape.num_layers)
        ]
        self.head = pack(shape.vocab_size, size)
        self.weights = [w for layer in self.layers for w in layer] + [self.head]
        rows = max(ROW_COUNTS)
        self.num_rows = torch.ones(1, dtype=torch.int32)
        self._hidden = torch.randn(rows, size, generator=generator)
        self._qkv, self._attended = torch.empty(rows, shape.qkv_size), torch.randn(rows, size, generator=generator)
        self._ffn, self._logits = torch.empty(rows, ffn), torch.empty(rows, shape.vocab_size)
        self.program = self._record()

    @property
    def nbytes(self) -> int:
        return sum(w.nbytes for w in self.weights)

    @property
    def operations(self) -> int:
        """Of one row."""
        return sum(2 * w.num_outputs * w.num_inputs for w in self.weights)

    def _record(self) -> Program:
        program = make_program("cpu", self._pool)
        for qkv, attention_out, gate_up, down in self.layers:
            self._launch(program, self._hidden, qkv, self._qkv)
            self._launch(program, self._attended, attention_out, self._hidden, accumulate=True)
            self._launch(program, self._hidden, gate_up, self._ffn, activation="silu_gate")
            self._launch(program, self._ffn, down, self._hidden, accumulate=True)
        self._launch(program, self._hidden, self.head, self._logits)
        return program

    def _launch(self, program: Program, x: torch.Tensor, weight: PackedWeight, out: torch.Tensor, **args: Any) -> None:
        program.launch("linear", x=x, weight=weight, out=out, num_rows=self.num_rows, **args)

    def milliseconds(self, num_rows: int) -> float:
        """One forward of `num_rows` rows."""
        self.num_rows.fill_(num_rows)
        self._hidden.fill_(0.5)  # the residual stream would otherwise grow from run to run
        return sum(ns for _, ns in self.program.replay_timed()) / 1e6


def measure_curve(layers: LinearLayers, probe: LimitProbe, dtype: torch.dtype, rounds: int, in_cache: bool) -> list[CurvePoint]:
    """Times all row counts in turn, `rounds` times, with the limits measured in every round."""
    times: dict[int, list[float]] = {m: [] for m in ROW_COUNTS}
    bandwidths: list[float] = []
    peaks: list[float] = []
    for _ in range(rounds):
        bandwidths += probe.cache_gbps(10) if in_cache else probe.dram_gbps(1)
        peaks += probe.gflops(dtype, repeats=2)
        for m in ROW_COUNTS:
            if in_cache:
                layers.milliseconds(m)
            times[m].append(layers.milliseconds(m))
    gbps, gflops = median(bandwidths), median(peaks)
    print(f"limits of this run (medians): read {gbps:.1f} GB/s, {dtype} {gflops:.0f} GFLOP/s")
    one = median(times[1])
    points = []
    for m in ROW_COUNTS:
        took, operations = median(times[m]), m * layers.operations
        floor = max(layers.nbytes / gbps, operations / gflops) / 1e6
        rates = layers.nbytes / took / 1e6, operations / took / 1e6
        points.append(CurvePoint(m, took, min(times[m]), floor, took / floor, took / one, *rates))
    return points


def print_curve(points: Sequence[CurvePoint]) -> None:
    print("   M   T ms   best   floor ms  T/floor  T/T(1)   GB/s  GFLOP/s")
    for p in points:
        print(
            f"{p.num_rows:4d} {p.time_ms:7.3f} {p.best_ms:6.3f} {p.floor_ms:9.3f} {p.over_floor:8.2f} {p.over_one_row:7.2f}"
            f" {p.gbps:6.1f} {p.gflops:8.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1.1b")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="also print the points as one line of JSON")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    pool = make_pool(options.threads)
    layers = LinearLayers(SHAPES[options.shape], dtype, pool)
    in_cache = layers.nbytes < 24 << 20
    print(
        f"linear layers of shape {options.shape}, {options.dtype}, {layers.nbytes / 1e6:.1f} MB of weights, "
        f"{options.threads} threads, {load_cpu().selected_isa()}, {options.rounds} rounds"
    )
    points = measure_curve(layers, LimitProbe(pool), dtype, options.rounds, in_cache)
    print_curve(points)
    if options.json:
        print(json.dumps([asdict(p) for p in points]))


if __name__ == "__main__":
    main()
