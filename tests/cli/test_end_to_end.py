"""The command line with the bundled pair, as a user would type it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pytest

from sdengine.cli.main import main

PROMPT = "class Stack:\n    def __init__(self):\n"
SHORT = ["--max-tokens", "24", "--seed", "3"]


def document(capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    assert main(["generate", PROMPT, *SHORT, "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_speculation_changes_the_statistics_and_not_the_tokens(temperature: str, capsys) -> None:
    plain = document(capsys, "--temperature", temperature, "--speculation", "off")
    assert plain["speculation"] is None and len(plain["token_ids"]) == 24
    for method in ("dyspec", "chain", "kary", "sampled", "ngram"):
        found = document(capsys, "--temperature", temperature, "--speculation", method)
        assert found["token_ids"] == plain["token_ids"], method
        assert found["text"] == plain["text"]
        assert found["speculation"]["num_steps"] > 0


def test_streamed_text_is_the_text_of_the_document(capsys) -> None:
    whole = document(capsys, "--temperature", "0.8")["text"]
    assert main(["generate", PROMPT, *SHORT, "--temperature", "0.8"]) == 0
    out, err = capsys.readouterr()
    assert out == (whole if whole.endswith("\n") else whole + "\n")
    assert re.fullmatch(
        r"24 tokens, [\d.]+ tok/s, mean acceptance length [\d.]+, acceptance rate \d+%, seed 3\n",
        err,
    )


def test_compare_finds_identical_tokens(capsys) -> None:
    assert main(["generate", PROMPT, *SHORT, "--temperature", "0.8", "--compare"]) == 0
    out = capsys.readouterr().out
    assert "identical tokens: yes" in out
    assert re.search(r"ratio: +[\d.]+x", out)


def test_a_prompt_beyond_the_context_exits_2(capsys) -> None:
    assert main(["generate", "x = 1\n" * 2000]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "max_model_len" in err


def test_ctrl_c_ends_a_generation_quietly() -> None:
    command = [sys.executable, "-u", "-m", "sdengine.cli", "generate", PROMPT]
    command += ["--max-tokens", "900", "--temperature", "1", "--seed", "1"]
    # A suite that a shell runs in the background ignores SIGINT, and so would its children.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    process.stdout.read(1)  # it has begun
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == b""


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    command = [sys.executable, "-u", "-m", "sdengine.cli", "generate", PROMPT]
    command += ["--max-tokens", "900", "--temperature", "1", "--seed", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=30) == 141
    assert err == b""
