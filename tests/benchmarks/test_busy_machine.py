"""Neighbours live as long as they are wanted, and every engine's requests are timed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks import busy_machine
from sdengine import LLM, SamplingParams
from sdengine.cli.measure import Run


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


def test_speeds_leave_the_first_token_out(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Five tokens, four of them in the second that counts."""

    class OneSpeed:
        def __init__(self, *_: object, **__: object) -> None:
            pass

    output = SimpleNamespace(outputs=[SimpleNamespace(token_ids=range(5))])
    run = Run.from_commits([output], [[(1.0, 1), (2.0, 5)]])
    monkeypatch.setattr(busy_machine, "LLM", OneSpeed)
    monkeypatch.setattr(busy_machine, "run_request", lambda *_: run)
    assert busy_machine.main(["--seconds", "0", "--neighbours", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["0", "one", "thread", "4", "4", "4", "1.00x"]
    assert lines[0].startswith("command: python -m benchmarks.busy_machine")


def test_tenths_lie_between_the_speeds(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    speeds = {name: [100.0, 200.0] for name in ("every core", "one thread")}
    monkeypatch.setattr(busy_machine, "LLM", lambda *_, **__: None)
    monkeypatch.setattr(busy_machine, "measure", lambda *_: speeds)
    assert busy_machine.main(["--neighbours", "0"]) == 0
    assert capsys.readouterr().out.split()[-5:] == ["thread", "110", "150", "190", "1.00x"]


def test_requests_are_timed_in_turns() -> None:
    engines = {
        name: LLM("python-completion", speculation=None, num_threads=1, max_num_seqs=1)
        for name in ("first", "second")
    }
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    speeds = busy_machine.measure(engines, params, seconds=0.0)
    assert {name: len(values) for name, values in speeds.items()} == {"first": 1, "second": 1}
    assert all(values[0] > 0 for values in speeds.values())
