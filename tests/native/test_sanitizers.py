"""The native algorithms under sanitizers: fuzzed for memory and arithmetic, the pool for races.

Each driver also runs with bugs planted in it that must be found, so that a sanitizer that sees
nothing is noticed.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
FUZZ_SOURCES = sorted(HERE.glob("fuzz_*.cpp"))
THREAD_SOURCES = [
    HERE / "threads_main.cpp",
    *(
        CSRC / "cpu" / f"{name}.cpp"
        for name in (
        "tree_growth",
        "selection_of_keys",
        "ngram_match",
        "coupled_walk",
        "rejection_walk",
        "commit_plan",
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
