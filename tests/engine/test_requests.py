"""What one request may ask for: completions, logprobs, stops, limits, streams and chat.

Each is the same with and without speculation, and all are cut at one token.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from sdengine.core.config import SpeculationConfig
from sdengine.core.outputs import CompletionOutput, RequestOutput
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from sdengine.errors import RequestError
from sdengine.llm import LLM
from sdengine.model.checkpoint import open_checkpoint
from sdengine.model.reference import load_weights, reference_logits
from tests.engine.conftest import (
    MakeEngine,
    MakeLLM,
    related_draft,
    run_outputs,
    signed_seed,
    text_checkpoint,
)
from tests.model.checkpoints import make_checkpoint

PROMPT = [(7 * i) % 190 + 3 for i in range(40)]
TREES = SpeculationConfig(max_nodes=8, max_depth=4, adaptive=False)
CHAIN = SpeculationConfig(method="chain", max_nodes=4, max_depth=4, adaptive=False)


def engine_with(make_engine: MakeEngine, speculates: bool, **settings: Any) -> Engine:
    """An engine with or without trees."""
    if not speculates:
        return make_engine(**settings)
    return make_engine(draft=related_draft(), speculation=TREES, **settings)


def llm_with(make_llm: MakeLLM, speculates: bool, **settings: Any) -> LLM:
    """An LLM with or without trees."""
    if not speculates:
        return make_llm(**settings)
    return make_llm(draft=text_checkpoint(2), speculation=TREES, **settings)


def one(engine: Engine, prompt: list[int], **params: Any) -> RequestOutput:
    """Final output of a single request; max_tokens 24 and no end-of-sequence unless said."""
    sampling = SamplingParams(**{"max_tokens": 24, "ignore_eos": True, "seed": 3, **params})
    return run_outputs(engine, [prompt], [sampling])[0]


def completion(engine: Engine, prompt: list[int], **params: Any) -> CompletionOutput:
    """The completion of `one`."""
    return one(engine, prompt, **params).outputs[0]


# n > 1


@pytest.mark.parametrize("speculates", [False, True])
def test_completions_are_requests_with_seeds_of_their_own(
    make_llm: MakeLLM, speculates: bool
) -> None:
    params = {"max_tokens": 12, "temperature": 1.0, "ignore_eos": True}
    llm = llm_with(make_llm, speculates)
    output = llm.generate(PROMPT, SamplingParams(n=5, seed=9, **params))[0]
    assert [c.index for c in output.outputs] == [0, 1, 2, 3, 4]
    assert output.finished and output.metrics.num_generated_tokens == 60
    plain = make_llm(enable_prefix_caching=False)
    for index, got in enumerate(output.outputs):
        seed = signed_seed(9, index)
        alone = plain.generate(PROMPT, SamplingParams(seed=seed, **params))[0]
        assert got.token_ids == alone.outputs[0].token_ids
        assert got.text == alone.outputs[0].text
    assert len({tuple(c.token_ids) for c in output.outputs}) == 5


def test_neighbouring_seeds_share_no_noise() -> None:
    seeds = {signed_seed(seed, index) for seed in range(-20, 20) for index in range(20)}
    assert len(seeds) == 800
    assert [signed_seed(seed, 0) for seed in (-(2**63), -1, 0, 7)] == [-(2**63), -1, 0, 7]


@pytest.mark.parametrize("sharing", [True, False])
def test_completions_compute_the_shared_prompt_once(make_engine: MakeEngine, sharing: bool) -> None:
    engine = make_engine(enable_prefix_caching=sharing)
    engine.add_request("r", PROMPT, SamplingParams(n=3, max_tokens=10, ignore_eos=True))
    num_rows = 0
    while engine.has_unfinished_requests():
        engine.step()
        num_rows += engine.last_report.num_rows
    # The last token of the prompt is always computed, so of 40 tokens 4 blocks of 8 are shared.
    assert num_rows == 3 * 9 + (40 + 8 + 8 if sharing else 3 * 40)


# Logprobs


@pytest.mark.parametrize("speculates", [False, True])
def test_logprobs_are_the_reference_models(make_engine: MakeEngine, speculates: bool) -> None:
    engine = engine_with(make_engine, speculates)
    got = completion(engine, PROMPT, temperature=0.9, top_k=40, logprobs=3)
    tokens = list(got.token_ids)
    checkpoint = open_checkpoint(make_checkpoint())
    sequence = torch.tensor(PROMPT + tokens)
    logits = reference_logits(load_weights(checkpoint), checkpoint.config, sequence)
    expected = torch.log_softmax(logits[len(PROMPT) - 1 : -1].double(), dim=-1)
    assert got.logprobs is not None and len(got.logprobs) == len(tokens) == 24
    for row, token, entry in zip(expected, tokens, got.logprobs):
        best = row.topk(3).indices.tolist()
        assert set(entry) == {token, *best}
        assert [entry[other].rank for other in best] == [1, 2, 3]
        assert entry[token].rank == int((row > row[token]).sum()) + 1
        for other, logprob in entry.items():
            assert logprob.logprob == pytest.approx(float(row[other]), abs=1e-4)
    total = sum(entry[token].logprob for token, entry in zip(tokens, got.logprobs))
    assert got.cumulative_logprob == pytest.approx(total)


def test_speculation_changes_no_bit_of_a_logprob(make_engine: MakeEngine) -> None:
    plain, trees = (
        completion(engine_with(make_engine, s), PROMPT, temperature=0.7, logprobs=2)
        for s in (False, True)
    )
    assert plain == trees


def test_without_alternatives_only_the_token_itself_is_reported(make_engine: MakeEngine) -> None:
    got = completion(make_engine(), PROMPT, logprobs=0)
    assert got.logprobs is not None
    assert [list(entry) for entry in got.logprobs] == [[token] for token in got.token_ids]
    assert completion(make_engine(), PROMPT).cumulative_logprob is None


@pytest.mark.parametrize("speculates", [False, True])
def test_a_small_vocabulary_has_no_more_alternatives_than_tokens(
    make_engine: MakeEngine, speculates: bool
) -> None:
    target = str(make_checkpoint(vocab_size=17))
    draft = str(make_checkpoint(vocab_size=17, num_hidden_layers=2)) if speculates else None
    engine = make_engine(target=target, draft=draft, speculation=TREES if speculates else None)
    got = completion(engine, [5, 6, 7], logprobs=20)
    assert got.logprobs is not None
    assert [sorted(entry) for entry in got.logprobs] == [list(range(17))] * 24


def test_decoded_tokens_are_named(make_llm: MakeLLM) -> None:
    llm = make_llm()
    params = SamplingParams(max_tokens=5, temperature=0, logprobs=1, ignore_eos=True)
    got = llm.generate("import os", params)[0].outputs[0]
    assert got.logprobs is not None and llm.engine.tokenizer is not None
    for token, entry in zip(got.token_ids, got.logprobs):
        assert entry[token].decoded_token == llm.engine.tokenizer.token_text(token)


# Stops


@pytest.mark.parametrize("speculates", [False, True])
@pytest.mark.parametrize("position", [0, 7, 23])
def test_a_stop_token_cuts_tokens_logprobs_and_counts(
    make_engine: MakeEngine, speculates: bool, position: int
) -> None:
    free = completion(make_engine(), PROMPT)
    token = free.token_ids[position]
    end = list(free.token_ids).index(token) + 1
    # The device knows the 8 lowest stop tokens only; these are below any that is generated.
    others = [t for t in range(199) if t not in free.token_ids][:8]
    for stops in ([token], [*others, token]):
        output = one(engine_with(make_engine, speculates), PROMPT, stop_token_ids=stops, logprobs=1)
        got = output.outputs[0]
        assert list(got.token_ids) == list(free.token_ids[:end])
        assert (got.finish_reason, got.stop_reason) == ("stop", token)
        assert got.logprobs is not None and len(got.logprobs) == end
        assert output.metrics.num_generated_tokens == end


@pytest.mark.parametrize("speculates", [False, True])
def test_end_of_sequence_ends_without_a_reason_unless_ignored(
    make_engine: MakeEngine, speculates: bool
) -> None:
    free = completion(make_engine(), PROMPT)
    eos = free.token_ids[9]
    target = str(make_checkpoint(eos_token_id=eos))
    engine = engine_with(make_engine, speculates, target=target)
    got = completion(engine, PROMPT, ignore_eos=False)
    assert list(got.token_ids) == list(free.token_ids[: list(free.token_ids).index(eos) + 1])
    assert (got.finish_reason, got.stop_reason) == ("stop", None)
    got = completion(engine, PROMPT, ignore_eos=True)
    assert got.token_ids == free.token_ids and got.finish_reason == "length"


@pytest.mark.parametrize("speculates", [False, True])
def test_stop_strings_across_token_borders(make_llm: MakeLLM, speculates: bool) -> None:
    free = text_of(make_llm(), {})
    llm = llm_with(make_llm, speculates)
    codec = llm.engine.tokenizer
    assert codec is not None
    for start, size in ((1, 3), (4, 6), (9, 2), (len(free.text) - 2, 2)):
        stop = free.text[start : start + size]
        texts = [codec.decode(free.token_ids[:i]) for i in range(len(free.token_ids) + 1)]
        num_tokens = next(i for i, text in enumerate(texts) if stop in text)
        for keeps in (False, True):
            got = text_of(llm, {"stop": [stop, "never"], "include_stop_str_in_output": keeps})
            assert (got.finish_reason, got.stop_reason) == ("stop", stop)
            assert list(got.token_ids) == list(free.token_ids[:num_tokens])
            end = free.text.index(stop) + (size if keeps else 0)
            assert got.text == free.text[:end]


def text_of(llm: LLM, params: dict[str, Any]) -> CompletionOutput:
    """A greedy completion whose text has no broken characters in front."""
    sampling = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, **params)
    return llm.generate("for name in os.listdir", sampling)[0].outputs[0]


@pytest.mark.parametrize("speculates", [False, True])
def test_min_tokens_puts_stops_off(make_llm: MakeLLM, speculates: bool) -> None:
    free = text_of(make_llm(), {})
    llm = llm_with(make_llm, speculates)
    stop = free.text[2:4]
    assert len(text_of(llm, {"stop": stop}).token_ids) < 6
    late = text_of(llm, {"stop": stop, "min_tokens": 20})
    assert late.token_ids[:20] == free.token_ids[:20]
    assert stop in late.text


# Limits and counts


@pytest.mark.parametrize("max_tokens", [1, 2, 7, 10])
def test_max_tokens_inside_an_accepted_path(make_engine: MakeEngine, max_tokens: int) -> None:
    free = completion(make_engine(), PROMPT, temperature=0)
    engine = make_engine(draft=str(make_checkpoint()), speculation=CHAIN)
    output = one(engine, PROMPT, temperature=0, max_tokens=max_tokens)
    got, stats = output.outputs[0], output.metrics.speculation
    assert got.token_ids == free.token_ids[:max_tokens] and got.finish_reason == "length"
    assert output.metrics.num_generated_tokens == max_tokens
    assert stats is not None and stats.num_steps == -(-max_tokens // 5)
    assert stats.num_accepted_draft_tokens + stats.num_steps == max_tokens


def test_draft_tokens_behind_a_stop_are_not_counted_as_accepted(make_llm: MakeLLM) -> None:
    """The draft is perfect and knows no stop strings: every step of 5 tokens is accepted whole."""
    llm = make_llm(draft=text_checkpoint(), speculation=CHAIN)
    free = text_of(llm, {})
    for stop in (free.text[3:5], free.text[6:8], free.text[8:11]):
        sampling = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, stop=stop)
        output = llm.generate("for name in os.listdir", sampling)[0]
        stats, count = output.metrics.speculation, len(output.outputs[0].token_ids)
        assert stats is not None and stats.num_steps == -(-count // 5)
        assert stats.num_accepted_draft_tokens == count - count // 5
        assert stats.mean_acceptance_length == count / stats.num_steps
        own = [(i + 1) % 5 == 0 for i in range(count)]
        assert [not drafted for drafted in output.outputs[0].from_draft] == own


@pytest.mark.parametrize("speculates", [False, True])
def test_usage_counts_every_completion(make_llm: MakeLLM, speculates: bool) -> None:
    llm = llm_with(make_llm, speculates)
    output = llm.generate("import os", SamplingParams(n=2, max_tokens=9, seed=1))[0]
    assert llm.engine.tokenizer is not None
    assert output.prompt == "import os"
    assert output.prompt_token_ids == llm.engine.tokenizer.encode("import os")
    assert output.metrics.num_prompt_tokens == len(output.prompt_token_ids)
    total = sum(len(c.token_ids) for c in output.outputs)
    assert output.metrics.num_generated_tokens == total
    metrics = output.metrics
    assert metrics.first_token_time is not None and metrics.finished_time is not None
    assert metrics.arrival_time <= metrics.first_token_time <= metrics.finished_time
    assert (metrics.speculation is not None) == speculates


def test_outputs_are_cumulative_and_snapshots(make_engine: MakeEngine) -> None:
    engine = engine_with(make_engine, True)
    engine.add_request("r", PROMPT, SamplingParams(max_tokens=12, ignore_eos=True, seed=0))
    seen: list[list[int]] = []
    outputs: list[RequestOutput] = []
    while engine.has_unfinished_requests():
        for output in engine.step():
            outputs.append(output)
            seen.append(list(output.outputs[0].token_ids))
    assert [list(o.outputs[0].token_ids) for o in outputs] == seen
    for shorter, longer in pairwise(seen):
        assert len(shorter) < len(longer) and longer[: len(shorter)] == shorter
    assert [o.finished for o in outputs] == [False] * (len(outputs) - 1) + [True]


# Streams


@pytest.mark.parametrize("speculates", [False, True])
def test_deltas_join_to_the_text_and_leak_no_stop_string(
    make_llm: MakeLLM, speculates: bool
) -> None:
    free = text_of(make_llm(), {})
    llm = llm_with(make_llm, speculates)
    never = [free.text[i : i + 3] + "\0" for i in range(0, len(free.text), 2)]
    for stop in (None, free.text[5:9], free.text[2:3], never):
        params = {"max_tokens": 24, "temperature": 0.0, "ignore_eos": True, "stop": stop}
        deltas = list(llm.stream("for name in os.listdir", SamplingParams(**params)))
        final = text_of(llm, {"stop": stop})
        assert "".join(d.text for d in deltas) == final.text
        assert [t for d in deltas for t in d.token_ids] == list(final.token_ids)
        assert [d.output is not None for d in deltas] == [False] * (len(deltas) - 1) + [True]
        assert deltas[-1].output is not None and deltas[-1].output.outputs[0] == final


def test_only_what_may_become_a_stop_string_is_held_back(make_llm: MakeLLM) -> None:
    free = text_of(make_llm(), {})
    stop = free.text[4:7] + "\0"
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, stop=["\0" * 9, stop])
    sent, committed = "", []
    llm = make_llm()
    for delta in llm.stream("for name in os.listdir", params):
        sent += delta.text
        committed += delta.token_ids
        assert llm.engine.tokenizer is not None
        text = llm.engine.tokenizer.decode(committed).rstrip("\ufffd")
        held = next(k for k in (3, 2, 1, 0) if text.endswith(stop[:k]))
        assert len(sent) >= len(text) - held


def test_streams_and_calls_share_an_llm(make_llm: MakeLLM) -> None:
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    prompts = ["import os", "the quick brown", "Grüße"]
    expected = [o.outputs[0] for o in make_llm().generate(prompts, params)]
    llm = llm_with(make_llm, True)
    first, second = llm.stream(prompts[0], params), llm.stream(prompts[1], params)
    texts = [next(first).text, next(second).text]
    assert llm.generate(prompts[2], params)[0].outputs[0] == expected[2]
    for delta in second:  # finishes while the first one waits
        texts[1] += delta.text
    for delta in first:
        texts[0] += delta.text
    assert texts == [e.text for e in expected[:2]]


def test_a_stream_that_waits_for_its_reader_keeps_the_newest_output(make_llm: MakeLLM) -> None:
    """Every output has all of the text: to keep them would take its square."""
    llm = llm_with(make_llm, True)
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    stream = llm.stream("import os", params)
    (inbox,) = llm._inboxes.values()
    for _ in range(3):
        llm.generate("the quick brown", params)
    assert len(inbox.outputs) == 1
    assert sum(len(delta.token_ids) for delta in stream) == 60


def test_a_stream_has_one_completion(make_llm: MakeLLM) -> None:
    with pytest.raises(RequestError, match="n = 1 when streaming, got 2; call generate"):
        make_llm().stream("import os", SamplingParams(n=2))


# Prompts, parameters and chat


def test_one_params_per_prompt_in_order(make_llm: MakeLLM) -> None:
    llm = make_llm()
    prompts = ["import os", [5, 6, 7], torch.tensor([8, 9])]
    limits = [3, 1, 2]
    params = [SamplingParams(max_tokens=m, ignore_eos=True) for m in limits]
    outputs = llm.generate(prompts, params)
    assert [len(o.outputs[0].token_ids) for o in outputs] == limits
    assert [o.prompt for o in outputs] == ["import os", None, None]
    assert outputs[2].prompt_token_ids == [8, 9]
    assert len(llm.generate([5, 6, 7], params[0])) == 1


def test_default_params_are_the_checkpoints(make_llm: MakeLLM) -> None:
    llm = make_llm()
    default = llm.engine.default_params
    assert default.temperature == 0.0
    assert llm.generate("import os")[0].outputs == llm.generate("import os", default)[0].outputs


def test_chat_is_the_rendered_template(make_llm: MakeLLM) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    llm = make_llm(text_checkpoint(chat_template=template))
    params = SamplingParams(max_tokens=8, temperature=0)
    answer = llm.chat([{"role": "user", "content": "the fox"}], params)
    assert llm.engine.tokenizer is not None
    ids = llm.engine.tokenizer.encode("<s>[user] the fox[assistant]", add_special_tokens=False)
    assert answer.prompt_token_ids == ids and ids[0] == 0
    assert answer.outputs == llm.generate([ids], params)[0].outputs


def test_chat_without_a_template_is_refused(make_llm: MakeLLM) -> None:
    with pytest.raises(RequestError, match="a checkpoint with a chat template, got none"):
        make_llm().chat([{"role": "user", "content": "hello"}])


def test_without_a_tokenizer_there_is_no_text_to_stop_or_to_chat_in(make_llm: MakeLLM) -> None:
    llm = make_llm(str(make_checkpoint()))
    with pytest.raises(RequestError, match=r"no stop strings, because .* no tokenizer\.json, got"):
        llm.generate([[5]], SamplingParams(max_tokens=2, stop="x"))
    with pytest.raises(RequestError, match=r"a checkpoint with tokenizer\.json, got none"):
        llm.chat([{"role": "user", "content": "hello"}])
    assert len(llm.generate([[5]], SamplingParams(max_tokens=2))[0].outputs[0].token_ids) == 2


def test_a_longer_context_is_only_advised_where_there_is_one(make_llm: MakeLLM) -> None:
    for settings, has_more in (({}, False), ({"max_model_len": 32}, True)):
        llm = make_llm(**settings)
        with pytest.raises(RequestError, match="shorter than max_model_len") as refusal:
            llm.generate([[5] * 4096])
        assert ("raise max_model_len" in str(refusal.value)) == has_more


def test_a_running_request_s_prompt_is_not_its_reader_s_to_change(make_engine: MakeEngine) -> None:
    """As one joins prompt and completion."""
    engine = make_engine()
    engine.add_request("a", [4, 5, 6], SamplingParams(max_tokens=4, ignore_eos=True))
    seen = []
    while engine.has_unfinished_requests():
        for output in engine.step():
            joined = output.prompt_token_ids
            joined += output.outputs[0].token_ids
            assert joined == [4, 5, 6, *output.outputs[0].token_ids]
            seen.append((list(output.prompt_token_ids)[:3], output.metrics.num_prompt_tokens))
    assert seen == [([4, 5, 6], 3)] * len(seen) and len(seen) >= 2


def test_ids_are_strings_and_unique_while_unfinished(make_engine: MakeEngine) -> None:
    engine, greedy = make_engine(), SamplingParams(temperature=0.0)
    engine.add_request("a", [5], greedy)
    with pytest.raises(RequestError, match="a request_id that no unfinished request has, got 'a'"):
        engine.add_request("a", [6], greedy)
    for bad in (5, None, ["a"]):
        with pytest.raises(RequestError, match="request_id to be a string, got"):
            engine.add_request(bad, [6], greedy)  # type: ignore[arg-type]
    for several in (5, [("b", [6])], [6]):
        with pytest.raises(RequestError, match=r"requests of \(request_id, prompt, params\), got"):
            engine.add_requests(several)  # type: ignore[arg-type]
    for bad in ("b", 5, None, ["a"]):
        with pytest.raises(RequestError, match="the id of an unfinished request, got"):
            engine.abort_request(bad)  # type: ignore[arg-type]
    while engine.has_unfinished_requests():
        engine.step()
    with pytest.raises(RequestError, match="it may have finished already"):
        engine.abort_request("a")
    engine.add_request("a", [5], greedy)
    engine.abort_request("a")
