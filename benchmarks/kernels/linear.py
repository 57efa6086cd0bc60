"""The curve that decides what a tree can gain: M rows in one forward against one row, for the
linear layers of a model.

`python -m benchmarks.kernels.linear` runs the layers of a 1.1B model's shape (TinyLlama's) on
seeded random weights and prints, for each M, the time, T(M) / T(1), and T(M) / floor(M) with
floor(M) = max(weight bytes / DRAM bandwidth, operations / peak); both limits are measured between
the timings of the same run, because they drift.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch

from benchmarks.shapes import SHAPES, Shape
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.huge_pages import HugePageArena
from sdengine.kernels.machine_limits import LimitProbe
from sdengine.kernels.packed_weight import PackedWeight, pack_weight
from sdengine.kernels.programs.program import Program, make_pool, make_program

ROW_COUNTS = (1, 2, 4, 8, 16, 32, 64)
IN_CACHE_BYTES = 24 << 20  # weights up to here are held against the cache's bandwidth


CURVE_SHAPES = {
    # 6 of 22 layers: 0.66 GB, far beyond any cache
    "1.1b": replace(SHAPES["1.1b"], num_hidden_layers=6),
    "pair-target": SHAPES["pair-target"],
    "pair-draft": SHAPES["pair-draft"],
}


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One row count, in milliseconds.

    Args:
        num_rows: M.
        median_ms, median_floor_ms: Medians of the rounds, against the medians of the limits.
        best_ms, best_floor_ms: Each launch at its fastest round, against each stretch of the read
            probe and the peak at their fastest: what remains when neighbours are quiet.
        gbps, gflops: Rates of the best.
    """

    num_rows: int
    median_ms: float
    median_floor_ms: float
    best_ms: float
    best_floor_ms: float
    gbps: float
    gflops: float


class LinearLayers:
    """The packed weights of a model and one program that runs all its linear layers on the rows of
    one buffer."""

    def __init__(self, shape: Shape, dtype: torch.dtype, pool: Any) -> None:
        self._pool = pool
        generator = torch.Generator().manual_seed(0)
        arena = HugePageArena()

        def pack(num_outputs: int, num_inputs: int, gated: bool = False) -> PackedWeight:
            dense = torch.randn(num_outputs, num_inputs, generator=generator) / num_inputs**0.5
            return pack_weight(dense, dtype, gated, pool, arena)

        size, ffn = shape.hidden_size, shape.intermediate_size
        self.layers = [
            (
                pack(shape.qkv_size, size),
                pack(size, size),
                pack(2 * ffn, size, True),
                pack(size, ffn),
            )
            for _ in range(shape.num_hidden_layers)
        ]
        self.head = pack(shape.vocab_size, size)
        self.weights = [w for layer in self.layers for w in layer] + [self.head]
        rows = max(ROW_COUNTS)
        self.num_rows = torch.ones(1, dtype=torch.int32)
        self._hidden = torch.randn(rows, size, generator=generator)
        self._qkv, self._attended = (
            torch.empty(rows, shape.qkv_size),
            torch.randn(rows, size, generator=generator),
        )
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

    def _launch(
        self,
        program: Program,
        x: torch.Tensor,
        weight: PackedWeight,
        out: torch.Tensor,
        **args: Any,
    ) -> None:
        program.launch("linear", x=x, weight=weight, out=out, num_rows=self.num_rows, **args)

    def milliseconds(self, num_rows: int) -> list[float]:
        """One forward of `num_rows` rows: the time of each launch."""
        self.num_rows.fill_(num_rows)
        self._hidden.fill_(0.5)  # the residual stream would otherwise grow from run to run
        return [ns / 1e6 for _, ns in self.program.replay_timed()]


@dataclass(frozen=True, slots=True)
class Limits:
    """Read bandwidth and peak of one run; see CurvePoint for the two kinds."""

    median_gbps: float
    best_gbps: float
    median_gflops: float
    best_gflops: float


def best_sum(rounds: Sequence[Sequence[float]]) -> float:
    """Sum over places of the smallest value that any round has there."""
    return sum(min(column) for column in zip(*rounds))


def measure_curve(
    layers: LinearLayers, probe: LimitProbe, dtype: torch.dtype, rounds: int
) -> tuple[Limits, list[CurvePoint]]:
    """Times all row counts in turn, `rounds` times, with the limits measured in every round."""
    times: dict[int, list[list[float]]] = {m: [] for m in ROW_COUNTS}
    reads: list[list[float]] = []  # nanoseconds a byte, by stretch
    peaks: list[float] = []
    in_cache = layers.nbytes < IN_CACHE_BYTES
    for _ in range(rounds):
        rates = probe.cache_gbps(10) if in_cache else probe.dram_gbps_by_stretch()
        reads.append([1.0 / gbps for gbps in rates])
        peaks += probe.gflops(dtype, repeats=2)
        for m in ROW_COUNTS:
            if in_cache:
                layers.milliseconds(m)
            times[m].append(layers.milliseconds(m))
    stretches = len(reads[0])
    limits = Limits(
        stretches / median(sum(r) for r in reads),
        stretches / best_sum(reads),
        median(peaks),
        max(peaks),
    )
    return limits, [curve_point(m, times[m], layers, limits) for m in ROW_COUNTS]


def curve_point(
    m: int, rounds: Sequence[Sequence[float]], layers: LinearLayers, limits: Limits
) -> CurvePoint:
    operations = m * layers.operations
    best = best_sum(rounds)
    return CurvePoint(
        m,
        median(sum(r) for r in rounds),
        max(layers.nbytes / limits.median_gbps, operations / limits.median_gflops) / 1e6,
        best,
        max(layers.nbytes / limits.best_gbps, operations / limits.best_gflops) / 1e6,
        layers.nbytes / best / 1e6,
        operations / best / 1e6,
    )


def print_curve(limits: Limits, points: Sequence[CurvePoint]) -> None:
    print(
        f"limits of this run, median (best): read {limits.median_gbps:.1f} ({limits.best_gbps:.1f})"
        f" GB/s, peak {limits.median_gflops:.0f} ({limits.best_gflops:.0f}) GFLOP/s"
    )
    print("   M  median ms  /floor  /T(1) |  best ms  /floor  /T(1)   GB/s  GFLOP/s")
    one = points[0]
    for p in points:
        print(
            f"{p.num_rows:4d} {p.median_ms:10.3f} {p.median_ms / p.median_floor_ms:7.2f}"
            f" {p.median_ms / one.median_ms:6.2f}"
            f" | {p.best_ms:8.3f} {p.best_ms / p.best_floor_ms:7.2f}"
            f" {p.best_ms / one.best_ms:6.2f} {p.gbps:6.1f} {p.gflops:8.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(CURVE_SHAPES), default="1.1b")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--json", action="store_true", help="also print the points as one line of JSON"
    )
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    pool = make_pool(options.threads)
    layers = LinearLayers(CURVE_SHAPES[options.shape], dtype, pool)
    print(
        f"linear layers of shape {options.shape}, {options.dtype}, {layers.nbytes / 1e6:.1f} MB of"
        f" weights, {options.threads} threads, {load_cpu().selected_isa()}, {options.rounds} rounds"
    )
    limits, points = measure_curve(layers, LimitProbe(pool), dtype, options.rounds)
    print_curve(limits, points)
    if options.json:
        print(json.dumps([asdict(p) for p in points]))


if __name__ == "__main__":
    main()
