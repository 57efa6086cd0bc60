"""kv_compact: an exact in-place gather over every layer, head and plane."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sdengine.kernels.kv_compact import reference
from sdengine.kernels.move_plan import MovePlan
from sdengine.kernels.programs.program import make_pool, run_op

torch.set_num_threads(1)


def make_args(
    moves: list[list[int]], starts: list[int], dtype: torch.dtype, block_size: int, dim: int
) -> dict[str, Any]:
    sequences, blocks = len(moves), 6
    width = max(1, *(len(m) for m in moves))
    plan = MovePlan.allocate(sequences, width)
    plan.source[:], plan.dst_start[:] = -1, torch.tensor(starts)
    for b, row in enumerate(moves):
        plan.source[b, : len(row)] = torch.tensor(row, dtype=torch.int32)
        plan.num_moves[b] = len(row)
    return {
        "kv_cache": torch.randn(3, sequences * blocks, 2, 2, block_size, dim).to(dtype),
        "block_tables": torch.randperm(sequences * blocks).int().view(sequences, blocks),
        "moves": plan,
        "num_seqs": torch.tensor([sequences], dtype=torch.int32),
    }


def run(args: dict[str, Any], threads: int = 1) -> torch.Tensor:
    args = {**args, "kv_cache": args["kv_cache"].clone()}
    run_op("kv_compact", pool=make_pool(threads), **args)
    return args["kv_cache"]


CASES = [
    ([[]], [5]),
    ([[5, 6, 7]], [5]),  # already in place
    ([[5, 7, 8, 15]], [5]),
    ([[9]], [3]),
    ([list(range(20, 40))], [17]),  # overlapping, over block borders
    ([[4, 9], [], [8, 9, 23]], [4, 0, 7]),
]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "dtype,block_size,dim",
    [(torch.float32, 8, 64), (torch.bfloat16, 16, 80), (torch.float16, 16, 64)],
)
@pytest.mark.parametrize("moves,starts", CASES)
def test_equals_the_reference(
    moves: list[list[int]],
    starts: list[int],
    dtype: torch.dtype,
    block_size: int,
    dim: int,
    threads: int,
) -> None:
    args = make_args(moves, starts, dtype, block_size, dim)
    expected = {**args, "kv_cache": args["kv_cache"].clone()}
    reference(**expected)
    assert torch.equal(run(args, threads), expected["kv_cache"])


def test_sequences_past_num_seqs_stay() -> None:
    args = make_args([[3, 5], [4, 6]], [2, 2], torch.float32, 8, 16)
    args["num_seqs"][0] = 1
    got = run(args)
    second = args["block_tables"][1].long()
    assert torch.equal(got[:, second], args["kv_cache"][:, second])
    assert not torch.equal(got, args["kv_cache"])


def test_large_moves_are_shared_by_workers() -> None:
    args = make_args([list(range(12, 48))], [8], torch.float32, 8, 128)
    args["kv_cache"] = torch.randn(9, 6, 2, 2, 8, 128)
    expected = {**args, "kv_cache": args["kv_cache"].clone()}
    reference(**expected)
    for threads in (1, 2, 5):
        assert torch.equal(run(args, threads), expected["kv_cache"])


def test_names_the_wrong_argument() -> None:
    args = make_args([[3]], [2], torch.float32, 8, 16)
    plan: MovePlan = args["moves"]
    for wrong, message in (
        (replace(plan, num_moves=plan.num_moves.long()), "moves.num_moves: expected torch.int32, "),
        (MovePlan.allocate(2, 1), r"moves.source: expected shape \[1, 'any'\], got \[2, 1\]"),
        (plan.source, "moves: expected a MovePlan, got Tensor"),
    ):
        with pytest.raises(ValueError, match=f"kv_compact: {message}"):
            run({**args, "moves": wrong})
    args = make_args([[3]], [2], torch.float32, 8, 16)
    args["kv_cache"] = args["kv_cache"][:, :, :, :, :0].contiguous()
    with pytest.raises(ValueError, match=r"kv_cache: expected blocks of a token or more"):
        run(args)
