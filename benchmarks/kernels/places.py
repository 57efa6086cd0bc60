"""Where cases run: on the CPU's pool, or on a GPU in CUDA graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from benchmarks.kernels.baselines import baseline
from benchmarks.kernels.harness import Measurement, Timing, check_case, measure_case, rate
from sdengine.kernels.backends import why_unavailable
from sdengine.kernels.machine_limits import LimitProbe
from sdengine.kernels.programs.program import make_pool
from sdengine.kernels.spec import Case, Op

if TYPE_CHECKING:
    from benchmarks.gpu.timing import Limits, Stopwatch


class Place(Protocol):
    """Checks and times the kernels of ops."""

    def left_out(self) -> list[str]:
        """Why some kernels cannot run here."""

    def backends(self, op: Op) -> tuple[str, ...]:
        """Backends of the op that have a kernel here and can run."""

    def check(self, op: Op, backend: str, case: Case) -> None:
        """Holds a kernel against the reference.

        Raises:
            WrongResult: they disagree.
        """

    def measure(self, op: Op, backend: str, case: Case, cache: str) -> Measurement | None:
        """Times a case that was checked, "warm" or "cold"; None where it has no such time."""


class OnCpu:
    """A pool of threads.

    Args:
        num_threads: of the pool.
        seconds: to measure a case.
        baseline_name: what is timed beside it.
    """

    def __init__(self, num_threads: int, seconds: float, baseline_name: str) -> None:
        self._pool = make_pool(num_threads)
        self._probe = LimitProbe(self._pool)
        self._seconds = seconds
        self._baseline_name = baseline_name

    def left_out(self) -> list[str]:
        return []

    def backends(self, op: Op) -> tuple[str, ...]:
        return ("cpu",)

    def check(self, op: Op, backend: str, case: Case) -> None:
        check_case(op, case, self._pool)

    def measure(self, op: Op, backend: str, case: Case, cache: str) -> Measurement:
        return measure_case(
            op, case, self._pool, self._probe, self._seconds, cache, self._baseline_name
        )


class OnDevice:
    """A GPU: single launches after the L2 cache was swept (cold), or many launches in one graph
    (warm), which ops that change what they read do not have.

    Args:
        device: where the tensors go.
        baseline_name: what is timed beside a kernel.
        watch: times launches.
        limits: what cold ones are held against.
    """

    def __init__(self, device: str, baseline_name: str, watch: Stopwatch, limits: Limits) -> None:
        self._device = device
        self._baseline_name = baseline_name
        self._watch = watch
        self._limits = limits

    @classmethod
    def open(cls, device: str, baseline_name: str) -> OnDevice:
        """The device, its limits measured now."""
        import torch

        from benchmarks.gpu.timing import Stopwatch, measure_limits

        torch.cuda.set_device(device if ":" in device else 0)
        return cls(device, baseline_name, Stopwatch(), measure_limits())

    def left_out(self) -> list[str]:
        return list(filter(None, map(why_unavailable, ("triton", "cuda"))))

    def backends(self, op: Op) -> tuple[str, ...]:
        return tuple(name for name in op.backends if why_unavailable(name) is None)

    def check(self, op: Op, backend: str, case: Case) -> None:
        from benchmarks.gpu.cases import check

        check(op.name, backend, case.args, self._device)

    def measure(self, op: Op, backend: str, case: Case, cache: str) -> Measurement | None:
        from benchmarks.gpu.cases import device_args, is_repeatable, time_launch

        if cache == "warm" and not is_repeatable(op.name):
            return None
        args = device_args(op.name, case.args, self._device)
        launch = op.backends[backend]
        beside = baseline(self._baseline_name, op, args)
        runs = [lambda: launch(**args), *([] if beside is None else [beside])]
        timings = []
        for run in runs:
            found = time_launch(op.name, args, run, self._watch)
            if cache == "cold":
                timings.append(Timing(found.cold_us, found.p10_us, found.p90_us))
            elif found.hot is not None:
                timings.append(Timing(*found.hot))
        if not timings:
            return None
        limits = (0.0, 1e3 * self._limits.bf16_tflops)
        if cache == "cold":
            limits = (self._limits.memory_gbps, limits[1])
        name = self._baseline_name if len(timings) > 1 else ""
        return rate(op, backend, case, cache, timings, name, limits)
