"""Large answers and many prompts hold nobody up: what they take of the event loop, they take in
turns with other clients."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from sdengine.async_engine import AsyncEngine
from sdengine.core.outputs import Logprob
from sdengine.core.sampling_params import SamplingParams
from sdengine.server.encoding import Document
from sdengine.server.forms import ChatForm, CompletionForm, Form
from sdengine.server.generation import ENTRIES_PER_TURN, Delta, Generation
from sdengine.server.metrics import Metrics
from sdengine.server.settings import ServerSettings
from sdengine.server.token_texts import TokenTexts
from tests.engine.conftest import run_all
from tests.server.conftest import MODEL, RunningServer, tiny_engine

NUM_TOKENS = 200
TEXTS = TokenTexts(None, skip_special_tokens=True)
FORMS = [CompletionForm("m", TEXTS), ChatForm("m", 20, TEXTS)]


def large_deltas() -> Iterator[Delta]:
    entries = {token: Logprob(-float(token), 1 + token, f"t{token}") for token in range(20)}
    for _ in range(NUM_TOKENS):
        for choice in range(8):
            yield Delta(choice, "text", [3], [entries], None)


@pytest.mark.parametrize("form", FORMS, ids=["completion", "chat"])
def test_the_end_of_a_large_answer_takes_little(form: Form) -> None:
    document = Document(form)
    begin = time.thread_time()
    for delta in large_deltas():
        document.add(delta)
    end = time.thread_time()
    body = document.end({})
    assert time.thread_time() - end < 0.5 * (end - begin)
    choices = json.loads(body)["choices"]
    assert len(choices) == 8 and len(body) > 8 * NUM_TOKENS * 20 * len('"t3":-3.0')


def test_a_text_cannot_stand_in_for_logprobs() -> None:
    texts = ['"logprobs":null', ',"logprobs":null', '\\"logprobs":null', 'x"logprobs', ":null"]
    form = CompletionForm('"logprobs":null', TEXTS)
    document = Document(form)
    for index, text in enumerate(texts):
        document.add(Delta(index, text, [3], [{3: Logprob(-1.0, 1, text)}], "length"))
    got = json.loads(document.end({}))["choices"]
    assert [choice["text"] for choice in got] == texts
    assert [choice["logprobs"]["tokens"] for choice in got] == [[text] for text in texts]


@contextmanager
def turns_of_others() -> Iterator[Callable[[], int]]:
    """Counts the turns that others had in the event loop."""
    num_turns = 0

    async def count() -> None:
        nonlocal num_turns
        while True:
            num_turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    try:
        yield lambda: num_turns
    finally:
        counting.cancel()


def generation_of(engine: AsyncEngine, params: SamplingParams) -> Generation:
    settings = ServerSettings(model_name=MODEL)
    return Generation(engine, settings, Metrics(engine), params, lambda error: error)


def test_others_have_their_turn_between_two_prompts() -> None:
    async def run() -> int:
        async with AsyncEngine(tiny_engine()) as engine:
            generation = generation_of(engine, SamplingParams(max_tokens=1))
            with turns_of_others() as num_turns:
                await generation.begin(["def f(x):"] * 50)
                num = num_turns()
            assert len([delta async for delta in generation.deltas()]) == 50
        return num

    assert asyncio.run(run()) >= 49


def test_others_have_their_turn_between_few_tokens() -> None:
    """Also when the engine was so much faster than the event loop that all is there at once."""

    async def run() -> list[tuple[int, Delta]]:
        params = SamplingParams(n=2, max_tokens=NUM_TOKENS, logprobs=20, ignore_eos=True)
        async with AsyncEngine(tiny_engine()) as engine:
            generation = generation_of(engine, params)
            await generation.begin(["x", "y"])
            while not engine.status().totals.num_steps or engine.status().num_requests:
                time.sleep(0.01)  # keeps the event loop
            with turns_of_others() as num_turns:
                return [(num_turns(), delta) async for delta in generation.deltas()]

    told = asyncio.run(run())
    assert all(len(delta.token_ids) <= ENTRIES_PER_TURN // 21 for _, delta in told)
    assert all(turns < later for (turns, _), (later, _) in pairwise(told))
    for choice in range(4):
        deltas = [delta for _, delta in told if delta.choice == choice]
        assert sum(len(delta.token_ids) for delta in deltas) == NUM_TOKENS
        assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]


def test_nothing_overtakes_what_waits_for_its_turn() -> None:
    """New tokens come while many are told in turns; what is said past the reader comes later."""
    engine = tiny_engine(has_draft=False)
    params = SamplingParams(max_tokens=NUM_TOKENS, logprobs=20, seed=3, ignore_eos=True)
    (expected,) = run_all(engine, [[5]], [params])
    step = engine.step
    engine.step = lambda *_: time.sleep(0.006) or step(1)  # type: ignore[method-assign]
    told: list[Delta] = []

    async def run() -> None:
        async with AsyncEngine(engine) as outer:
            generation = generation_of(outer, params)
            await generation.begin([[5]])
            generation.relay(lambda: True, told.append)
            while outer.status().totals.num_steps < NUM_TOKENS // 2:
                time.sleep(0.01)  # keeps the event loop
            async for delta in generation.deltas():
                told.append(delta)
                time.sleep(0.02)

    asyncio.run(run())
    assert max(len(delta.token_ids) for delta in told) == ENTRIES_PER_TURN // 21
    assert [token for delta in told for token in delta.token_ids] == expected


@pytest.mark.parametrize("endpoint", ["completions", "chat/completions"])
def test_a_large_stream_says_what_the_document_says(
    server: RunningServer, post: Any, endpoint: str
) -> None:
    asked: dict[str, Any] = {"max_tokens": 220, "n": 3, "ignore_eos": True, "seed": 5}
    if endpoint == "completions":
        asked |= {"prompt": ["x", "yz"], "logprobs": 20}
    else:
        asked |= {"messages": [{"role": "user", "content": "x"}], "logprobs": True}
        asked |= {"top_logprobs": 20}
    whole = post(f"/v1/{endpoint}", **asked).json()
    stream = post(f"/v1/{endpoint}", **asked, stream=True, stream_options={"include_usage": True})
    chunks = [
        json.loads(line[6:]) for line in stream.text.split("\n") if line.startswith("data: {")
    ]
    assert chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        told: dict[str, list[Any]] = {}
        for part in parts:
            for name, items in (part["logprobs"] or {}).items():
                told.setdefault(name, []).extend(items or [])
        expected = {name: items or [] for name, items in choice["logprobs"].items()}
        assert told == expected and max(map(len, told.values())) == 220
        assert parts[-1]["finish_reason"] == choice["finish_reason"] == "length"
        if endpoint == "completions":
            assert "".join(part["text"] for part in parts) == choice["text"]
