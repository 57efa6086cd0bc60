"""Programs of a device: launches are enqueued without waiting, on a GPU as one CUDA graph."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from threading import Lock
from time import perf_counter_ns
from typing import Any

import torch

from sdengine.errors import BackendUnavailable
from sdengine.kernels import backends, cuda_library
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.programs.graph_branches import GraphBranches
from sdengine.kernels.programs.launch_chain import chained
from sdengine.kernels.programs.limits import NO_LIMITS, Limits
from sdengine.kernels.programs.memory import StagedMemory
from sdengine.kernels.registry import get_op
from sdengine.kernels.spec import Op, expect_tensor

PREFERENCES = {"triton": ("triton", "cuda"), "cuda": ("cuda", "triton")}
"""Which kernel of an op an engine's program runs: neither GPU backend has every op alone."""

Run = Callable[[], None]

_CAPTURING = Lock()


class DeviceProgram:
    """Enqueues one backend's kernel of each launch.

    Args:
        backend: "triton" or "cuda".
        limits: what replays keep within; see `Program`.
        branches: lets a graph skip blocks; None launches them in any case.

    Raises:
        BackendUnavailable: its kernels cannot run here.
    """

    def __init__(
        self,
        backend: str,
        limits: Limits = NO_LIMITS,
        branches: GraphBranches | None = None,
    ) -> None:
        reason = backends.why_unavailable(backend)
        if reason is not None:
            raise BackendUnavailable(reason)
        self._backend = backend
        self.limits = limits
        self._branches = branches
        self._launches: list[tuple[str | None, Run]] = []  # no op: a branch begins or ends
        self._stop_count: torch.Tensor | None = None

    def launch(self, op: str, **args: Any) -> None:
        spec = get_op(op)
        spec.check(**args)
        kernel = self._kernel(spec)
        self._launches.append((op, lambda: kernel(**args)))

    @contextmanager
    def only_if(self, count: torch.Tensor) -> Iterator[None]:
        """A branch of the graph. Without branches the launches of the block always run, because
        reading the count would stop the queue: each of their kernels reads it, or what follows from
        it, and returns."""
        expect_tensor("only_if", "count", count, torch.int32, (1,))
        if self._branches is None:
            yield
            return
        self._launches.append((None, partial(self._branches.begin, count)))
        try:
            yield
        finally:
            self._launches.append((None, self._branches.end))

    def replay(self) -> None:
        with self._session(), chained():
            for _, run in self._launches:
                run()

    def stop_at_zero(self, count: torch.Tensor) -> None:
        expect_tensor("stop_at_zero", "count", count, torch.int32, (1,))
        self._stop_count = count

    def start(self, num_replays: int = 1) -> int:
        for num_done in range(1, num_replays + 1):
            self.replay()
            if self._stop_count is not None and int(self._stop_count) <= 0:
                return num_done
        return num_replays

    def replay_timed(self) -> list[tuple[str, int]]:
        """Host time of each launch, the device drained after it."""
        timings = []
        with self._session():
            for op, run in self._launches:
                start = perf_counter_ns()
                run()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if op is not None:
                    timings.append((op, perf_counter_ns() - start))
        return timings

    def _session(self) -> AbstractContextManager[None]:
        return nullcontext() if self._branches is None else self._branches.session()

    def _kernel(self, spec: Op) -> Callable[..., None]:
        if self._backend not in spec.backends:
            others = ", ".join(("reference", "cpu", *spec.backends))
            raise BackendUnavailable(
                f"op '{spec.name}' has no {self._backend} kernel; it exists for: {others}"
            )
        return spec.backends[self._backend]


class StagedProgram(DeviceProgram):
    """An engine's program: inputs in, launches, results out. `start` enqueues all of it and waits
    for nothing; `memory.land` waits for the results.

    On a GPU the launches are captured in a CUDA graph at the first replay. Everything is enqueued
    once before that with the inputs cleared, which compiles and loads the kernels and, since there
    is no sequence, changes nothing.

    Args:
        backend: of the ops that exist for both; the others run as what they exist for.
        memory: the engine's.
        limits: what replays keep within; see `Program`.
        branches: as for `DeviceProgram`; for a GPU.

    Raises:
        BackendUnavailable: the kernels cannot run on that memory.
    """

    def __init__(
        self,
        backend: str,
        memory: StagedMemory,
        limits: Limits = NO_LIMITS,
        branches: GraphBranches | None = None,
    ) -> None:
        super().__init__(backend, limits, branches)
        self._memory = memory
        self._usable = usable_kernels(backend, memory.device)
        self._enqueue: Run | None = None

    def prepare(self) -> None:
        """Loads the kernels and captures the graph, which the first replay would do."""
        if self._enqueue is None:
            with _device_of(self._memory):
                self._enqueue = self._captured()

    def start(self, num_replays: int = 1) -> int:
        assert num_replays == 1, "what they left behind would be one replay's"
        self.prepare()
        assert self._enqueue is not None
        with _device_of(self._memory):
            self._memory.push()
            self._enqueue()
            self._memory.pull()
        return 1

    def replay(self) -> None:
        assert self._memory.num_under_way == 0, "what lands would be another replay's"
        self.start()
        self._memory.land()

    def replay_timed(self) -> list[tuple[str, int]]:
        with _device_of(self._memory):
            self._memory.push()
            timings = super().replay_timed()
            self._memory.pull()
        self._memory.land()
        return timings

    def _captured(self) -> Run:
        if not is_captured(self._memory.device):
            return super().replay
        self._memory.clear_inputs()
        super().replay()
        return capture_graph(super().replay)

    def _kernel(self, spec: Op) -> Callable[..., None]:
        for backend in self._usable:
            if backend == "cpu" and spec.cpu is not None:
                return lambda **args: run_on_host(spec, **args)
            if backend in spec.backends:
                return spec.backends[backend]
        raise BackendUnavailable(
            f"op '{spec.name}' has no kernel for {', '.join(self._usable)} on {self._memory.device}"
        )


def usable_kernels(backend: str, device: torch.device) -> tuple[str, ...]:
    """Backends whose kernels an engine's program on a device may run, the preferred one first.

    A GPU needs both of its backends. In Triton's interpreter, whose tensors lie in host memory, the
    ops without a Triton kernel run as the CPU's, which are made of the same headers as CUDA's.

    Raises:
        BackendUnavailable: one of them cannot run on that device.
    """
    wanted = PREFERENCES[backend]
    if backend == "triton" and device.type == "cpu" and not cuda_library.serves(device):
        wanted = ("triton", "cpu")
    for name in wanted:
        reason = backends.why_unavailable(name)
        if reason is not None:
            together = f"an engine on {backend!r} needs {' and '.join(wanted)}"
            raise BackendUnavailable(f"{reason}; {together}")
    return wanted


def is_captured(device: torch.device) -> bool:
    """Whether launches on a device become a CUDA graph."""
    return device.type == "cuda"


def capture_graph(run: Run) -> Run:
    """Captures what `run` enqueues, every kernel of which is loaded; returns the graph's replay.

    Engines of other threads go on meanwhile, but capture after one another: a capture waits for the
    whole device first, which no other capture survives. They capture on one stream, which is used
    for nothing else: what another thread launches on a stream under capture is recorded instead of
    run. The garbage collector rests: to free another engine's graph or page-locked
    memory halfway through would end the capture.

    torch lends its default generator of the device to a capture: what draws random numbers from it
    in another thread meanwhile raises there.

    The current stream is the same afterwards, also where the capture fails.
    """
    with _CAPTURING, _uncollected(), _stream_kept():
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        stream = _capture_stream(torch.cuda.current_device())
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            run()
    replay: Run = graph.replay
    return replay


@cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """The stream of all captures on a device: ours alone, or one of torch's where the library is
    missing, without which there are no engines on a device."""
    if cuda_library.why_unavailable() is not None:
        return torch.cuda.Stream(device)
    return torch.cuda.ExternalStream(cuda_library.load_cuda().make_stream(), device)


@contextmanager
def _stream_kept() -> Iterator[None]:
    """The current stream is the same afterwards: torch stays on the stream of a capture that it
    cannot end, or begin."""
    stream = torch.cuda.current_stream()
    try:
        yield
    finally:
        torch.cuda.set_stream(stream)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Nothing is collected inside."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _device_of(memory: StagedMemory) -> AbstractContextManager[Any]:
    is_cuda = memory.device.type == "cuda"
    return torch.cuda.device(memory.device) if is_cuda else nullcontext()


def run_on_host(spec: Op, **args: Any) -> None:
    """Runs an op's CPU kernel at once, on tensors in host memory."""
    native = load_cpu()
    launches = native.Program()
    assert spec.cpu is not None
    spec.cpu(launches, **args)
    launches.replay(native.ThreadPool(1))
