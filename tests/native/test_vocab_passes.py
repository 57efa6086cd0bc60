"""The vocabulary passes give the same bits on every instruction set, AVX-512 under emulation."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .test_vec import AVX2, CPU, EMULATED, HERE, compile_file, native_avx2, needs_simde

INCLUDES = [f"-I{CPU.parent / 'include'}"]


def run_passes(folder: Path, *flags: str) -> str:
    portable = folder / "portable.o"
    compile_file(CPU / "vocab_passes_portable.cpp", portable, "-c", *INCLUDES)
    source = HERE / "vocab_passes_main.cpp"
    driver = compile_file(source, folder / "driver", *INCLUDES, *flags, str(portable))
    result = subprocess.run([str(driver)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:]
    return result.stdout


def test_avx2_equals_portable(tmp_path: Path) -> None:
    if not native_avx2():
        pytest.skip("this machine has no AVX2")
    assert "vocab_passes: ok, 8 lanes" in run_passes(tmp_path, *AVX2)


@needs_simde
def test_emulated_avx512_equals_portable(tmp_path: Path) -> None:
    output = run_passes(tmp_path, *EMULATED, *native_avx2())
    assert "vocab_passes: ok, 16 lanes" in output
