"""What there is to measure on, and what is missing: `python -m benchmarks.gpu.machine` prints JSON.

Nothing of sdengine is imported: this also runs before anything is built.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
QUERY = (
    "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,"
    "power.draw,power.limit"
)
PACKAGES = ("torch", "triton", "numpy", "flashinfer-python", "flash-attn")
LEAST_TRITON = (3, 6)
LEAST_TORCH = (2, 11)


def output_of(*command: str) -> str | None:
    """Standard output of a command; None where it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Installed versions of what matters; absent packages are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    compiler = output_of("nvcc", "--version")
    if compiler:
        found["nvcc"] = compiler.splitlines()[-1]
    return found


def clocks() -> dict[str, str]:
    """Driver, clocks, temperature and power as nvidia-smi says now; empty without it."""
    said = output_of("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", "--id=0")
    return dict(zip(QUERY.split(","), said.split(", "))) if said else {}


def commit() -> str | None:
    """Of the working tree, marked where it was changed since; None outside a checkout."""
    name = output_of("git", "rev-parse", "HEAD")
    is_changed = bool(output_of("git", "status", "--porcelain", "--untracked-files=no"))
    return f"{name}+changes" if name and is_changed else name


def release(version: str) -> tuple[int, ...]:
    """(3, 6) of 3.6.0+anything."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())


def what_is_missing() -> list[str]:
    """Everything without which no slice can run, as short phrases."""
    found = versions()
    missing = []
    for name, least in (("torch", LEAST_TORCH), ("triton", LEAST_TRITON)):
        wanted = ".".join(map(str, least))
        if name not in found:
            missing.append(f"{name} >= {wanted}")
        elif release(found[name]) < least:
            missing.append(f"{name} >= {wanted} (found {found[name]})")
    if shutil.which("nvidia-smi") is None:
        missing.append("an NVIDIA driver (no nvidia-smi)")
    if "torch" in found:
        missing += what_torch_misses()
    return missing


def what_torch_misses() -> list[str]:
    """Of a device that torch can use."""
    import torch

    if torch.version.cuda is None:
        return [f"torch with CUDA (found {torch.__version__})"]
    if not torch.cuda.is_available():
        return ["a CUDA device that torch can use"]
    major, minor = torch.cuda.get_device_capability()
    return [] if major >= 8 else [f"compute capability 8.0 or newer (found {major}.{minor})"]


def facts() -> dict[str, Any]:
    """The device and everything that a figure depends on."""
    import torch

    device = torch.cuda.get_device_properties(0)
    return {
        "device": device.name,
        "compute_capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_gb": round(device.total_memory / 1e9, 1),
        "l2_mb": round(device.L2_cache_size / 2**20, 1),
        "cuda": torch.version.cuda,
        "versions": versions(),
        "clocks": clocks(),
        "commit": commit(),
    }


def main() -> int:
    missing = what_is_missing()
    print(json.dumps({"missing": missing} if missing else facts()))
    return 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
