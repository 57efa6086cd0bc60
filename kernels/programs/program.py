"""Programs: a fixed list of op launches on static buffers, described once and replayed many times.

Python describes an iteration by calling `launch`; `replay` runs it without Python in between. The
reference program runs the same description op by op in plain torch: the oracle for whole
iterations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, Protocol

import torch

from sdengine.errors import BackendUnavailable, ConfigError
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.programs.device_program import DeviceProgram, StagedProgram
from sdengine.kernels.programs.graph_branches import GraphBranches
from sdengine.kernels.programs.limits import NO_LIMITS, Limits
from sdengine.kernels.programs.memory import HostMemory, Memory, StagedMemory
from sdengine.kernels.programs.replay_copies import MAX_REPLAYS, ReplayCopies
from sdengine.kernels.registry import get_op
from sdengine.kernels.spec import Op, expect, expect_one_device, expect_tensor, tensors_of


class Program(Protocol):
    """A recorded list of launches.

    Args:
        limits: what the one who replays promises; only launches of a device depend on them.
    """

    limits: Limits

    def launch(self, op: str, **args: Any) -> None:
        """Adds one launch; arguments are checked now, tensors are read and written at replay."""

    def only_if(self, count: torch.Tensor) -> AbstractContextManager[None]:
        """Launches added inside the block run only if `count` > 0 when the replay gets there.

        Skipping saves time and nothing else: at a count of 0 the launches must find nothing to do,
        because a device that cannot branch runs them all the same.

        Args:
            count: [1] int32. Neither the first launch of the block nor the one after it may write
                it: a CPU's workers read it between launches, each when it gets there. Blocks may be
                nested.

        Raises:
            ValueError: from the `launch` that would write it, on a CPU.
        """

    def stop_at_zero(self, count: torch.Tensor) -> None:
        """Replays in a row end with the first that leaves `count` at 0: it found nothing to do, nor
        would the next.

        Args:
            count: [1] int32, which the program's first launch does not write.
        """

    def replay(self) -> None:
        """Runs all launches in order."""

    def start(self, num_replays: int = 1) -> int:
        """Starts up to so many replays, MAX_REPLAYS at most, one after the other; only a device
        does not wait here, and it takes one at a time. Returns how many, whose results
        `Memory.left_behind` shows after a call of `Memory.land`."""

    def replay_timed(self) -> list[tuple[str, int]]:
        """Runs all launches; returns (op name, nanoseconds) per launch, 0 for one not run."""


class ReferenceProgram:
    """Runs each launch through the op's torch reference."""

    limits = NO_LIMITS

    def __init__(self, copies: ReplayCopies | None = None) -> None:
        self._copies = copies or ReplayCopies()
        self._steps: list[_Launch | _Block] = []
        self._stop_count: torch.Tensor | None = None

    def launch(self, op: str, **args: Any) -> None:
        get_op(op).check(**args)
        self._steps.append(_Launch(op, args))

    @contextmanager
    def only_if(self, count: torch.Tensor) -> Iterator[None]:
        expect_tensor("only_if", "count", count, torch.int32, (1,))
        block = _Block(count)
        self._steps.append(block)
        try:
            yield
        finally:
            block.end = len(self._steps)

    def stop_at_zero(self, count: torch.Tensor) -> None:
        expect_tensor("stop_at_zero", "count", count, torch.int32, (1,))
        self._stop_count = count

    def replay(self) -> None:
        self.replay_timed()

    def start(self, num_replays: int = 1) -> int:
        for replay in range(min(num_replays, MAX_REPLAYS)):
            self.replay()
            if num_replays > 1:
                self._copies.copy(replay)
            if self._stop_count is not None and int(self._stop_count) <= 0:
                break
        return replay + 1

    def replay_timed(self) -> list[tuple[str, int]]:
        timings = [(step.op, 0) for step in self._steps if isinstance(step, _Launch)]
        index = launch = 0
        while index < len(self._steps):
            step = self._steps[index]
            index += 1
            if isinstance(step, _Launch):
                start = perf_counter_ns()
                get_op(step.op).reference(**step.args)
                timings[launch] = (step.op, perf_counter_ns() - start)
                launch += 1
            elif int(step.count) <= 0:
                launch += sum(isinstance(s, _Launch) for s in self._steps[index : step.end])
                index = step.end
        return timings


@dataclass(slots=True)
class _Launch:
    op: str
    args: dict[str, Any]


@dataclass(slots=True)
class _Block:
    """The launches from here to `end` depend on `count`."""

    count: torch.Tensor
    end: int = 0


class CpuProgram:
    """A native launch list; keeps the tensors it points into alive."""

    limits = NO_LIMITS

    def __init__(self, pool: Any, copies: ReplayCopies | None = None) -> None:
        self._native = load_cpu().Program()
        self._pool = pool
        self._copies = copies or ReplayCopies()
        self._kept: list[object] = []
        self._names: list[str] = []
        self._counts_read: list[torch.Tensor] = []  # between the last launch and the next

    def launch(self, op: str, **args: Any) -> None:
        spec = get_op(op)
        spec.check(**args)
        if spec.cpu is None:
            raise BackendUnavailable(f"op '{op}' has no cpu kernel; it exists for: reference")
        expect_one_device(op, args, "cpu")
        for count in self._counts_read:
            _expect_unwritten(spec, args, count)
        self._counts_read.clear()
        before = len(self._native)
        spec.cpu(self._native, **args)
        self._names += [op] * (len(self._native) - before)
        self._kept.append(args)

    @contextmanager
    def only_if(self, count: torch.Tensor) -> Iterator[None]:
        expect_tensor("only_if", "count", count, torch.int32, (1,))
        self._native.begin_if(count.data_ptr())
        self._kept.append(count)
        self._counts_read.append(count)
        try:
            yield
        finally:
            self._native.end_if()
            self._counts_read.append(count)

    def stop_at_zero(self, count: torch.Tensor) -> None:
        expect_tensor("stop_at_zero", "count", count, torch.int32, (1,))
        self._native.stop_at_zero(count.data_ptr())
        self._kept.append(count)

    def replay(self) -> None:
        self._native.replay(self._pool)

    def start(self, num_replays: int = 1) -> int:
        if num_replays == 1:
            self._native.replay(self._pool)
            return 1
        num_done: int = self._native.replay_in_a_row(
            self._pool, min(num_replays, MAX_REPLAYS), self._copies.native
        )
        return num_done

    def replay_timed(self) -> list[tuple[str, int]]:
        return list(zip(self._names, self._native.replay_timed(self._pool)))


def _expect_unwritten(spec: Op, args: dict[str, Any], count: torch.Tensor) -> None:
    """Checks that a launch does not write a count that workers may still be reading."""
    outputs = {name: args.get(name) for name in spec.outputs}
    for name, tensor in tensors_of(outputs):
        is_within = 0 <= count.data_ptr() - tensor.data_ptr() < tensor.nbytes
        expect(
            spec.name,
            not is_within,
            f"{name}: expected it not to hold the count of an only_if "
            "block that begins or ends right before this launch",
        )


def make_pool(num_threads: int) -> Any:
    """A native thread pool with `num_threads` workers, the caller being one of them.

    Raises:
        ConfigError: the system gives no more threads, or a pool cannot count so many.
    """
    native = load_cpu()
    try:
        return native.ThreadPool(num_threads)
    except (RuntimeError, ValueError) as error:
        raise ConfigError.from_parts(
            f"{num_threads} CPU threads", str(error), "lower num_threads or raise the user's limit"
        ) from None


def num_threads(pool: Any) -> int:
    """Workers of a pool; 1 for None."""
    return 1 if pool is None else int(pool.num_threads)


def make_program(
    backend: str,
    pool: Any = None,
    memory: Memory | None = None,
    limits: Limits = NO_LIMITS,
    branches: GraphBranches | None = None,
) -> Program:
    """An empty program for a backend.

    Args:
        backend: "reference", "cpu", "triton" or "cuda".
        pool: native thread pool, required for "cpu" (see `make_pool`).
        memory: an engine's; with a device's, a replay exchanges with it what the host shares, and
            ops that the backend lacks run as the device's other one.
        limits: what replays keep within; only a device's programs depend on it.
        branches: lets a device skip what `only_if` encloses; the other programs always do.

    Raises:
        BackendUnavailable: no such backend, or it cannot run here.
    """
    if backend in ("reference", "cpu"):
        copies = memory.copies if isinstance(memory, HostMemory) else None
        return ReferenceProgram(copies) if backend == "reference" else CpuProgram(pool, copies)
    if backend in ("triton", "cuda"):
        program: Program
        if isinstance(memory, StagedMemory):
            program = StagedProgram(backend, memory, limits, branches)
        else:
            program = DeviceProgram(backend, limits, branches)
        return program
    raise BackendUnavailable(
        f"backend: expected one of reference, cpu, triton, cuda, got {backend!r}"
    )


def run_op(op: str, backend: str = "cpu", pool: Any = None, **args: Any) -> None:
    """Runs one op at once (tests, microbenchmarks, foreign callers)."""
    if backend == "cpu" and pool is None:
        pool = make_pool(1)
    program = make_program(backend, pool)
    program.launch(op, **args)
    program.replay()
