"""What the slices have found out so far, one JSON line a case in one file for all, so that a slice
that was cut short goes on where it stopped."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
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
        status: DONE, FAILED or SKIPPED.
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
    found: dict[str, Record] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = Record(**json.loads(line))
        except (ValueError, TypeError):
            continue
        if record.part == part:
            found[record.case] = record
    return list(found.values())


def forget_records(path: Path, part: str) -> None:
    """Drops the records of a slice."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if f'"part": "{part}"' not in line]
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


class Recorder:
    """Runs the cases of a slice that are not done yet.

    Args:
        path: the file of records.
        part: name of the slice.
        seconds: no case begins later than so long after the recorder was made.
        clock: seconds of a steady clock.
    """

    def __init__(
        self,
        path: Path,
        part: str,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._part, self._clock = path, part, clock
        self._end = clock() + seconds
        self._settled = {r.case for r in read_records(path, part) if r.status != FAILED}
        self.num_failed = 0
        self.is_cut_short = False

    def seconds_left(self) -> float:
        """Until no further case begins."""
        return self._end - self._clock()

    def run(self, case: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Runs a case unless it is settled or time is up; an exception is its result."""
        if case in self._settled:
            return
        if self.seconds_left() <= 0:
            self.is_cut_short = True
            return
        start, had = self._clock(), self.seconds_left()
        status, values, reason = DONE, {}, ""
        try:
            values = measure()
        except Skip as skip:
            status, reason = SKIPPED, str(skip)
        except subprocess.TimeoutExpired as error:
            if had < FULL_S:
                self.is_cut_short = True
                return
            status, reason = FAILED, f"took longer than {error.timeout:.0f} s"
            self.num_failed += 1
        except Exception as error:
            status, reason = FAILED, reason_of(error)
            self.num_failed += 1
        taken = round(self._clock() - start, 3)
        self.write(Record(self._part, case, status, values, reason[:MAX_REASON], taken))

    def write(self, record: Record) -> None:
        """Appends a record, at once."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")
        note = record.reason or ", ".join(f"{k} {v}" for k, v in record.values.items())
        print(f"{record.case}: {record.status}; {note}", flush=True)

    def exit_code(self) -> int:
        """How the process of the slice ends."""
        if self.is_cut_short:
            return EXIT_UNFINISHED
        return EXIT_FAILED if self.num_failed else EXIT_DONE


def reason_of(error: Exception) -> str:
    """The error, and the place in this repository that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    place = f" ({Path(last.filename).name}:{last.lineno})" if last else ""
    return f"{type(error).__name__}: {error}{place}"


def slice_main(run: Callable[[Recorder, argparse.Namespace], None]) -> int:
    """The command line of a slice's module: --records FILE --part NAME --seconds N."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--part", required=True, help="name of the slice")
    parser.add_argument("--seconds", type=float, default=500.0)
    parser.add_argument("--variant", default="", help="which of the module's slices")
    options = parser.parse_args()
    recorder = Recorder(options.records, options.part, options.seconds)
    run(recorder, options)
    return recorder.exit_code()
