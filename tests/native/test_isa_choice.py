"""Every op takes the widest kernels of the instruction set that was asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sdengine.kernels.cpu_library import load_cpu

LANES = {"portable": 4, "avx2": 8, "avx512": 16, "avx512_bf16": 16}
CODE = "from sdengine.kernels.cpu_library import load_cpu; print(load_cpu().vocab_lanes())"


@pytest.mark.parametrize("isa", LANES)
def test_the_sampling_passes(isa: str) -> None:
    """Equal bits everywhere, so only their width tells: 16 sequences took 293 us instead of 43."""
    if list(LANES).index(isa) > list(LANES).index(load_cpu().detected_isa()):
        pytest.skip(f"this machine has no {isa}")
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        env={**os.environ, "SDENGINE_ISA": isa},
        check=True,
    )
    assert int(done.stdout) == LANES[isa]
