"""The CUDA library built for the CPU's threads, once in a test run."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path

import pytest

from sdengine.kernels.cuda_library import CudaLibrary
from tests.model.checkpoints import scratch_dir

from .test_sanitizers import COMPILER, CSRC, HERE

FLAGS = [
    f"-I{HERE / 'cuda_on_threads'}",
    "-ffp-contract=off",
    "-Wno-unknown-pragmas",
    *("-x", "c++"),
]
KERNELS = HERE / "cuda_kernels.cu"
# Small batches and those that do not fit: the library and the race check see both.
SMALL_SHARED = ["-DSDENGINE_MAX_POOLED_KEYS=16", "-DSDENGINE_MAX_SHARED_NGRAM_WORDS=200"]
# Teams of more than two blocks, which a GPU has for 6000 tokens and more.
LARGE_TEAMS = "-DSDENGINE_MIN_TOKENS_PER_BLOCK=512"


@functools.cache
def threads_library() -> CudaLibrary:
    """Compiles and loads it; skips the test where there is no compiler."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    target = Path(tempfile.mkdtemp(dir=scratch_dir())) / "libsdengine_cuda.so"
    includes = [f"-I{CSRC}", f"-I{CSRC / 'include'}"]
    command = [COMPILER, "-std=c++17", "-O1", "-fPIC", "-shared", "-pthread", *includes, *FLAGS]
    command += [*SMALL_SHARED, LARGE_TEAMS]
    built = subprocess.run(
        [*command, str(KERNELS), "-o", str(target)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return CudaLibrary(target, device_type="cpu")
