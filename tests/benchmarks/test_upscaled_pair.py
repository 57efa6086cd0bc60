"""The enlarged pair as a command: made once, checked, handed to the end-to-end benchmark."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import upscaled_pair
from benchmarks.generate_runs import Figures
from benchmarks.upscale import Shape
from benchmarks.upscale.agreement import LogitAgreement, TextAgreement
from sdengine.model.registry import resolve_model

TARGET = Shape(272, 1424, 10, 4, 2, 64, 2050)
DRAFT = Shape(136, 712, 2, 2, 1, 64, 2050)


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    """Options for an enlarged pair that is hardly larger, in a cache of its own."""
    words = ["--cache-dir", str(tmp_path / "cache")]
    for role, shape in (("target", TARGET), ("draft", DRAFT)):
        file = tmp_path / f"{role}.json"
        architecture = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5}
        file.write_text(json.dumps({**architecture, **asdict(shape)}))
        words += [f"--{role}-shape", str(file)]
    return words


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Command lines that the end-to-end benchmark got."""
    calls: list[list[str]] = []
    monkeypatch.setattr(upscaled_pair.generate, "main", lambda argv, _: calls.append(argv) or 0)
    return calls


def test_a_pair_is_made_once_and_measured(argv, measured, tmp_path: Path, capsys) -> None:
    assert upscaled_pair.main([*argv, "--", "--budgets", "8"]) == 0
    assert capsys.readouterr().err.count(" GB in ") == 2
    made = {folder.name: folder.stat().st_mtime_ns for folder in (tmp_path / "cache").glob("*/*")}
    assert len(made) == 2
    assert upscaled_pair.main(argv) == 0
    assert capsys.readouterr().err == ""
    assert made == {f.name: f.stat().st_mtime_ns for f in (tmp_path / "cache").glob("*/*")}
    target, draft = measured[0][1], measured[0][3]
    assert Path(target).name in made and Path(draft).name in made
    assert measured[0][4:] == ["--dtype", "bfloat16", "--budgets", "8"]
    assert upscaled_pair.main([*argv, "--enlarge-seed", "1", "--make-only"]) == 0
    assert len(list((tmp_path / "cache").glob("*/*"))) == 4, "another seed, another pair"
    assert len(measured) == 2


def test_the_conditions_name_the_command_that_was_typed(
    argv, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(upscaled_pair, "upscaled_pair", lambda args: resolve_model(args.pair))
    monkeypatch.setattr(upscaled_pair.generate, "measure", lambda *_: Figures())
    argv = ["--", "--methods", "ngram", "--no-limits", "--json"]
    monkeypatch.setattr("sys.argv", ["upscaled_pair.py", *argv])
    assert upscaled_pair.main(argv) == 0
    command = json.loads(capsys.readouterr().out)["conditions"]["command"]
    assert command == f"python -m benchmarks.upscaled_pair {' '.join(argv)}"


def test_the_check_compares_the_pairs(argv, measured, capsys) -> None:
    argv += [
        "--check",
        "--check-tokens",
        "6",
        "--check-prompts",
        "3",
        "--make-only",
        "--stored-dtype",
        "float32",
    ]
    assert upscaled_pair.main(argv) == 0
    out = capsys.readouterr().out
    assert "float32: 3 of 3 greedy texts of 6 tokens equal" in out
    assert out.count("of what plain torch loses on the small model") == 1
    assert not measured


@pytest.mark.parametrize(
    ("dtype", "logits", "text"),
    [
        ("float32", LogitAgreement(1e-6, 3e-6, 900.0), TextAgreement(8, 8, 2.0, 2.0)),
        ("float32", LogitAgreement(1e-6, 1e-6, -1.0), TextAgreement(8, 8, 2.0, 2.0)),
        ("float32", LogitAgreement(1e-6, 1e-6, 900.0), TextAgreement(7, 8, 2.0, 2.0)),
        ("bfloat16", LogitAgreement(1e-2, 1e-2, 900.0), TextAgreement(8, 8, 2.0, 1.7)),
    ],
)
def test_a_pair_that_says_something_else_is_not_measured(
    argv, measured, monkeypatch: pytest.MonkeyPatch, dtype, logits, text
) -> None:
    monkeypatch.setattr(upscaled_pair, "compare_logits", lambda *_: logits)
    monkeypatch.setattr(upscaled_pair, "compare_text", lambda *_: text)
    monkeypatch.setattr(upscaled_pair, "upscaled_pair", lambda args: resolve_model(args.pair))
    assert upscaled_pair.main([*argv, "--check", "--stored-dtype", dtype]) == 1
    assert not measured


def test_what_cannot_be_enlarged_is_one_line(argv, measured, tmp_path: Path, capsys) -> None:
    alone = str(resolve_model("python-completion").target)
    assert upscaled_pair.main([*argv, "--pair", alone]) == 2
    assert upscaled_pair.main(["--target-shape", "68m", *argv[:2], "--draft-shape", "9z"]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    assert not (tmp_path / "cache").exists() and not measured
