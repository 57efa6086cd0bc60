"""The header algorithms compile for a GPU from the text that the CPU runs; needs nvcc, no GPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INCLUDE = HERE.parents[1] / "csrc" / "include"


def test_every_header_algorithm_compiles_for_the_device(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    source, target = HERE / "device_build.cu", tmp_path / "device_build.o"
    flags = ["-std=c++17", "-arch=sm_90", "-Werror", "all-warnings", f"-I{INCLUDE}", "-c"]
    command = [nvcc, *flags, str(source), "-o", str(target)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
