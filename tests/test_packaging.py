"""A source distribution holds what its installation compiles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Paths of the files that go into a source distribution."""
    directory = tmp_path_factory.mktemp("egg")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return set((directory / "sdengine.egg-info/SOURCES.txt").read_text().splitlines())


def test_every_source_of_the_kernels_is_packed(packed: set[str]) -> None:
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert any(name.endswith(".h") for name in sources)
    assert not sources - packed


def test_every_package_is_packed(packed: set[str]) -> None:
    modules = [*(ROOT / "sdengine").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    assert not {p.relative_to(ROOT).as_posix() for p in modules} - packed
