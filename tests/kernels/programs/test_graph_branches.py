"""Branches of a CUDA graph without a GPU: in which order, on which streams, and after a failure."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from sdengine.errors import BackendUnavailable
from sdengine.kernels.programs.graph_branches import GraphBranches
from sdengine.kernels.programs.program import make_program
from tests.engine.test_interrupts import Interrupt

COUNT = torch.zeros(1, dtype=torch.int32)


class Stream:
    """Stands for a CUDA stream."""

    def __init__(self, log: list[Any], address: int) -> None:
        self.cuda_stream = address
        self._log = log

    def wait_stream(self, other: Stream) -> None:
        self._log.append(("wait", self.cuda_stream, other.cuda_stream))


class Library:
    """Stands for the CUDA library."""

    def __init__(self, log: list[Any]) -> None:
        self._log = log
        self._num_streams = 0
        self.under_capture: set[int] = set()

    def begin_branch(self, count: int, stream: int, body: int) -> None:
        assert count == COUNT.data_ptr() and body not in self.under_capture
        self.under_capture.add(body)
        self._log.append(("begin", stream, body))

    def end_branch(self, body: int) -> None:
        self.under_capture.remove(body)
        self._log.append(("end", body))

    def abandon_branch(self, body: int) -> None:
        self.under_capture.discard(body)
        self._log.append(("abandon", body))

    def make_stream(self) -> int:
        self._num_streams += 1
        return self._num_streams

    def free_stream(self, stream: int) -> None:
        self._log.append(("free", stream))


class Machine:
    """torch.cuda's streams: the current one, and the log of what is done with them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[Any] = []
        self.current = Stream(self.log, 0)
        self.is_capturing = False
        monkeypatch.setattr(torch.cuda, "ExternalStream", partial(Stream, self.log))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda s: setattr(self, "current", s))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.is_capturing)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def run_nested(machine: Machine, branches: GraphBranches) -> None:
    """A branch in a branch, and a second one after both; notes the stream of every launch."""
    with branches.session():
        for action in ("begin", "launch", "begin", "launch", "end", "launch", "end", "launch"):
            if action == "begin":
                branches.begin(COUNT)
            elif action == "end":
                branches.end()
            else:
                machine.log.append(("launch", machine.current.cuda_stream))


def test_a_capture_makes_branches(machine: Machine) -> None:
    machine.is_capturing = True
    branches = GraphBranches(Library(machine.log))  # type: ignore[arg-type]
    run_nested(machine, branches)
    assert machine.log == [
        ("begin", 0, 1),
        ("launch", 1),
        ("begin", 1, 2),
        ("launch", 2),
        ("end", 2),
        ("launch", 1),
        ("end", 1),
        ("launch", 0),
    ]


def test_outside_of_a_capture_everything_runs_in_order_on_the_same_streams(
    machine: Machine,
) -> None:
    branches = GraphBranches(Library(machine.log))  # type: ignore[arg-type]
    run_nested(machine, branches)
    assert machine.log == [
        ("wait", 1, 0),
        ("launch", 1),
        ("wait", 2, 1),
        ("launch", 2),
        ("wait", 1, 2),
        ("launch", 1),
        ("wait", 0, 1),
        ("launch", 0),
    ]


def test_a_failure_leaves_no_branch_open_and_no_stream_under_capture(machine: Machine) -> None:
    branches = GraphBranches(Library(machine.log))  # type: ignore[arg-type]
    run_nested(machine, branches)
    machine.log.clear()
    machine.is_capturing = True
    with pytest.raises(BackendUnavailable), branches.session():
        branches.begin(COUNT)
        branches.begin(COUNT)
        branches.end()
        branches.begin(COUNT)
        raise BackendUnavailable("a launch failed")
    assert machine.current.cuda_stream == 0
    assert machine.log[-2:] == [("abandon", 2), ("abandon", 1)]
    machine.log.clear()
    machine.is_capturing = False
    run_nested(machine, branches)
    assert machine.log[0] == ("wait", 1, 0)


def test_an_interrupt_at_any_line_leaves_no_stream_under_capture(machine: Machine) -> None:
    """It would be refused in every later capture."""
    machine.is_capturing = True
    library = Library(machine.log)
    branches = GraphBranches(library)  # type: ignore[arg-type]
    at, was_interrupted = 0, True
    while was_interrupted:
        at += 1
        try:
            with Interrupt(at, "graph_branches.py"):
                run_nested(machine, branches)
            was_interrupted = False
        except KeyboardInterrupt:
            pass
        assert not library.under_capture and machine.current.cuda_stream == 0, at
    assert at > 20


def test_streams_are_freed_with_their_branches(machine: Machine) -> None:
    branches = GraphBranches(Library(machine.log))  # type: ignore[arg-type]
    run_nested(machine, branches)
    machine.log.clear()
    del branches
    assert sorted(machine.log) == [("free", 1), ("free", 2)]


def test_a_program_s_blocks_are_branches(machine: Machine) -> None:
    pytest.importorskip("triton")
    machine.is_capturing = True
    branches = GraphBranches(Library(machine.log))  # type: ignore[arg-type]
    program = make_program("triton", branches=branches)
    with program.only_if(COUNT):
        launch_gate(program)
    program.replay()
    assert machine.log == [("begin", 0, 1), ("end", 1)]
    assert [op for op, _ in program.replay_timed()] == ["silu_and_mul"]


def launch_gate(program: Any) -> None:
    """A launch that exists in Triton."""
    program.launch(
        "silu_and_mul",
        x=torch.ones(2, 16),
        out=torch.empty(2, 8),
        num_rows=torch.ones(1, dtype=torch.int32),
    )
