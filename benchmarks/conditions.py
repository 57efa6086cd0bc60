"""What figures depend on: machine, commit, versions, limits."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from sdengine import __version__
from sdengine.cli.info import isa_text, processor
from sdengine.core.env import choose_num_threads, read_environment

__all__ = [
    "as_lines",
    "describe_machine",
    "is_gpu",
    "machine_limits",
    "where",
]

ROOT = Path(__file__).resolve().parents[1]


def describe_machine(
    command: str, num_threads: int | None, with_limits: bool, device: str = "cpu"
) -> dict[str, object]:
    """Conditions that every benchmark states, in the order of a report.

    Args:
        command: what was typed, without its arguments.
        num_threads: that the engine was given; None for as many as it chooses itself.
        with_limits: measure the machine's limits now.
        device: that the engine was given, "auto" or "cpu" for the CPU.
    """
    import torch

    threads = choose_num_threads(num_threads, read_environment())
    found: dict[str, object] = {
        "command": shlex.join([*command.split(), *sys.argv[1:]]),
        "commit": commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processor": processor()[0],
        **(describe_gpu(device) if is_gpu(device) else describe_cpu(threads)),
        "versions": f"sdengine {__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
    }
    if with_limits:
        limits = gpu_limits(device) if is_gpu(device) else machine_limits(threads)
        found["machine limits"] = limits
    return found


def is_gpu(device: str) -> bool:
    """Whether an engine with that setting runs on a GPU."""
    return device.partition(":")[0] == "cuda"


def describe_cpu(num_threads: int) -> dict[str, object]:
    """What of the processor an engine uses."""
    from sdengine.kernels.cpu_library import load_cpu

    return {"instruction set": isa_text(load_cpu()), "threads": num_threads}


def describe_gpu(device: str) -> dict[str, object]:
    """The GPU, its driver and its compiler."""
    import torch

    from benchmarks.gpu.machine import clocks, versions

    found: dict[str, object] = {"device": torch.cuda.get_device_name(device)}
    found["driver"] = clocks().get("driver_version", "unknown")
    found["triton"] = versions().get("triton", "none")
    return found


def where(conditions: Mapping[str, object]) -> str:
    """The machine of some conditions in a few words: a GPU, or a processor and what it used."""
    if "device" in conditions:
        return f"{conditions['device']}, driver {conditions['driver']}"
    names = [conditions["processor"], conditions["instruction set"]]
    return ", ".join([*map(str, names), f"{conditions['threads']} threads"])


def as_lines(conditions: Mapping[str, object]) -> str:
    """A condition a line."""
    return "\n".join(f"{name}: {value}" for name, value in conditions.items())


def commit() -> str:
    """The clone's commit, and whether sources were changed since."""
    try:
        words = [
            subprocess.run(
                ["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True
            ).stdout.strip()
            for args in (
                ["rev-parse", "--short", "HEAD"],
                ["status", "--porcelain", "--", "sdengine", "kernels", "csrc", "benchmarks/*.py"],
            )
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a git clone"
    return words[0] + (" with changes" if words[1] else "")


def machine_limits(num_threads: int) -> str:
    """Memory bandwidth, arithmetic peaks and how soon threads meet, measured now."""
    from sdengine.kernels.machine_limits import LimitProbe
    from sdengine.kernels.programs.program import make_pool

    limits = LimitProbe(make_pool(num_threads)).limits(3)
    return (
        f"DRAM {limits.dram_gbps:.1f} GB/s, cache {limits.cache_gbps:.1f} GB/s, "
        f"fp32 {limits.fp32_gflops:.0f} GFLOP/s, bf16 {limits.bf16_gflops:.0f} GFLOP/s, "
        f"a barrier {limits.barrier_ns:.0f} ns"
    )


def gpu_limits(device: str) -> str:
    """The same of a GPU."""
    import torch

    from benchmarks.gpu.timing import measure_limits

    with torch.cuda.device(device):
        limits = measure_limits()
    return (
        f"memory {limits.memory_gbps:.0f} GB/s, bf16 {limits.bf16_tflops:.0f} TFLOP/s, "
        f"a launch in a graph {limits.launch_us:.2f} us"
    )
