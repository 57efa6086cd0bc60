"""Modules of one command: what cannot be measured is refused on one line, at once."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import held_out
from benchmarks.held_out import held_out_prompts
from sdengine.errors import RequestError


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("busy_machine", ["--seconds", "-1"]),
        ("busy_machine", ["--seconds", "nan"]),
        ("busy_machine", ["--seconds", "soon"]),
        ("busy_machine", ["--neighbours", "-1"]),
        ("busy_machine", ["--neighbours", "100000"]),
        ("busy_machine", ["--max-tokens", "1"]),
        ("busy_machine", ["--model", "no/such/model"]),
        ("host_overhead", ["--batch-sizes", "0"]),
        ("host_overhead", ["--steps", "0"]),
        ("host_overhead", ["--turns", "-1"]),
        ("host_overhead", ["--num-threads", "0"]),
        ("host_overhead", ["--model", "no/such/model"]),
        ("host_overhead", ["--foo"]),
        ("machine_limits", ["--threads", "0"]),
        ("machine_limits", ["--threads", "99999"]),
        ("machine_limits", ["--repeats", "0"]),
        ("model_shape", ["--rows", "0"]),
        ("model_shape", ["--rows", "100000"]),
        ("model_shape", ["--rounds", "0"]),
        ("model_shape", ["--context", "1"]),
        ("model_shape", ["--threads", "0"]),
        ("model_shape", ["--shape", "9b"]),
        ("peers.__main__", ["--max-tokens", "1"]),
        ("peers.__main__", ["--draft-lengths", "0"]),
        ("server_load", ["--clients", "0"]),
        ("server_load", ["--repeats", "0"]),
        ("server_load", ["--seconds", "nan"]),
        ("server_load", ["--max-tokens", "many"]),
        ("useless_draft", ["--requests", "0"]),
        ("useless_draft", ["--pairs", "0"]),
        ("useless_draft", ["--max-tokens", "1"]),
        ("useless_draft", ["--temperatures", "-1"]),
        ("useless_draft", ["--seed", "-1"]),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(
    module: str, options: list[str], monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    if module == "model_shape":
        monkeypatch.setattr("benchmarks.model_shape.write_checkpoint", None)
    monkeypatch.setattr("sys.argv", [module, *options])  # as the program finds them
    try:
        code = import_module(f"benchmarks.{module}").main()
    except SystemExit as stop:
        code = stop.code
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("sdengine: ") and err.count("\n") == 1, err


def test_limits_are_printed_for_every_number_of_threads(monkeypatch, capsys) -> None:
    from benchmarks import machine_limits
    from sdengine.kernels.machine_limits import LimitProbe

    monkeypatch.setattr(machine_limits, "LimitProbe", lambda pool: LimitProbe(pool, 64 << 20))
    assert machine_limits.main(["--threads", "2", "--repeats", "1"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["1", "2"] and all(len(row) == 6 for row in rows)


def test_threads_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the machine: `taskset` and containers leave fewer."""
    from benchmarks import machine_limits
    from sdengine.core.env import usable_cores

    monkeypatch.setattr("os.cpu_count", lambda: 1000)
    assert machine_limits.build_parser().parse_args([]).threads == usable_cores() < 1000


@pytest.mark.parametrize("count", [0, -5])
def test_held_out_prompts_are_at_least_one(count: int) -> None:
    with pytest.raises(RequestError, match="at least 1"):
        held_out_prompts(count)


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    manifest = tmp_path / "MANIFEST.json"
    for text in ("{", json.dumps({"corpus": {}})):
        manifest.write_text(text)
        with pytest.raises(RequestError, match=r"MANIFEST\.json"):
            held_out.held_out_prompts(1, manifest=manifest)
