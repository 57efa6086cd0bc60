"""Slices memcheck and racecheck: compute-sanitizer over every integer kernel."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from typing import Any

from benchmarks.gpu.records import Recorder, Skip, slice_main
from benchmarks.gpu.tests import run_group
from sdengine.kernels.backends import why_unavailable
from sdengine.kernels.launches import STRUCT_OPS

FOUND = 86  # exit code when the tool has something to report
TOOL = "compute-sanitizer"
LEAST_S = 30.0  # that an op gets, however little is left; a slice is not ended so soon


class SanitizerReport(Exception):
    """The tool found something, or the program failed under it."""


def command_of(tool: str, op: str) -> list[str]:
    """The op's program under a tool. Calls of the driver that fail are left out: torch asks it for
    entry points that it may not have, and our own launches check their codes."""
    options = ["--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "all"]
    options += ["--report-api-errors", "no"] if tool == "memcheck" else []
    return [TOOL, *options, sys.executable, "-m", "benchmarks.gpu.integer_kernels", op]


def summary_of(output: str) -> str:
    """The tool's last line about errors or hazards."""
    lines = [line for line in output.splitlines() if "SUMMARY" in line]
    return lines[-1].strip("= ") if lines else output[-300:].strip()


def watch(tool: str, op: str, seconds: float) -> dict[str, Any]:
    """Runs one op under the tool.

    Raises:
        Skip: there is no tool, or no library.
        SanitizerReport: it found something.
        subprocess.TimeoutExpired: it took too long.
    """
    if shutil.which(TOOL) is None:
        raise Skip(f"{TOOL} is not on the PATH; it comes with the CUDA toolkit")
    reason = why_unavailable("cuda")
    if reason is not None:
        raise Skip(reason)
    code, said = run_group(command_of(tool, op), dict(os.environ), max(seconds, LEAST_S))
    print(said[-3000:], flush=True)
    if code != 0:
        raise SanitizerReport(f"ended with {code}: {summary_of(said)}")
    return {"found": summary_of(said)}


def run(recorder: Recorder, options: argparse.Namespace) -> None:
    """One case an op, under the tool that the variant names."""
    for op in STRUCT_OPS:
        recorder.run(op, lambda op=op: watch(options.variant, op, recorder.seconds_left()))


if __name__ == "__main__":
    sys.exit(slice_main(run))
