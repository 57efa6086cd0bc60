"""Slices of tests: `pytest -m gpu`, folder by folder, so that a run can be cut short."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.interrupts import interrupts_held
from benchmarks.gpu.records import Recorder, slice_main

ROOT = Path(__file__).resolve().parents[2]
MAX_NAMES = 12  # failed tests that are named in a record
FOLDER_LIMIT_S = 300.0  # a kernel that does not end must not cost all others their time
MOST_PROCESSES = 14  # kernels are compiled on the host, one after the other in each process
THREADS = "2"  # of torch on the host in each: a team of all cores in each would wait for the others


class TestsFailed(Exception):
    """Tests of a file failed; the message names them."""


def parse_report(report: str) -> tuple[dict[str, Any], list[str]]:
    """Counts of a JUnit XML report, and the tests that failed with the first line of the reason."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failed, reasons = [], set()
    for case in ElementTree.fromstring(report).iter("testcase"):
        wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        if wrong is not None:
            counts["failed"] += 1
            reason = (wrong.get("message") or "").splitlines() or [""]
            failed.append(f"{case.get('name')}: {reason[0][:160]}")
        elif skipped is not None:
            counts["skipped"] += 1
            reasons.add(skipped.get("message") or "")
        else:
            counts["passed"] += 1
    values: dict[str, Any] = dict(counts)
    if reasons:
        values["skipped because"] = "; ".join(sorted(reasons))[:300]
    return values, failed


def num_processes() -> int:
    """Test processes side by side."""
    return max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) - 2))


def command_of(files: Sequence[Path], report: Path) -> list[str]:
    """Runs the GPU tests of some files."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junit-xml={report}"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(num_processes())]
    return [*command, *map(str, files)]


def run_group(command: list[str], env: dict[str, str], limit_s: float) -> tuple[int, str]:
    """Exit code and output of a command whose workers are ended with it.

    Raises:
        subprocess.TimeoutExpired: it took too long.
    """
    process: subprocess.Popen[str] | None = None
    try:
        with interrupts_held():
            process = subprocess.Popen(
                command, cwd=ROOT, env=env, text=True, start_new_session=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        said, _ = process.communicate(timeout=limit_s)
    except BaseException:
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        raise
    return process.returncode, said


def run_files(files: Sequence[Path], seconds: float) -> dict[str, Any]:
    """Counts of some files together.

    Raises:
        TestsFailed: one failed, or every one was skipped, which proves nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": THREADS}
        limit_s = min(max(seconds, 30.0), FOLDER_LIMIT_S)
        code, said = run_group(command_of(files, report), env, limit_s)
        print(said[-1500:], flush=True)
        if not report.exists():
            raise TestsFailed(f"pytest ended with {code}: {said[-400:]}")
        values, failed = parse_report(report.read_text(encoding="utf-8"))
    if failed or code not in (0, 5):
        more = f" and {len(failed) - MAX_NAMES} more" if len(failed) > MAX_NAMES else ""
        raise TestsFailed(
            f"{values['failed']} failed, {values['passed']} passed: "
            f"{'; '.join(failed[:MAX_NAMES])}{more}"
        )
    if values["skipped"] and not values["passed"]:
        raise TestsFailed(f"nothing ran, all was skipped: {values['skipped because']}")
    return values


def files_of(name: str) -> list[Path]:
    """Test files of a folder; those that hold GPU tests alone stand in folders of their own, or are
    called test_gpu.py."""
    folder = ROOT / name
    own = folder / "test_gpu.py"
    return [own] if own.exists() else sorted(folder.glob("test_*.py"))


def run(recorder: Recorder, options: argparse.Namespace) -> None:
    """One case a folder that the variant names."""
    for name in options.variant.split(","):
        recorder.run(name, lambda name=name: run_files(files_of(name), recorder.seconds_left()))


if __name__ == "__main__":
    sys.exit(slice_main(run))
