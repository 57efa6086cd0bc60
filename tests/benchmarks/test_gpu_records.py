"""How a slice of the GPU suite runs its cases: once each, and none at another's cost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import records, slices
from benchmarks.gpu.records import Record, Recorder, Skip, read_records
from benchmarks.gpu.slices import FAILED, SLICES, UNFINISHED, run_slice


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_cases_are_run_once_failures_again_and_none_after_the_end(tmp_path: Path) -> None:
    path, clock, ran = tmp_path / "x.jsonl", Clock(), []

    def case(name: str, error: Exception | None = None) -> Callable[[], dict[str, Any]]:
        def measure() -> dict[str, Any]:
            ran.append(name)
            clock.now += 10
            if error is not None:
                raise error
            return {"us": 1.5}

        return measure

    def everything(seconds: float, is_mended: bool) -> Recorder:
        recorder = Recorder(path, "x", seconds, clock)
        recorder.run("good", case("good"))
        recorder.run("absent", case("absent", Skip("not installed")))
        recorder.run("bad", case("bad", None if is_mended else ValueError("wrong")))
        recorder.run("late", case("late"))
        recorder.retry_failed()
        return recorder

    assert everything(25.0, False).exit_code() == records.EXIT_UNFINISHED
    assert ran == ["good", "absent", "bad"]
    found = {record.case: record for record in read_records(path, "x")}
    assert found["good"].values == {"us": 1.5} and found["good"].seconds == 10
    assert found["absent"].status == "skipped" and found["absent"].reason == "not installed"
    assert found["bad"].reason.startswith("ValueError: wrong (test_gpu_records.py:")
    assert everything(100.0, True).exit_code() == records.EXIT_DONE
    assert ran[3:] == ["late", "bad"]
    assert {r.case: r.status for r in read_records(path, "x")}["bad"] == "done"


def test_a_case_that_ran_out_of_time_gets_another_chance_with_a_whole_slice(tmp_path: Path) -> None:
    def slow() -> dict[str, Any]:
        raise subprocess.TimeoutExpired("pytest", 30.0)

    path = tmp_path / "x.jsonl"
    late = Recorder(path, "x", 60.0)
    late.run("slow", slow)
    assert late.exit_code() == records.EXIT_UNFINISHED
    whole = Recorder(path, "x", 480.0)
    whole.run("slow", slow)
    whole.retry_failed()
    assert whole.exit_code() == records.EXIT_FAILED
    assert read_records(path, "x")[0].reason == "took longer than 30 s"


def test_a_case_that_ends_its_process_comes_last_and_costs_no_other(tmp_path: Path) -> None:
    path, ran = tmp_path / slices.RECORDS, []

    def process(command: list[str], limit_s: float, log: Path) -> int | None:
        log.write_text("Segmentation")
        recorder = Recorder(path, "limits", 400.0)
        try:
            for name in ("crash", "good"):
                recorder.run(name, partial(case, name))
            recorder.retry_failed()
        except SystemExit:  # as if it had been killed
            return -11
        return recorder.exit_code()

    def case(name: str) -> dict[str, Any]:
        ran.append(name)
        if name == "crash":
            raise SystemExit
        return {}

    endings = [run_slice(SLICES[1], tmp_path, 90.0, process) for _ in range(2)]
    assert ran == ["crash", "good", "crash"]
    assert endings[0].status == UNFINISHED and endings[1].status == UNFINISHED
    last = run_slice(SLICES[1], tmp_path, 90.0, process)
    assert (last.status, last.reason) == (FAILED, "failed: crash") and len(ran) == 3
    assert {r.case: r.status for r in read_records(path, "limits")} == {
        "crash": "failed",
        "good": "done",
    }


def test_a_lost_device_ends_the_slice_and_the_next_process_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad() -> dict[str, Any]:
        raise RuntimeError("an illegal memory access was encountered")

    path, is_lost = tmp_path / "x.jsonl", [True]
    monkeypatch.setattr(records, "has_lost_device", lambda: is_lost[0])
    first = Recorder(path, "x", 400.0)
    first.run("bad", bad)
    first.run("good", lambda: pytest.fail("it would fail for the other's sake"))
    assert first.exit_code() == records.EXIT_UNFINISHED
    second = Recorder(path, "x", 400.0)
    second.run("bad", bad)
    second.run("good", dict)
    assert [r.status for r in read_records(path, "x")] == ["failed", "done"]
    is_lost[0] = False
    second.retry_failed()
    assert second.exit_code() == records.EXIT_FAILED


def test_a_case_without_an_end_is_ended_with_a_traceback(tmp_path: Path) -> None:
    program = """if True:
        import ctypes, pathlib
        from benchmarks.gpu.records import Recorder
        recorder = Recorder(pathlib.Path("RECORDS"), "x", 90.0, case_limit_s=0.2)
        recorder.run("quick", dict)
        recorder.run("hangs", lambda: ctypes.CDLL(None).pause())
    """.replace("RECORDS", str(tmp_path / "x.jsonl"))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=slices.ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "Timeout" in done.stderr and "_within_limit" in done.stderr
    assert records.read_unended(tmp_path / "x.jsonl", "x") == ["hangs"]


def test_a_failure_shows_in_the_exit_code(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "x.jsonl", "x", 10.0)
    recorder.run("bad", lambda: {"x": 1 / 0})
    assert recorder.exit_code() == records.EXIT_FAILED


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    Recorder(path, "x", 1.0).write(Record("x", "whole", "done"))
    path.write_text(path.read_text() + '{"case": "half", "sta')
    assert [record.case for record in read_records(path, "x")] == ["whole"]
