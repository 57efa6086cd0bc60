"""Slice build: makes the package importable and compiles its kernels, with no network."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.records import Recorder, Skip, slice_main

ROOT = Path(__file__).resolve().parents[2]
IMPORT = "import sdengine.kernels.registry"
CUDA_CHECK = (
    "from sdengine.kernels import cuda_library as c; r = c.why_unavailable(); print(r or 'usable');"
    "raise SystemExit(r is not None)"
)
LIBRARY = "libsdengine_cuda.so"


def is_built() -> bool:
    """Whether an earlier build is still here: results may have come from another machine."""
    has_library = shutil.which("nvcc") is None or (ROOT / "kernels" / LIBRARY).exists()
    has_extension = any((ROOT / "kernels").glob("_cpu*.so"))
    return has_extension and has_library and succeeds(sys.executable, "-c", IMPORT)


def succeeds(*command: str) -> bool:
    """Whether a command ends well."""
    return subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


def checked(*command: str, **environment: str) -> str:
    """Output of a command that has to end well.

    Raises:
        RuntimeError: it did not; with the end of what it said.
    """
    env = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-500:].strip()}")
    return done.stdout.strip()


def install() -> dict[str, Any]:
    """Links the source tree into this Python, unless it is; from what is installed here alone."""
    if succeeds(sys.executable, "-c", IMPORT):
        return {"package": "importable"}
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet"]
    checked(sys.executable, "-m", "pip", "install", *offline, "-e", ".", SDENGINE_BUILD_CUDA="0")
    checked(sys.executable, "-c", IMPORT)
    return {"package": "installed in place"}


def compile_kernels() -> dict[str, Any]:
    """The CPU extension, and the CUDA library as `make cuda` builds it."""
    if shutil.which("nvcc") is None:
        checked(sys.executable, "setup.py", "-q", "build_ext", "--inplace", SDENGINE_BUILD_CUDA="0")
        raise Skip("no nvcc: the CUDA library was not built, its kernels are not measured")
    start = time.monotonic()
    checked(sys.executable, "setup.py", "-q", "build_ext", "--inplace", SDENGINE_BUILD_CUDA="1")
    seconds = round(time.monotonic() - start, 1)
    said = checked(sys.executable, "-c", CUDA_CHECK)
    size = (ROOT / "kernels" / LIBRARY).stat().st_size
    return {"library": said, "megabytes": round(size / 1e6, 2), "build_seconds": seconds}


def run(recorder: Recorder, _: argparse.Namespace) -> None:
    """Both steps."""
    recorder.run("package", install)
    recorder.run("kernels", compile_kernels)


if __name__ == "__main__":
    sys.exit(slice_main(run))
