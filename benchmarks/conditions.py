"""What figures depend on: machine, commit, versions, limits; and what an engine takes of memory."""

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

__all__ = ["MemoryMeter", "as_lines", "describe_machine", "machine_limits"]

ROOT = Path(__file__).resolve().parents[1]


def describe_machine(command: str, num_threads: int | None, with_limits: bool) -> dict[str, object]:
    """Conditions that every benchmark states, in the order of a report.

    Args:
        command: what was typed, without its arguments.
        num_threads: that the engine was given; None for as many as it chooses itself.
        with_limits: measure the machine's limits now.
    """
    import torch

    from sdengine.kernels.cpu_library import load_cpu

    native = load_cpu()
    threads = choose_num_threads(num_threads, read_environment())
    found: dict[str, object] = {
        "command": shlex.join([*command.split(), *sys.argv[1:]]),
        "commit": commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processor": processor()[0],
        "instruction set": isa_text(native),
        "threads": threads,
        "versions": f"sdengine {__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
    }
    if with_limits:
        found["machine limits"] = machine_limits(threads)
    return found


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
    """Memory bandwidth and arithmetic peaks, measured now."""
    from sdengine.kernels.machine_limits import LimitProbe
    from sdengine.kernels.programs.program import make_pool

    limits = LimitProbe(make_pool(num_threads)).limits(3)
    return (
        f"DRAM {limits.dram_gbps:.1f} GB/s, cache {limits.cache_gbps:.1f} GB/s, "
        f"fp32 {limits.fp32_gflops:.0f} GFLOP/s, bf16 {limits.bf16_gflops:.0f} GFLOP/s"
    )


class MemoryMeter:
    """Peak memory that this process takes on top of what it has when the meter is made.

    Linux counts the peak of resident memory and can be told to start again; elsewhere `peak_mb` is
    None.
    """

    def __init__(self) -> None:
        self._before = None
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak
            self._before = _status_kb("VmRSS")
        except OSError:
            pass

    @property
    def peak_mb(self) -> float | None:
        """Since the meter was made, in 10^6 bytes."""
        if self._before is None:
            return None
        return max(_status_kb("VmHWM") - self._before, 0) * 1024 / 1e6


def _status_kb(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise OSError(f"no {name} in /proc/self/status")
