"""Clients that come at once with anything that a request may ask for.

Each gets what plain decoding says of its request alone, in one piece or as a stream; whoever leaves
takes nothing along.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import httpx
import pytest

from sdengine.core.sampling_params import SamplingParams
from tests.engine.conftest import assert_nothing_left, tiny_engine
from tests.engine.test_random_requests import Completions, Draw, Request, alone
from tests.server.conftest import MODEL, running

NUM_CLIENTS = 6
LEAVES_AFTER = 3  # events
WAYS = ("whole", "stream", "leaves")


def body_of(request: Request) -> dict[str, Any]:
    """What asks for the same over HTTP, of a model without defaults of its own."""
    usual = replace(SamplingParams(), temperature=0.0)
    asked = {
        field.name: getattr(request.params, field.name)
        for field in fields(SamplingParams)
        if getattr(request.params, field.name) != getattr(usual, field.name)
    }
    if "logit_bias" in asked:
        asked["logit_bias"] = {str(token): bias for token, bias in asked["logit_bias"].items()}
    return {
        "model": MODEL,
        "prompt": request.prompt,
        **asked,
        "max_tokens": request.params.max_tokens,
    }


def check_whole(url: str, request: Request, expected: Completions) -> None:
    answer = httpx.post(url, json=body_of(request), timeout=60)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    for choice in said["choices"]:
        completion = expected.pop(choice["index"])
        assert choice["text"] == completion.text
        assert choice["finish_reason"] == completion.finish_reason
        said["usage"]["completion_tokens"] -= len(completion.token_ids)
        if completion.logprobs is None:
            assert choice["logprobs"] is None
        else:
            total = sum(choice["logprobs"]["token_logprobs"])
            assert total == pytest.approx(completion.cumulative_logprob, abs=1e-4)
            assert len(choice["logprobs"]["tokens"]) == len(completion.token_ids)
    assert expected == {} and said["usage"]["completion_tokens"] == 0
    assert said["usage"]["prompt_tokens"] == len(request.prompt)


def check_stream(url: str, request: Request, expected: Completions, most_events: int) -> None:
    texts = dict.fromkeys(expected, "")
    reasons: dict[int, str] = {}
    body = {**body_of(request), "stream": True}
    with httpx.stream("POST", url, json=body, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        for line in filter(None, answer.iter_lines()):
            event = line.removeprefix("data: ")
            if event == "[DONE]" or most_events == 0:
                break
            most_events -= 1
            for choice in json.loads(event)["choices"]:
                texts[choice["index"]] += choice["text"]
                reasons[choice["index"]] = choice["finish_reason"] or ""
    for index, completion in expected.items():
        is_whole = bool(reasons.get(index))
        assert completion.text.startswith(texts[index])
        assert not is_whole or texts[index] == completion.text
        assert not is_whole or reasons[index] == completion.finish_reason
    assert most_events == 0 or all(reasons.get(index) for index in expected)


def check(seed: int) -> None:
    draw = Draw(seed)
    with draw.plain_engine(tiny_engine) as plain:
        expected = [alone(plain, request) for request in draw.requests.values()]
        assert_nothing_left(plain)
    engine = draw.engine(tiny_engine)
    with running(engine) as server, ThreadPoolExecutor(NUM_CLIENTS) as clients:
        url = f"{server.url}/v1/completions"
        ways = [draw.rng.choice(WAYS) for _ in expected]
        calls = [
            clients.submit(check_whole, url, request, said)
            if way == "whole"
            else clients.submit(
                check_stream, url, request, said, LEAVES_AFTER if way == "leaves" else 1 << 30
            )
            for way, request, said in zip(ways, draw.requests.values(), expected)
        ]
        for call in calls:
            call.result()
        server.assert_idle()


@pytest.mark.parametrize("seed", range(8))
def test_clients_get_what_plain_decoding_says(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1300))
def test_many_more(seed: int) -> None:
    check(seed)
