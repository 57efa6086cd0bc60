"""Tensors of more elements than an int32 counts, as the caches and logits of a large engine are:
what lies at their end is read and written as it is in small ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sdengine.kernels.dense_weight import DenseWeight
from tests.gpu.on_device import DEVICE, DTYPES, IS_DRY_RUN, launch, require_cuda_library, to_device
from tests.kernels import test_rope_kv_append as rope_test
from tests.kernels import test_tree_attention as attention_test
from tests.kernels.test_kv_compact import make_args as compact_args
from tests.kernels.test_sample import sampling_args
from tests.kernels.test_tree_attention import Span
from tests.kernels.triton.test_tree_attention import SMALL, with_scratch

DTYPE = DTYPES[0]
ELEMENTS = 1 << 16 if IS_DRY_RUN else (1 << 31) + (1 << 22)
VOCAB = 130 if IS_DRY_RUN else 128256
LAST_ROWS = 3


def at_the_end_of_a_large_one(cache: torch.Tensor, axis: int) -> tuple[torch.Tensor, int]:
    """A cache of ELEMENTS in each layer whose last blocks are those of `cache`, and how many blocks
    lie before them. The others hold whatever there was."""
    blocks = cache.shape[axis]
    earlier = -(-ELEMENTS // cache[(0,) * (axis + 1)].numel())
    shape = list(cache.shape)
    shape[axis] += earlier
    large = torch.empty(shape, dtype=cache.dtype, device=cache.device)
    large.narrow(axis, earlier, blocks).copy_(cache)
    return large, earlier


def compared(
    op: str,
    backend: str,
    args: dict[str, Any],
    moved: Callable[[dict[str, Any], int], dict[str, Any]],
    axis: int = 0,
) -> None:
    """Runs an op on a small cache, and on a large one whose last blocks it is."""
    small = to_device(args)
    cache, earlier = at_the_end_of_a_large_one(small["kv_cache"], axis)
    large = {**to_device(args), "kv_cache": cache}
    large |= moved(large, earlier)
    before = small["kv_cache"].clone()
    launch(op, backend, small)
    launch(op, backend, large)
    end = cache.narrow(axis, earlier, before.shape[axis])
    assert torch.equal(end, small["kv_cache"])
    if op == "tree_attention":
        assert torch.equal(large["out"], small["out"]) and bool(small["out"].any())
    else:
        assert not torch.equal(end, before)


def test_attention_reads_the_end_of_a_large_cache() -> None:
    args = attention_test.make_args([Span(2, 70, SMALL), Span(1, 64)], dtype=DTYPE, dim=64)
    compared(
        "tree_attention",
        "triton",
        with_scratch(args),
        lambda own, earlier: {"block_tables": own["block_tables"] + earlier},
    )


def test_keys_are_appended_at_the_end_of_a_large_cache() -> None:
    args = rope_test.make_args(dim=64, dtype=DTYPE)
    compared(
        "rope_kv_append",
        "triton",
        args,
        lambda own, earlier: {"slots": own["slots"] + earlier * own["kv_cache"].shape[3]},
    )


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_paths_move_at_the_end_of_a_large_cache(backend: str) -> None:
    """The second and third layer lie past the elements of an int32, too."""
    if backend == "cuda":
        require_cuda_library()
    args = compact_args([[*range(9, 42)], [3, 4, 9, 30]], [7, 2], DTYPE, 16, 64)
    compared(
        "kv_compact",
        backend,
        args,
        lambda own, earlier: {"block_tables": own["block_tables"] + earlier},
        axis=1,
    )


def test_the_last_rows_of_many_logits_are_those_of_few() -> None:
    inputs, rows = 64, ELEMENTS // VOCAB + LAST_ROWS
    x = torch.zeros(rows, inputs, device=DEVICE)
    x[-LAST_ROWS:] = torch.randn(LAST_ROWS, inputs).to(DEVICE)
    weight = DenseWeight(torch.randn(VOCAB, inputs).to(DTYPE).to(DEVICE), False)
    found = []
    for operand in (x, x[-LAST_ROWS:].clone()):
        count = len(operand)
        logits = torch.empty(count, VOCAB, device=DEVICE)
        num_rows = torch.tensor([count], dtype=torch.int32, device=DEVICE)
        launch(
            "linear",
            "triton",
            {"x": operand, "weight": weight, "out": logits} | {"num_rows": num_rows},
        )
        args = to_device(sampling_args(torch.zeros(1, VOCAB), 0.8, 0, 1.0, 0.0))
        args |= {
            "logits": logits,
            "num_rows": num_rows,
            "row_seq": torch.zeros(count, dtype=torch.int32, device=DEVICE),
            "positions": torch.arange(count, dtype=torch.int32, device=DEVICE) - count,
            "out_tokens": torch.full((count,), -7, dtype=torch.int32, device=DEVICE),
        }
        launch("sample", "triton", args)
        found.append((logits[-LAST_ROWS:].clone(), args["out_tokens"][-LAST_ROWS:]))
        del logits, args
    assert all(torch.equal(many, few) for many, few in zip(*found))
    assert bool(found[0][0].any()) and int(found[0][1].min()) >= 0
