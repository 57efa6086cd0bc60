"""The native algorithms under sanitizers: fuzzed for memory and arithmetic, the pool for races.

Each driver also runs with bugs planted in it that must be found, so that a sanitizer that sees
nothing is noticed.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
FUZZ_SOURCES = [
    *sorted(HERE.glob("fuzz_*.cpp")),
    *(CSRC / "cpu" / f"{name}.cpp" for name in ("acceptance_fit", "row_prices")),
]
THREAD_SOURCES = [
    HERE / "threads_main.cpp",
    *(
        CSRC / "cpu" / f"{name}.cpp"
        for name in ("thread_pool", "program", "ngram_match", "tree_select", "build_rows")
    ),
]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))


def compile_driver(
    sources: list[Path], sanitizer: str, folder: Path, extra_flags: Sequence[str] = ()
) -> Path:
    """Compiles and links with a sanitizer; skips where the toolchain has none."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    target = folder / "driver"
    flags = ["-std=c++17", "-O1", "-g1", "-pthread", "-fno-sanitize-recover=all", *extra_flags]
    includes = [f"-I{path}" for path in (CSRC, CSRC / "include", HERE)]
    command = [COMPILER, *flags, f"-fsanitize={sanitizer}", *includes, "-o", str(target)]
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    if subprocess.run([*command, str(probe)], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"the compiler has no {sanitizer} sanitizer here")
    built = subprocess.run(
        [*command, *map(str, sources)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return target


def run(command: list[str], plant: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a driver, with a planted bug unless 0."""
    env = {**os.environ, "SDENGINE_PLANT": str(plant), "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=180, check=False, env=env
    )


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The fuzz driver."""
    folder = tmp_path_factory.mktemp("fuzzer")
    return [str(compile_driver(FUZZ_SOURCES, "address,undefined", folder))]


@pytest.fixture(scope="module")
def threads(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The driver of pool and programs; some kernels need a fixed address layout for it."""
    driver = compile_driver(THREAD_SOURCES, "thread", tmp_path_factory.mktemp("threads"))
    return at_fixed_addresses(driver)


def at_fixed_addresses(driver: Path) -> list[str]:
    """The command that runs a driver without random addresses, where that can be had."""
    fixed = ["setarch", platform.machine(), "-R"]
    can_fix = shutil.which("setarch") and run([*fixed, "true"]).returncode == 0
    return [*fixed, str(driver)] if can_fix else [str(driver)]


def test_fuzzed_algorithms_are_clean(fuzzer: list[str]) -> None:
    result = run(fuzzer)
    assert result.returncode == 0, result.stderr[-4000:]
    for name in (
        "tree_growth",
        "selection_of_keys",
        "ngram_match",
        "coupled_walk",
        "rejection_walk",
        "commit_plan",
        "acceptance_fit",
        "row_prices",
    ):
        assert f"{name}: " in result.stdout


@pytest.mark.parametrize(
    "plant,message",
    [(1, "heap-buffer-overflow"), (2, "signed integer overflow"), (3, "check failed: ")],
)
def test_a_planted_bug_is_found(fuzzer: list[str], plant: int, message: str) -> None:
    result = run(fuzzer, plant)
    assert result.returncode != 0 and message in result.stderr, result.stderr[-2000:]


def test_pool_and_programs_have_no_races(threads: list[str]) -> None:
    result = run(threads)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout == "threads: ok\n"


def test_a_missing_barrier_is_found(threads: list[str]) -> None:
    result = run(threads, plant=4)
    assert result.returncode != 0 and "data race" in result.stderr, result.stderr[-2000:]
