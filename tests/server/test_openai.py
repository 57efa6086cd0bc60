"""The official client against a real server: the same texts as the engine, in OpenAI's shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from sdengine.core.sampling_params import SamplingParams
from sdengine.llm import LLM
from sdengine.server.protocol import SAMPLING_FIELDS
from sdengine.server.token_texts import TokenTexts
from tests.engine.conftest import seen_groups, text_checkpoint, tiny
from tests.server.conftest import CHAT_TEMPLATE, MODEL, RunningServer, running, tiny_engine

PROMPT = "def f(x):"
SEEDED = {"model": MODEL, "max_tokens": 24, "temperature": 0.8, "seed": 5}
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def llm() -> LLM:
    """The same model offline, without speculation."""
    return LLM(text_checkpoint(chat_template=CHAT_TEMPLATE), **tiny({}))


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made
    server.assert_idle()


def offline(llm: LLM, **changes: Any) -> Any:
    params = SamplingParams(**{"max_tokens": 24, "temperature": 0.8, "seed": 5, **changes})
    return llm.generate(PROMPT, params)[0]


def test_a_completion_is_the_engine_s(client: openai.OpenAI, llm: LLM) -> None:
    expected = offline(llm).outputs[0]
    got = client.completions.create(prompt=PROMPT, **SEEDED)
    assert got.choices[0].text == expected.text and expected.text
    assert got.choices[0].finish_reason == expected.finish_reason
    assert got.object == "text_completion" and got.model == MODEL
    assert got.usage.completion_tokens == len(expected.token_ids)
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens


def test_a_stream_adds_up_and_counts(client: openai.OpenAI, llm: LLM) -> None:
    stream = client.completions.create(
        prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **SEEDED
    )
    chunks = list(stream)
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 24
    texts = [chunk.choices[0].text for chunk in chunks[:-1]]
    assert "".join(texts) == offline(llm).outputs[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "length"
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_has_no_usage_unless_asked(client: openai.OpenAI) -> None:
    for chunk in client.completions.create(prompt=PROMPT, stream=True, **SEEDED):
        assert chunk.usage is None and len(chunk.choices) == 1


@pytest.mark.parametrize("is_streamed", [False, True])
def test_prompts_and_completions_are_numbered(
    client: openai.OpenAI, llm: LLM, is_streamed: bool
) -> None:
    prompts = [PROMPT, "x = ", "import"]
    params = SamplingParams(n=2, max_tokens=24, temperature=0.8, seed=5)
    expected = [c.text for output in llm.generate(prompts, params) for c in output.outputs]
    got = client.completions.create(prompt=prompts, n=2, stream=is_streamed, **SEEDED)
    texts = [""] * 6
    for chunk in got if is_streamed else [got]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == expected


def test_token_ids_are_prompts(client: openai.OpenAI, llm: LLM) -> None:
    ids = llm.engine.tokenizer.encode(PROMPT)
    one = client.completions.create(prompt=ids, **SEEDED)
    two = client.completions.create(prompt=[ids, ids], **SEEDED)
    text = offline(llm).outputs[0].text
    assert [c.text for c in (*one.choices, *two.choices)] == [text] * 3


@pytest.mark.parametrize("prompt", ["", [""], [PROMPT, ""]])
def test_an_empty_text_is_what_the_engine_makes_of_it(
    client: openai.OpenAI, llm: LLM, prompt: str | list[str]
) -> None:
    params = SamplingParams(max_tokens=24, temperature=0.8, seed=5)
    expected = llm.generate(prompt, params)
    assert list(expected[-1].prompt_token_ids) == [0]  # the beginning of a sequence
    got = client.completions.create(prompt=prompt, **SEEDED)
    assert [c.text for c in got.choices] == [output.outputs[0].text for output in expected]
    num_tokens = sum(output.metrics.num_prompt_tokens for output in expected)
    assert got.usage.prompt_tokens == num_tokens


def test_the_prompts_of_a_request_are_waited_for_together(llm: LLM) -> None:
    engine = tiny_engine()
    groups = seen_groups(engine)
    with running(engine) as server:
        url = f"{server.url}/v1"
        with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
            got = client.completions.create(prompt=[PROMPT, PROMPT], **SEEDED)
        server.assert_idle()
    assert [choice.text for choice in got.choices] == [offline(llm).outputs[0].text] * 2
    assert groups[0] is not None and groups == groups[:1] * 2


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_stop_string_never_shows(client: openai.OpenAI, llm: LLM, is_streamed: bool) -> None:
    text = offline(llm).outputs[0].text
    stop = text[6:9]
    expected = offline(llm, stop=stop).outputs[0]
    assert expected.finish_reason == "stop"
    got = client.completions.create(prompt=PROMPT, stop=[stop], stream=is_streamed, **SEEDED)
    choices = [chunk.choices[0] for chunk in (got if is_streamed else [got])]
    assert "".join(choice.text for choice in choices) == expected.text
    assert choices[-1].finish_reason == "stop"


def test_logprobs_of_completions(client: openai.OpenAI, llm: LLM) -> None:
    expected = offline(llm, logprobs=2).outputs[0]
    got = client.completions.create(prompt=PROMPT, logprobs=2, **SEEDED).choices[0].logprobs
    own = [entries[t] for t, entries in zip(expected.token_ids, expected.logprobs)]
    texts = TokenTexts(llm.engine.tokenizer, skip_special_tokens=True)
    assert got.tokens == [texts.name(t, e) for t, e in zip(expected.token_ids, own)]
    assert got.token_logprobs == pytest.approx([entry.logprob for entry in own])
    assert all(1 <= len(top) <= 3 for top in got.top_logprobs)
    for token, offset in zip(got.tokens, got.text_offset):
        assert token.startswith(("bytes:", "<")) or expected.text.startswith(token, offset)
    chunks = client.completions.create(prompt=PROMPT, logprobs=2, stream=True, **SEEDED)
    offsets = [o for chunk in chunks for o in chunk.choices[0].logprobs.text_offset]
    assert offsets == got.text_offset


def test_logit_bias_bans_and_forces(client: openai.OpenAI, llm: LLM) -> None:
    forced = llm.engine.tokenizer.encode("z")[-1]
    got = client.completions.create(prompt=PROMPT, logit_bias={str(forced): 100}, **SEEDED)
    assert got.choices[0].text == "z" * 24


def test_a_conversation(client: openai.OpenAI, llm: LLM) -> None:
    expected = llm.chat(MESSAGES, SamplingParams(max_tokens=24, temperature=0.8, seed=5))
    got = client.chat.completions.create(messages=MESSAGES, **SEEDED)
    assert got.object == "chat.completion"
    assert got.choices[0].message.content == expected.outputs[0].text
    assert got.choices[0].message.role == "assistant"
    assert got.usage.prompt_tokens == expected.metrics.num_prompt_tokens
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    same = client.chat.completions.create(messages=[MESSAGES[0], *parts], **SEEDED)
    assert same.choices[0].message.content == expected.outputs[0].text


def test_a_conversation_goes_on_with_its_answer(client: openai.OpenAI) -> None:
    messages: list[Any] = list(MESSAGES)
    for _ in range(3):
        got = client.chat.completions.create(messages=messages, **{**SEEDED, "max_tokens": 4})
        messages += [got.choices[0].message, {"role": "user", "content": "And?"}]
    assert len(messages) == len(MESSAGES) + 6


def test_a_streamed_conversation(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=MESSAGES, n=2, **SEEDED)
    chunks = list(client.chat.completions.create(messages=MESSAGES, n=2, stream=True, **SEEDED))
    texts, roles = ["", ""], ["", ""]
    for chunk in chunks:
        assert chunk.object == "chat.completion.chunk"
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        roles[choice.index] += choice.delta.role or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert roles == ["assistant", "assistant"]


def test_logprobs_of_conversations(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=3, **SEEDED)
    content = got.choices[0].logprobs.content
    assert len(content) == 24
    for item in content:
        assert len(item.top_logprobs) == 3 and item.logprob <= 0
        assert bytes(item.bytes).decode("utf-8", "replace") == item.token
        ranked = [top.logprob for top in item.top_logprobs]
        assert ranked == sorted(ranked, reverse=True)


def test_a_conversation_without_max_tokens_goes_as_far_as_the_context(
    client: openai.OpenAI, server: RunningServer
) -> None:
    got = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, extra_body={"ignore_eos": True}
    )
    assert got.usage.total_tokens == server.engine.engine.max_model_len
    assert got.choices[0].finish_reason == "length"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "sdengine"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_every_sampling_field_reaches_the_engine(client: openai.OpenAI, llm: LLM) -> None:
    values: dict[str, Any] = {
        "n": 2, "temperature": 0.7, "top_p": 0.9, "presence_penalty": 0.5,
        "frequency_penalty": 0.25, "seed": 11, "stop": ["zzzz"], "top_k": 40, "min_p": 0.01,
        "min_tokens": 3, "repetition_penalty": 1.1, "stop_token_ids": [7], "ignore_eos": True,
        "skip_special_tokens": False, "include_stop_str_in_output": True,
    }  # fmt: skip
    assert set(values) == set(SAMPLING_FIELDS)
    expected = llm.generate(PROMPT, SamplingParams(max_tokens=20, **values))[0]
    got = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=20, extra_body=values)
    assert [choice.text for choice in got.choices] == [c.text for c in expected.outputs]


def test_errors_are_the_client_s_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(prompt="x" * 2000, **SEEDED)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "prompt"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(prompt="x", model="gpt-5")
    assert missing.value.code == "model_not_found"
