"""Fields that ask for nothing, and the field that an error names."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.server.conftest import MODEL, running, tiny_engine
from tests.server.test_refusals import CHAT, USER, error_of

NOTHING = {"refusal": None, "tool_calls": [], "function_call": None, "audio": None}


@pytest.mark.parametrize(
    "extra",
    [NOTHING, {"tool_calls": None, "annotations": []}, {"parsed": None}],
)
def test_an_answer_is_the_next_request_s_message(post, extra: dict[str, Any]) -> None:
    said = {"role": "assistant", "content": "Hello", **extra}
    assert post(CHAT, messages=[*USER, said, *USER], max_tokens=2).status_code == 200


@pytest.mark.parametrize(
    "field,value",
    [
        ("refusal", "no"),
        ("tool_calls", [{"id": "1"}]),
        ("function_call", {"name": "f"}),
        ("audio", {"id": "1"}),
        ("annotations", [{}]),
    ],
)
def test_what_a_message_asks_for_is_refused(post, field: str, value: object) -> None:
    said = {"role": "assistant", "content": "Hello", field: value}
    error = error_of(post(CHAT, messages=[*USER, said, *USER]), 400)
    assert error["param"] == f"messages.1.{field}" and "does not support" in error["message"]


@pytest.mark.parametrize(
    "field,value", [("best_of", True), ("echo", 0), ("best_of", 1.0), ("store", 0)]
)
def test_true_is_not_one(post, field: str, value: object) -> None:
    assert error_of(post(prompt="x", **{field: value}), 400)["param"] == field


@pytest.mark.parametrize(
    "field",
    [
        *("moderation", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("safety_identifier", "verbosity", "web_search_options", "prediction", "audio"),
    ],
)
def test_null_asks_for_nothing(post, field: str) -> None:
    assert post(CHAT, messages=USER, max_tokens=2, **{field: None}).status_code == 200
    error = error_of(post(CHAT, messages=USER, **{field: "x"}), 400)
    assert error["param"] == field and "does not support" in error["message"]


@pytest.mark.parametrize(
    "options,has_usage",
    [
        ({"include_usage": True, "include_obfuscation": False}, True),
        ({"include_usage": None}, False),
        ({"include_obfuscation": None}, False),
    ],
)
def test_stream_options_that_ask_for_nothing(post, options: object, has_usage: bool) -> None:
    answer = post(prompt="x", stream=True, stream_options=options, max_tokens=2)
    assert answer.status_code == 200 and ('"usage"' in answer.text) == has_usage
    options = {"include_obfuscation": True}
    error = error_of(post(prompt="x", stream=True, stream_options=options), 400)
    assert error["param"] == "stream_options.include_obfuscation"


@pytest.mark.parametrize("includes_usage", [True, False])
@pytest.mark.parametrize("changes", [{}, {"logprobs": 1}, {"n": 2}])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_chunks_before_the_counts_have_none(
    post, path: str, changes: dict[str, Any], includes_usage: bool
) -> None:
    body: dict[str, Any] = {"messages": USER} if path == CHAT else {"prompt": "x"}
    if path == CHAT and "logprobs" in changes:
        changes = {"logprobs": True, "top_logprobs": 1}
    options = {"include_usage": includes_usage}
    answer = post(path, **body, **changes, stream=True, stream_options=options, max_tokens=9)
    *chunks, done, _ = answer.text.split("\n\n")
    assert done == "data: [DONE]"
    documents = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]
    if includes_usage:
        last = documents.pop()
        assert last["choices"] == [] and last["usage"]["completion_tokens"] > 0
    assert documents and all(document["choices"] for document in documents)
    for document in documents:
        assert document.get("usage", "none") == (None if includes_usage else "none")


@pytest.mark.parametrize("prompt", [[True], 5, {}, [["x"]], [[1], "x"], [None], [1.5]])
def test_a_prompt_of_another_type(post, prompt: object) -> None:
    error = error_of(post(prompt=prompt), 400)
    assert error["param"] == "prompt"
    assert error["message"].startswith("prompt: expected text, token ids, or a list of either, got")


@pytest.mark.parametrize("stop", [[3], 3, {"a": "b"}, ["x"] * 65])
def test_a_stop_of_another_type(post, stop: object) -> None:
    error = error_of(post(prompt="x", stop=stop), 400)
    assert error["param"] == "stop"
    assert "expected text or a list of at most 64 texts, got" in error["message"]
    assert post(prompt="x", stop=["~~"] * 64, max_tokens=2).status_code == 200


@pytest.mark.parametrize("content", [None, 3, [{"type": "image_url", "image_url": {"url": "x"}}]])
def test_content_of_another_type(post, content: object) -> None:
    error = error_of(post(CHAT, messages=[{"role": "user", "content": content}]), 400)
    assert error["param"] == "messages.0.content"
    assert "text parts only" in error["message"]


@pytest.mark.parametrize(
    "field,value",
    [
        ("n", 0),
        ("temperature", -1),
        ("top_p", 2),
        ("top_k", -2),
        ("min_p", -1),
        ("max_tokens", 0),
        ("min_tokens", 99),
        ("seed", 2**63),
        ("logprobs", 21),
        ("stop", ""),
        ("presence_penalty", 3),
        ("repetition_penalty", 0),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [99_999]),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"99999": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"003": 1, "3": 2}),
        ("prompt", [[]]),
        ("prompt", [99_999]),
        ("prompt", [10**4000]),
        ("prompt", ["x"] * 129),
    ],
)
def test_a_value_out_of_range_is_named(post, field: str, value: object) -> None:
    body = {"prompt": "x", field: value}
    assert error_of(post(**body), 400)["param"] == field


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_conversation_s_own_names(post, field: str) -> None:
    error = error_of(post(CHAT, messages=USER, **{field: 0}), 400)
    assert error["param"] == field and f"expected {field} to be" in error["message"]
    error = error_of(post(CHAT, messages=USER, logprobs=True, top_logprobs=21), 400)
    assert error["param"] == "top_logprobs" and "expected top_logprobs" in error["message"]


def test_more_prompts_than_ever_fit_are_not_asked_to_come_back() -> None:
    with running(tiny_engine(), max_requests=2) as handle:
        url = f"{handle.url}/v1/completions"
        body = {"model": MODEL, "prompt": ["x"] * 3, "max_tokens": 1}
        answer = httpx.post(url, json=body)
        error = error_of(answer, 400)
        assert error["param"] == "prompt" and "at most 2 prompts" in error["message"]
        assert "retry-after" not in answer.headers
        assert httpx.post(url, json={**body, "prompt": ["x"] * 2}).status_code == 200


def test_what_the_kv_cache_has_no_room_for_is_named() -> None:
    with running(tiny_engine(num_kv_blocks=6)) as handle:  # 48 tokens
        url = f"{handle.url}/v1/completions"
        body = {"model": MODEL, "prompt": [5] * 47, "max_tokens": 1}
        assert httpx.post(url, json=body).status_code == 200
        long = error_of(httpx.post(url, json={**body, "prompt": [5] * 48}), 400)
        assert (long["param"], long["code"]) == ("prompt", "context_length_exceeded")
        many = error_of(httpx.post(url, json={**body, "max_tokens": 2}), 400)
        assert many["param"] == "max_tokens" and "at most 48 tokens" in many["message"]


def test_what_the_kv_cache_has_no_room_for_is_told_before() -> None:
    for num_blocks, longest in ((1, 8), (6, 48), (100, 256)):  # of 8 tokens
        with running(tiny_engine(num_kv_blocks=num_blocks, max_model_len=256)) as handle:
            model = httpx.get(f"{handle.url}/v1/models").json()["data"][0]
            assert model["max_model_len"] == longest
            assert httpx.get(f"{handle.url}/v1/models/{MODEL}").json() == model
            url = f"{handle.url}/v1/completions"
            body = {"model": MODEL, "prompt": [5], "max_tokens": longest - 1, "ignore_eos": True}
            assert httpx.post(url, json=body, timeout=60).status_code == 200


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_too_many_tokens_are_told_by_the_client_s_own_name(field: str, is_streamed: bool) -> None:
    body = {"model": MODEL, "messages": USER, "stream": is_streamed}
    with running(tiny_engine(num_kv_blocks=6), max_output_tokens=200) as handle:  # 48 tokens
        for limit, num in ((200, 201), (48, 200)):
            answer = httpx.post(f"{handle.url}{CHAT}", json={**body, field: num})
            error = error_of(answer, 400)
            assert error["param"] == field and f"at most {limit}" in error["message"]
            assert field in error["message"].partition(", got ")[0]
            assert ("max_tokens" in error["message"]) == (field == "max_tokens")


def test_the_page_s_prompts_have_the_same_limit() -> None:
    with running(tiny_engine(), max_prompt_tokens=5) as handle:
        url = f"{handle.url}/playground/generate"
        long = error_of(httpx.post(url, json={"prompt": "zq" * 20}), 400)
        assert (long["param"], long["code"]) == ("prompt", "context_length_exceeded")
        assert httpx.post(url, json={"prompt": "x", "max_tokens": 2}).status_code == 200
