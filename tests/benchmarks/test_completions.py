"""Completions are read as Python up to their last whole line."""

from __future__ import annotations

import json

import pytest

from benchmarks import completions
from tests.engine.conftest import text_checkpoint

UNFINISHED = [
    ["def f(x):"],
    ["class A:", '    """Text that', "goes on"],
    ["try:", "    f()"],
    ["x = [1,", "     2,"],
    ["@property"],
    ["if x:", "    return 1", "else:"],
]
WRONG = [
    ["def f(x]:"],
    ["class A:", "x = 1"],
    ["x = )"],
    ["if x:", "    y = 1", "  z = 2"],
    ["print 'no'"],
    ["x = 'abc", "y = 1"],
]


@pytest.mark.parametrize("lines", UNFINISHED)
def test_the_beginning_of_a_module_is_python(lines: list[str]) -> None:
    assert completions.is_python(lines)


@pytest.mark.parametrize("lines", WRONG)
def test_what_cannot_go_on_is_not(lines: list[str]) -> None:
    assert not completions.is_python(lines)


def test_lines_count_up_to_the_first_error() -> None:
    share = completions.good_line_share
    assert share("def f(x):", "\n    y = x\n    return y\n") == 1.0
    assert share("def f(x):", "\n    y = x\n    return )\n    more = 1\n") == 0.5
    assert share("def f(", "x x):\n    return 1\n") == 0.0  # the prompt's own line is the first
    assert share("a = 1\ndef f(x):", "\n    ret") == 1.0  # the last line is not whole


def test_every_way_to_sample_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", text_checkpoint(), "--samples", "2", "--held-out", "0", "--json"]
    grid = ["--temperatures", "0", "0.8", "--min-ps", "0.1", "--max-tokens", "8"]
    assert completions.main(options + grid) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    sampled = [{k: row[k] for k in ("temperature", "min_p") if k in row} for row in rows]
    assert sampled == [
        {},
        {"temperature": 0.0, "min_p": 0.1},
        {"temperature": 0.8, "min_p": 0.1},
    ]
    assert rows[0]["repeated"] == rows[1]["repeated"]  # this checkpoint is greedy by itself
    assert all(0.0 <= row["parsed"] <= row["good_lines"] <= 1.0 for row in rows)
