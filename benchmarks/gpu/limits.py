"""Slice limits: what the device allows, three times, because everything else is held against it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from benchmarks.gpu.records import Recorder, slice_main
from benchmarks.gpu.timing import measure_limits


def run(recorder: Recorder, _: argparse.Namespace) -> None:
    """The same measurement thrice."""
    for turn in range(3):
        recorder.run(f"turn {turn + 1}", lambda: asdict(measure_limits()))


if __name__ == "__main__":
    sys.exit(slice_main(run, case_limit_s=60.0))
