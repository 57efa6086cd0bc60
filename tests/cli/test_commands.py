"""train, bench, info and the demo, without models."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sdengine.cli import demo, info
from sdengine.cli.main import main
from sdengine.core.config import BACKENDS
from sdengine.kernels.cuda_library import why_unavailable
from tests.cli.fakes import FakeLLM, TerminalStream


def test_train_pair_hands_its_options_to_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr("sdengine.train.pair.run", lambda args: seen.update(vars(args)) or 0)
    assert main(["train", "pair", "--out", "somewhere", "--debug", "--steps", "3"]) == 0
    assert seen["steps"] == 3 and seen["out"] == Path("somewhere")


def test_train_pair_refuses_wrong_options_on_one_line(capsys) -> None:
    assert main(["train", "pair", "--steps", "3"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("sdengine: ") and err.count("\n") == 1 and "--out" in err


@pytest.mark.parametrize(
    "option,words",
    [("--steps", "an integer, got 'a'"), ("--rate", "a number, got 'a'")],
)
def test_train_pair_says_what_a_number_should_be(option: str, words: str, capsys) -> None:
    assert main(["train", "pair", "--out", "x", option, "a"]) == 2
    assert f"argument {option}: expected {words}; see " in capsys.readouterr().err


def test_train_pair_says_where_its_progress_is(capsys) -> None:
    assert main(["train", "pair", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "pair.jsonl and draft.jsonl of the work directory" in out


@pytest.mark.parametrize(("command", "missing"), [("train", "recipe"), ("bench", "what")])
def test_only_what_is_required_is_asked_for(command: str, missing: str, capsys) -> None:
    assert main([command]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"sdengine: the following arguments are required: {missing}; see "), err


def test_bench_without_a_clone_says_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sdengine.cli.bench.find_spec", lambda name: None)
    assert main(["bench", "generate"]) == 2
    assert "clone" in capsys.readouterr().err


def test_bench_hands_its_options_to_the_harness(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    seen = []
    monkeypatch.setattr("runpy.run_module", lambda name, **_: seen.append((name, sys.argv[1:])))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    assert main(["bench", "generate", "--repeats", "2"]) == 0
    assert seen == [("benchmarks.generate", ["--repeats", "2"])]


def test_bench_hands_debug_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("runpy.run_module", lambda name, **_: seen.append(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    assert main(["bench", "generate", "--repeats", "2", "--debug"]) == 0
    assert seen == [["--debug", "--repeats", "2"]]


@pytest.mark.parametrize("text", ["{", "[]", '{"parameters": 3}', '{"parameters": {"target": ""}}'])
def test_info_survives_a_damaged_manifest(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    target = tmp_path / "mine" / "target"
    target.mkdir(parents=True)
    (target / "config.json").write_text("{}")
    (target / "model.safetensors").write_bytes(bytes(1_500_000))
    (tmp_path / "mine" / "MANIFEST.json").write_text(text)
    monkeypatch.setenv("SDENGINE_BUNDLED_DIR", str(tmp_path))
    assert main(["info"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  mine ")]
    assert line.endswith("target 1.5 MB, damaged MANIFEST.json")


def test_info_tells_about_every_backend_and_why(capsys) -> None:
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for name in BACKENDS:
        assert f"\n  {name} " in out
    for title in ("backends", "cpu", "gpus", "bundled models", "environment", "versions"):
        assert f"{title}\n" in out
    reason = why_unavailable()
    assert reason is None or f"cuda                   not available: {reason}" in out
    assert "\n  engine on a CPU        cpu\n" in out
    assert reason is None or f"engine on a GPU        not available: {reason}; an engine" in out


def test_info_names_the_kernels_that_an_engine_on_a_gpu_would_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sdengine.kernels.backends.why_unavailable", lambda name: None)
    assert info.engine_on_gpu().startswith('triton and cuda, with device="cuda"')


def test_info_gives_the_reason_of_a_missing_extension(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "sdengine.kernels._cpu", None)
    monkeypatch.delattr("sdengine.kernels._cpu", raising=False)
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "not available: backend 'cpu': the compiled extension is missing" in out
    assert "nothing: the compiled extension is missing" in out


def test_info_shows_a_lowered_instruction_set() -> None:
    assert isa_text("avx512", "avx512", "avx512") == "avx512"
    assert isa_text("avx2", "avx512", "avx512") == "avx2 (this machine has avx512)"
    assert isa_text("avx2", "avx512", "avx512_bf16") == "avx2 (this machine has avx512)"
    chosen = isa_text("avx512", "avx512", "avx512_bf16")
    assert chosen == "avx512 (faster here than avx512_bf16, which this machine has, too)"


def test_info_tells_how_many_dot_products_a_core_starts() -> None:
    dots, floats = ("avx512_bf16",) * 3, ("avx512", "avx512", "avx512_bf16")
    assert isa_text(*dots, starts_two_dots=True) == "avx512_bf16, two dots"
    assert isa_text(*dots) == "avx512_bf16"
    assert isa_text(*floats, starts_two_dots=True) == isa_text(*floats)


def isa_text(used: str, fastest: str, largest: str, starts_two_dots: bool = False) -> str:
    native = SimpleNamespace(
        selected_isa=lambda: used,
        fastest_isa=lambda: fastest,
        detected_isa=lambda: largest,
        starts_two_dots=lambda: starts_two_dots,
    )
    return info.isa_text(native)


def test_an_impossible_instruction_set_exits_2() -> None:
    command = [sys.executable, "-m", "sdengine.cli", "generate", "x", "--max-tokens", "2"]
    environment = {**os.environ, "SDENGINE_ISA": "mmx"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("sdengine: ") and done.stderr.count("\n") == 1


def test_info_keeps_a_key_to_itself(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("SDENGINE_API_KEY", "open-sesame")
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "SDENGINE_API_KEY" in out and "open-sesame" not in out


def test_info_refuses_an_unknown_variable(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("SDENGINE_SPEED", "11")
    assert main(["info"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "SDENGINE_SPEED" in err


def run_demo(monkeypatch: pytest.MonkeyPatch, plain_steps: tuple[str, ...]) -> int:
    def llm(model: str, speculation: object = "auto", max_num_seqs: int = 8) -> FakeLLM:
        if speculation is None:
            return FakeLLM(steps=plain_steps, is_speculative=False)
        return FakeLLM()

    monkeypatch.setattr("sdengine.llm.LLM", llm)
    return demo.main([])


def test_demo_ends_with_identical_tokens(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert run_demo(monkeypatch, ("ab", "c", "def")) == 0
    out = capsys.readouterr().out
    assert out.endswith("identical tokens: yes\n")
    assert "mean acceptance length" in out and "2.00" in out


def test_demo_fails_when_tokens_differ(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert run_demo(monkeypatch, ("ab", "c", "dxf")) == 1
    assert capsys.readouterr().out.endswith("identical tokens: no\n")


def test_demo_tints_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    screen = TerminalStream()
    monkeypatch.setattr(sys, "stdout", screen)
    assert run_demo(monkeypatch, ("ab", "c", "def")) == 0
    assert "\x1b[36ma\x1b[0mb" in screen.getvalue()
