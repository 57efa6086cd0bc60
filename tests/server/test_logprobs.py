"""How log-probabilities write tokens that are no text of their own."""

from __future__ import annotations

import json

import pytest

from sdengine.core.outputs import Logprob
from sdengine.model.tokenizer import Tokenizer, load_tokenizer
from sdengine.server.encoding import Document
from sdengine.server.forms import ChatForm, CompletionForm, Form
from sdengine.server.generation import Delta
from sdengine.server.token_texts import TokenTexts
from tests.model.tokenizer_files import KINDS, make_tokenizer_dir

FOX = "\N{FOX FACE}"
NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def entry(tokenizer: Tokenizer, token: int, rank: int = 1) -> Logprob:
    return Logprob(-float(rank), rank, tokenizer.token_text(token))


def deltas_of(tokenizer: Tokenizer, ids: list[int]) -> list[Delta]:
    """One delta a token, as a stream without speculation has."""
    texts = tokenizer.detokenizer(continues_text=True)
    parts = [
        Delta(0, texts.push([token]), [token], [{token: entry(tokenizer, token)}], None)
        for token in ids
    ]
    return [*parts, Delta(0, texts.finish(), [], [], "length")]


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return load_tokenizer(make_tokenizer_dir(request.param))


@pytest.fixture
def byte_level() -> Tokenizer:
    return load_tokenizer(make_tokenizer_dir("byte_level"))


def document(form: Form, deltas: list[Delta]) -> dict:
    whole = Document(form)
    for delta in deltas:
        whole.add(delta)
    return json.loads(whole.end(NO_USAGE))


def whole(tokenizer: Tokenizer, deltas: list[Delta]) -> dict:
    form = CompletionForm("m", TokenTexts(tokenizer, skip_special_tokens=True))
    choice = document(form, deltas)["choices"][0]
    return {**choice["logprobs"], "text": choice["text"]}


def test_a_part_of_a_character_is_named_by_its_bytes(byte_level: Tokenizer) -> None:
    ids = byte_level.encode(f"a{FOX}b", add_special_tokens=False)
    got = whole(byte_level, deltas_of(byte_level, ids))
    parts = [f"bytes:\\x{byte:02x}" for byte in FOX.encode()]
    assert got["tokens"] == ["a", *parts, "b"]
    assert got["text_offset"] == [0, 1, 1, 1, 1, 2]


def test_offsets_point_into_the_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the fox, ça va? 3,50 €", add_special_tokens=False)
    got = whole(tokenizer, deltas_of(tokenizer, ids))
    for token, offset in zip(got["tokens"], got["text_offset"]):
        if not token.startswith("bytes:"):
            assert got["text"][offset:].startswith(token)
    assert got["text_offset"] == sorted(got["text_offset"])


def test_offsets_within_a_run_of_byte_tokens() -> None:
    """What has no token of its own, as line breaks in Llama 2's vocabulary: nothing of a run is
    certain before it ends."""
    tokenizer = load_tokenizer(make_tokenizer_dir("sentencepiece"))
    ids = tokenizer.encode("a~~b~\x01~~", add_special_tokens=False)
    got = whole(tokenizer, deltas_of(tokenizer, ids))
    assert got["tokens"] == [" a", "~", "~", "b", "~", "\x01", "~", "~"]
    assert got["text_offset"] == [0, 2, 3, 4, 5, 6, 7, 8] and got["text"] == " a~~b~\x01~~"
    mixed = [*tokenizer.encode("~", add_special_tokens=False)[-1:], *fox_parts(tokenizer)] * 2
    got = whole(tokenizer, deltas_of(tokenizer, mixed))
    assert got["text_offset"] == [0, 1, 1, 1, 1, 2, 3, 3, 3, 3]


def fox_parts(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(FOX, add_special_tokens=False)[-4:]


def test_offsets_behind_what_never_became_a_character(byte_level: Tokenizer) -> None:
    part = byte_level.encode(FOX, add_special_tokens=False)[0]
    ids = [part, *byte_level.encode("ab", add_special_tokens=False)]
    got = whole(byte_level, deltas_of(byte_level, ids))
    assert got["text"] == "\ufffdab" and got["text_offset"][1] == 1


def test_skipped_tokens_take_no_room(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("a</s>b", add_special_tokens=False)
    got = whole(byte_level, deltas_of(byte_level, ids))
    assert got["text"] == "ab" and got["tokens"] == ["a", "</s>", "b"]
    assert got["text_offset"] == [0, 1, 1]


def test_a_stream_has_the_same_offsets(tokenizer: Tokenizer) -> None:
    deltas = deltas_of(tokenizer, tokenizer.encode(f"ab{FOX}c", add_special_tokens=False))
    form = CompletionForm("m", TokenTexts(tokenizer, skip_special_tokens=True))
    chunks = [form.chunk(delta)["choices"][0]["logprobs"] for delta in deltas]
    expected = whole(tokenizer, deltas)
    for name in ("tokens", "text_offset"):
        assert [item for chunk in chunks for item in chunk[name]] == expected[name]


def test_no_alternative_hides_another(byte_level: Tokenizer) -> None:
    parts = byte_level.encode(FOX, add_special_tokens=False)
    entries = {token: entry(byte_level, token, 1 + i) for i, token in enumerate(parts)}
    got = whole(byte_level, [Delta(0, "", parts[:1], [entries], "length")])
    assert len(got["top_logprobs"][0]) == 4


def test_of_two_with_one_text_the_likelier_stays(byte_level: Tokenizer) -> None:
    entries = {5: Logprob(-1.0, 1, "x"), 6: Logprob(-2.0, 2, "x")}
    got = whole(byte_level, [Delta(0, "x", [5], [entries], "length")])
    assert got["top_logprobs"] == [{"x": -1.0}]


def test_conversations_tell_the_bytes(byte_level: Tokenizer) -> None:
    ids = byte_level.encode(f"a{FOX}", add_special_tokens=False)
    form = ChatForm("m", 0, TokenTexts(byte_level, skip_special_tokens=True))
    content = document(form, deltas_of(byte_level, ids))["choices"][0]["logprobs"]["content"]
    assert [item["token"] for item in content] == ["a", *["\ufffd"] * 4]
    assert bytes(byte for item in content for byte in item["bytes"]).decode() == f"a{FOX}"
