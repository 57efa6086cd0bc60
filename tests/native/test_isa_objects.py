"""No object compiled for a wider instruction set may offer a weak symbol that others could link to.

A copy of a shared inline function, compiled with AVX-512, would be as good as any other to the
linker and crash the machines that have none. (Strong symbols cannot be confused: two would clash.)
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEVELS = ("avx2", "avx512", "avx512_bf16")
OBJECTS = sorted(
    path
    for isa in LEVELS
    for path in ROOT.glob(f"build/cpu-*/*_{isa}.o")
    if (ROOT / "csrc" / "cpu" / f"{path.stem}.cpp").exists()
)


def weak_symbols(path: Path) -> list[str]:
    """Demangled names of what an object file defines and shares with other objects."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm")
    listed = subprocess.run(
        [nm, "-C", "--defined-only", "--extern-only", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [name for _, kind, name in rows if kind in "WVu"]


@pytest.mark.skipif(not OBJECTS, reason="no build folder beside the sources")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.stem)
def test_weak_symbols_name_their_instruction_set(path: Path) -> None:
    isa = next(isa for isa in LEVELS if path.stem.endswith(f"_{isa}"))
    strangers = [name for name in weak_symbols(path) if f"isa_{isa}::" not in name]
    assert not strangers, f"{path.name} offers {strangers}"
