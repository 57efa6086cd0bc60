"""token_logprobs in Triton: the reference's tokens and ranks, and its values up to rounding."""

from __future__ import annotations

import random

import pytest

from sdengine.kernels.token_logprobs import OUTPUTS
from tests.kernels.test_token_logprobs import assert_agree, of_reference, random_args
from tests.kernels.triton.guarded import run_guarded


@pytest.mark.parametrize(("vocab", "seed"), [(1, 0), (3, 1), (70, 2), (2050, 3)])
def test_random_walks_equal_the_reference(vocab: int, seed: int) -> None:
    args = random_args(random.Random(seed), vocab)
    expected = of_reference(args)
    got = run_guarded("token_logprobs", args)
    assert_agree({name: got[name] for name in OUTPUTS}, expected)


def test_sequences_past_num_seqs_are_left_out() -> None:
    args = random_args(random.Random(5), 50)
    args["num_seqs"][0] = 2
    expected = of_reference(args)
    got = run_guarded("token_logprobs", args)
    assert_agree({name: got[name] for name in OUTPUTS}, expected)
