"""A growing text is decoded when it is read, and what it was can be read at any time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import sleep

import pytest

from sdengine.core.growing_text import GrowingText, TextMoment

PROMPT = [9, 9]
DAY = "日".encode()


class Bytes:
    """Token i is byte i of UTF-8; counts what it was given."""

    def __init__(self) -> None:
        self.waiting = b""
        self.num_pushed = 0

    def push(self, token_ids: list[int]) -> str:
        self.num_pushed += len(token_ids)
        self.waiting += bytes(token_ids)
        for end in range(len(self.waiting), -1, -1):
            try:
                text = self.waiting[:end].decode()
            except UnicodeDecodeError:
                continue
            self.waiting = self.waiting[end:]
            return text
        raise AssertionError

    def finish(self) -> str:
        text = self.waiting.decode("utf-8", "replace")
        self.waiting = b""
        return text


class SlowBytes(Bytes):
    """Lets other threads in."""

    def push(self, token_ids: list[int]) -> str:
        sleep(0.001)
        return super().push(token_ids)


@pytest.fixture
def stream() -> Bytes:
    return Bytes()


@pytest.fixture
def tokens() -> list[int]:
    return list(PROMPT)


@pytest.fixture
def text(stream: Bytes, tokens: list[int]) -> GrowingText:
    return GrowingText(stream, tokens)


def test_it_is_decoded_once_and_only_when_it_is_read(
    text: GrowingText, stream: Bytes, tokens: list[int]
) -> None:
    tokens += b"abc"
    assert stream.num_pushed == 0
    assert text.read() == "abc" and text.read() == "abc"
    assert stream.num_pushed == 3
    tokens += DAY[:2]
    assert text.read() == "abc", "held back"
    tokens += DAY[2:]
    assert text.read() == "abc日" and stream.num_pushed == 6


@pytest.mark.parametrize("is_ended", [False, True])
def test_what_it_was_does_not_depend_on_what_came_later(
    text: GrowingText, tokens: list[int], is_ended: bool
) -> None:
    moments = {}
    whole = b"ab" + DAY + b"c"
    for byte in whole:
        tokens.append(byte)
        moments[text.moment()] = bytes(tokens[len(PROMPT) :]).decode("utf-8", "ignore")
    text.read()
    if is_ended:
        text.end("something else")
        assert text.read() == "something else"
    assert {moment: text.at(moment) for moment in moments} == moments
    if not is_ended:
        assert text.read() == whole.decode()


def test_what_was_read_at_a_moment_is_not_decoded_again(
    text: GrowingText, stream: Bytes, tokens: list[int]
) -> None:
    """As with stop strings, for which the engine reads every token."""
    tokens += b"abc"
    text.read()
    moment = text.moment()
    tokens += b"def"
    text.read()
    stream.push = None  # type: ignore[assignment, method-assign]
    assert text.at(moment) == "abc"


def test_looking_at_a_possible_end_changes_nothing(text: GrowingText, tokens: list[int]) -> None:
    tokens += b"a" + DAY[:1]
    assert text.if_ended_at(len(tokens)) == "a\ufffd"
    assert text.read() == "a"
    tokens += DAY[1:]
    assert text.read() == "a日"


def test_threads_read_what_it_was_while_it_grows(tokens: list[int]) -> None:
    """Without the lock two of them give the same part of a character to the stream."""
    text, whole = GrowingText(SlowBytes(), tokens), DAY * 20

    def read(moment: TextMoment) -> bool:
        num_bytes = moment[0] - len(PROMPT)
        return text.at(moment) == whole[:num_bytes].decode("utf-8", "ignore")

    with ThreadPoolExecutor(4) as pool:
        reads = []
        for byte in whole:
            tokens.append(byte)
            reads += [pool.submit(read, text.moment()) for _ in range(2)]
        results = [future.result() for future in reads]
    assert all(results) and text.read() == whole.decode()
