"""Budgets under a table of step costs: the time that passes, what is printed, bad tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.generate import request_params, speculation
from benchmarks.modelled_budgets import Row, build_parser, decode, main, share_of_best
from benchmarks.step_costs import TABLES, StepCosts, read_step_costs
from sdengine.cli.measure import Run
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepReport
from sdengine.errors import ConfigError

TOKENS = 64
FREE_ROWS = StepCosts(CostModel((1, 64), (1.0, 1.0), 0.0, 0.0), 0.0, 0.0)
DEAR_ROWS = StepCosts(CostModel((1, 64), (1.0, 64.0), 2.0, 1.0, 0.5), 0.5, 0.25)
GOOD = TABLES["1.1b-avx2"]


def runs_of(
    step_costs: StepCosts, size: str | None, prompts: list[str], method: str = "chain"
) -> Run:
    """One batch of the bundled pair, greedy; None decodes plainly."""
    args = build_parser().parse_args(["--max-tokens", str(TOKENS), "--num-threads", "1"])
    config = None if size is None else speculation(args, method, size)
    (run,) = decode(args, config, step_costs, request_params(args, 0.0), [prompts])
    return run


def test_plain_steps_take_what_the_table_says() -> None:
    run = runs_of(DEAR_ROWS, None, ["def main("])
    assert run.decode_s == pytest.approx((TOKENS - 1) * 1.5)
    assert run.first_token_s[0] > 1.5  # a prompt of some rows
    assert run.token_s == pytest.approx([1.5])


def test_rows_and_layers_are_paid_for() -> None:
    run = runs_of(DEAR_ROWS, "2", ["def main("])
    (stats,) = run.speculation
    # Steps after the first, whose last one or two have room for fewer nodes than two.
    steps = stats.num_steps - 1
    whole = 0.5 + 3.0 + 3.0
    assert (steps - 2) * whole < run.decode_s <= steps * whole


def test_looking_up_has_a_price_of_its_own() -> None:
    run = runs_of(DEAR_ROWS, "2", ["def main("], "ngram")
    (stats,) = run.speculation
    assert stats.num_draft_tokens > 10
    # A row, its nodes, a lookup and what surrounds them; the first step is not timed.
    nodes = run.decode_s - (stats.num_steps - 1) * (1.0 + 0.25 + 0.5)
    assert stats.num_draft_tokens - 2 <= round(nodes, 9) <= stats.num_draft_tokens


def test_free_rows_save_what_is_accepted() -> None:
    run = runs_of(FREE_ROWS, "2", ["def main(", "class A:"])
    steps = max(stats.num_steps for stats in run.speculation)
    assert run.decode_s in (steps - 1.0, steps - 2.0)  # of the sequence that came second


def test_what_the_draft_missed_is_paid_for() -> None:
    report = StepReport([1], 2, 3, 9.0, 9.0, 9.0, is_steady=True)
    steady, behind = (DEAR_ROWS.report(report, 2, missed) for missed in (0, 10))
    assert (steady.draft_time_s, steady.verify_time_s, steady.step_s) == (3.0, 3.0, 6.5)
    assert behind.draft_time_s == pytest.approx(8.0) and behind.verify_time_s == 3.0
    assert (steady.num_accepted, steady.num_nodes, steady.is_steady) == ([1], 2, True)


def adaptive_steps(measured: StepCosts | None, *options: str) -> list[int]:
    """Steps of three greedy requests where rows are free, by what the budget is told."""
    args = build_parser().parse_args(["--max-tokens", str(TOKENS), "--num-threads", "1", *options])
    config = speculation(args, "dyspec", "adaptive")
    groups = [["def main("], ["def main(a"], ["def main(b"]]
    runs = decode(args, config, FREE_ROWS, request_params(args, 0.0), groups, measured)
    return [run.speculation[0].num_steps for run in runs]


def test_an_engine_may_be_told_other_costs_than_its_steps_have() -> None:
    assert sum(adaptive_steps(DEAR_ROWS)) > 1.3 * sum(adaptive_steps(None))


def test_every_batch_may_have_an_engine_that_knows_nothing() -> None:
    together, apart = adaptive_steps(None), adaptive_steps(None, "--first-request")
    assert together[0] == apart[0]
    assert all(new > old for new, old in zip(apart[1:], together[1:])), "plain steps come first"


def test_two_runs_print_the_same_and_trees_gain(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--held-out", "2", "--max-tokens", "48", "--temperatures", "0", "--budgets"]
    tables = []
    for _ in range(2):
        assert main([*options, "adaptive", "4", "--json"]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    rows = json.loads(tables[0])["rows"]
    assert [row["budget"] for row in rows] == ["adaptive", "4"]
    assert all(row["speedup"] > 1.0 and row["tokens_per_step"] > 1.5 for row in rows)


def test_trees_of_a_text_that_seldom_repeats_itself_are_as_large_as_the_best(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """0.86 and 0.91 of the best fixed budget when steps that found nothing shrank the trees."""
    options = ["--held-out", "6", "--max-tokens", "96", "--temperatures", "0", "0.6"]
    options += ["--step-costs", "1.1b-avx512-bf16", "--num-threads", "1"]
    assert main([*options, "--methods", "ngram", "--budgets", "adaptive", "8", "--json"]) == 0
    speedups = [row["speedup"] for row in json.loads(capsys.readouterr().out)["rows"]]
    for adaptive, fixed in zip(speedups[::2], speedups[1::2]):
        assert adaptive > 0.95 * fixed > 1.3


def test_the_table_has_a_column_for_every_budget(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--held-out", "1", "--max-tokens", "4", "--temperatures", "0", "1"]
    assert main([*options, "--methods", "chain", "kary", "--budgets", "1", "4"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head = ["T", "sequences", "method", "1", "4", "adaptive of the best fixed", "by requests"]
    assert cells[0] == head
    heads = [("0", "1", "chain"), ("0", "1", "kary"), ("1", "1", "chain"), ("1", "1", "kary")]
    assert [tuple(line[:3]) for line in cells[2:]] == heads
    assert {len(line) for line in cells} == {7}


def test_the_best_fixed_budget_may_be_none() -> None:
    def row(budget: str, speedup: float) -> Row:
        return Row(0.0, 1, "dyspec", budget, speedup, 2 * speedup, 1.0)

    assert share_of_best([row("adaptive", 0.9), row("4", 0.8)]) == "0.90"
    assert share_of_best([row("adaptive", 1.2), row("4", 1.5)]) == "0.80"
    assert share_of_best([row("4", 1.5)]) == ""
    assert share_of_best([row("adaptive", 0.9), row("4", 0.8)], "request_speedup") == "1.12"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: table.pop("rows"),
        lambda table: table.update(more=1),
        lambda table: table["rows"].reverse(),
        lambda table: table["verify_ms"].pop(),
        lambda table: table.update(draft_layer_ms=-1.0),
        lambda table: table.pop("draft_read_ms"),
        lambda table: table.update(overhead_ms=float("inf")),
        lambda table: table.update(draft_first_ms="soon"),
        lambda table: table.update(verify_ms=[0.0] * len(table["rows"])),
    ],
)
def test_a_bad_table_is_refused(spoil: Callable[[dict], object], tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    table = json.loads(json.dumps(GOOD))
    file.write_text(json.dumps(table))
    assert read_step_costs(str(file)) == read_step_costs("1.1b-avx2")
    spoil(table)
    file.write_text(json.dumps(table))
    with pytest.raises(ConfigError, match="8b-h200, or a JSON file"):
        read_step_costs(str(file))


@pytest.mark.parametrize("name", ["no-such-table", "README.md", "tests"])
def test_what_is_no_table_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="a JSON file"):
        read_step_costs(name)
