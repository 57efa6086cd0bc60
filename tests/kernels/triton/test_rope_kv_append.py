"""rope_kv_append in Triton: rotation within twice plain torch's error, exact cache writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels.test_rope_kv_append import make_args, q_part
from tests.kernels.triton.guarded import assert_within_twice_plain, run_guarded


def run(args: dict[str, Any]) -> dict[str, Any]:
    return run_guarded("rope_kv_append", args)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    "dim,rotary", [(64, 64), (80, 80), (96, 96), (128, 128), (80, 20), (64, 0)]
)
def test_error_is_at_most_twice_plain_torch(dim: int, rotary: int, norm: bool) -> None:
    args = make_args(rows=3, heads=7, kv_heads=1, dim=dim, rotary=rotary, norm=norm)
    got = run(args)
    assert_within_twice_plain("rope_kv_append", args, got, "kv_cache")
    width = 7 * dim
    q_only = {**got, "qkv": got["qkv"][:, :width]}
    assert_within_twice_plain_q(args, q_only["qkv"])


def assert_within_twice_plain_q(args: dict[str, Any], q: torch.Tensor) -> None:
    """As above for the q part; the k part of qkv is unspecified."""
    from sdengine.kernels.rope_kv_append import reference
    from tests.kernels.triton.guarded import as_dtype

    wide, plain = as_dtype(args, torch.float64), as_dtype(args, torch.float32)
    reference(**wide)
    reference(**plain)
    ulp = q_part(wide).abs().max() * 2.0**-23
    allowed = 2 * (q_part(plain) - q_part(wide)).abs().max() + ulp
    assert (q - q_part(wide)).abs().max() <= allowed


@pytest.mark.parametrize("block_size", [8, 24, 64])
def test_values_are_copied_exactly_and_nothing_else_is_touched(block_size: int) -> None:
    args = make_args(rows=9, block_size=block_size)
    args["num_rows"][0] = 7
    got = run(args)
    kv_heads, dim = args["num_kv_heads"], args["head_dim"]
    values = args["qkv"][:7, -kv_heads * dim :].view(7, kv_heads, dim)
    slots = args["slots"][:7].long()
    assert torch.equal(got["kv_cache"][slots // block_size, 1, :, slots % block_size], values)
    untouched = torch.ones(8 * block_size, dtype=torch.bool)
    untouched[slots] = False
    by_slot = got["kv_cache"].permute(0, 3, 1, 2, 4).reshape(8 * block_size, -1)
    assert (by_slot[untouched] == -7.0).all()
    assert torch.equal(got["qkv"][7:], args["qkv"][7:])


def test_a_row_has_the_same_bits_in_any_company() -> None:
    args = make_args(rows=11, norm=True)
    together = run(args)
    alone = {**args, "num_rows": torch.ones(1, dtype=torch.int32)}
    for name in ("qkv", "positions", "slots"):
        alone[name] = args[name][7:8].clone()
    got = run(alone)
    assert torch.equal(q_part(got)[0], q_part(together)[7])
    slot = int(args["slots"][7])
    at = (slot // 16, slice(None), slice(None), slot % 16)
    assert torch.equal(got["kv_cache"][at], together["kv_cache"][at])
