"""StopChecker: text, tokens and reason are cut at one point, however the tokens arrive."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdengine.core.growing_text import TextStream
from sdengine.core.sampling_params import SamplingParams
from sdengine.core.sequence import Sequence
from sdengine.core.stop import HeldBack, StopChecker
from sdengine.model.detokenizer import DecoderRules, PieceDetokenizer

EOS = 0
LETTERS = "_abcdefghij"
DAY = [20, 21, 22]
BYTE_PIECES = {
    **dict(enumerate(LETTERS)),
    **{token: f"<0x{byte:02X}>" for token, byte in zip(DAY, "日".encode())},
}


class Letters:
    """Token i is letter i; a stand-in with the detokeniser's interface."""

    def push(self, token_ids: list[int]) -> str:
        return "".join(LETTERS[token] for token in token_ids)

    def finish(self) -> str:
        return ""


def byte_run_stream() -> PieceDetokenizer:
    """Letters, and the bytes of a character that are held back until another token comes."""
    return PieceDetokenizer(
        DecoderRules(has_byte_tokens=True), BYTE_PIECES.get, continues_text=True
    )


def checker(stream: TextStream | None = None, **params: object) -> tuple[Sequence, StopChecker]:
    settings = SamplingParams(**{"max_tokens": 100, **params})  # type: ignore[arg-type]
    stops = frozenset(settings.stop_token_ids or ()) | (
        frozenset() if settings.ignore_eos else frozenset({EOS})
    )
    sequence = Sequence("r", 0, settings, 0, [5], 1, stops, 1 + settings.max_tokens)
    return sequence, StopChecker(sequence, stream or Letters(), frozenset({EOS}))


def test_end_of_sequence_inside_an_accepted_path() -> None:
    sequence, stop = checker()
    cut = stop.accept([1, 2, EOS, 3])
    assert (cut.num_tokens, cut.finish_reason, cut.stop_reason) == (3, "stop", None)
    assert sequence.text == "ab" and sequence.token_ids == [5, 1, 2, EOS]


def test_stop_token_names_itself_and_ignore_eos_goes_on() -> None:
    sequence, stop = checker(stop_token_ids=[3], ignore_eos=True, skip_special_tokens=False)
    cut = stop.accept([EOS, 1, 3, 2])
    assert (cut.num_tokens, cut.finish_reason, cut.stop_reason) == (3, "stop", 3)
    assert sequence.text == "_ac"


@pytest.mark.parametrize(("ignore_eos", "reason"), [(False, None), (True, EOS)])
def test_a_stop_token_that_is_the_end_of_sequence_is_one_where_that_is_ignored(
    ignore_eos: bool, reason: int | None
) -> None:
    _, stop = checker(stop_token_ids=[EOS], ignore_eos=ignore_eos)
    assert stop.accept([1, EOS]).stop_reason == reason


def test_max_tokens_cuts_the_path() -> None:
    sequence, stop = checker(max_tokens=3)
    assert stop.accept([1, 2]).finish_reason is None
    cut = stop.accept([3, 4, 5])
    assert (cut.num_tokens, cut.finish_reason) == (1, "length")
    assert sequence.text == "abc"


@pytest.mark.parametrize("keep", [False, True])
def test_stop_string_across_token_borders(keep: bool) -> None:
    sequence, stop = checker(stop=["cd", "zz"], include_stop_str_in_output=keep)
    assert stop.accept([1, 2, 3]).finish_reason is None
    cut = stop.accept([4, 5])
    assert (cut.num_tokens, cut.finish_reason, cut.stop_reason) == (1, "stop", "cd")
    assert sequence.text == ("abcd" if keep else "ab")
    assert sequence.token_ids == [5, 1, 2, 3, 4]


@pytest.mark.parametrize("stops", [["bcd", "bc"], ["bc", "bcd"]])
def test_of_stop_strings_that_begin_together_the_shorter_is_found(stops: list[str]) -> None:
    """As it is where every character is a token."""
    stream = PieceDetokenizer(DecoderRules(), {7: "abcde"}.get, continues_text=True)
    sequence, stop = checker(stream, stop=stops, include_stop_str_in_output=True)
    cut = stop.accept([7])
    assert (cut.finish_reason, cut.stop_reason, sequence.text) == ("stop", "bc", "abc")


def test_min_tokens_hides_early_stops() -> None:
    sequence, stop = checker(min_tokens=3, stop=["b"])
    assert stop.accept([EOS, 2, 1]).finish_reason is None
    assert stop.accept([EOS]).finish_reason == "stop"
    assert sequence.num_generated == 4


@pytest.mark.parametrize("last,params", [(EOS, {}), (2, {"stop": ["b"]})])
def test_the_last_of_min_tokens_ends_nothing_nor_does_it_later(
    last: int, params: dict[str, object]
) -> None:
    sequence, stop = checker(min_tokens=2, **params)
    assert stop.accept([1, last]).finish_reason is None
    assert stop.accept([3]).finish_reason is None, "the stop lies within the first two tokens"
    assert stop.accept([last]).finish_reason == "stop"
    assert sequence.num_generated == 4


@pytest.mark.parametrize("shows_special", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("last", [EOS, 4])
def test_a_stop_string_that_a_stop_token_reveals(
    last: int, keep: bool, shows_special: bool
) -> None:
    """The bytes are certain once another token came, a stop token as well as any other."""
    sequence, stop = checker(
        byte_run_stream(),
        stop=["日"],
        stop_token_ids=[4],
        include_stop_str_in_output=keep,
        skip_special_tokens=not shows_special,
    )
    cut = stop.accept([1, *DAY, last, 2])
    assert (cut.num_tokens, cut.finish_reason, cut.stop_reason) == (5, "stop", "日")
    assert sequence.text == ("a日" if keep else "a")
    assert sequence.token_ids == [5, 1, *DAY, last]


def test_a_stop_token_is_no_part_of_a_stop_string() -> None:
    for stops, text in ((["ab"], "ab"), (["_"], "a_")):
        sequence, stop = checker(stop=stops, stop_token_ids=[2], skip_special_tokens=False)
        tokens = [1, 2] if stops == ["ab"] else [1, EOS]
        cut = stop.accept(tokens)
        assert cut.finish_reason == "stop" and cut.stop_reason in (2, None)
        assert sequence.text == text


def test_without_a_stop_string_the_stop_token_s_bytes_join_the_run() -> None:
    sequence, stop = checker(
        byte_run_stream(), stop=["x"], stop_token_ids=[DAY[-1]], skip_special_tokens=False
    )
    cut = stop.accept(DAY)
    assert (cut.num_tokens, cut.stop_reason, sequence.text) == (3, DAY[-1], "日")


@pytest.mark.parametrize("stops", [None, ["x"]])
def test_the_end_of_text_shows_what_was_held_back(stops: list[str] | None) -> None:
    sequence, stop = checker(byte_run_stream(), stop=stops)
    stop.accept([1, *DAY])
    assert sequence.text == "a"
    stop.end_text()
    assert sequence.text == "a日"
    stop.end_text()
    assert sequence.text == "a日"


@pytest.mark.parametrize("min_tokens", [0, 4])
def test_the_end_of_text_leaks_no_stop_string(min_tokens: int) -> None:
    sequence, stop = checker(byte_run_stream(), stop=["日"], min_tokens=min_tokens)
    stop.accept([1, *DAY])
    stop.end_text()
    assert sequence.text == ("a日" if min_tokens else "a")


@given(
    st.lists(st.integers(0, 10), min_size=1, max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=3), max_size=2),
    st.integers(0, 5),
    st.data(),
)
def test_the_cut_does_not_depend_on_how_tokens_arrive(
    tokens: list[int], strings: list[str], min_tokens: int, data: st.DataObject
) -> None:
    params = {"stop": strings or None, "max_tokens": 20, "min_tokens": min_tokens}
    whole, all_at_once = checker(**params)
    whole_cut = all_at_once.accept(tokens)
    pieces, one_by_one = checker(**params)
    position, cut = 0, None
    while position < len(tokens) and (cut is None or cut.finish_reason is None):
        size = data.draw(st.integers(1, 4))
        cut = one_by_one.accept(tokens[position : position + size])
        position += size
    assert cut is not None
    assert (pieces.text, pieces.token_ids) == (whole.text, whole.token_ids)
    assert (cut.finish_reason, cut.stop_reason) == (whole_cut.finish_reason, whole_cut.stop_reason)


@given(
    st.lists(st.text(alphabet="ab", max_size=6), max_size=6),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=8), max_size=3),
)
def test_what_may_begin_a_stop_string_is_held_back(pieces: list[str], strings: list[str]) -> None:
    held_back, text = HeldBack(SamplingParams(stop=strings)), ""
    for piece in pieces:
        text += piece
        begun = [s[:size] for s in strings for size in range(1, len(s)) if text.endswith(s[:size])]
        assert held_back.num(text) == max(map(len, begun), default=0)


def test_nothing_is_held_back_of_a_stop_string_that_stays() -> None:
    params = SamplingParams(stop="aab", include_stop_str_in_output=True)
    assert HeldBack(params).num("aa") == 0


@pytest.mark.parametrize("string", ["a" * 10_000 + "b", "a" + "b" * 20_000, "ab" * 9000 + "b"])
def test_a_long_text_that_keeps_beginning_a_stop_string_costs_little_per_token(string: str) -> None:
    """Compared anew at every token, these took 20 to 100 ms each behind 20 000 characters, on the
    server's event loop, and a request may have 64."""
    held_back, text = HeldBack(SamplingParams(stop=[string])), "a" * 20_000
    held_back.num(text)
    begin = time.perf_counter()
    for _ in range(100):
        text += "aaaa"
        held_back.num(text)
    assert time.perf_counter() - begin < 0.2


def test_a_long_stop_string_costs_what_the_text_costs() -> None:
    """Once every beginning of it was made: 2 s for these on one core of a Zen 3 server."""
    params = SamplingParams(stop=["a" * 400_000 + "b"])
    begin = time.perf_counter()
    held_back = HeldBack(params)
    assert held_back.num("x" * 500) == 0
    assert held_back.num("x" * 500 + "aaa") == 3
    assert time.perf_counter() - begin < 0.2
