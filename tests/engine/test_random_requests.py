"""Random engines under random requests say what plain decoding says of each request alone.

Everything that shapes a request is drawn at once, and so is what shapes an engine: joining, leaving
and aborting, preemption, shared prompts, chunks of prompts, rows of iterations, any drafter and
tree. Texts, tokens, reasons and logprobs must be equal to the last bit.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest

from sdengine.core.config import SpeculationConfig
from sdengine.core.outputs import CompletionOutput
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from tests.engine.conftest import (
    ANY_TIME_S,
    MakeEngine,
    assert_nothing_left,
    text_checkpoint,
)

VOCAB = 430
FAMILIES = ("llama", "mistral_window", "qwen3", "phi3", "smollm2", "qwen2_window")
ROWS = (430, 430, 423, 512)  # of a draft: a small and a large model of a family often differ
JOINS, ABORTS = 0.4, 0.02  # chances between two steps

Completions = dict[int, CompletionOutput]


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    params: SamplingParams


class Draw:
    """A random engine and its requests.

    Args:
        seed: of everything that is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.family = rng.choice(FAMILIES)
        self.max_model_len = rng.choice([64, 100, 256])
        self.block_size = rng.choice([8, 16, 64])
        self.shared: dict[str, Any] = {
            "dtype": rng.choice(["float32", "bfloat16", "float16"]),
            "block_size": self.block_size,
            "max_model_len": self.max_model_len,
        }
        self.speculation = self._speculation()
        prefix = self._tokens(rng.choice([0, 5, 16, 33]))
        self.requests = {f"r{i}": self._request(prefix) for i in range(rng.randint(1, 10))}
        self.max_iterations = rng.choice([1, 5, 16])

    def engine(self, make_engine: MakeEngine) -> Engine:
        rng = self.rng
        draft = (*rng.choice([(2, self.family), (2, self.family), (1, "llama")]), rng.choice(ROWS))
        return make_engine(
            text_checkpoint(3, self.family),
            None if self.speculation.method == "ngram" else text_checkpoint(*draft),
            **self.shared,
            speculation=self.speculation,
            num_threads=rng.choice([1, 1, 2, 3]),
            max_num_seqs=rng.choice([1, 2, 3, 5]),
            max_num_batched_tokens=rng.choice([5, 8, 17, 32, 128]),
            enable_prefix_caching=rng.random() < 0.6,
            num_kv_blocks=rng.choice([None, self._few_blocks()]),
        )

    def plain_engine(self, make_engine: MakeEngine) -> Engine:
        target = text_checkpoint(3, self.family)
        return make_engine(target, **self.shared, max_num_seqs=5, enable_prefix_caching=False)

    def _few_blocks(self) -> int:
        """Enough for the longest sequence, and little more."""
        return -(-self.max_model_len // self.block_size) + self.rng.choice([1, 2, 3, 9])

    def _tokens(self, count: int) -> list[int]:
        rng = self.rng  # with repetitions, for lookups
        return [rng.randrange(3, VOCAB) if rng.random() < 0.5 else 5 for _ in range(count)]

    def _request(self, prefix: list[int]) -> Request:
        own = self._tokens(self.rng.choice([1, 2, 7, 20, 40]))
        prompt = (prefix if self.rng.random() < 0.6 else []) + own
        return Request(prompt[: self.max_model_len - 1], self._params())

    def _speculation(self) -> SpeculationConfig:
        rng = self.rng
        method = rng.choice(["dyspec"] * 4 + ["chain", "kary", "sampled", "ngram", "ngram"])
        values: dict[str, Any] = {
            "method": method,
            "max_nodes": rng.choice([1, 2, 5, 8, 16, 40, 70]),
            "max_depth": rng.choice([1, 2, 4, 8]),
            "adaptive": rng.random() < 0.4,
            "calibrate": rng.random() < 0.7,
            "max_batch_nodes": rng.choice([None, None, 1, 3, 8, 30]),
        }
        if method in ("kary", "sampled"):
            shape = {"branching": rng.choice([None, 1, 2, (3, 2, 1)]), "max_nodes": 70}
            values.update(shape, max_depth=4)
        elif method == "ngram":
            values.update(min_ngram=rng.choice([1, 2]), max_ngram=rng.choice([2, 5]))
        else:
            values.update(max_children=rng.choice([1, 3, 16]))
        if method not in ("kary", "ngram") and rng.random() < 0.25:
            values.update(verifier="rejection")
        elif method != "ngram":
            values.update(draft_temperature=rng.choice([None, None, None, 0.0, 1.2]))
        return SpeculationConfig(**values)

    def _params(self) -> SamplingParams:
        rng = self.rng
        is_drawn = self.speculation.verifier == "coupled"
        max_tokens = rng.choice([1, 2, 3, 8, 20, 40, 70])
        usual_or_not: dict[str, list[Any]] = {
            "top_k": [1, 2, 20],
            "top_p": [0.1, 0.9],
            "min_p": [0.01, 0.5],
            "presence_penalty": [-1.0, 2.0],
            "frequency_penalty": [-0.5, 1.0],
            "repetition_penalty": [0.7, 1.1, 2.0],
            "logit_bias": [{rng.randrange(VOCAB): rng.choice([-100.0, 5.0, 100.0])}],
            "min_tokens": [rng.randint(0, max_tokens)],
            "logprobs": [0, 1, 20],
            "stop": [["a", "the"], ["e"], [" x", "Z", "é"]],
            "stop_token_ids": [[rng.randrange(VOCAB), rng.randrange(VOCAB)]],
            "ignore_eos": [True],
            "include_stop_str_in_output": [True],
            "skip_special_tokens": [False],
            "n": [2, 5],
        }
        asked = {k: rng.choice(v) for k, v in usual_or_not.items() if rng.random() < 0.3}
        temperature = rng.choice([0.0, 0.0, 0.3, 0.8, 1.0, 1.5]) if is_drawn else 0.0
        seed = rng.randrange(1 << 40)
        return SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed, **asked)


def alone(engine: Engine, request: Request) -> Completions:
    """What an engine says of a request that it has to itself."""
    completions: Completions = {}
    engine.add_request("r", request.prompt, request.params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            completions.update({c.index: c for c in output.outputs})
    return completions


def together(engine: Engine, draw: Draw) -> tuple[dict[str, Completions], set[str]]:
    """What it says of all of them, and which were aborted."""
    rng, waiting = draw.rng, list(draw.requests.items())
    said: dict[str, Completions] = {name: {} for name in draw.requests}
    aborted: set[str] = set()
    while waiting or engine.has_unfinished_requests():
        while waiting and rng.random() < JOINS:
            name, request = waiting.pop(0)
            engine.add_request(name, request.prompt, request.params)
        outputs = list(engine.step(draw.max_iterations, ANY_TIME_S))
        running = [name for name in draw.requests if engine.has_request(name)]
        if running and rng.random() < ABORTS:
            name = rng.choice(running)
            aborted.add(name)
            outputs.append(engine.abort_request(name))
        for output in outputs:
            said[output.request_id].update({c.index: c for c in output.outputs})
    return said, aborted


def check(make_engine: MakeEngine, draw: Draw, has_exact_logprobs: bool = True) -> None:
    plain, engine = draw.plain_engine(make_engine), draw.engine(make_engine)
    expected = {name: alone(plain, request) for name, request in draw.requests.items()}
    said, aborted = together(engine, draw)
    for name, completions in said.items():
        where = (draw.seed, name)
        if name in aborted:
            for index, completion in completions.items():
                tokens = list(expected[name][index].token_ids)
                assert list(completion.token_ids) == tokens[: len(completion.token_ids)], where
        elif has_exact_logprobs:
            assert completions == expected[name], where
        else:
            assert without_logprobs(completions) == without_logprobs(expected[name]), where


def without_logprobs(completions: Completions) -> Completions:
    changes: dict[str, Any] = {"logprobs": None, "cumulative_logprob": None}
    return {index: replace(said, **changes) for index, said in completions.items()}


@pytest.mark.parametrize("seed", range(40))
def test_what_is_said_is_what_plain_decoding_says(make_engine: MakeEngine, seed: int) -> None:
    check(make_engine, Draw(seed))


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(1, 11))
def test_a_thousand_more(make_engine: MakeEngine, engines: list[Engine], hundred: int) -> None:
    for seed in range(100 * hundred, 100 * (hundred + 1)):
        check(make_engine, Draw(seed))
        while engines:
            engine = engines.pop()
            assert_nothing_left(engine)
            engine.close()
