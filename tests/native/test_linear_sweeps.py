"""The two ways in which `linear` sweeps through weights where there are dot products of bfloat16.

Which of them runs depends on how many products a core starts in a cycle, so the tests of the kernel
see one of them only. What is computed must not depend on the machine.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sdengine.kernels.cpu_library import load_cpu

from .test_vec import CPU, EMULATED, HERE, compile_file, native_avx2, needs_simde

AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"]


def run_sweeps(folder: Path, *flags: str, dots: str) -> str:
    floats = compile_file(CPU / "linear_avx512.cpp", folder / "floats.o", "-c", *flags)
    sweeps = compile_file(CPU / "linear_avx512_bf16.cpp", folder / "dots.o", "-c", *flags, dots)
    main = HERE / "linear_sweeps_main.cpp"
    driver = compile_file(main, folder / "driver", str(floats), str(sweeps))
    result = subprocess.run([str(driver)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_both_sweeps_give_the_same_bits(tmp_path: Path) -> None:
    if load_cpu().detected_isa() != "avx512_bf16":
        pytest.skip("this machine has no dot products of bfloat16")
    assert "linear_sweeps: ok" in run_sweeps(tmp_path, *AVX512, dots="-mavx512bf16")


@needs_simde
@pytest.mark.slow
def test_both_sweeps_give_the_same_bits_emulated(tmp_path: Path) -> None:
    emulated = [*EMULATED, *native_avx2()]
    assert "linear_sweeps: ok" in run_sweeps(tmp_path, *emulated, dots="-DSDENGINE_SIMDE_BF16")
