"""Everything that needs a GPU, in one go: build, tests, sanitizers, microbenchmarks, whole steps.

    python -m benchmarks.gpu_suite --out DIR              # all slices, as long as it takes
    python -m benchmarks.gpu_suite --out DIR --minutes 9  # what fits; the next run goes on
    python -m benchmarks.gpu_suite --list

Slices run one after the other, most important first, each in a process of its own and under nine
minutes. A slice that is done is not run again; one that was cut short goes on with the cases that
are left; one that failed is tried again after all others. DIR gets results.json and results.md
(device, driver, clocks, versions, commit and all figures), a log, and what the next run goes on
from. No network is needed. Exit codes: 0 all done, 1 something failed, 2 nothing can run here
(one line says what is missing), 3 out of time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.build import is_built
from benchmarks.gpu.records import forget_records
from benchmarks.gpu.report import write_report
from benchmarks.gpu.slices import (
    DONE,
    ENDINGS,
    FAILED,
    LIMIT_S,
    RECORDS,
    ROOT,
    SLICES,
    STOP_BEFORE_S,
    UNFINISHED,
    Ending,
    Endings,
    Slice,
    run_slice,
)

LEAST_S = STOP_BEFORE_S + 20.0  # with less time left no slice is begun
DEFAULT_TOOLKIT = "/usr/local/cuda"
EXIT_MISSING, EXIT_OUT_OF_TIME = 2, 3


def add_toolkit_to_path() -> None:
    """Lets this process and its slices find nvcc and compute-sanitizer, which a CUDA toolkit often
    keeps beside the PATH; what is on it comes first."""
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), DEFAULT_TOOLKIT)
    folders = [Path(home) / "bin" for home in homes if home]
    found = [str(folder) for folder in folders if folder.is_dir()]
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), *found])


def inspect_machine() -> dict[str, Any]:
    """The machine's facts, or what is missing; asked of a process that ends."""
    command = [sys.executable, "-m", "benchmarks.gpu.machine"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    try:
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = {"missing": [f"a working torch ({done.stderr.strip()[-300:]})"]}
    return said


def same_machine(path: Path, machine: dict[str, Any]) -> str | None:
    """Why results of `path` and of this machine do not belong together; None when they do."""
    if not path.exists():
        return None
    before = json.loads(path.read_text(encoding="utf-8"))
    for name in ("device", "commit", "versions"):
        if before.get(name) != machine.get(name):
            return (
                f"{name}: expected {before.get(name)}, as in {path.parent}, got {machine.get(name)}"
            )
    return None


def pending(endings: Endings, names: Sequence[str]) -> list[Slice]:
    """Slices still to run: those that never failed first."""
    chosen = [part for part in SLICES if not names or part.name in names]

    def status(part: Slice) -> str | None:
        ending = endings.get(part.name)
        return ending.status if ending else None

    waiting = [part for part in chosen if status(part) in (None, UNFINISHED)]
    return waiting + [part for part in chosen if status(part) == FAILED]


def why_blocked(part: Slice, endings: Endings) -> str | None:
    """The slice that this one needs and that has not succeeded."""
    for name in part.needs:
        ending = endings.get(name)
        if ending is None or ending.status != DONE:
            return f"needs slice '{name}', which is {ending.status if ending else 'not run yet'}"
    return None


def forget_slice(out: Path, name: str) -> None:
    """Lets a slice run anew: results may have been carried here from a machine that is gone."""
    Endings(out / ENDINGS).forget(name)
    forget_records(out / RECORDS, name)


def run_all(
    out: Path,
    machine: dict[str, Any],
    names: Sequence[str],
    seconds: float,
    run: Callable[[Slice, Path, float], Ending] = run_slice,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Runs what is pending, as long as there is time; the report is rewritten after every slice."""
    endings, end = Endings(out / ENDINGS), clock() + seconds
    tried: set[str] = set()
    while True:
        parts = [part for part in pending(endings, names) if part.name not in tried]
        if not parts:
            break
        left = end - clock()
        if left < LEAST_S:
            print(f"out of time; left: {', '.join(part.name for part in parts)}")
            return EXIT_OUT_OF_TIME
        part = parts[0]
        blocked = why_blocked(part, endings)
        print(f"{part.name}: {blocked or part.title} ...", flush=True)
        ending = Ending(FAILED, blocked) if blocked else run(part, out, min(LIMIT_S, left))
        if ending.status != UNFINISHED:
            tried.add(part.name)
        endings.put(part.name, ending)
        write_report(out, machine, endings)
        reason = f": {ending.reason}" if ending.reason else ""
        print(f"{part.name}: {ending.status} in {ending.seconds:.0f} s{reason}", flush=True)
    chosen = [part.name for part in SLICES if not names or part.name in names]
    return int(any((e := endings.get(name)) is None or e.status != DONE for name in chosen))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="where results go")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing after these")
    parser.add_argument("--slice", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--list", action="store_true", help="say what the slices are")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{part.name:13} {part.title}" for part in SLICES))
        return 0
    unknown = sorted(set(options.slice) - {part.name for part in SLICES})
    if unknown:
        known = ", ".join(part.name for part in SLICES)
        parser.error(f"--slice: expected some of {known}, got {', '.join(unknown)}")
    add_toolkit_to_path()
    machine = inspect_machine()
    if "missing" in machine:
        print(f"gpu_suite: missing {'; '.join(machine['missing'])}", file=sys.stderr)
        return EXIT_MISSING
    options.out.mkdir(parents=True, exist_ok=True)
    conflict = same_machine(options.out / "machine.json", machine)
    if conflict is not None:
        print(f"gpu_suite: {conflict}; choose another --out", file=sys.stderr)
        return EXIT_MISSING
    (options.out / "machine.json").write_text(json.dumps(machine, indent=1), encoding="utf-8")
    if not is_built():
        forget_slice(options.out, "build")
    return run_all(options.out, machine, options.slice, 60 * options.minutes)


if __name__ == "__main__":
    sys.exit(main())
