"""What is wrong with a body is told by what was expected and what came, in a line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from sdengine.server.complaints import Complaint, complaint, shown
from sdengine.server.protocol import ChatRequest, CompletionRequest, PlaygroundRequest
from tests.server.test_refusals import CHAT, USER, error_of

HUGE = "a" * 10**6


def first(model: Any, body: str) -> Complaint:
    """The complaint about a body."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(body)
    return complaint(caught.value.errors()[0])


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("n", "1.0", "expected an integer, got 1.0"),
        ("n", "true", "expected an integer, got true"),
        ("n", "NaN", "expected an integer, got NaN"),
        ("n", "-Infinity", "expected an integer, got -Infinity"),
        ("stop_token_ids.1", "[1, null]", "expected an integer, got null"),
        ("user", '{"a": [true, null]}', "expected a string, got {'a': [true, null]}"),
        ("temperature", '"1"', "expected a number, got '1'"),
        ("stream", "1", "expected true or false, got 1"),
        ("user", "5", "expected a string, got 5"),
        ("logit_bias", "[1]", "expected an object, got [1]"),
        ("logit_bias.7", '{"7": "x"}', "expected a number, got 'x'"),
        ("stop_token_ids", "3", "expected a list, got 3"),
        ("stop_token_ids.1", "[1, 1.5]", "expected an integer, got 1.5"),
        ("stream_options", "3", "expected an object, got 3"),
    ],
)
def test_a_wrong_type_is_told_with_what_came(field: str, value: str, message: str) -> None:
    body = f'{{"model": "m", "prompt": "x", "{field.partition(".")[0]}": {value}}}'
    assert first(CompletionRequest, body) == (f"{field}: {message}", field)


MANY = [f"a{i}" for i in range(1000)]


@pytest.mark.parametrize(
    "field,value,at_fault",
    [
        ("a", 1, "a"),
        ("stop_token_ids", [1, *MANY], "stop_token_ids.1"),
        ("logit_bias", {"7": 1, "8": 2.5, **dict.fromkeys(MANY)}, "logit_bias.a0"),
        ("stream_options", {"include_usage": True, **dict.fromkeys(MANY)}, "stream_options.a0"),
    ],
)
def test_of_many_mistakes_only_the_first_is_described(
    field: str, value: Any, at_fault: str
) -> None:
    """Otherwise a body of 4 MB would stop the event loop for seconds."""
    others = dict.fromkeys(MANY, 1) if field == "a" else {}
    body = {"model": "m", "prompt": "x", "stream": True, field: value, **others}
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate_json(json.dumps(body))
    assert caught.value.error_count() == 1
    assert complaint(caught.value.errors()[0]).field == at_fault


@pytest.mark.parametrize(
    "messages,field,message",
    [
        ("[]", "messages", "expected at least one item, got []"),
        ("{}", "messages", "expected a list, got {}"),
        ('["Hi"]', "messages.0", "expected an object, got 'Hi'"),
        ('[{"role": "user"}]', "messages.0.content", "expected this field, got none"),
        (
            '[{"role": "tool", "content": "x"}]',
            "messages.0.role",
            "expected 'system', 'developer', 'user' or 'assistant', got 'tool'",
        ),
    ],
)
def test_a_wrong_conversation_is_told_with_what_came(
    messages: str, field: str, message: str
) -> None:
    body = f'{{"model": "m", "messages": {messages}}}'
    assert first(ChatRequest, body) == (f"{field}: {message}", field)


@pytest.mark.parametrize(
    "body,field,message",
    [
        ("[]", None, "expected an object, got []"),
        ("null", None, "expected an object, got null"),
        ("{}", "prompt", "prompt: expected this field, got none"),
        ('{"prompt": ""}', "prompt", "prompt: expected at least one character, got ''"),
    ],
)
def test_a_wrong_body(body: str, field: str | None, message: str) -> None:
    assert first(PlaygroundRequest, body) == (message, field)


@pytest.mark.parametrize(
    "body",
    [
        f'{{"{HUGE}": 1}}',
        f'{{"n": "{HUGE}"}}',
        f'{{"logit_bias": {{"{HUGE}": "x"}}}}',
        f'{{"prompt": {{"{HUGE}": "{HUGE}"}}}}',
        f'{{"stop": {"[" * 50 + "1" + "]" * 50}}}',
        f'{{"prompt": [{", ".join(["[" + ", ".join(["{}"] * 99) + "]"] * 99)}]}}',
        f'{{"n": {[[[[[list(range(6))] * 6] * 6] * 6] * 6]}}}',
        f'"{HUGE}"',
    ],
    ids=["name", "text", "key", "both", "depth", "breadth", "depth and breadth", "body"],
)
def test_a_huge_mistake_is_told_in_a_line(body: str) -> None:
    told = first(CompletionRequest, body.replace("{", '{"model": "m", ', 1))
    assert len(told.message) < 250 and len(told.field or "") < 100


def test_any_number_can_be_shown() -> None:
    assert shown(10**30) == "1" + "0" * 30
    assert shown(-(10**5000)) == "an integer of 16610 bits"  # Python refuses to write it
    assert len(shown([10**9000] * 9)) <= 80


def test_a_body_that_lacks_a_field_is_not_repeated(post: Any) -> None:
    error = error_of(post(CHAT, messages=[{"role": "user", "contents": "secret"}]), 400)
    assert error["param"] == "messages.0.content" and "secret" not in error["message"]
    error = error_of(post(CHAT, messages=USER, api_key="secret"), 400)
    assert error["param"] == "api_key" and "secret" not in error["message"]
