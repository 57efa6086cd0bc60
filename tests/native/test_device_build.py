"""The device code compiles from the text that the CPU runs, keeps to registers, and never contracts
arithmetic; the library loads where there is no GPU. Needs nvcc, no GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from sdengine.errors import BackendUnavailable
from sdengine.kernels.cuda_library import CudaLibrary
from sdengine.kernels.registry import get_op

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
INCLUDES = [f"-I{CSRC}", f"-I{CSRC / 'include'}"]
NVCC = shutil.which("nvcc")
STRICT = ["-std=c++17", "-Werror", "all-warnings"]
# The walk keeps the law of a node, its residual and the row, which are indexed or called with.
MOST_STACK_BYTES = 1280

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc")


def nvcc(*arguments: str) -> str:
    """Runs nvcc and returns what it says."""
    assert NVCC is not None
    done = subprocess.run([NVCC, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def kernels_ptx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kernels for the oldest architecture; each device's assembler takes it from there."""
    target = tmp_path_factory.mktemp("ptx") / "kernels.ptx"
    source = HERE / "cuda_kernels.cu"
    flags = ["-ptx", "-arch=compute_80", "-fmad=false", *STRICT, *INCLUDES]
    nvcc(*flags, str(source), "-o", str(target))
    return target


def test_every_header_algorithm_compiles_for_the_device(tmp_path: Path) -> None:
    target = tmp_path / "device_build.o"
    nvcc(*STRICT, "-arch=sm_90", *INCLUDES, "-c", str(HERE / "device_build.cu"), "-o", str(target))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_no_kernel_spills(architecture: str, kernels_ptx: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "kernels.cubin")
    said = nvcc(f"-arch={architecture}", "-cubin", "-Xptxas=-v", str(kernels_ptx), "-o", target)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", said)
    assert len(frames) >= len(re.findall(r"\.entry ", kernels_ptx.read_text())) > 10
    for stack, stores, loads in frames:
        assert int(stores) == int(loads) == 0 and int(stack) <= MOST_STACK_BYTES, said[-3000:]
    assert " bytes smem" not in said, "static shared memory is not what a launcher counts with"


def test_arithmetic_is_never_contracted(kernels_ptx: Path) -> None:
    """A fused multiply-add would round otherwise than the CPU, and draw other tokens."""
    text = kernels_ptx.read_text()
    assert "mul.rn.f32" in text or "mul.f32" in text
    assert not re.search(r"fma\.rn\.f(32|64)", text)


def test_the_library_loads_without_a_gpu_and_says_so_when_called(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    target = tmp_path / "libsdengine_cuda.so"
    names = ("gather_pending", "graph_branch", "library")
    sources = [str(CSRC / "cuda" / f"{name}.cu") for name in names]
    flags = ["-shared", "-cudart=static", "-Xcompiler=-fPIC", "-arch=sm_80", *STRICT, *INCLUDES]
    nvcc(*flags, *sources, "-o", str(target))
    cases = get_op("gather_pending").bench_cases
    assert cases is not None
    with pytest.raises(BackendUnavailable, match=r"gather_pending: .*CUDA error \d+"):
        CudaLibrary(target).launch("gather_pending", 0, **next(cases()).args)
    with pytest.raises(BackendUnavailable, match=r"begin_branch: .*CUDA error \d+"):
        CudaLibrary(target).begin_branch(0, 0, 0)
    with pytest.raises(BackendUnavailable, match=r"end_branch: .*CUDA error \d+"):
        CudaLibrary(target).end_branch(0)
    with pytest.raises(BackendUnavailable, match=r"make_stream: .*CUDA error \d+"):
        CudaLibrary(target).make_stream()
