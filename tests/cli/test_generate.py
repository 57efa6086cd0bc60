"""generate: where the prompt comes from, what is printed where, JSON, comparison."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest

from sdengine.cli import generate
from sdengine.cli.main import build_parser, main
from sdengine.cli.options import open_llm
from sdengine.cli.prompts import PROMPTS
from sdengine.kernels.programs.program import num_threads as kernel_threads
from sdengine.model.registry import BUNDLED_DIR
from tests.cli.fakes import FakeLLM
from tests.engine.conftest import text_checkpoint


@pytest.fixture
def llms(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeLLM]:
    """Models by speculation; the command line opens these."""
    fakes = {"auto": FakeLLM(name="spec"), "off": FakeLLM(is_speculative=False, name="plain")}
    monkeypatch.setattr(
        generate, "open_llm", lambda args, speculation=None: fakes[speculation or args.speculation]
    )
    return fakes


def test_text_goes_to_stdout_and_one_line_of_statistics_to_stderr(llms, capsys) -> None:
    assert main(["generate", "hello", "--seed", "7"]) == 0
    out, err = capsys.readouterr()
    assert out == "abcdef\n"
    assert err.count("\n") == 1
    for part in ("6 tokens", "tok/s", "mean acceptance length 2.00", "acceptance rate 25%"):
        assert part in err
    assert err.endswith("seed 7\n")


def test_plain_decoding_says_so(llms, capsys) -> None:
    assert main(["generate", "hello", "--speculation", "off"]) == 0
    assert "no speculation" in capsys.readouterr().err


def test_the_command_line_overrides_the_checkpoints_defaults(llms, capsys) -> None:
    main(["generate", "a", "--seed", "3", "--max-tokens", "9"])
    main(["generate", "a", "--temperature", "0"])
    first, second = (params for _, params in llms["auto"].requests)
    assert (first.temperature, first.top_k, first.max_tokens, first.seed) == (0.5, 7, 9, 3)
    assert second.temperature == 0.0 and second.seed is not None


def test_every_sampling_option_arrives(llms, capsys) -> None:
    given = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.05,
        "presence_penalty": 0.25,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.25,
    }
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    assert main(["generate", "a", "--json", *options, "--stop", "x", "--stop", "yz"]) == 0
    params = llms["auto"].requests[0][1]
    assert {name: getattr(params, name) for name in given} == given
    assert params.stop == ("x", "yz")
    document = json.loads(capsys.readouterr().out)
    assert {name: document[name] for name in given} == given


@pytest.mark.parametrize(
    ("options", "named"),
    [(["--top-p", "1.5"], "top_p"), (["--min-p", "-1"], "min_p"), (["--stop", ""], "stop")],
)
def test_an_option_out_of_range_is_answered_before_a_model_is_loaded(
    options: list[str], named: str, llms, capsys
) -> None:
    assert main(["generate", "a", *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and named in err
    assert not llms["auto"].requests


def test_an_unasked_seed_is_printed_and_fresh(llms, capsys) -> None:
    seeds = set()
    for _ in range(3):
        main(["generate", "a"])
        seeds.add(capsys.readouterr().err.rpartition("seed ")[2])
    assert len(seeds) == 3


def test_dash_reads_stdin_as_it_is(llms, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def f():\n    # \N{SNOWMAN}\n"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert main(["generate", "-"]) == 0
    assert llms["auto"].requests[0][0] == text


@pytest.mark.parametrize("data", [b"", b"\xff\xfe"])
def test_unusable_stdin_exits_2(llms, data, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert main(["generate", "-"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_a_prompt_the_bundled_pair_shows_an_example(llms) -> None:
    assert main(["generate"]) == 0
    assert llms["auto"].requests[0][0] == PROMPTS[0].text


def test_another_model_needs_a_prompt(llms, capsys) -> None:
    assert main(["generate", "--model", "elsewhere"]) == 2
    assert "expected a prompt, got none" in capsys.readouterr().err
    assert not llms["auto"].requests


def test_json_is_one_document_on_stdout(llms, capsys) -> None:
    assert main(["generate", "hello", "--json", "--seed", "7"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == ""
    assert document["text"] == "abcdef" and document["seed"] == 7
    assert document["token_ids"] == [ord(letter) for letter in "abcdef"]
    assert document["speculation"]["num_steps"] == 3
    assert document["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("options", "draft"),
    [
        ([], str(BUNDLED_DIR / "python-completion" / "draft")),
        (["--draft", "."], "."),
        (["--speculation", "off"], None),
    ],
)
def test_json_names_the_draft_that_ran(options, draft, llms, capsys) -> None:
    assert main(["generate", "hello", "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["draft"] == draft


def test_compare_gives_both_engines_the_same_settings(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    opened = []

    def llm(model: str, draft: str | None, *, speculation: str, **settings: object) -> FakeLLM:
        names = ("max_model_len", "device", "dtype", "num_threads")
        opened.append((speculation, *map(settings.get, names)))
        return FakeLLM()

    monkeypatch.setattr("sdengine.llm.LLM", llm)
    asked = ["--max-model-len", "99", "--device", "cpu", "--dtype", "float16"]
    assert main(["generate", "hello", "--compare", *asked, "--num-threads", "3"]) == 0
    assert opened == [("auto", 99, "cpu", "float16", 3), ("off", 99, "cpu", "float16", 3)]


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_an_engine_runs_on_the_threads_that_were_asked_for(command: str) -> None:
    argv = [command, "--model", text_checkpoint(), "--max-model-len", "64"]
    for options, num_threads in (["--num-threads", "1"], 1), ([], None):
        with open_llm(build_parser().parse_args([*argv, *options])) as llm:
            assert llm.engine.config.num_threads == num_threads
            if num_threads is not None:
                assert kernel_threads(llm.engine.iteration.pool) == num_threads


def test_compare_prints_speeds_ratio_and_identity(llms, capsys) -> None:
    assert main(["generate", "hello", "--compare"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("abcdef\n")
    for part in ("plain:", "speculative:", "ratio:", "identical tokens: yes\n"):
        assert part in out


def test_compare_tells_when_tokens_differ(llms, capsys) -> None:
    llms["off"].steps = ("ab", "c", "dex")
    assert main(["generate", "hello", "--compare"]) == 0
    assert "identical tokens: no" in capsys.readouterr().out


def test_compare_as_json(llms, capsys) -> None:
    assert main(["generate", "hello", "--compare", "--json"]) == 0
    comparison = json.loads(capsys.readouterr().out)["comparison"]
    assert comparison["identical_tokens"] is True
    ratio = comparison["speculative_tokens_per_s"] / comparison["plain_tokens_per_s"]
    assert comparison["ratio"] == pytest.approx(ratio)
    assert comparison["runs_each"] == generate.COMPARE_REPEATS
