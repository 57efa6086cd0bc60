"""Requests come, go and are aborted at any moment; nobody else notices, and no block is lost.

Every token is checked against plain decoding of the same prompt and seed, alone in an engine of its
own: what an engine has handed out is at any time the beginning of that.
"""

from __future__ import annotations

import functools
import random
import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from sdengine.core.config import SpeculationConfig
from sdengine.core.outputs import RequestOutput
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from sdengine.errors import RequestError
from tests.engine.conftest import (
    MakeEngine,
    MakeLLM,
    related_draft,
    run_all,
    signed_seed,
    text_checkpoint,
    tiny,
)
from tests.model.checkpoints import make_checkpoint

LONG = tuple((7 * i) % 190 + 3 for i in range(40))
PROMPTS = (LONG, LONG[:24], (*LONG[:24], 9, 9, 9), (5, 9, 5, 9, 5, 9, 5), (17,))
NUM_TOKENS = 20
EXTRAS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"logprobs": 1},
    {"frequency_penalty": 1.5},
    {"repetition_penalty": 1.4, "logit_bias": {7: 3.0}},
)
SPECULATIONS: dict[str, SpeculationConfig | None] = {
    "plain": None,
    "trees": SpeculationConfig(max_nodes=8, max_depth=4, adaptive=False),
    "adaptive": SpeculationConfig(max_nodes=16, max_depth=4),
    "ngram": SpeculationConfig(method="ngram", min_ngram=1, max_nodes=6, adaptive=False),
}


def make(make_engine: MakeEngine, name: str = "trees", **settings: Any) -> Engine:
    """An engine with one of SPECULATIONS."""
    speculation = SPECULATIONS[name]
    has_draft = speculation is not None and speculation.needs_draft_model
    draft = related_draft() if has_draft else None
    return make_engine(draft=draft, speculation=speculation, **settings)


def sampling(seed: int = 0, **params: Any) -> SamplingParams:
    """Temperature 0.8 for even seeds, greedy for odd ones."""
    values = {"max_tokens": NUM_TOKENS, "temperature": 0.0 if seed % 2 else 0.8, "seed": seed}
    return SamplingParams(ignore_eos=True, **{**values, **params})


@functools.cache
def plain_engine() -> Engine:
    return Engine(str(make_checkpoint()), **tiny({"enable_prefix_caching": False}))


def plain_tokens(prompt: tuple[int, ...], params: SamplingParams, index: int = 0) -> list[int]:
    """What completion `index` of a request must be."""
    assert params.seed is not None
    alone = replace(params, n=1, seed=signed_seed(params.seed, index), max_tokens=NUM_TOKENS)
    return _plain_tokens(prompt, alone)[: params.max_tokens]


@functools.cache
def _plain_tokens(prompt: tuple[int, ...], params: SamplingParams) -> list[int]:
    return run_all(plain_engine(), [list(prompt)], [params])[0]


class Traffic:
    """An engine under requests, every output of which is checked as it comes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.alive: dict[str, tuple[tuple[int, ...], SamplingParams]] = {}
        self.aborted: list[RequestOutput] = []
        self.lengths: Counter[str] = Counter()
        self.num_preemptions = 0

    def add(self, name: str, prompt: tuple[int, ...], seed: int = 0, **params: Any) -> None:
        """Adds a request."""
        self.alive[name] = prompt, sampling(seed, **params)
        self.engine.add_request(name, list(prompt), self.alive[name][1])
        self.check_blocks()

    def step(self) -> list[RequestOutput]:
        """Steps once."""
        outputs = self.engine.step()
        for output in outputs:
            self.check(output)
        self.check_blocks()
        return outputs

    def abort(self, name: str) -> RequestOutput:
        """Aborts a request."""
        output = self.engine.abort_request(name)
        self.check(output)
        assert output.finished and {c.finish_reason for c in output.outputs} >= {"abort"}
        self.aborted.append(output)
        self.check_blocks()
        return output

    def finish(self) -> None:
        """Steps until nothing is left."""
        while self.engine.has_unfinished_requests():
            self.step()
        assert not self.alive

    def check(self, output: RequestOutput) -> None:
        """The tokens are the beginning of plain decoding's; all of it when finished."""
        prompt, params = self.alive[output.request_id]
        for completion in output.outputs:
            expected = plain_tokens(prompt, params, completion.index)
            tokens = list(completion.token_ids)
            assert tokens == expected[: len(tokens)]
            if completion.finish_reason == "length":
                assert tokens == expected
            self.lengths[output.request_id] = len(tokens)
        if output.finished:
            del self.alive[output.request_id]

    def check_blocks(self) -> None:
        """Every block is free, or referenced exactly as often as block tables name it."""
        scheduler = self.engine._scheduler
        owners = Counter(b for s in scheduler.running for b in s.block_table)
        owners.update(b for _, blocks in scheduler._held for b in blocks)
        pool = scheduler.pool
        assert [owners[b] for b in range(pool.num_blocks)] == pool._references
        assert pool.num_free == pool.num_blocks - len(owners)
        slots = [s.slot for s in scheduler.running] + [slot for slot, _ in scheduler._held]
        assert sorted(slots + scheduler._free_slots) == list(range(self.engine.config.max_num_seqs))
        assert all(not s.block_table for s in scheduler.waiting)
        self.num_preemptions = max(
            self.num_preemptions, *(s.num_preemptions for s in scheduler.waiting), 0
        )
        assert set(self.alive) == set(self.engine._book._requests)


# Abort at any moment


def test_abort_before_the_first_step(make_engine: MakeEngine) -> None:
    traffic = Traffic(make(make_engine))
    traffic.add("kept", PROMPTS[3])
    traffic.add("gone", LONG)
    output = traffic.abort("gone")
    assert [list(c.token_ids) for c in output.outputs] == [[]]
    assert output.metrics.first_token_time is None and output.metrics.finished_time is not None
    traffic.finish()
    traffic.add("only", LONG)
    traffic.abort("only")
    assert not traffic.engine.has_unfinished_requests() and traffic.engine.step() == []


@pytest.mark.parametrize("name", ["plain", "trees"])
def test_abort_after_any_number_of_steps(make_engine: MakeEngine, name: str) -> None:
    """Prompts of 40 tokens take 5 steps of 8 rows, so all of prefill and decoding is covered."""
    engine = make(make_engine, name, max_num_batched_tokens=8, enable_prefix_caching=False)
    for num_steps in range(16):
        traffic = Traffic(engine)
        for i, prompt in enumerate((PROMPTS[3], LONG, PROMPTS[1])):
            traffic.add(f"r{i}", prompt, seed=i)
        for _ in range(num_steps):
            traffic.step()
        if "r1" in traffic.alive:
            traffic.abort("r1")
        traffic.finish()
    assert len(traffic.aborted) == 1 and traffic.lengths["r1"] > 0, "16 steps were too few"


def test_abort_in_the_middle_of_prefill_and_the_same_prompt_again(make_engine: MakeEngine) -> None:
    traffic = Traffic(make(make_engine, max_num_batched_tokens=8))
    traffic.add("first", LONG)
    for _ in range(3):
        assert traffic.step() == []
    traffic.abort("first")
    traffic.add("again", LONG)
    traffic.finish()
    assert traffic.lengths["again"] == NUM_TOKENS


@pytest.mark.parametrize("name", ["plain", "trees"])
def test_abort_while_preempted(make_engine: MakeEngine, name: str) -> None:
    traffic = Traffic(make(make_engine, name, num_kv_blocks=13))
    for i in range(3):
        traffic.add(f"r{i}", LONG[: 24 + i], seed=i)
    waiting = traffic.engine._scheduler.waiting
    while not traffic.num_preemptions:
        assert traffic.engine.has_unfinished_requests(), "nobody was preempted"
        traffic.step()
    victim = waiting[0].request_id
    assert waiting[0].num_generated > 0
    traffic.abort(victim)
    traffic.add(victim, LONG, seed=5)
    traffic.finish()


def test_abort_of_several_completions(make_engine: MakeEngine) -> None:
    """One is finished, others run, and one waits for a slot."""
    traffic = Traffic(make(make_engine))
    traffic.add("other", PROMPTS[4], seed=1)
    traffic.add("many", LONG, seed=2, n=4, max_tokens=6)
    while not any(o.outputs[0].is_finished for o in traffic.step() if o.request_id == "many"):
        pass
    output = traffic.abort("many")
    assert [c.index for c in output.outputs] == [0, 1, 2, 3]
    reasons = [c.finish_reason for c in output.outputs]
    assert reasons[0] == "length" and reasons[-1] == "abort"
    traffic.finish()


def test_an_aborted_text_is_that_of_its_tokens(make_llm: MakeLLM) -> None:
    """Also when the last of them are the beginning of a character."""
    engine = make_llm().engine
    assert engine.tokenizer is not None
    first = engine.tokenizer.encode("\U0001f600", add_special_tokens=False)[0]
    for stop in (None, "\ufffd"):
        params = sampling(1, logit_bias={first: 100.0}, stop=stop)
        engine.add_request("r", [5, 6], params)
        (running,) = engine.step()
        assert (list(running.outputs[0].token_ids), running.outputs[0].text) == ([first], "")
        aborted = engine.abort_request("r").outputs[0]
        assert (aborted.finish_reason, aborted.stop_reason) == ("abort", None)
        assert list(aborted.token_ids) == [first]
        assert aborted.text == ("" if stop else "\ufffd")


def test_abort_inside_the_consumer_loop(make_engine: MakeEngine) -> None:
    traffic = Traffic(make(make_engine))
    for i, prompt in enumerate(PROMPTS[2:]):
        traffic.add(f"r{i}", prompt, seed=i)
    seen: set[str] = set()
    while traffic.engine.has_unfinished_requests():
        for output in traffic.engine.step():
            if output.request_id in traffic.alive:
                traffic.check(output)
                seen.add(output.request_id)
            if output.request_id == "r0" and "r2" in traffic.alive:
                traffic.abort("r0")
                traffic.abort("r2")  # its output of this very step comes after
    assert seen == {"r0", "r1"} and traffic.lengths["r1"] == NUM_TOKENS


@pytest.mark.parametrize("name", SPECULATIONS)
@pytest.mark.parametrize("seed", range(3))
def test_random_life_in_a_tiny_cache(make_engine: MakeEngine, name: str, seed: int) -> None:
    rng = random.Random(seed)
    engine = make(make_engine, name, num_kv_blocks=9, max_num_batched_tokens=16)
    traffic = Traffic(engine)
    for i in range(200):
        action = rng.random()
        if action < 0.25 and len(traffic.alive) < 6:
            num_tokens = rng.choice((1, 5, NUM_TOKENS))
            n = rng.choice((1, 1, 1, 2, 3))
            prompt, extra = rng.choice(PROMPTS), rng.choice(EXTRAS)
            traffic.add(f"r{i}", prompt, rng.randrange(4), max_tokens=num_tokens, n=n, **extra)
        elif action < 0.30 and traffic.alive:
            traffic.abort(rng.choice(sorted(traffic.alive)))
        elif action < 0.33:
            with pytest.raises(RequestError):
                engine.add_request("bad", [1] * rng.choice((0, 73, 1000)), sampling())
        else:
            traffic.step()
    traffic.finish()
    assert traffic.aborted and sum(traffic.lengths.values()) > 60


# Interruptions


@pytest.mark.parametrize("max_iterations,num_calls", [(1, 5), (8, 2)])
def test_an_interrupted_call_leaves_the_engine_usable(
    make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch, max_iterations: int, num_calls: int
) -> None:
    monkeypatch.setattr("sdengine.llm.MAX_ITERATIONS", max_iterations)
    llm = make_llm(draft=text_checkpoint(2), speculation=SPECULATIONS["trees"])
    expected = [o.outputs[0] for o in llm.generate(["import os", "the fox"], sampling())]
    step, start, calls = llm.engine.step, llm.engine._runner.start, 0

    def interrupted(original: Any, when: int, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        result = original(*args)
        if calls == when:
            raise KeyboardInterrupt
        return result

    for when in range(1, num_calls + 1):
        for owner, name, original in (
            (llm.engine, "step", step),
            (llm.engine._runner, "start", start),  # the device is ahead of the host
        ):
            calls = 0
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(owner, name, functools.partial(interrupted, original, when))
                llm.generate(["the quick brown", "import os"], sampling())
            assert not llm.engine.has_unfinished_requests()
            assert llm.engine.num_free_blocks == llm.engine.num_blocks
    assert [o.outputs[0] for o in llm.generate(["import os", "the fox"], sampling())] == expected


def test_a_stream_that_is_left_aborts_its_request(
    make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdengine.llm.MAX_ITERATIONS", 2)  # of `other`, which is to see all of it
    llm = make_llm()
    expected = llm.generate("import os", sampling())[0].outputs
    other = llm.stream("import os", sampling())
    for num_taken in range(4):
        stream = llm.stream("the quick brown fox", sampling())
        for _ in range(num_taken):
            next(stream)
        del stream
    with pytest.raises(ZeroDivisionError):
        for _ in llm.stream("the dog", sampling()):
            raise ZeroDivisionError
    for _ in llm.stream("the dog", sampling()):
        break
    assert len(llm.engine._book) == 1
    assert next(d.output for d in other if d.output).outputs == expected


def test_a_request_aborted_behind_an_llms_back_is_an_error(make_llm: MakeLLM) -> None:
    llm = make_llm()
    stream = llm.stream("import os", sampling())
    next(stream)
    (request_id,) = llm.engine._book._requests
    llm.engine.abort_request(request_id)
    with pytest.raises(RequestError, match="a request to run to its end, got an aborted one"):
        next(stream)


# Several engines


def test_two_engines_step_by_step(make_engine: MakeEngine) -> None:
    settings = {"num_kv_blocks": 13}
    pair = [Traffic(make(make_engine, name, **settings)) for name in ("trees", "ngram")]
    for i, prompt in enumerate(PROMPTS):
        for j, traffic in enumerate(pair):
            traffic.add(f"r{i}", prompt, seed=i + j)
    while any(t.engine.has_unfinished_requests() for t in pair):
        for traffic in pair:
            traffic.step()


def test_two_engines_in_two_threads(make_engine: MakeEngine) -> None:
    for prompt in PROMPTS:
        for seed in range(2):
            plain_tokens(prompt, sampling(seed))
    engines = [make(make_engine, "trees", num_threads=2), make(make_engine, "adaptive")]
    failures: list[BaseException] = []

    def live(engine: Engine, seed: int) -> None:
        try:
            for _ in range(3):
                traffic = Traffic(engine)
                for i, prompt in enumerate(PROMPTS):
                    traffic.add(f"r{i}", prompt, seed=seed)
                traffic.finish()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=live, args=(e, i)) for i, e in enumerate(engines)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


# Prefixes


def rows_of_prompt(traffic: Traffic, request: str, prompt: tuple[int, ...], seed: int = 0) -> int:
    """Adds a request and steps until its first token; how many tokens of it were computed."""
    traffic.add(request, prompt, seed=seed)
    rows = 0
    while request not in traffic.lengths:
        traffic.step()
        report = traffic.engine.last_report
        rows += report.num_rows - report.num_nodes
    return rows


@pytest.mark.parametrize("name", ["plain", "trees"])
@pytest.mark.parametrize("aborts", [False, True])
def test_a_shared_prefix_is_computed_once(make_engine: MakeEngine, name: str, aborts: bool) -> None:
    engine = make(make_engine, name)
    traffic = Traffic(engine)

    def num_prompt_rows(request: str, prompt: tuple[int, ...]) -> int:
        return rows_of_prompt(traffic, request, prompt)

    assert num_prompt_rows("first", LONG) == 40
    if aborts:
        traffic.abort("first")
    else:
        traffic.finish()
    # 24 common tokens are 3 blocks; the fourth token of the last block differs.
    assert num_prompt_rows("longer", PROMPTS[2]) == 3
    traffic.finish()
    assert num_prompt_rows("same", LONG) == 8
    traffic.finish()
    assert num_prompt_rows("shorter", PROMPTS[1]) == 8  # its last block is needed for the logits
    traffic.finish()


def test_evicted_prefixes_are_computed_again(make_engine: MakeEngine) -> None:
    traffic = Traffic(make(make_engine, num_kv_blocks=9))
    for round_ in range(3):
        for i, prompt in enumerate(PROMPTS[:4]):
            num_rows = rows_of_prompt(traffic, f"r{round_}-{i}", prompt, seed=i)
            traffic.finish()
            if i == 0:  # more than the last block, which is needed for the logits: some are gone
                assert num_rows > 8, round_


# The end of the context


@pytest.mark.parametrize("name", ["trees", "adaptive", "ngram"])
@pytest.mark.parametrize("max_model_len", [33, 40, 41, 47])
def test_trees_at_the_end_of_a_short_context(
    make_engine: MakeEngine, name: str, max_model_len: int
) -> None:
    engine = make(make_engine, name, max_model_len=max_model_len)
    for length in (max_model_len - 1, max_model_len - 2, 24):
        prompt = [*LONG, *LONG][:length]
        output = None
        engine.add_request("r", prompt, sampling(max_tokens=100))
        while engine.has_unfinished_requests():
            (output, *_) = engine.step() or (output,)
        assert output is not None and output.outputs[0].finish_reason == "length"
        tokens = list(output.outputs[0].token_ids)
        assert len(tokens) == max_model_len - length
        assert tokens[:NUM_TOKENS] == plain_tokens(tuple(prompt), sampling())[: len(tokens)]


def test_large_trees_up_to_the_end_of_the_whole_context(make_engine: MakeEngine) -> None:
    params = sampling(max_tokens=10**6)
    expected = run_all(plain_engine(), [list(LONG)], [params])[0]
    assert len(expected) == 256 - 40
    spec = SpeculationConfig(max_nodes=70, max_depth=7, adaptive=False)
    engine = make_engine(draft=related_draft(), speculation=spec)
    assert run_all(engine, [list(LONG), [17]], [params, params])[0] == expected
