"""kv_compact in Triton: an exact in-place gather over every layer, head and plane."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdengine.kernels.kv_compact import reference
from tests.kernels.test_kv_compact import CASES, make_args
from tests.kernels.triton.guarded import run_guarded


def expected_cache(args: dict[str, Any]) -> torch.Tensor:
    expected = {**args, "kv_cache": args["kv_cache"].clone()}
    reference(**expected)
    return expected["kv_cache"]


@pytest.mark.parametrize(
    "dtype,block_size,dim",
    [(torch.float32, 8, 64), (torch.bfloat16, 16, 80), (torch.float16, 16, 64)],
)
@pytest.mark.parametrize("moves,starts", CASES)
def test_equals_the_reference(
    moves: list[list[int]], starts: list[int], dtype: torch.dtype, block_size: int, dim: int
) -> None:
    args = make_args(moves, starts, dtype, block_size, dim)
    assert torch.equal(run_guarded("kv_compact", args)["kv_cache"], expected_cache(args))


def test_moves_of_several_tiles_that_overlap() -> None:
    args = make_args([[*range(9, 42)]], [7], torch.float32, 8, 16)
    assert torch.equal(run_guarded("kv_compact", args)["kv_cache"], expected_cache(args))


def test_sequences_past_num_seqs_stay() -> None:
    args = make_args([[3, 5], [4, 6]], [2, 2], torch.float32, 8, 16)
    args["num_seqs"][0] = 1
    got = run_guarded("kv_compact", args)["kv_cache"]
    assert torch.equal(got, expected_cache(args)) and not torch.equal(got, args["kv_cache"])
