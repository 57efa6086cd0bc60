"""Times on the device: events around replays of a CUDA graph, so that neither the host nor a launch
counts; cold, with the L2 cache swept before each sample, and hot, many launches in one graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.kernels.harness import spread

SWEEP_BYTES = 256 << 20  # several times any L2 cache
HOT_LAUNCHES = 20
Run = Callable[[], Any]


def nothing() -> None:
    """For ops that leave their inputs alone."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of one launch.

    Args:
        cold_us, p10_us, p90_us: median and deciles of single launches after the cache was swept.
        hot: median and deciles of one of many launches back to back; None where that would be
            other work.
        how: "graph", or "events" where a launch could not be captured, and the host may be in it.
    """

    cold_us: float
    p10_us: float
    p90_us: float
    hot: tuple[float, float, float] | None
    how: str

    def values(self, prefix: str = "") -> dict[str, Any]:
        """As columns of a table."""
        found = {"us": self.cold_us, "p10": self.p10_us, "p90": self.p90_us}
        found |= {} if self.hot is None else {"hot us": self.hot[0]}
        named = {f"{prefix}{name}": round(value, 3) for name, value in found.items()}
        return named if self.how == "graph" else {**named, f"{prefix}timed by": self.how}


def graph_of(run: Run, launches: int = 1) -> torch.cuda.CUDAGraph:
    """A graph of so many launches; `run` is warm afterwards."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            run()
    return graph


def elapsed_us(run: Run) -> float:
    """Microseconds between two events around `run`, the device idle before and after."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end)


def median_us(run: Run, samples: int = 9) -> float:
    """Of samples back to back, after two that warm up."""
    return median(samples_us(run, samples))


def samples_us(run: Run, samples: int = 9) -> list[float]:
    """Samples back to back, after two that warm up."""
    return [elapsed_us(run) for _ in range(samples + 2)][2:]


class Stopwatch:
    """Times launches in one way, with buffers made once.

    Args:
        samples: of each launch.
    """

    def __init__(self, samples: int = 50) -> None:
        self._samples = samples
        self._sweep = torch.empty(SWEEP_BYTES // 4, device="cuda")

    def time(self, run: Run, restore: Run = nothing, is_repeatable: bool = True) -> Timing:
        """Times `run`.

        Args:
            run: enqueues the work; allocates nothing that it could not allocate in a capture.
            restore: puts back what `run` changes, before each cold sample.
            is_repeatable: whether launches without `restore` in between do the same work.
        """
        restore()
        try:
            replay: Run = graph_of(run).replay
            how = "graph"
        except Exception as error:  # what cannot be captured is timed as it is, and says so
            torch.cuda.synchronize()
            replay, how = run, f"events ({type(error).__name__})"
        cold = [self._cold(replay, restore) for _ in range(self._samples + 3)][3:]
        hot = None
        if is_repeatable and how == "graph":
            many = graph_of(run, HOT_LAUNCHES)
            hot = spread([us / HOT_LAUNCHES for us in samples_us(many.replay)])
        return Timing(*spread(cold), hot, how)

    def _cold(self, replay: Run, restore: Run) -> float:
        restore()
        self._sweep.add_(1.0)  # longer than the host needs to enqueue what follows
        return elapsed_us(replay)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the device does right now.

    Args:
        read_gbps: reading memory once. copy_gbps: copying, bytes read plus bytes written.
        bf16_tflops: a large product of random bfloat16 matrices.
        launch_us: one empty kernel in a graph of many.
    """

    read_gbps: float
    copy_gbps: float
    bf16_tflops: float
    launch_us: float

    @property
    def memory_gbps(self) -> float:
        """The better of the two ways to move bytes."""
        return max(self.read_gbps, self.copy_gbps)

    def floor_us(self, num_bytes: int, operations: int = 0) -> float:
        """No launch that moves these bytes and does these bfloat16 operations is faster."""
        return max(num_bytes / self.memory_gbps / 1e3, operations / self.bf16_tflops / 1e6)

    def beside(self, timing: Timing, num_bytes: int, operations: int = 0) -> dict[str, Any]:
        """Columns that put a time beside its floor."""
        floor = self.floor_us(num_bytes, operations)
        rate = num_bytes / timing.cold_us / 1e3
        return {
            "floor us": round(floor, 3),
            "GB/s": round(rate, 1),
            "% of floor": round(100 * floor / timing.cold_us, 1),
        }


def measure_limits() -> Limits:
    """Medians; about a second. Random operands: zeros run faster."""
    words = min(1 << 29, torch.cuda.mem_get_info()[0] // 16)
    source = torch.randn(words, device="cuda")
    target = torch.empty_like(source)
    size = 4 * words
    copy = median_us(partial(target.copy_, source))
    read = median_us(source.amax)
    del target, source
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    product = torch.empty_like(a)
    matmul = median_us(partial(torch.matmul, a, b, out=product))
    word = torch.zeros(1, device="cuda")
    launches = graph_of(lambda: word.add_(1.0), 200)
    launch = median_us(launches.replay) / 200
    return Limits(
        round(size / read / 1e3, 1),
        round(2 * size / copy / 1e3, 1),
        round(2 * 8192**3 / matmul / 1e6, 1),
        round(launch, 3),
    )
