"""Neighbours live as long as they are wanted, and every engine's requests are timed."""

from __future__ import annotations

import pytest

from benchmarks import busy_machine
from sdengine import LLM, SamplingParams


def test_neighbours_end_with_their_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy_machine, "BUSY_LOOP", "import time; time.sleep(60)")
    monkeypatch.setattr(busy_machine, "SETTLE_S", 0.0)
    started = []
    popen = busy_machine.subprocess.Popen
    monkeypatch.setattr(
        busy_machine.subprocess, "Popen", lambda *a: started.append(popen(*a)) or started[-1]
    )
    with pytest.raises(KeyError), busy_machine.neighbours(2):
        assert [process.poll() for process in started] == [None, None]
        raise KeyError
    assert all(process.poll() is not None for process in started)


def test_requests_are_timed_in_turns() -> None:
    engines = {
        name: LLM("python-completion", speculation=None, num_threads=1, max_num_seqs=1)
        for name in ("first", "second")
    }
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    speeds = busy_machine.measure(engines, params, seconds=0.0)
    assert {name: len(values) for name, values in speeds.items()} == {"first": 1, "second": 1}
    assert all(values[0] > 0 for values in speeds.values())
