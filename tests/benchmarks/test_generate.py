"""The end-to-end benchmark: medians over prompts, identity, Markdown and JSON, with fake models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import generate
from sdengine.cli.prompts import PROMPTS
from sdengine.core.config import SpeculationConfig
from tests.cli.fakes import FakeLLM

FEW = ["--repeats", "2", "--methods", "dyspec", "ngram", "--budgets", "adaptive", "4"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[SpeculationConfig | None]:
    """Configurations of the engines that were opened, in order."""
    configs: list[SpeculationConfig | None] = []

    def open_llm(args: object, config: SpeculationConfig | None) -> FakeLLM:
        configs.append(config)
        return FakeLLM(steps=("ab",) * 8, is_speculative=config is not None)

    monkeypatch.setattr(generate, "open_llm", open_llm)
    return configs


def test_one_plain_engine_meets_every_method_and_budget(opened, capsys) -> None:
    assert generate.main([*FEW, "--json"]) == 0
    assert opened[0] is None
    assert [(c.method, c.adaptive, c.max_nodes) for c in opened[1:]] == [
        ("dyspec", True, 64),
        ("dyspec", False, 4),
        ("ngram", True, 64),
        ("ngram", False, 4),
    ]


def test_json_holds_rows_and_conditions(opened, capsys) -> None:
    assert generate.main([*FEW, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = document["rows"]
    assert [row["temperature"] for row in rows] == [0.0] * 4 + [0.8] * 4
    first = rows[0]
    assert first["mean_acceptance_length"] == 2.0
    assert first["acceptance_rate"] == 0.25
    assert first["identical_tokens"] is True
    # ababab...: of the 13 4-grams of 16 tokens only abab and baba are new
    assert first["repeated_ngrams"] == pytest.approx(1 - 2 / 13)
    assert document["conditions"]["prompts"] == [prompt.title for prompt in PROMPTS]


def test_markdown_is_a_table_and_both_files_are_written(opened, tmp_path: Path, capsys) -> None:
    assert generate.main([*FEW, "--out", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "new" / "generate.md").read_text() == out.removesuffix("\n")
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 8
    assert len({line.count("|") for line in table}) == 1
    assert len(json.loads((tmp_path / "new" / "generate.json").read_text())["rows"]) == 8


def test_different_tokens_fail_where_identity_is_promised(monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        generate,
        "open_llm",
        lambda args, config: FakeLLM(steps=("abcdef",) if config is None else ("abcdeg",)),
    )
    few = ["--repeats", "1", "--methods", "chain", "--budgets", "adaptive"]
    assert generate.main([*few, "--temperatures", "0.8"]) == 1
    assert " no |" in capsys.readouterr().out
    # the rejection verifier promises the law of the text at T > 0, the text itself at T = 0
    few += ["--verifier", "rejection"]
    assert generate.main([*few, "--temperatures", "0.8"]) == 0
    assert "not promised" in capsys.readouterr().out
    assert generate.main([*few, "--temperatures", "0"]) == 1


def test_prompt_files_replace_the_bundled_prompts(opened, tmp_path: Path, capsys) -> None:
    file = tmp_path / "mine.py"
    file.write_text("x = 1\n", encoding="utf-8")
    assert generate.main([*FEW, "--prompt-file", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["conditions"]["prompts"] == ["mine.py"]


@pytest.mark.parametrize(
    "argv",
    [
        ["--repeats", "0"],
        ["--budgets", "none"],
        ["--budgets", "0"],
        ["--temperatures", "-1"],
        ["--max-tokens", "0"],
        ["--prompt-file", "no/such/file"],
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
