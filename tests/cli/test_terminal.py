"""Colours only on a terminal that wants them; control characters never reach it."""

from __future__ import annotations

import io

import pytest

from sdengine.cli.stream_view import StreamView
from sdengine.cli.terminal import Palette, palette_for, printable
from sdengine.llm import StreamDelta
from tests.cli.fakes import FakeLLM, TerminalStream


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_colour_needs_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert palette_for(TerminalStream()).has_color
    assert not palette_for(io.StringIO()).has_color


@pytest.mark.parametrize("name,value", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_can_be_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert not palette_for(TerminalStream()).has_color


def test_an_empty_no_color_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    assert palette_for(TerminalStream()).has_color


def test_without_colour_styles_change_nothing() -> None:
    palette = Palette(False)
    assert palette.accepted("a") + palette.faint("b") + palette.strong("c") == "abc"
    assert Palette(True).accepted("") == ""


def test_control_characters_do_not_reach_a_terminal() -> None:
    text = "a\tb\n\x1b[2J\x07\x9b\x7f"
    mark = "\N{REPLACEMENT CHARACTER}"
    assert printable(text, TerminalStream()) == f"a\tb\n{mark}[2J{mark}{mark}{mark}"
    assert printable(text, io.StringIO()) == text


def shown(stream: io.StringIO, *deltas: StreamDelta) -> str:
    view = StreamView(FakeLLM(), stream)
    for delta in deltas:
        view.show(delta)
    view.finish()
    return stream.getvalue()


def delta(text: str, num_accepted: int) -> StreamDelta:
    ids = [ord(letter) for letter in text]
    return StreamDelta(text, ids, [i < num_accepted for i in range(len(ids))])


def test_accepted_text_is_tinted_and_the_targets_own_token_is_not() -> None:
    text = shown(TerminalStream(), delta("abc", 2), delta("d", 0))
    assert text == "\x1b[36mab\x1b[0mcd\n"


def test_a_pipe_gets_the_text_and_a_final_newline() -> None:
    assert shown(io.StringIO(), delta("abc", 2), delta("d", 0)) == "abcd\n"
    assert shown(io.StringIO(), delta("abc\n", 3)) == "abc\n"
    assert shown(io.StringIO(), delta("a", 0), delta("", 0)) == "a\n"
    assert shown(io.StringIO(), delta("a\n", 0), delta("", 0)) == "a\n"


def test_held_back_text_is_tinted_whole() -> None:
    late = StreamDelta("ab", [ord("x")], [True])
    assert shown(TerminalStream(), late) == "\x1b[36mab\x1b[0m\n"


def test_every_token_of_several_iterations_has_its_tint() -> None:
    """Also where its text comes with a later delta, because it might have begun a stop string."""
    ids, from_draft = [ord(letter) for letter in "abcdef"], [True, False, False, True, True, False]
    first, last = StreamDelta("abcd", ids, from_draft), StreamDelta("efg", [ord("g")], [False])
    tinted = "\x1b[36ma\x1b[0mbc\x1b[36md\x1b[0m\x1b[36me\x1b[0mfg\n"
    assert shown(TerminalStream(), first, last) == tinted


def test_the_prompt_is_shown_to_a_terminal_only() -> None:
    for stream, expected in ((TerminalStream(), "\x1b[2mdef\x1b[0m"), (io.StringIO(), "")):
        StreamView(FakeLLM(), stream).show_prompt("def")
        assert stream.getvalue() == expected
