"""chat: what it remembers, what it refuses, and what ends an answer but not the conversation."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdengine.cli import chat
from sdengine.cli.main import main
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import RequestError
from sdengine.llm import LLM, StreamDelta
from sdengine.model.chat_template import TEMPLATE_FILE
from sdengine.model.registry import BUNDLED_DIR
from tests.cli.fakes import FakeLLM, TerminalStream
from tests.engine.conftest import text_checkpoint, tiny

TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


class ForgetfulLLM(FakeLLM):
    """One whose context holds three messages of at most nine characters."""

    def render_chat(self, messages):
        lengths = super().render_chat(messages)
        if len(lengths) > 3 or max(lengths) > 9:
            raise RequestError.from_parts(
                "a shorter prompt", f"{sum(lengths)} tokens", "shorten it"
            )
        return lengths


class InterruptedLLM(FakeLLM):
    """One whose first answer somebody interrupts after its first step."""

    def stream(self, prompt: object, params: SamplingParams) -> Iterator[StreamDelta]:
        for delta in super().stream(prompt, params):
            yield delta
            if len(self.requests) == 1:
                raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def listen_to_sigint() -> Iterator[None]:
    """A suite that a shell runs in the background ignores SIGINT, and so would its children."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


def start_chat(llm: FakeLLM | LLM, stdin: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(chat, "open_llm", lambda args: llm)
    monkeypatch.setattr(chat, "require_chat_template", lambda args: None)
    monkeypatch.setattr(sys, "stdin", stdin)
    return main(["chat", "--seed", "5"])


def run_chat(lines: str, monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    llm = FakeLLM(steps=("ok",))
    assert start_chat(llm, io.StringIO(lines), monkeypatch) == 0
    return llm


def test_chat_remembers_and_forgets(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    llm = run_chat("abc\n\nde\n /reset \nf\n/exit\nignored\n", monkeypatch)
    # prompts are the lengths of the messages: user, assistant, user, ...
    assert [prompt for prompt, _ in llm.requests] == [[3], [3, 2, 2], [1]]
    assert capsys.readouterr().out == "ok\nok\nok\n"


def test_chat_turns_have_seeds_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = [params.seed for _, params in run_chat("a\nb\n", monkeypatch).requests]
    assert len(set(seeds)) == 2


def test_chat_prints_the_seed_that_repeats_the_session(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    run_chat("a\nb\n", monkeypatch)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.endswith(", seed 5") for line in lines)


def test_chat_refuses_a_model_without_a_template_before_loading(capsys) -> None:
    assert main(["chat"]) == 2
    assert "chat template" in capsys.readouterr().err


def test_a_full_conversation_goes_on_without_the_message(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    llm = ForgetfulLLM(steps=("ok",))
    lines = "much too long\na\nbb\nccc\n/reset\ndd\n"
    assert start_chat(llm, TerminalStream(lines), monkeypatch) == 0
    assert [prompt for prompt, _ in llm.requests] == [[1], [1, 2, 2], [2]]
    err = capsys.readouterr().err
    assert err.count("sdengine: expected a shorter prompt, got ") == 2
    assert err.count("shorten it; this message is left out, /reset forgets the conversation\n") == 2


def test_lines_of_another_system_end_where_their_text_does(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = io.StringIO("abc\r\n/reset\r\nf\r\n", newline="")
    llm = FakeLLM(steps=("ok",))
    assert start_chat(llm, lines, monkeypatch) == 0
    assert [prompt for prompt, _ in llm.requests] == [[3], [1]]


def test_a_full_conversation_ends_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    stdin = io.StringIO("a\nb\nc\nd\n")
    assert start_chat(ForgetfulLLM(steps=("ok",)), stdin, monkeypatch) == 2
    out, err = capsys.readouterr()
    assert out == "ok\nok\n"
    assert err.endswith("sdengine: expected a shorter prompt, got 7 tokens; shorten it\n")


@pytest.mark.parametrize(
    ("encoding", "errors"), [("utf-8", "strict"), ("utf-8", "surrogateescape"), ("ascii", "strict")]
)
def test_a_message_that_is_not_utf_8_is_unusable_input(
    encoding: str, errors: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """In whatever way the locale's standard input takes a stray byte."""
    stdin = io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding=encoding, errors=errors)
    llm = FakeLLM(steps=("ok",))
    assert start_chat(llm, stdin, monkeypatch) == 2
    err = capsys.readouterr().err
    assert err.startswith("sdengine: expected messages in UTF-8, got ") and err.count("\n") == 1
    assert "0xff in position 0" in err and not llm.requests


def test_a_locale_without_an_encoding_takes_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\N{SNOWMAN}\n".encode()
    llm = FakeLLM(steps=("ok",))
    assert start_chat(llm, io.TextIOWrapper(io.BytesIO(text), "ascii"), monkeypatch) == 0
    assert [prompt for prompt, _ in llm.requests] == [[1]]


def test_a_terminal_goes_on_after_a_message_that_is_not_utf_8(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    llm = FakeLLM(steps=("ok",))
    assert start_chat(llm, TerminalStream("a\udcff\nbb\n"), monkeypatch) == 0
    assert [prompt for prompt, _ in llm.requests] == [[2]]
    assert "expected messages in UTF-8" in capsys.readouterr().err


def test_ctrl_c_ends_the_answer_and_the_conversation_keeps_what_was_said(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    llm = InterruptedLLM(steps=("abc", "d"))
    assert start_chat(llm, TerminalStream("x\ny\n"), monkeypatch) == 0
    assert [prompt for prompt, _ in llm.requests] == [[1], [1, 3, 1]]
    out, err = capsys.readouterr()
    assert out == "abc\nabcd\n" and chat.ENDED in err


def test_ctrl_c_ends_a_chat_in_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    llm = InterruptedLLM(steps=("abc", "d"))
    assert start_chat(llm, io.StringIO("x\ny\n"), monkeypatch) == 130
    assert len(llm.requests) == 1


def test_ctrl_c_at_the_prompt_ends_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = TerminalStream()
    monkeypatch.setattr(stdin, "readline", lambda: signal.raise_signal(signal.SIGINT))
    assert start_chat(FakeLLM(), stdin, monkeypatch) == 130


def test_an_answer_that_was_ended_leaves_nothing_in_the_engine(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Whether Ctrl-C comes while text is shown or in the middle of a step."""
    llm = LLM(text_checkpoint(), **tiny({"max_num_seqs": 1, "max_model_len": 64}))
    monkeypatch.setattr(llm, "render_chat", lambda messages: [7] * len(messages))
    running: list[int] = []
    step = llm.engine.step

    def interrupted_step(*limits: float) -> object:
        running.append(llm.engine.num_running + llm.engine.num_waiting)
        if len(running) == 2:
            raise KeyboardInterrupt
        return step(*limits)

    monkeypatch.setattr(llm.engine, "step", interrupted_step)
    monkeypatch.setattr(chat.StreamView, "show", show_until_third(chat.StreamView.show))
    assert start_chat(llm, TerminalStream("a\nb\nc\n"), monkeypatch) == 0
    assert capsys.readouterr().err.count(chat.ENDED) == 2
    assert set(running) == {1}, "an ended request still ran beside the next one"
    assert not llm.engine.has_unfinished_requests()
    assert llm.engine.num_free_blocks == llm.engine.num_blocks


def show_until_third(show):
    """Interrupts the third text that is shown."""
    count = iter(range(10**6))

    def shown(view: chat.StreamView, delta: StreamDelta) -> None:
        if next(count) == 2:
            signal.raise_signal(signal.SIGINT)
        show(view, delta)

    return shown


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    """The bundled target with a chat template."""
    for file in (BUNDLED_DIR / "python-completion" / "target").iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / TEMPLATE_FILE).write_text(TEMPLATE, encoding="utf-8")
    return tmp_path


def test_a_conversation_on_a_terminal(chat_model: Path) -> None:
    """Ctrl-C in an answer, a message that is too long, a stray byte; then the end of input."""
    master, slave = pty.openpty()
    command = [sys.executable, "-u", "-m", "sdengine.cli", "chat", "--model", str(chat_model)]
    command += ["--max-tokens", "900", "--max-model-len", "1000", "--temperature", "1"]
    process = subprocess.Popen(
        [*command, "--seed", "1", "--num-threads", "1"],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(slave)
    assert process.stdout is not None
    os.write(master, b"class Stack:\n")
    process.stdout.read(1)  # it has begun
    process.send_signal(signal.SIGINT)
    os.write(master, b"x = 1; " * 500 + b"\n\xff\n/exit\n")
    _, err = process.communicate(timeout=120)
    os.close(master)
    text = err.decode()
    assert process.returncode == 0, text
    for part in (chat.ENDED, "max_model_len = 1000", "messages in UTF-8"):
        assert part in text
    assert "Traceback" not in text
