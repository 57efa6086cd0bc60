"""What the slices have found out so far, one JSON line a case in one file for all, so that a slice
that was cut short goes on where it stopped."""

from __future__ import annotations

import argparse
import faulthandler
import json
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.interrupts import heed_interrupts

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
BEGUN = "begun"  # a line before each case: it is the last of one in which the process ended
DIED = "the process ended in it: a crash, or a kernel that does not end; see the log"
EXIT_DONE, EXIT_FAILED, EXIT_UNFINISHED = 0, 1, 3
FULL_S = 400.0  # a case that was given less and did not end gets another chance
MAX_REASON = 600  # characters; results are carried over slow lines


class Skip(Exception):
    """A case cannot be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class Record:
    """One case of a slice.

    Args:
        part: name of the slice.
        case: its name, unique in the slice.
        status: DONE, FAILED or SKIPPED; BEGUN in the file alone.
        values: what was measured; numbers and short texts.
        reason: why it failed or was skipped.
        seconds: what it took.
    """

    part: str
    case: str
    status: str
    values: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0


def read_records(path: Path, part: str) -> list[Record]:
    """The records of a slice, the last of each case; a line cut off by a kill is dropped."""
    return [
        replace(line, status=FAILED, reason=DIED) if line.status == BEGUN else line
        for line in last_lines(path, part)
    ]


def read_unended(path: Path, part: str) -> list[str]:
    """Cases of a slice that were begun and did not come back."""
    return [record.case for record in last_lines(path, part) if record.status == BEGUN]


def last_lines(path: Path, part: str) -> list[Record]:
    """The last line of each case of a slice."""
    return list({line.case: line for line in read_lines(path, part)}.values())


def read_lines(path: Path, part: str) -> list[Record]:
    """All lines of a slice."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = Record(**json.loads(line))
        except (ValueError, TypeError):
            continue
        if record.part == part:
            found.append(record)
    return found


def forget_records(path: Path, part: str) -> None:
    """Drops the records of a slice."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if f'"part": "{part}"' not in line]
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


Measure = Callable[[], dict[str, Any]]


class Recorder:
    """Runs the cases of a slice that are not done yet. Those that failed, or in which an earlier
    process ended, wait for all others (`retry_failed`), so that none of them costs another case.

    Args:
        path: the file of records.
        part: name of the slice.
        seconds: no case begins later than so long after the recorder was made.
        clock: seconds of a steady clock.
        case_limit_s: a case that takes longer ends the process, with a traceback: a kernel that
            never ends is left in no other way.
    """

    def __init__(
        self,
        path: Path,
        part: str,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        case_limit_s: float | None = None,
    ) -> None:
        self._path, self._part, self._clock = path, part, clock
        self._end = clock() + seconds
        self._case_limit_s = case_limit_s
        before = read_records(path, part)
        self._settled = {r.case for r in before if r.status != FAILED}
        self._failed = {r.case for r in before if r.status == FAILED}
        begun = Counter(r.case for r in read_lines(path, part) if r.status == BEGUN)
        self._given_up = {case for case in read_unended(path, part) if begun[case] > 1}
        self._waiting: list[tuple[str, Measure]] = []
        self._has_lost_device = False
        self.num_failed = 0
        self.is_cut_short = False

    def seconds_left(self) -> float:
        """Until no further case begins."""
        return self._end - self._clock()

    def run(self, case: str, measure: Measure) -> None:
        """Runs a case unless it is settled or time is up; an exception is its result."""
        if case in self._failed:
            self._waiting.append((case, measure))
        elif case not in self._settled:
            self._run(case, measure)

    def retry_failed(self) -> None:
        """Runs the cases that were put off, but for those that ended two processes."""
        waiting, self._waiting = self._waiting, []
        for case, measure in waiting:
            if case in self._given_up:
                self.num_failed += 1
            else:
                self._run(case, measure)

    def _run(self, case: str, measure: Measure) -> None:
        if self.seconds_left() <= 0 or self._has_lost_device:
            self.is_cut_short = True
            return
        self._append(Record(self._part, case, BEGUN))
        start, had = self._clock(), self.seconds_left()
        status, values, reason = DONE, {}, ""
        try:
            values = self._within_limit(measure)
        except Skip as skip:
            status, reason = SKIPPED, str(skip)
            self._has_lost_device = has_lost_device()
        except subprocess.TimeoutExpired as error:
            status, reason = FAILED, f"took longer than {error.timeout:.0f} s"
            self.is_cut_short |= had < FULL_S
            self.num_failed += had >= FULL_S
        except Exception as error:
            status, reason = FAILED, reason_of(error)
            self.num_failed += 1
            self._has_lost_device = has_lost_device()
        taken = round(self._clock() - start, 3)
        self.write(Record(self._part, case, status, values, reason[:MAX_REASON], taken))

    def _within_limit(self, measure: Measure) -> dict[str, Any]:
        if self._case_limit_s is None:
            return measure()
        faulthandler.dump_traceback_later(self._case_limit_s, exit=True, file=sys.__stderr__)
        try:
            return measure()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def write(self, record: Record) -> None:
        """Appends a record, at once."""
        self._append(record)
        note = record.reason or ", ".join(f"{k} {v}" for k, v in record.values.items())
        print(f"{record.case}: {record.status}; {note}", flush=True)

    def _append(self, record: Record) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")

    def exit_code(self) -> int:
        """How the process of the slice ends."""
        if self.is_cut_short:
            return EXIT_UNFINISHED
        return EXIT_FAILED if self.num_failed else EXIT_DONE


def has_lost_device() -> bool:
    """Whether this process can do nothing more on its GPU: an access past the end of a buffer makes
    every later call fail, and would be every later case's result."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def reason_of(error: Exception) -> str:
    """The error, and the place in this repository that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    place = f" ({Path(last.filename).name}:{last.lineno})" if last else ""
    return f"{type(error).__name__}: {error}{place}"


def slice_main(
    run: Callable[[Recorder, argparse.Namespace], None], case_limit_s: float | None = None
) -> int:
    """The command line of a slice's module: --records FILE --part NAME --seconds N."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--part", required=True, help="name of the slice")
    parser.add_argument("--seconds", type=float, default=500.0)
    parser.add_argument("--variant", default="", help="which of the module's slices")
    options = parser.parse_args()
    heed_interrupts()
    recorder = Recorder(options.records, options.part, options.seconds, case_limit_s=case_limit_s)
    run(recorder, options)
    recorder.retry_failed()
    return recorder.exit_code()
