"""Runs an op's benchmark cases: correctness first, then time, with the machine's limits measured in
between.

Knows nothing of any op beyond its `Op`. A sample is one native launch, barrier included, after a
few launches that wake the workers; outputs are put back to their first state before each sample, so
that ops that grow a tree or rotate in place do the same work every time. With a cold cache, other
memory is read through before every sample. A baseline takes turns with the kernel, and both
rest in between, so that neither finds a core taken by the other's idle threads. A file
`benchmarks/kernels/<op>.py` may offer `specified_outputs(args)`: the tensors to compare, where the
contract leaves some open.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from statistics import median, quantiles
from time import perf_counter, sleep
from typing import Any

import torch

from benchmarks.kernels.baselines import baseline
from sdengine.kernels.machine_limits import LimitProbe
from sdengine.kernels.packed_weight import PackedWeight, pack_weight
from sdengine.kernels.programs.program import Program, make_program
from sdengine.kernels.spec import Case, Op

FLOAT_TOLERANCE = (
    5e-3  # RMS, relative: bfloat16 activations on AVX-512 make 2e-3, a wrong index makes 1
)
UNCOMPARABLE_OPS = frozenset({"timestamp"})  # reads a clock
CACHE_BYTES = (
    16 << 20
)  # traffic up to here is held against the cache's bandwidth, beyond against DRAM's
WARM_UP_LAUNCHES = 20
TURN_S = 0.03
REST_S = 0.03
"""After a turn: torch's threads spin for some 15 ms, and with a core fewer our pool runs on fewer
workers (twice the time was measured for what followed a baseline at once)."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of one contestant: median, tenth and ninetieth percentile."""

    median_us: float
    p10_us: float
    p90_us: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """One case of one op, with the limits of the same minutes.

    Args:
        op, backend, label: What ran.
        cache: "warm": the inputs were just used; "cold": other memory was.
        kernel: Ours.
        baseline: What was timed beside it; None when nothing was.
        baseline_name: "torch" or "reference"; empty when nothing was.
        gbps, gflops: Rates of the kernel's median; 0 where the case declares no traffic or
            operations.
        read_gbps, peak_gflops: Medians of the limits while this case was measured.
        percent_of_limit: Share of the time that the tighter limit would allow; 0 where the case
            declares neither.
        command: Measures this case again.
    """

    op: str
    backend: str
    label: str
    cache: str
    kernel: Timing
    baseline: Timing | None
    baseline_name: str
    gbps: float
    gflops: float
    read_gbps: float
    peak_gflops: float
    percent_of_limit: float
    command: str = ""


class WrongResult(Exception):
    """A kernel disagrees with its reference; it must not be timed."""


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors of an argument, dataclasses and sequences included, in a fixed order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def own_benchmark(op: Op, name: str) -> Callable[..., Any] | None:
    """Function `name` of benchmarks/kernels/<op>.py; None where there is none."""
    module = f"benchmarks.kernels.{op.name}"
    return getattr(import_module(module), name, None) if find_spec(module) else None


def output_tensors(op: Op, args: dict[str, Any]) -> list[torch.Tensor]:
    return [t for name in op.outputs for t in tensors_in(args.get(name))]


def copy_of(args: dict[str, Any]) -> dict[str, Any]:
    """A deep copy, except of packed weights, which no op writes."""
    return {k: v if isinstance(v, PackedWeight) else copy.deepcopy(v) for k, v in args.items()}


def check_case(op: Op, case: Case, pool: Any) -> None:
    """Runs kernel and reference on copies of the arguments.

    Raises:
        WrongResult: An integer differs, or floats differ by more than FLOAT_TOLERANCE (RMS).
    """
    if op.name in UNCOMPARABLE_OPS:
        return
    got, expected = copy_of(case.args), copy_of(case.args)
    program = make_program("cpu", pool)
    program.launch(op.name, **got)
    program.replay()
    op.reference(**expected)
    own = own_benchmark(op, "specified_outputs")
    outputs = own if own is not None else partial(output_tensors, op)
    for ours, wanted in zip(outputs(got), outputs(expected)):
        if not wanted.is_floating_point():
            if not torch.equal(ours, wanted):
                raise WrongResult(
                    f"{op.name} [{case.label}]: {int((ours != wanted).sum())} integers differ"
                )
            continue
        ours, wanted = ours.double().nan_to_num(0), wanted.double().nan_to_num(0)
        error = (ours - wanted).square().mean().sqrt().item()
        allowed = FLOAT_TOLERANCE * wanted.square().mean().sqrt().item()
        if not error <= allowed:
            raise WrongResult(
                f"{op.name} [{case.label}]: RMS error {error:.3g}, allowed {allowed:.3g}"
            )


def warm_up(program: Program) -> None:
    """Launches that wake the workers and keep them busy for some tens of microseconds."""
    weight = pack_weight(torch.ones(256, 256))
    x, out = torch.ones(16, 256), torch.empty(16, 256)
    for _ in range(WARM_UP_LAUNCHES):
        program.launch(
            "linear", x=x, weight=weight, out=out, num_rows=torch.tensor([16], dtype=torch.int32)
        )


def alternate(
    contestants: list[Callable[[], float]], seconds: float, least: int = 7
) -> list[list[float]]:
    """Samples of the contestants, in turns and with rests for about `seconds`, at least `least` of
    each."""
    samples: list[list[float]] = [[] for _ in contestants]
    end = perf_counter() + seconds
    while perf_counter() < end or min(map(len, samples)) < least:
        for sample, run in zip(samples, contestants):
            sample += turn(run)
            if len(contestants) > 1:
                sleep(REST_S)
    return samples


def turn(run: Callable[[], float]) -> list[float]:
    """Samples of one contestant for about TURN_S; the first is dropped if it is not the only
    one."""
    end = perf_counter() + TURN_S
    samples = [run()]
    while perf_counter() < end:
        samples.append(run())
    return samples[1:] or samples


def spread(samples: list[float]) -> tuple[float, float, float]:
    """Median, tenth and ninetieth percentile."""
    deciles = quantiles(samples, n=10, method="inclusive")
    return median(samples), deciles[0], deciles[-1]


def measure_case(
    op: Op,
    case: Case,
    pool: Any,
    probe: LimitProbe,
    seconds: float,
    cache: str = "warm",
    baseline_name: str = "torch",
) -> Measurement:
    """Times one case; check it first (`check_case`).

    Args:
        cache: "warm" or "cold".
        baseline_name: one of BASELINES; nothing is timed beside where there is none for the op.
    """
    args = case.args
    written = output_tensors(op, args)
    initial = [t.clone() for t in written]
    program = make_program("cpu", pool)
    warm_up(program)
    program.launch(op.name, **args)

    def restore() -> None:
        for tensor, value in zip(written, initial):
            tensor.copy_(value)
        if cache == "cold":
            probe.flush_caches()

    threads = torch.get_num_threads()

    def kernel() -> float:
        torch.set_num_threads(1)  # or the copies below leave spinning threads behind
        restore()
        return program.replay_timed()[-1][1] / 1e3

    beside = baseline(baseline_name, op, args)

    def other() -> float:
        torch.set_num_threads(threads)
        restore()
        start = perf_counter()
        assert beside is not None
        beside()
        return (perf_counter() - start) * 1e6

    in_cache = case.bytes_moved <= CACHE_BYTES and cache == "warm"
    dtype = getattr(args.get("weight"), "dtype", torch.float32)
    contestants = [kernel] if beside is None else [kernel, other]
    reads, peaks, samples = [], [], [[] for _ in contestants]
    for _ in range(3):
        reads += probe.cache_gbps() if in_cache else probe.dram_gbps()
        peaks += probe.gflops(dtype)
        for all_samples, new in zip(samples, alternate(contestants, seconds / 3)):
            all_samples += new
    torch.set_num_threads(threads)
    timings = [Timing(*spread(s)) for s in samples]
    limits = median(reads), median(peaks)
    return rate(op, "cpu", case, cache, timings, "" if beside is None else baseline_name, limits)


def rate(
    op: Op,
    backend: str,
    case: Case,
    cache: str,
    timings: list[Timing],
    baseline_name: str,
    limits: tuple[float, float],
) -> Measurement:
    """Puts a median beside the limits (GB/s, GFLOP/s); 0: not held against that one."""
    took = timings[0].median_us * 1e-6
    read_gbps, peak_gflops = limits
    floor = max(
        case.bytes_moved / (read_gbps * 1e9) if read_gbps else 0.0,
        case.operations / (peak_gflops * 1e9) if peak_gflops else 0.0,
    )
    return Measurement(
        op=op.name,
        backend=backend,
        label=case.label,
        cache=cache,
        kernel=timings[0],
        baseline=timings[1] if len(timings) > 1 else None,
        baseline_name=baseline_name,
        gbps=case.bytes_moved / took / 1e9,
        gflops=case.operations / took / 1e9,
        read_gbps=read_gbps,
        peak_gflops=peak_gflops,
        percent_of_limit=100 * floor / took,
    )
