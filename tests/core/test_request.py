"""RequestBook: the noise that requests get, and what of a request is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sdengine.core.request import NoText, RequestBook, RequestLimits, completion_seed
from sdengine.core.sampling_params import SamplingParams
from sdengine.core.spent_time import SpentTime
from sdengine.errors import RequestError

EOS = 1
LIMITS = RequestLimits(
    vocab_size=100,
    max_model_len=64,
    eos_token_ids=frozenset({EOS}),
    has_speculation=False,
    max_biases=4,
    max_masked=3,
)


def book(seed: int = 0, **limits: Any) -> RequestBook:
    """A book without a tokenizer."""
    return RequestBook(None, replace(LIMITS, **limits), 64, seed, SpentTime())


def noise_keys(engine_seed: int, num_requests: int, n: int = 1) -> list[int]:
    """The noise keys of an engine's first requests, all without a seed."""
    opened = book(engine_seed)
    params = SamplingParams(n=n)
    requests = [opened.open([(f"r{i}", [5], params)]) for i in range(num_requests)]
    return [sequence.seed for sequences in requests for sequence in sequences]


def test_neighbouring_engine_seeds_share_no_noise() -> None:
    keys = [key for seed in range(-5, 20) for key in noise_keys(seed, 20, n=2)]
    assert len(set(keys)) == len(keys) == 25 * 40
    assert all(0 <= key < 2**64 for key in keys)
    assert noise_keys(3, 20) == noise_keys(3, 20)


def test_requests_without_a_seed_share_no_noise_with_completions_of_the_engine_s_seed() -> None:
    for seed in range(5):
        completions = {completion_seed(seed, index) for index in range(128)}
        assert completions.isdisjoint(noise_keys(seed, 128))


@pytest.mark.parametrize(
    "prompt,name",
    [
        (np.array(5), "ndarray"),
        (torch.tensor(5), "Tensor"),
        (5, "int"),
        (b"abc", "bytes"),
        (bytearray(b"abc"), "bytearray"),
        ({1, 2}, "set"),
        ({1: 2}, "dict"),
    ],
)
def test_a_prompt_that_is_no_list_is_refused(prompt: Any, name: str) -> None:
    with pytest.raises(RequestError, match=f"a prompt of text or of token ids, got {name}"):
        book().open([("r", prompt, SamplingParams())])


class WideCodec:
    """A tokenizer with more tokens than the model has, as after adding one of padding."""

    def encode(self, text: str) -> list[int]:
        return [5, 100]

    def detokenizer(self, *, skip_special_tokens: bool, continues_text: bool) -> NoText:
        return NoText()


def test_a_token_of_a_text_that_the_model_does_not_have_is_refused() -> None:
    opened = RequestBook(WideCodec(), LIMITS, 64, 0, SpentTime())
    with pytest.raises(RequestError, match=r"token ids in \[0, 100\), got 100 at position 1"):
        opened.open([("r", "text", SamplingParams())])
    assert len(opened) == 0


@pytest.mark.parametrize("min_tokens", [0, 2])
@pytest.mark.parametrize("stops", [[100], [5, 2**31 - 1]])
def test_stop_tokens_that_the_model_cannot_produce_are_refused(
    min_tokens: int, stops: list[int]
) -> None:
    params = SamplingParams(stop_token_ids=stops, min_tokens=min_tokens)
    with pytest.raises(RequestError, match=rf"stop_token_ids in \[0, 100\), got {stops[-1]}"):
        book().open([("r", [5], params)])


def test_masked_stop_tokens_are_counted_once_and_only_those_of_the_sequence() -> None:
    fitting = (
        {"stop_token_ids": [7] * 70},
        {"stop_token_ids": [7, 8, EOS]},
        {"stop_token_ids": [7, 8, 9], "ignore_eos": True},
    )
    for settings in fitting:
        params = SamplingParams(min_tokens=1, **settings)  # type: ignore[arg-type]
        (sequence,) = book().open([("r", [5], params)])
        assert len(sequence.stop_token_ids) <= 3
    words = "at most 3 stop tokens together with min_tokens, got 4"
    with pytest.raises(RequestError, match=words):
        book().open([("r", [5], SamplingParams(min_tokens=1, stop_token_ids=[7, 8, 9]))])
    book().open([("r", [5], SamplingParams(stop_token_ids=[7, 8, 9, 10]))])


def test_of_several_requests_all_are_taken_or_none() -> None:
    """A refused one uses up no seed: those that follow are what they would have been without it."""
    good, bad = SamplingParams(), SamplingParams(stop_token_ids=[100])
    opened = book()
    for wanted in ([("a", [5], good), ("b", [5], bad)], [("a", [5], good), ("a", [6], good)]):
        with pytest.raises(RequestError):
            opened.open(wanted)
        assert len(opened) == 0
    seeds = [sequence.seed for sequence in opened.open([("a", [5], good), ("b", [6], good)])]
    assert seeds == noise_keys(0, 2) and len(opened) == 2
