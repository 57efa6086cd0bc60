"""What an engine takes of memory: of the process, or of a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from benchmarks.conditions import is_gpu


class Meter(Protocol):
    """Peak memory on top of what was taken when the meter was made."""

    @property
    def peak_mb(self) -> float | None:
        """In 10^6 bytes; None where it cannot be measured."""


def memory_meter(device: str) -> Meter:
    """A meter of the memory where an engine with that setting has its weights."""
    return DeviceMemoryMeter(device) if is_gpu(device) else MemoryMeter()


class DeviceMemoryMeter:
    """Peak memory that torch has lent on a GPU since the meter was made."""

    def __init__(self, device: str) -> None:
        import torch

        self._device = device
        torch.cuda.reset_peak_memory_stats(device)
        self._before = torch.cuda.memory_allocated(device)

    @property
    def peak_mb(self) -> float | None:
        """Since the meter was made, in 10^6 bytes."""
        import torch

        return (torch.cuda.max_memory_allocated(self._device) - self._before) / 1e6


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
