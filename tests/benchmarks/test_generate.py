"""The end-to-end benchmark: medians over batches, identity, Markdown, JSON and plots, with fake
engines; one run with the bundled pair."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest

from benchmarks import generate, generate_runs, plotting, probe, upscaled_pair
from benchmarks.generate_report import acceptance_by_depth, adaptive_lines
from benchmarks.kernels import __main__ as kernels
from sdengine.cli.options import BUNDLED_MODEL
from sdengine.cli.prompts import PROMPTS
from sdengine.core.config import SpeculationConfig
from sdengine.core.cost_model import CostModel
from sdengine.core.outputs import SpeculationStats
from tests.benchmarks.fakes import FakeEngine

FEW = ["--repeats", "2", "--methods", "dyspec", "ngram", "--budgets", "adaptive", "4"]
FEW += ["--no-limits", "--temperatures", "0", "0.8"]
COSTS = CostModel((1, 2, 8), (1e-3, 1.5e-3, 4e-3), 2e-4, 1e-4)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[SpeculationConfig | None, int]]:
    """Configurations and batch sizes of the engines that were opened, in order."""
    configs: list[tuple[SpeculationConfig | None, int]] = []

    def open_engine(args: object, config: SpeculationConfig | None, batch_size: int) -> FakeEngine:
        configs.append((config, batch_size))
        return FakeEngine(steps=("ab",) * 8, is_speculative=config is not None)

    monkeypatch.setattr(generate_runs, "open_engine", open_engine)
    monkeypatch.setattr(generate_runs, "measured_costs", lambda engine: COSTS)
    return configs


def test_one_plain_engine_a_batch_size_meets_every_method_and_budget(opened, capsys) -> None:
    assert generate.main([*FEW, "--batch-sizes", "1", "3", "--json"]) == 0
    assert [(size, config is None) for config, size in opened][:5] == [(1, True)] + [(1, False)] * 4
    assert [size for _, size in opened[5:]] == [3] * 5
    assert [(c.method, c.adaptive, c.max_nodes) for c, _ in opened[1:5]] == [
        ("dyspec", True, 64),
        ("dyspec", False, 4),
        ("ngram", True, 64),
        ("ngram", False, 4),
    ]


def test_json_holds_rows_costs_and_conditions(opened, capsys) -> None:
    assert generate.main([*FEW, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = document["rows"]
    assert [row["temperature"] for row in rows] == [0.0] * 5 + [0.8] * 5
    assert [row["method"] for row in rows[:5]] == ["plain", "dyspec", "dyspec", "ngram", "ngram"]
    first = rows[1]
    assert first["mean_acceptance_length"] == 2.0
    assert first["acceptance_by_depth"] == [1.0]
    assert first["draft_tokens_per_step"] == 4.0
    assert first["acceptance_rate"] == 0.25
    assert first["identical_tokens"] is True
    # ababab...: of the 13 4-grams of 16 tokens only abab and baba are new
    assert first["repeated_ngrams"] == pytest.approx(1 - 2 / 13)
    assert document["costs"]["rows"] == [1, 2, 8]
    conditions = document["conditions"]
    assert conditions["prompts"] == [prompt.title for prompt in PROMPTS]
    assert {"processor", "commit", "threads", "versions", "dtype"} <= set(conditions)


def test_conditions_say_what_ran(opened, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def conditions(*options: str) -> dict[str, object]:
        assert generate.main([*FEW, "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)["conditions"]

    monkeypatch.setenv("SDENGINE_NUM_THREADS", "7")  # the engine takes it
    assert conditions()["threads"] == 7 and conditions("--num-threads", "3")["threads"] == 3
    assert conditions()["draft"] == "the pair's own"
    assert conditions("--draft", "mine")["draft"] == "mine"
    assert conditions("--methods", "ngram", "--draft", "mine")["draft"] == "none"


@pytest.mark.parametrize("harness", [generate, probe])
def test_more_tokens_than_the_context_has_room_for_are_refused(harness, opened, capfd) -> None:
    assert harness.main(["--max-tokens", "1000"]) == 2
    err = capfd.readouterr().err
    assert not opened and err.startswith("sdengine: expected --max-tokens of at most ")
    assert "in a context of 1024 tokens, got 1000" in err and err.count("\n") == 1
    room = int(err.split()[6].removesuffix(","))
    prompts = [prompt.text for prompt in PROMPTS]
    generate.check_room(argparse.Namespace(model=BUNDLED_MODEL, max_tokens=room), prompts)


def test_everything_is_written_and_the_plots_say_their_conditions(
    opened, tmp_path: Path, capsys
) -> None:
    pytest.importorskip("matplotlib")
    assert generate.main([*FEW, "--out", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "new" / "generate.md").read_text() == out.removesuffix("\n")
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 10 + 3  # rows, and the cost curve
    names = {path.name for path in (tmp_path / "new").iterdir()}
    plots = {"speedup.svg", "acceptance.svg", "reliability.svg", "costs.svg"}
    assert names == {"generate.json", "generate.md", *plots}
    for name in plots:
        assert "threads, commit" in (tmp_path / "new" / name).read_text()


def test_without_matplotlib_nothing_is_measured_for_plots(opened, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plotting, "find_spec", lambda name: None)
    assert generate.main([*FEW, "--out", str(tmp_path)]) == 2
    assert "sdengine[train]" in capsys.readouterr().err
    assert not opened
    assert generate.main([*FEW, "--out", str(tmp_path), "--no-plots"]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md"}


def test_figures_are_printed_before_they_are_written(opened, tmp_path, monkeypatch, capsys) -> None:
    def full(args: object, document: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generate, "write", full)
    assert generate.main([*FEW, "--out", str(tmp_path), "--no-plots"]) == 1
    out, err = capsys.readouterr()
    assert "| dyspec |" in out and "No space left" in err


def test_different_tokens_fail_where_identity_is_promised(monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        generate_runs,
        "open_engine",
        lambda args, config, size: FakeEngine(("abcdef",) if config is None else ("abcdeg",)),
    )
    monkeypatch.setattr(generate_runs, "measured_costs", lambda engine: COSTS)
    few = ["--repeats", "1", "--methods", "chain", "--budgets", "adaptive", "--no-limits"]
    assert generate.main([*few, "--temperatures", "0.8"]) == 1
    assert " no |" in capsys.readouterr().out
    # the rejection verifier promises the law of the text at T > 0, the text itself at T = 0
    few += ["--verifier", "rejection"]
    assert generate.main([*few, "--temperatures", "0.8"]) == 0
    assert "not promised" in capsys.readouterr().out
    assert generate.main([*few, "--temperatures", "0"]) == 1


def test_prompts_come_from_files_or_from_what_was_held_out(opened, tmp_path: Path, capsys) -> None:
    file = tmp_path / "mine.py"
    file.write_text("x = 1\n", encoding="utf-8")
    assert generate.main([*FEW, "--prompt-file", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["conditions"]["prompts"] == ["mine.py"]
    assert generate.main([*FEW, "--held-out", "2", "--json"]) == 0
    prompts = json.loads(capsys.readouterr().out)["conditions"]["prompts"]
    assert len(prompts) == 2 and all(".py:" in title for title in prompts)


@pytest.mark.parametrize(
    "argv",
    [
        ["--repeats", "0"],
        ["--batch-sizes", "0"],
        ["--held-out", "0"],
        ["--held-out", "100000"],
        ["--held-out", "2", "--prompt-file", "a"],
        ["--budgets", "none"],
        ["--budgets", "0"],
        ["--temperatures", "-1"],
        ["--max-tokens", "0"],
        ["--prompt-file", "no/such/file"],
        ["--prompt-file", os.devnull],
        ["--out", "README.md/figures", "--no-plots"],
        ["--methods", "magic"],
    ],
)
def test_wrong_arguments_exit_2_on_one_line(argv: list[str], opened, capfd) -> None:
    try:
        code = generate.main(argv)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert not opened


@pytest.mark.parametrize("size", ["many", "0", "1025", "4.5"])
def test_a_budget_that_is_none_is_refused_with_its_option(size: str, opened, capfd) -> None:
    with pytest.raises(SystemExit) as stop:
        generate.main(["--budgets", "adaptive", size])
    err = capfd.readouterr().err
    assert (stop.value.code, opened) == (2, [])
    expected = f"--budgets: expected adaptive or an integer from 1 to 1024, got {size!r}; see "
    assert err.startswith(f"sdengine: argument {expected}")


@pytest.mark.parametrize("harness", [generate, probe, kernels, upscaled_pair])
def test_help_shows_every_default(harness) -> None:
    for action in harness.build_parser()._actions:
        if action.default in (None, False, "", argparse.SUPPRESS) or not action.option_strings:
            continue
        values = action.default if isinstance(action.default, list) else [action.default]
        shown = " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
        if "(all of them)" in (action.help or ""):
            assert values == list(action.choices)
        else:
            assert f"({shown})" in (action.help or "").replace("%(default)s", shown), action


def test_acceptance_by_depth_counts_steps_of_all_requests() -> None:
    stats = [
        SpeculationStats.from_histogram([1, 2], 8, 5),
        SpeculationStats.from_histogram([3, 0, 2], 8, 9),
    ]
    assert acceptance_by_depth(stats) == [4 / 8, 2 / 8]


def test_the_adaptive_budget_is_held_against_the_best_fixed_one() -> None:
    setting = {"batch_size": 1, "temperature": 0.0, "method": "dyspec"}
    ratios = {"adaptive": 1.1, "4": 1.3, "8": 1.2}
    lines = adaptive_lines([{**setting, "budget": b, "ratio": r} for b, r in ratios.items()])
    assert lines[-1].endswith("adaptive 1.10x, best fixed budget 4 1.30x: 0.85 of it")


def test_the_bundled_pair_is_measured_from_end_to_end(capsys) -> None:
    argv = ["--methods", "dyspec", "--budgets", "4", "adaptive", "--temperatures", "0.6"]
    argv += ["--repeats", "1"]
    argv += ["--max-tokens", "12", "--batch-sizes", "2", "--num-threads", "1", "--json"]
    assert generate.main([*argv, "--held-out", "2", "--no-limits"]) == 0
    document = json.loads(capsys.readouterr().out)
    plain, row, adaptive = document["rows"]
    assert plain["method"] == "plain" and plain["tokens_per_s"] > 0
    assert adaptive["identical_tokens"] is True and document["costs"]["rows"][0] == 1
    assert row["identical_tokens"] is True and row["batch_size"] == 2
    assert 1.0 <= row["mean_acceptance_length"] <= 5.0 and row["draft_tokens_per_step"] > 0
    assert sum(b["count"] for b in row["reliability"]) > 0
    assert row["peak_memory_mb"] is None or row["peak_memory_mb"] > 0
    assert 0 < row["inter_token_p50_s"] <= row["inter_token_p99_s"]
