"""What this machine allows right now: read bandwidth of memory and cache, arithmetic peaks, and how
soon threads meet, for a pool of threads.

Limits drift on a shared machine (DRAM bandwidth by half within an hour), so a ratio quoted against
one must come from the same run: keep a `LimitProbe` and let it measure beside the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.huge_pages import HugePageArena

DRAM_BYTES = 5 << 28  # 1.25 GB: far beyond any last-level cache share
STRETCH_BYTES = 32 << 20
READ_WAYS = ((1, True), (1, False), (2, False))  # streams of a thread, prefetches of its own
FLUSH_BYTES = 256 << 20  # beyond a last-level cache
CACHE_BYTES_PER_THREAD = 4 << 20  # beyond the L2 caches, within a last-level cache


@dataclass(frozen=True, slots=True)
class MachineLimits:
    """Medians of the repeats of one measurement.

    Args:
        num_threads: Threads that worked together.
        dram_gbps: Read bandwidth over more than 1 GB on 2 MB pages.
        cache_gbps: Read bandwidth of data that fits the last-level cache (4 MB a thread).
        fp32_gflops: Peak of float32 multiply-adds.
        bf16_gflops: Peak of the instruction that `linear` uses for bfloat16 weights: a bfloat16 dot
            product with `avx512_bf16`, otherwise the float32 multiply-add.
        barrier_ns: What it takes all threads to meet. A small model's iteration has hundreds of
            such meetings, and a hypervisor may move the cores apart: on a Zen 4 server it went
            between 30 and 310 within minutes, and with it what trees gain.
    """

    num_threads: int
    dram_gbps: float
    cache_gbps: float
    fp32_gflops: float
    bf16_gflops: float
    barrier_ns: float


class LimitProbe:
    """Measures limits as often as asked, with buffers allocated once.

    Args:
        pool: Native thread pool to measure with.
        dram_bytes: Bytes of the DRAM probe's buffer.
    """

    def __init__(self, pool: Any, dram_bytes: int = DRAM_BYTES) -> None:
        self._pool = pool
        self._native = load_cpu()
        self._memory = HugePageArena().zeros((dram_bytes // 4,), torch.float32).fill_(1.0)
        # A limit is the best that is known: what this machine's prefetchers follow best.
        self._way = max(READ_WAYS, key=lambda way: max(self._read(dram_bytes, 2, way=way)))

    def dram_gbps(self, repeats: int = 1) -> list[float]:
        return self._read(self._memory.numel() * 4, repeats)

    def dram_gbps_by_stretch(self) -> list[float]:
        """One pass over the buffer in stretches of 32 MB: their rates, always in the same order."""
        rates: list[float] = []
        for start in range(0, self._memory.numel() * 4, STRETCH_BYTES):
            rates += self._read(STRETCH_BYTES, 1, start)
        return rates

    def cache_gbps(self, repeats: int = 30) -> list[float]:
        rates = self._read(CACHE_BYTES_PER_THREAD * self._pool.num_threads, repeats + 2)
        return rates[2:]  # two passes to warm up

    def gflops(
        self, dtype: torch.dtype, repeats: int = 5, milliseconds: float = 4.0
    ) -> list[float]:
        rates = self._native.measure_arithmetic(
            self._pool, dtype == torch.bfloat16, milliseconds, repeats
        )
        return [r / 1e9 for r in rates]

    def barrier_ns(self, repeats: int = 30) -> list[float]:
        """Each the mean of a thousand in a row."""
        return [s * 1e9 for s in self._native.measure_barriers(self._pool, repeats)]

    def flush_caches(self) -> None:
        """Reads through other memory, so that what a kernel used before lies in DRAM again."""
        self._read(FLUSH_BYTES, 1)

    def limits(self, repeats: int = 3) -> MachineLimits:
        """All limits, medians of `repeats` (a few tenths of a second)."""
        return MachineLimits(
            self._pool.num_threads,
            median(self.dram_gbps(repeats)),
            median(self.cache_gbps(10 * repeats)),
            median(self.gflops(torch.float32, 3 * repeats)),
            median(self.gflops(torch.bfloat16, 3 * repeats)),
            median(self.barrier_ns(10 * repeats)),
        )

    def _read(
        self, num_bytes: int, repeats: int, start: int = 0, way: tuple[int, bool] | None = None
    ) -> list[float]:
        rates = self._native.measure_read(
            self._pool,
            self._memory.data_ptr() + start,
            num_bytes,
            *(self._way if way is None else way),
            repeats,
        )
        return [r / 1e9 for r in rates]
