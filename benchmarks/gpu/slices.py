"""The slices of the suite, most important first, and how one is run: in a process of its own with a
time limit, because a kernel that goes wrong takes its process along.

A slice writes its records itself (`records.py`); here only how it ended is noted. All slices share
one file of records and one log, so that a directory of results is a handful of files.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu.interrupts import interrupts_held
from benchmarks.gpu.records import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_UNFINISHED,
    read_records,
    read_unended,
)

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 520.0  # of one slice, which has to fit into a job of ten minutes
GRACE_S = 5.0  # for an interrupted slice to end what it has started
STOP_BEFORE_S = 40.0  # a slice begins no case so shortly before it is ended
DONE, FAILED, UNFINISHED = "done", "failed", "unfinished"
RECORDS, ENDINGS, LOG = "records.jsonl", "slices.json", "suite.log"
OUTPUT_KEPT = 2000  # characters of a failed slice


@dataclass(frozen=True, slots=True)
class Slice:
    """One part of the suite.

    Args:
        name: of its files.
        title: what it shows.
        module: of `benchmarks.gpu`, run with --records, --seconds and --variant.
        variant: which of the module's slices it is.
        needs: slices without which it has nothing to run.
    """

    name: str
    title: str
    module: str
    variant: str = ""
    needs: tuple[str, ...] = ("build",)


GPU_TESTS = "tests/gpu,tests/engine/device"
SLICES = (
    Slice("build", "The extension and the CUDA library, built here", "build", needs=()),
    Slice("limits", "What the device allows", "limits"),
    Slice("tests", "`pytest -m gpu`: kernels, laws, graphs, engine", "tests", GPU_TESTS),
    Slice("decode-8b", "Llama-3.1-8B shape: plain steps and steps with trees", "decode", "8b"),
    Slice("attention", "tree_attention beside its floor and others' attention", "attention"),
    Slice("linear", "linear beside its floor and cuBLAS", "linear"),
    Slice("tree-ops", "Sampling, tree and elementwise ops", "ops"),
    Slice("decode-1b", "Llama-3.2-1B shape: plain steps and steps with trees", "decode", "1b"),
    Slice("tiles", "linear with other tiles than the table's, beside cuBLAS", "tiles"),
    Slice("attention-tiles", "tree_attention with other tiles than the table's", "attention_tiles"),
    Slice("memcheck", "compute-sanitizer memcheck, integer kernels", "sanitizer", "memcheck"),
    Slice("racecheck", "compute-sanitizer racecheck, integer kernels", "sanitizer", "racecheck"),
    Slice("tests-triton", "`pytest -m gpu`, tests/kernels/triton", "tests", "tests/kernels/triton"),
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a slice ended when it last ran: DONE, FAILED or UNFINISHED, why, and what it took."""

    status: str
    reason: str = ""
    seconds: float = 0.0


class Endings:
    """How every slice ended, kept in a file.

    Args:
        path: the file; made when the first slice has run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._endings = {name: Ending(**ending) for name, ending in known.items()}

    def get(self, name: str) -> Ending | None:
        """How the slice ended; None before its first run."""
        return self._endings.get(name)

    def put(self, name: str, ending: Ending) -> None:
        """Notes how a slice ended."""
        self._endings[name] = ending
        self._write()

    def forget(self, name: str) -> None:
        """As if the slice had never run."""
        self._endings.pop(name, None)
        self._write()

    def _write(self) -> None:
        written = {name: asdict(ending) for name, ending in self._endings.items()}
        staged = self._path.with_suffix(".tmp")
        staged.write_text(json.dumps(written, indent=1), encoding="utf-8")
        os.replace(staged, self._path)


def command_of(part: Slice, records: Path, seconds: float) -> list[str]:
    """What runs a slice."""
    options = ["--records", str(records), "--part", part.name]
    options += ["--seconds", str(round(seconds, 1))]
    options += ["--variant", part.variant] if part.variant else []
    return [sys.executable, "-m", f"benchmarks.gpu.{part.module}", *options]


def run_process(command: Sequence[str], limit_s: float, log: Path) -> int | None:
    """Runs a command in a session of its own; None when it had to be ended, children included."""
    with log.open("a", encoding="utf-8") as output:
        process: subprocess.Popen[bytes] | None = None
        try:
            with interrupts_held():
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            return process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process is not None and process.returncode is None:
                end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Interrupts a process and kills its group: interrupted, it ends what it has started in groups
    of their own, which would go on using the GPU."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=GRACE_S)
    with suppress(ProcessLookupError):  # all of it is gone
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_slice(
    part: Slice,
    out: Path,
    limit_s: float,
    run: Callable[[Sequence[str], float, Path], int | None] = run_process,
) -> Ending:
    """Runs a slice for at most `limit_s` and says how it ended."""
    records, log = out / RECORDS, out / LOG
    before, died_before = len(read_records(records, part.name)), read_unended(records, part.name)
    start = time.monotonic()
    code = run(command_of(part, records, max(limit_s - STOP_BEFORE_S, 1.0)), limit_s, log)
    seconds = round(time.monotonic() - start, 1)
    if code == EXIT_DONE:
        return Ending(DONE, "", seconds)
    died_in = read_unended(records, part.name)
    if code == EXIT_FAILED and set(died_in) <= set(died_before):
        found = read_records(records, part.name)
        failed = [record.case for record in found if record.status == FAILED]
        return Ending(FAILED, f"failed: {', '.join(failed)}" if failed else tail_of(log), seconds)
    if code in (None, EXIT_UNFINISHED) or died_in:
        if len(read_records(records, part.name)) > before:
            return Ending(UNFINISHED, "cut short; goes on with what is left", seconds)
        if code in (None, EXIT_UNFINISHED):
            return Ending(FAILED, f"no case ended within {limit_s:.0f} s", seconds)
    place = f" in {', '.join(died_in)}" if died_in else ""
    return Ending(FAILED, f"ended with {code}{place}: {tail_of(log)}", seconds)


def tail_of(log: Path) -> str:
    """The end of what was said last."""
    return log.read_text(encoding="utf-8", errors="replace")[-OUTPUT_KEPT:].strip()
