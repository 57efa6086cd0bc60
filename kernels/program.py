"""Programs: a fixed list of op launches on static buffers, described once and replayed many times.

Python describes an iteration by calling `launch`; `replay` runs it without Python in between. The
reference program runs the
same description op by op in plain torch: the oracle for whole iterations.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any, Protocol

from sdengine.errors import BackendUnavailable
from sdengine.kernels import backends
from sdengine.kernels.registry import get_op


class Program(Protocol):
    """A recorded list of launches."""

    def launch(self, op: str, **args: Any) -> None:
        """Adds one launch; arguments are checked now, tensors are read and written at replay."""

    def replay(self) -> None:
        """Runs all launches in order."""

    def replay_timed(self) -> list[tuple[str, int]]:
        """Runs all launches; returns (op name, nanoseconds) per launch."""


class ReferenceProgram:
    """Runs each launch through the op's torch reference."""

    def __init__(self) -> None:
        self._launches: list[tuple[str, dict[str, Any]]] = []

    def launch(self, op: str, **args: Any) -> None:
        get_op(op).check(**args)
        self._launches.append((op, args))

    def replay(self) -> None:
        for op, args in self._launches:
            get_op(op).reference(**args)

    def replay_timed(self) -> list[tuple[str, int]]:
        timings = []
        for op, args in self._launches:
            start = perf_counter_ns()
            get_op(op).reference(**args)
            timings.append((op, perf_counter_ns() - start))
        return timings


class CpuProgram:
    """A native launch list; keeps the tensors it points into alive."""

    def __init__(self, pool: Any) -> None:
        self._native = backends.load_cpu().Program()
        self._pool = pool
        self._kept: list[dict[str, Any]] = []
        self._names: list[str] = []

    def launch(self, op: str, **args: Any) -> None:
        spec = get_op(op)
        spec.check(**args)
        if spec.cpu is None:
            raise BackendUnavailable(f"op '{op}' has no cpu kernel; it exists for: reference")
        before = len(self._native)
        spec.cpu(self._native, **args)
        self._names += [op] * (len(self._native) - before)
        self._kept.append(args)

    def replay(self) -> None:
        self._native.replay(self._pool)

    def replay_timed(self) -> list[tuple[str, int]]:
        return list(zip(self._names, self._native.replay_timed(self._pool)))


class TritonProgram:
    """Enqueues the Triton kernel of each launch; a CUDA graph can capture a replay."""

    def __init__(self) -> None:
        backends.require_triton()
        self._launches: list[tuple[str, dict[str, Any]]] = []

    def launch(self, op: str, **args: Any) -> None:
        spec = get_op(op)
        spec.check(**args)
        if "triton" not in spec.backends:
            raise BackendUnavailable(
                f"op '{op}' has no triton kernel; it exists for: reference, cpu"
            )
        self._launches.append((op, args))

    def replay(self) -> None:
        for op, args in self._launches:
            get_op(op).backends["triton"](**args)

    def replay_timed(self) -> list[tuple[str, int]]:
        """Host time of each launch, the device drained after it."""
        import torch

        timings = []
        for op, args in self._launches:
            start = perf_counter_ns()
            get_op(op).backends["triton"](**args)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            timings.append((op, perf_counter_ns() - start))
        return timings


def make_pool(num_threads: int) -> Any:
    """A native thread pool with `num_threads` workers, the caller being one of them."""
    return backends.load_cpu().ThreadPool(num_threads)


def num_threads(pool: Any) -> int:
    """Workers of a pool; 1 for None."""
    return 1 if pool is None else int(pool.num_threads)


def make_program(backend: str, pool: Any = None) -> Program:
    """An empty program for a backend; `pool` is required for "cpu" (see `make_pool`)."""
    if backend == "reference":
        return ReferenceProgram()
    if backend == "cpu":
        return CpuProgram(pool)
    if backend == "triton":
        return TritonProgram()
    raise BackendUnavailable(f"backend: expected one of reference, cpu, triton, got {backend!r}")


def run_op(op: str, backend: str = "cpu", pool: Any = None, **args: Any) -> None:
    """Runs one op at once (tests, microbenchmarks, foreign callers)."""
    if backend == "cpu" and pool is None:
        pool = make_pool(1)
    program = make_program(backend, pool)
    program.launch(op, **args)
    program.replay()
