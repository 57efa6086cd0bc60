"""The host's share of a step: what is counted, and a whole run on the bundled pair."""

from __future__ import annotations

import pytest

from benchmarks.host_overhead import CallCounter, Tally, main
from sdengine.core.plan import MAX_ITERATIONS


def test_calls_of_both_kinds_are_counted() -> None:
    def inner(numbers: list[int]) -> int:
        return len(numbers)

    def outer() -> None:
        inner([1])
        inner([2])

    assert CallCounter().count(outer) == (3, 2)


def test_what_is_left_of_a_step() -> None:
    tally = Tally(step_s=[1.0, 3.0, 2.0], kernels_s=[0.5, 1.0, 1.25], replay_s=[0.75, 2.5, 1.5])
    assert tally.outside_s == 0.75 and tally.python_s == 0.5
    assert tally.goal_s == pytest.approx(0.1 + 30e-6)


def test_steps_that_outlast_the_requests_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Half a context of 1024: steps of nobody would be counted, too."""
    options = ["--batch-sizes", "1", "--modes", "plain", "--turns", "1", "--num-threads", "1"]
    assert main([*options, "--steps", "300"]) == 2
    assert "--steps that requests of half a context outlast" in capsys.readouterr().err


def test_a_run_prints_a_line_for_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--batch-sizes", "1", "2", "--modes", "plain", "4 nodes", "--steps", "2"]
    assert main([*options, "--turns", "2", "--num-threads", "1"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-8:]]
    assert [row[0] for row in rows] == list("11112222")
    assert [row[-9] for row in rows] == ["1", str(MAX_ITERATIONS)] * 4
    calls = [int(row[-2]) for row in rows]
    assert 0 < calls[0] < calls[4] and 0 < calls[2] < calls[6]
