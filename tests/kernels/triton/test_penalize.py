"""penalize in Triton: the reference's bits for every option, on tree rows and on chain rows."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from sdengine.kernels.penalize import reference
from tests.kernels.test_penalize import penalty_args, random_args
from tests.kernels.triton.guarded import bits, run_guarded


def assert_same_bits(args: dict[str, Any]) -> None:
    expected = {**args, "logits": args["logits"].clone()}
    reference(**expected)
    got = run_guarded("penalize", args)["logits"]
    assert torch.equal(bits(got), bits(expected["logits"]))


@pytest.mark.parametrize("seed", [0, 1, 2, 5, 8])
def test_random_rows_of_random_trees_equal_the_reference(seed: int) -> None:
    assert_same_bits(random_args(random.Random(seed), seed))


def test_chain_rows_and_rows_past_num_rows() -> None:
    args = penalty_args(2, 4, 1030)
    args["row_seq"] = torch.tensor([1, 0, 1, 0], dtype=torch.int32)
    args["frequency_penalty"][1], args["repetition_penalty"][1] = 0.3, 1.7
    args["num_bias"][0], args["bias_ids"][0, 0], args["bias_values"][0, 0] = 1, 1029, 3.0
    args["num_rows"][0] = 3
    before = args["logits"].clone()
    assert_same_bits(args)
    got = run_guarded("penalize", args)["logits"]
    assert torch.equal(got[3], before[3]) and not torch.equal(got[0], before[0])


def test_neutral_rows_keep_their_bits() -> None:
    args = penalty_args(1, 2, 100)
    args["logits"][0, :3] = torch.tensor([float("nan"), float("inf"), -0.0])
    got = run_guarded("penalize", args)["logits"]
    assert torch.equal(bits(got), bits(args["logits"]))
