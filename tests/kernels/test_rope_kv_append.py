"""rope_kv_append: rotation within twice plain torch's error; cache writes land exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdengine.kernels.programs.program import make_pool, run_op
from sdengine.kernels.rope_kv_append import reference

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def make_args(
    rows: int = 5,
    heads: int = 6,
    kv_heads: int = 2,
    dim: int = 64,
    rotary: int | None = None,
    dtype: torch.dtype = torch.float32,
    block_size: int = 16,
    norm: bool = False,
) -> dict[str, Any]:
    num_slots = 8 * block_size
    return {
        "qkv": torch.randn(rows, (heads + 2 * kv_heads) * dim),
        "cos_sin": torch.randn(50, 2, (dim if rotary is None else rotary) // 2),
        "positions": torch.randint(0, 50, (rows,), dtype=torch.int32),
        "slots": torch.randperm(num_slots)[:rows].int(),
        "kv_cache": torch.full((8, 2, kv_heads, block_size, dim), -7.0, dtype=dtype),
        "num_rows": torch.tensor([rows], dtype=torch.int32),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": dim,
        "q_norm": torch.randn(dim) if norm else None,
        "k_norm": torch.randn(dim) if norm else None,
        "eps": 1e-6,
    }


def copied(args: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Fresh tensors; floats as `dtype` when given."""

    def copy(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(dtype, copy=True) if dtype and value.is_floating_point() else value.clone()

    return {name: copy(value) for name, value in args.items()}


def run(args: dict[str, Any], threads: int = 1) -> dict[str, Any]:
    args = copied(args)
    run_op("rope_kv_append", pool=make_pool(threads), **args)
    return args


def q_part(args: dict[str, Any]) -> torch.Tensor:
    return args["qkv"][:, : args["num_heads"] * args["head_dim"]]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    "dim,rotary", [(64, 64), (80, 80), (96, 96), (128, 128), (80, 20), (64, 32)]
)
def test_error_is_at_most_twice_plain_torch(dim: int, rotary: int, norm: bool) -> None:
    args = make_args(dim=dim, rotary=rotary, norm=norm)
    wide, plain = copied(args, torch.float64), copied(args)
    reference(**wide)
    reference(**plain)
    got = run(args)
    for part in (q_part, lambda a: a["kv_cache"]):
        error = (part(got) - part(wide)).abs().max()
        ulp = part(wide).abs().max() * 2.0**-23
        assert error <= 2 * (part(plain) - part(wide)).abs().max() + ulp


@pytest.mark.parametrize("block_size", [8, 16, 24, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_copied_exactly_and_nothing_else_is_touched(
    dtype: torch.dtype, block_size: int
) -> None:
    args = make_args(rows=9, dtype=dtype, block_size=block_size)
    args["num_rows"][0] = 7
    got = run(args)
    kv_heads, dim = args["num_kv_heads"], args["head_dim"]
    values = args["qkv"][:7, -kv_heads * dim :].view(7, kv_heads, dim).to(dtype)
    slots = args["slots"][:7].long()
    assert torch.equal(got["kv_cache"][slots // block_size, 1, :, slots % block_size], values)
    untouched = torch.ones(8 * block_size, dtype=torch.bool)
    untouched[slots] = False
    by_slot = got["kv_cache"].permute(0, 3, 1, 2, 4).reshape(8 * block_size, -1)
    assert (by_slot[untouched] == -7.0).all()
    assert torch.equal(got["qkv"][7:], args["qkv"][7:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_keys_are_the_rounded_float_keys(dtype: torch.dtype) -> None:
    args = make_args(rows=17, norm=True)
    exact = run(args)["kv_cache"]
    args["kv_cache"] = args["kv_cache"].to(dtype)
    assert torch.equal(run(args)["kv_cache"], exact.to(dtype))


def test_bf16_rounds_to_nearest_even_and_keeps_nan() -> None:
    args = make_args(rows=1, heads=1, kv_heads=1, dim=8, dtype=torch.bfloat16)
    bits = torch.tensor(
        [
            0x3F808000,
            0x3F818000,
            0x3F807FFF,
            0x3F808001,
            0x7F7FFFFF,
            0x00000001,
            0x7F800001,
            -0x00800000,
        ],
        dtype=torch.int64,
    ).int()
    values = bits.view(torch.float32)
    args["qkv"][0, -8:] = values
    slot = int(args["slots"][0])
    got = run(args)["kv_cache"][slot // 16, 1, 0, slot % 16]
    expected = values.bfloat16()
    assert got[6].isnan() and torch.equal(
        got[[0, 1, 2, 3, 4, 5, 7]], expected[[0, 1, 2, 3, 4, 5, 7]]
    )


def test_float16_rounds_to_nearest_even_overflows_to_infinity_and_keeps_nan() -> None:
    values = torch.tensor(
        [
            *(1 + 2.0**-11, 1 + 3 * 2.0**-11, 65519.0, 65520.0, -1e9, 2.0**-25, 3 * 2.0**-25),
            *(2.0**-14 - 2.0**-26, -(2.0**-14), 1e-30, -0.0, float("inf"), float("nan")),
            *(-3.25, 0.1, 1000.7),
        ]
    )
    args = make_args(rows=1, heads=1, kv_heads=1, dim=16, dtype=torch.float16)
    args["qkv"][0, -16:] = values
    slot = int(args["slots"][0])
    got = run(args)["kv_cache"][slot // 16, 1, 0, slot % 16]
    expected = values.half()
    assert got[12].isnan()
    rest = torch.arange(16) != 12
    assert torch.equal(got[rest].view(torch.int16), expected[rest].view(torch.int16))


def test_a_row_has_the_same_bits_in_any_company() -> None:
    args = make_args(rows=40, norm=True)
    together = run(args)
    threaded = run(args, threads=3)
    assert torch.equal(q_part(together), q_part(threaded))
    assert torch.equal(together["kv_cache"], threaded["kv_cache"])
    alone = copied(args)
    for name in ("qkv", "positions", "slots"):
        alone[name] = args[name][23:24].clone()
    alone["num_rows"][0] = 1
    assert torch.equal(q_part(run(alone))[0], q_part(together)[23])


def test_names_the_wrong_argument() -> None:
    args = make_args()
    args["cos_sin"] = torch.zeros(4, 2, 40)
    with pytest.raises(ValueError, match=r"cos_sin: expected D_rot <= 64, got 80"):
        run(args)
    args = make_args()
    args["kv_cache"] = args["kv_cache"][:, :, :, :0].contiguous()
    with pytest.raises(ValueError, match=r"kv_cache: expected blocks of a token or more"):
        run(args)
