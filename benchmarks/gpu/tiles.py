"""Slice tiles: products with every tile and number of parts that may be worth it, beside those of
the table (`kernels/triton/linear_tiles.py`) and cuBLAS. What the table is made from.

A product is timed as a decode step does it: in a graph of many that may begin before the one in
front has ended, each over a copy of W of its own, so that no copy is in the cache, with inputs that
are bfloat16 already.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.linear import SHAPES
from benchmarks.gpu.records import Recorder, slice_main
from benchmarks.gpu.timing import Run, graph_of, median_us
from benchmarks.gpu.tries import compile_side_by_side, time_each
from sdengine.kernels.dense_weight import DenseWeight
from sdengine.kernels.programs.launch_chain import chained
from sdengine.kernels.triton import linear, linear_tiles
from sdengine.kernels.triton.launch import arch_of_device
from sdengine.runner.forward import NUM_COUNTERS

CACHE_BYTES = 400 << 20  # of copies of W: several times an L2 cache
MOST_COPIES = 12
ROW_COUNTS = (1, 32, 65, 129, 512)
PARTS = (1, 2, 4, 8)
# Features, inputs of a step, warps, stages; by the widest tile of rows they are tried for.
TILES = {
    32: (
        (64, 64, 4, 4),
        (64, 64, 4, 8),
        (64, 128, 4, 4),
        (64, 128, 4, 5),
        (64, 256, 4, 3),
        (128, 64, 4, 4),
    ),
    128: (
        (64, 64, 4, 4),
        (64, 64, 4, 6),
        (64, 128, 4, 3),
        (128, 64, 4, 4),
        (128, 64, 4, 5),
        (128, 64, 8, 3),
        (128, 64, 8, 4),
        (128, 128, 8, 3),
        (256, 64, 8, 3),
    ),
}
COMPILED = ((256, 4096, False), (256, 4096, True))  # every tile is compiled for these shapes first
MOST_CUT = 16384  # features of the largest weight that is tried in parts
Timer = Callable[[Sequence[Run]], float]


@dataclass(frozen=True, slots=True)
class Choice:
    """A tile, and the parts that K is cut into; none of both: the table's."""

    tile: tuple[int, int, int, int] | None = None
    parts: int | None = None

    def __str__(self) -> str:
        return f"{' x '.join(map(str, self.tile or ()))} in {self.parts}"


@dataclass(frozen=True, slots=True)
class Product:
    """A product of random operands, and as many copies of W as do not fit into the cache."""

    args: dict[str, Any]
    weights: list[DenseWeight]

    @classmethod
    def make(
        cls, features: int, inputs: int, rows: int, is_gated: bool, device: str, copies: int
    ) -> Product:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=device, dtype=torch.bfloat16)

        width = features // 2 if is_gated else features
        apart = max(PARTS) * (rows + 128) * features if is_cut(features, rows, is_gated) else 0
        args = {
            "x": normal(rows, inputs),
            "out": torch.empty(rows, width, device=device),
            "num_rows": torch.tensor([rows], dtype=torch.int32, device=device),
            "activation": "silu_gate" if is_gated else None,
            "scratch": torch.empty(apart, device=device),
            "counters": torch.zeros(NUM_COUNTERS, dtype=torch.int32, device=device),
        }
        return cls(args, [DenseWeight(normal(features, inputs), is_gated) for _ in range(copies)])

    def launches(self, arch: int, choice: Choice) -> list[Run]:
        """One launch a copy of W."""
        plain, gated = linear_tiles.NARROW_CONFIGS, linear_tiles.GATED_CONFIGS
        splits = linear_tiles.SPLITS
        try:
            if choice.tile is not None:
                features, inputs, warps, stages = choice.tile
                config = partial(
                    linear_tiles.Config, min_programs=0, features=features, inputs=inputs
                )
                wide = (config(rows, num_warps=warps, num_stages=stages) for rows in (16, 64, 128))
                linear_tiles.NARROW_CONFIGS = {arch: tuple(wide)}
                linear_tiles.GATED_CONFIGS = {}
            if choice.parts is not None:
                linear_tiles.SPLITS = {arch: (linear_tiles.Split(1 << 30, 1, choice.parts),)}
            with chained():
                plans = [linear.launches(arch, weight=w, **self.args) for w in self.weights]
        finally:
            linear_tiles.NARROW_CONFIGS, linear_tiles.GATED_CONFIGS = plain, gated
            linear_tiles.SPLITS = splits
        return [launch.run for plan in plans for launch in plan]

    def library(self) -> list[Run]:
        """cuBLAS, which leaves the activation of a gate out."""
        x, first = self.args["x"], self.weights[0].matrix
        out = torch.empty(len(x), len(first), dtype=x.dtype, device=x.device)
        return [partial(torch.matmul, x, w.matrix.T, out=out) for w in self.weights]


def is_cut(features: int, rows: int, is_gated: bool) -> bool:
    """Whether a product is tried in parts of K."""
    return not is_gated and features <= MOST_CUT and rows <= linear_tiles.MAX_PART_ROWS


def time_us(launches: Sequence[Run]) -> float:
    """Microseconds of one of the launches, which a graph holds."""

    def run() -> None:
        for launch in launches:
            launch()

    return median_us(graph_of(run).replay) / len(launches)


def choices(rows: int, is_gated: bool, features: int) -> Iterator[Choice]:
    """What is tried: weights with a gate, or with many features, are not cut; many rows neither."""
    tiles = next((tiles for widest, tiles in TILES.items() if rows <= widest), TILES[128])
    for tile in tiles:
        for parts in PARTS if is_cut(features, rows, is_gated) else (1,):
            yield Choice(tile, parts)


def measure(
    shape: str, rows: int, arch: int, timer: Timer = time_us, device: str = "cuda"
) -> dict[str, Any]:
    """The table's choice, the best one, and cuBLAS. A tile for which there is too little shared
    memory is left out, and counted."""
    features, inputs = SHAPES[shape]
    is_gated = shape.endswith("gate_up")
    num_bytes = 2 * features * inputs
    copies = max(2, min(MOST_COPIES, CACHE_BYTES // num_bytes + 1))
    product = Product.make(features, inputs, rows, is_gated, device, copies)
    if device == "cuda":
        torch.cuda.synchronize()  # kernels that begin early read what is written by now
    times, left_out = time_each(
        choices(rows, is_gated, features), lambda choice: timer(product.launches(arch, choice))
    )
    best = min(times, key=lambda choice: times[choice])
    table, library = timer(product.launches(arch, Choice())), timer(product.library())
    return {
        "table us": round(table, 2),
        "best us": round(times[best], 2),
        "cuBLAS us": round(library, 2),
        "best": str(best),
        "table GB/s": round(num_bytes / table / 1e3),
        "cuBLAS / table": round(library / table, 3),
        "left out": left_out,
    }


def compile_one(job: tuple[int, int, Choice, tuple[int, int, bool]]) -> None:
    """Compiles a kernel, which Triton keeps on disk for the other processes."""
    rows, arch, choice, (features, inputs, is_gated) = job
    torch.set_num_threads(1)
    product = Product.make(features, inputs, rows, is_gated, "cuda", 1)
    torch.cuda.synchronize()
    for run in product.launches(arch, choice):
        run()


def compile_all(arch: int) -> None:
    """Every tile at every number of rows, in processes side by side."""
    jobs = [
        (rows, arch, choice, shape)
        for rows in ROW_COUNTS
        for shape in COMPILED
        for choice in choices(rows, shape[2], shape[0])
        if choice.parts in (1, 4)
    ]
    compile_side_by_side(compile_one, jobs)


def run(recorder: Recorder, _: argparse.Namespace) -> None:
    """Every layer at every number of rows."""
    arch = arch_of_device()
    compile_all(arch)
    for rows in ROW_COUNTS:
        for shape in SHAPES:
            recorder.run(f"{shape} M={rows}", partial(measure, shape, rows, arch))


if __name__ == "__main__":
    sys.exit(slice_main(run, case_limit_s=120.0))
