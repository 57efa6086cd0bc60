"""The GPU suite's own logic, with fakes for a GPU: slices, resuming, skipping, reporting."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_suite
from benchmarks.gpu import build, machine, sanitizer, slices, tests
from benchmarks.gpu.interrupts import interrupts_held
from benchmarks.gpu.records import Record, Recorder, Skip, read_records
from benchmarks.gpu.report import markdown, table, write_report
from benchmarks.gpu.slices import (
    DONE,
    FAILED,
    SLICES,
    UNFINISHED,
    Ending,
    Endings,
    Slice,
    run_slice,
)

MACHINE: dict[str, Any] = {
    "device": "Fake GPU",
    "compute_capability": "9.0",
    "multiprocessors": 132,
    "memory_gb": 80.0,
    "l2_mb": 50.0,
    "cuda": "13.0",
    "versions": {"torch": "2.11.0", "triton": "3.6.0"},
    "clocks": {"driver_version": "580.0", "clocks.sm": "1980 MHz"},
    "commit": "abc",
}
NAMES = [part.name for part in SLICES]
CUT_SHORT = "cut short; goes on with what is left"


class FakeRunner:
    """Notes which slices ran, with which limit; every slice takes `seconds` of a fake clock."""

    def __init__(self, endings: dict[str, list[Ending]], seconds: float = 100.0) -> None:
        self.endings, self.seconds = endings, seconds
        self.now = 0.0
        self.ran: list[tuple[str, float]] = []

    def __call__(self, part: Slice, out: Path, limit_s: float) -> Ending:
        self.ran.append((part.name, limit_s))
        self.now += self.seconds
        planned = self.endings.get(part.name, [])
        return planned.pop(0) if planned else Ending(DONE, "", self.seconds)

    def suite(self, out: Path, minutes: float = 1e6, names: tuple[str, ...] = ()) -> int:
        return gpu_suite.run_all(
            out, MACHINE, names, 60 * minutes, run=self, clock=lambda: self.now
        )

    def names(self) -> list[str]:
        return [name for name, _ in self.ran]


def test_every_slice_runs_once_in_order_and_not_again(tmp_path: Path) -> None:
    first = FakeRunner({})
    assert first.suite(tmp_path) == 0
    assert first.names() == NAMES and all(limit <= 540 for _, limit in first.ran)
    again = FakeRunner({})
    assert again.suite(tmp_path) == 0 and again.ran == []


def test_a_run_stops_when_time_is_up_and_the_next_goes_on(tmp_path: Path) -> None:
    runner = FakeRunner({}, seconds=245)
    assert runner.suite(tmp_path, minutes=9) == gpu_suite.EXIT_OUT_OF_TIME
    assert runner.names() == NAMES[:2]
    assert runner.ran[1][1] == 295  # what was left
    later = FakeRunner({}, seconds=245)
    later.suite(tmp_path, minutes=9)
    assert later.names() == NAMES[2:4]


def test_an_unfinished_slice_goes_on_and_a_failed_one_waits_for_the_others(tmp_path: Path) -> None:
    cut = {"limits": [Ending(UNFINISHED, "out of time")], "tests": [Ending(FAILED, "failed: a")]}
    runner = FakeRunner(cut)
    assert runner.suite(tmp_path) == 1
    assert runner.names() == ["build", "limits", "limits", *NAMES[2:]]
    retry = FakeRunner({})
    assert retry.suite(tmp_path) == 0 and retry.names() == ["tests"]


def test_failed_slices_are_tried_again_after_those_that_never_ran(tmp_path: Path) -> None:
    FakeRunner({"limits": [Ending(FAILED)]}).suite(tmp_path, names=("build", "limits"))
    runner = FakeRunner({})
    runner.suite(tmp_path)
    assert runner.names() == [*NAMES[2:], "limits"]


def test_without_a_build_nothing_that_needs_it_is_run(tmp_path: Path) -> None:
    runner = FakeRunner({"build": [Ending(FAILED, "no compiler")]})
    assert runner.suite(tmp_path) == 1 and runner.names() == ["build"]
    ending = Endings(tmp_path / slices.ENDINGS).get("limits")
    assert ending == Ending(FAILED, "needs slice 'build', which is failed")


def test_chosen_slices_only(tmp_path: Path) -> None:
    runner = FakeRunner({})
    assert runner.suite(tmp_path, names=("build", "linear")) == 0
    assert runner.names() == ["build", "linear"]


def test_a_build_of_another_machine_is_forgotten(tmp_path: Path) -> None:
    FakeRunner({}).suite(tmp_path, names=("build",))
    records_of = tmp_path / slices.RECORDS
    for part in ("build", "limits"):
        Recorder(records_of, part, 1.0).write(Record(part, "a", "done"))
    gpu_suite.forget_slice(tmp_path, "build")
    runner = FakeRunner({})
    runner.suite(tmp_path, names=("build",))
    assert runner.names() == ["build"] and read_records(records_of, "build") == []
    assert [record.case for record in read_records(records_of, "limits")] == ["a"]


def test_results_of_another_machine_or_commit_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    assert gpu_suite.same_machine(path, MACHINE) is None
    path.write_text(json.dumps(MACHINE))
    assert gpu_suite.same_machine(path, {**MACHINE, "clocks": {}}) is None
    conflict = gpu_suite.same_machine(path, {**MACHINE, "commit": "def"})
    assert conflict is not None and conflict.startswith("commit: expected abc")


def test_the_suite_says_in_one_line_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_suite, "inspect_machine", lambda: {"missing": ["a GPU", "nvcc"]})
    assert gpu_suite.main(["--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err == "gpu_suite: missing a GPU; nvcc\n"
    assert not (tmp_path / "new").exists()


def test_a_toolkit_beside_the_path_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder in ("first", "toolkit/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("toolkit/bin/nvcc", "toolkit/bin/ours", "first/ours"):
        (tmp_path / file).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "first"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "absent"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "toolkit"))
    gpu_suite.add_toolkit_to_path()
    assert shutil.which("nvcc") == str(tmp_path / "toolkit/bin/nvcc")
    assert shutil.which("ours") == str(tmp_path / "first/ours")


def test_an_unknown_slice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu_suite.main(["--slice", "everything"])
    assert "expected some of build, limits" in capsys.readouterr().err


def fake_process(
    code: int | None, lines: list[Record] | None = None, said: str = ""
) -> Callable[..., int | None]:
    """A process that leaves records, says something and ends with a code."""

    def run(command: list[str], limit_s: float, log: Path) -> int | None:
        log.write_text(said)
        recorder = Recorder(Path(command[command.index("--records") + 1]), "limits", 10.0)
        for record in lines or []:
            recorder.write(record)
        return code

    return run


@pytest.mark.parametrize(
    "code,lines,said,status,reason",
    [
        (0, [Record("limits", "a", "done")], "", DONE, ""),
        (
            1,
            [Record("limits", "a", "failed"), Record("limits", "b", "done")],
            "",
            FAILED,
            "failed: a",
        ),
        (1, [], "ImportError: x", FAILED, "ImportError: x"),
        (
            3,
            [Record("limits", "a", "done")],
            "",
            UNFINISHED,
            CUT_SHORT,
        ),
        (
            None,
            [Record("limits", "a", "skipped")],
            "",
            UNFINISHED,
            CUT_SHORT,
        ),
        (None, [], "", FAILED, "no case ended within 90 s"),
        (
            -11,
            [Record("limits", "a", "done")],
            "Segmentation",
            FAILED,
            "ended with -11: Segmentation",
        ),
        (
            -11,
            [Record("limits", "a", "begun")],
            "",
            UNFINISHED,
            CUT_SHORT,
        ),
        (
            1,
            [Record("limits", "a", "begun")],
            "",
            UNFINISHED,
            CUT_SHORT,
        ),
    ],
)
def test_how_a_slice_ends(
    code: int | None, lines: list[Record], said: str, status: str, reason: str, tmp_path: Path
) -> None:
    ending = run_slice(SLICES[1], tmp_path, 90.0, fake_process(code, lines, said))
    assert (ending.status, ending.reason) == (status, reason)


def test_a_process_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]
    log = tmp_path / "log"
    assert slices.run_process(command, 1.5, log) is None
    assert slices.run_process([sys.executable, "-c", "raise SystemExit(3)"], 20.0, log) == 3


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_what_a_slice_has_started_in_a_group_of_its_own_ends_with_it(
    tmp_path: Path, handler: Any
) -> None:
    """The tests and sanitizers of a suite: they would go on using the GPU. A suite that a shell
    starts in the background ignores interrupts."""
    asleep = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    starts = (
        "import os, sys; from benchmarks.gpu.tests import run_group; "
        "from benchmarks.gpu.interrupts import heed_interrupts; heed_interrupts(); "
        f"command = [sys.executable, '-c', {asleep!r} + ' # ' + sys.argv[1]]; "
        "run_group(command, os.environ, 50)"
    )
    mark = f"marked-{os.getpid()}"
    command, before = [sys.executable, "-c", starts, mark], signal.signal(signal.SIGINT, handler)
    try:
        assert slices.run_process(command, 6.0, tmp_path / "log") is None
    finally:
        signal.signal(signal.SIGINT, before)
    running = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if readable(file)]
    assert not [line for line in running if mark.encode() in line]


def test_an_interrupt_waits_until_a_process_is_known() -> None:
    """In the middle of starting it, it would leave it behind."""
    started, before = [], signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_held():
            os.kill(os.getpid(), signal.SIGINT)
            started.append("a process")
        assert started == ["a process"]
        with interrupts_held():
            started.append("another")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def readable(file: Path) -> bool:
    """Whether its process is still there."""
    try:
        return bool(file.read_bytes())
    except OSError:
        return False


def test_a_slice_is_run_as_a_module_of_its_own(tmp_path: Path) -> None:
    part = next(part for part in SLICES if part.name == "decode-8b")
    command = slices.command_of(part, tmp_path / "r.jsonl", 480.0)
    assert command[1:3] == ["-m", "benchmarks.gpu.decode"] and command[-2:] == ["--variant", "8b"]
    for part in SLICES:
        assert (slices.ROOT / "benchmarks" / "gpu" / f"{part.module}.py").is_file()
        assert set(part.needs) <= set(NAMES)


def test_the_report_holds_conditions_endings_and_figures(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / slices.RECORDS, "linear", 10.0)
    recorder.write(Record("linear", "8B qkv M=1", "done", {"us": 13.256, "cuBLAS / ours": 1.04}))
    recorder.write(Record("linear", "8B qkv M=8", "failed", {}, "WrongResult: a | b"))
    endings = Endings(tmp_path / slices.ENDINGS)
    endings.put("linear", Ending(FAILED, "failed: 8B qkv M=8", 30.0))
    write_report(tmp_path, MACHINE, endings)
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["machine"]["commit"] == "abc" and document["slices"]["build"] is None
    assert document["records"]["linear"][0]["values"]["us"] == 13.256
    text = (tmp_path / "results.md").read_text()
    assert "# GPU suite: Fake GPU" in text and "driver_version 580.0" in text
    assert "| 8B qkv M=1 | 13.26 | 1.04 |" in text
    assert "| 8B qkv M=8 | failed: WrongResult: a \\| b |  |" in text
    assert "failed (1 of 2 cases): failed: 8B qkv M=8" in text and "| build |" in text
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"results.json", "results.md", slices.RECORDS, slices.ENDINGS}


def test_a_table_of_failures_alone_has_its_reasons() -> None:
    assert table([Record("p", "x", "skipped", {}, "none here")])[-1] == "| x: skipped: none here |"


def test_a_page_without_records_lists_all_slices(tmp_path: Path) -> None:
    page = markdown(MACHINE, Endings(tmp_path / "none"), {name: [] for name in NAMES})
    assert page.count("not run yet") == len(NAMES)


JUNIT = """<testsuites><testsuite>
<testcase name="ok"/><testcase name="gone"><skipped message="one CUDA device"/></testcase>
<testcase name="bad"><failure message="assert 1 == 2&#10;more"/></testcase>
<testcase name="worse"><error message="boom"/></testcase>
</testsuite></testsuites>"""


def test_a_report_of_tests_is_counted() -> None:
    values, failed = tests.parse_report(JUNIT)
    assert values == {"passed": 1, "failed": 2, "skipped": 1, "skipped because": "one CUDA device"}
    assert failed == ["bad: assert 1 == 2", "worse: boom"]


def test_folders_of_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests, "ROOT", tmp_path)
    for name in ("a/test_y.py", "a/test_x.py", "a/other.py", "b/test_gpu.py", "b/test_cpu.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path for name in ("a", "b", "absent") for path in tests.files_of(name)]
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["a/test_x.py", "a/test_y.py", "b/test_gpu.py"]


def test_files_of_tests_run_in_a_pytest_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "test_it.py"
    text = "import pytest\n@pytest.mark.gpu\ndef test_a(): assert {}\ndef test_b(): assert False\n"
    file.write_text(text.format("True"))
    assert tests.run_files([file], 60.0) == {"passed": 1, "failed": 0, "skipped": 0}
    file.write_text(text.format("False"))
    with pytest.raises(tests.TestsFailed, match="1 failed, 0 passed: test_a"):
        tests.run_files([file], 60.0)
    file.write_text(text.format("pytest.skip('no library')"))
    with pytest.raises(tests.TestsFailed, match=r"nothing ran, all was skipped: .*no library"):
        tests.run_files([file], 60.0)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "wheels"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    wanted = "{wheels!r} in sys.path and os.environ['OMP_NUM_THREADS'] == '2'"
    wanted = wanted.format(wheels=str(tmp_path / "wheels"))
    file.write_text(text.format(wanted).replace("import", "import os, sys,"))
    assert tests.run_files([file], 60.0)["passed"] == 1
    file.write_text("def test_b(): assert True\n")
    assert tests.run_files([file], 60.0)["passed"] == 0


def test_the_sanitizer_reports_errors_and_is_skipped_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sanitizer, "why_unavailable", lambda _: None)
    monkeypatch.setattr(sanitizer.shutil, "which", lambda _: None)
    with pytest.raises(Skip, match="compute-sanitizer is not on the PATH"):
        sanitizer.watch("memcheck", "tree_verify", 10.0)
    monkeypatch.setattr(sanitizer.shutil, "which", lambda _: "/usr/bin/it")
    said = "========= ERROR SUMMARY: {} errors\n"
    answers = [(86, said.format(2)), (0, said.format(0))]

    def run(command: list[str], *_: Any) -> tuple[int, str]:
        assert command[:3] == ["compute-sanitizer", "--tool", "memcheck"]
        return answers.pop(0)

    monkeypatch.setattr(sanitizer, "run_group", run)
    with pytest.raises(sanitizer.SanitizerReport, match="ended with 86: ERROR SUMMARY: 2 errors"):
        sanitizer.watch("memcheck", "tree_verify", 10.0)
    assert sanitizer.watch("memcheck", "tree_verify", 9.0) == {"found": "ERROR SUMMARY: 0 errors"}


def test_a_sanitizer_that_takes_too_long_is_ended_with_the_program_under_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It would go on beside the next slice, on the same device."""
    tool, noted = tmp_path / "tool", tmp_path / "pid"
    tool.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {noted}\nwait\n")
    tool.chmod(0o755)
    monkeypatch.setattr(sanitizer, "TOOL", str(tool))
    monkeypatch.setattr(sanitizer, "LEAST_S", 0.5)
    monkeypatch.setattr(sanitizer, "why_unavailable", lambda _: None)
    with pytest.raises(subprocess.TimeoutExpired):
        sanitizer.watch("racecheck", "tree_expand", 0.5)
    status = Path(f"/proc/{noted.read_text().strip()}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the program is still running")


def test_memcheck_does_not_report_what_torch_asks_the_driver_in_vain() -> None:
    assert "--report-api-errors no" in " ".join(sanitizer.command_of("memcheck", "tree_verify"))
    assert "--report-api-errors" not in sanitizer.command_of("racecheck", "tree_verify")


def test_versions_are_compared_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.release("2.13.0+cpu") == (2, 13) and machine.release("3.10.1") == (3, 10)
    old = {"python": "3.10", "torch": "2.9.1", "triton": "3.10.0"}
    monkeypatch.setattr(machine, "versions", lambda: old)
    monkeypatch.setattr(machine, "what_torch_misses", lambda: [])
    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert machine.what_is_missing() == ["torch >= 2.11 (found 2.9.1)"]


def test_a_build_without_nvcc_goes_on_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    monkeypatch.setattr(build, "checked", lambda *c, **env: commands.append((*c, *env.values())))
    with pytest.raises(Skip, match="no nvcc"):
        build.compile_kernels()
    assert commands[0][-1] == "0"


def test_a_package_that_is_not_importable_is_installed_from_what_is_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(build, "succeeds", lambda *_: False)
    monkeypatch.setattr(build, "checked", lambda *c, **_: commands.append(c))
    assert build.install() == {"package": "installed in place"}
    assert {"--no-index", "--no-deps", "--no-build-isolation"} <= set(commands[0])


def test_a_command_that_fails_says_how() -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        build.checked(sys.executable, "-c", "raise SystemExit('no such thing')")
