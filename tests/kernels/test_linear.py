"""linear: error against float64, every epilogue, row-invariance bit for bit, packing, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sdengine.kernels.huge_pages import HugePageArena
from sdengine.kernels.packed_weight import PackedWeight, pack_weight
from sdengine.kernels.programs.program import make_pool, run_op

torch.set_num_threads(1)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (1, 1),
    (31, 33),
    (33, 31),
    (64, 32),
    (257, 100),
    (300, 8),
    (704, 256),
    (1030, 40),
]  # (K, M)
UNTOUCHED = -7.0


def count(n: int) -> torch.Tensor:
    return torch.tensor([n], dtype=torch.int32)


def normal(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrix(num_inputs: int, num_outputs: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return (normal((num_outputs, num_inputs), seed) / num_inputs**0.5).to(dtype)


def run(weight: PackedWeight, x: torch.Tensor, pool: Any = None, **args: Any) -> torch.Tensor:
    """linear on all rows of x (or of args["rows"]) into a fresh output."""
    rows = args["rows"].shape[0] if args.get("rows") is not None else x.shape[0]
    width = weight.num_outputs // 2 if weight.is_gate_up else weight.num_outputs
    out = args.pop("out", None)
    out = torch.full((rows, width), UNTOUCHED) if out is None else out
    run_op(
        "linear",
        pool=pool,
        x=x,
        weight=weight,
        out=out,
        num_rows=args.pop("num_rows", count(rows)),
        **args,
    )
    return out


def assert_error_is_honest(got: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> None:
    """RMS error at most twice that of plain torch in the same dtype (plus the last bit of a sum
    that came out exact)."""
    scale = exact.square().mean().sqrt().item()
    error = (got.double() - exact).square().mean().sqrt().item()
    allowed = (plain.double() - exact).square().mean().sqrt().item()
    assert error <= 2 * allowed + 1e-7 * scale, (
        f"error {error:.3g}, plain torch {allowed:.3g}, scale {scale:.3g}"
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_inputs,num_outputs", SHAPES)
def test_error_is_within_twice_that_of_torch(
    num_inputs: int, num_outputs: int, dtype: torch.dtype
) -> None:
    dense = matrix(num_inputs, num_outputs, dtype)
    weight = pack_weight(dense)
    for rows in (1, 2, 5, 8, 13, 64, 130):
        x = normal((rows, num_inputs), rows)
        exact = x.double() @ dense.double().T
        assert_error_is_honest(run(weight, x), F.linear(x.to(dtype), dense), exact)


def test_long_sums_are_as_good_as_torchs() -> None:
    dense = matrix(11264, 64, torch.float32)
    x = normal((3, 11264), 1)
    assert_error_is_honest(
        run(pack_weight(dense), x), F.linear(x, dense), x.double() @ dense.double().T
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_inputs,num_outputs", SHAPES)
def test_bias_and_residual(num_inputs: int, num_outputs: int, dtype: torch.dtype) -> None:
    dense = matrix(num_inputs, num_outputs, dtype)
    x, bias = normal((9, num_inputs), 1), normal((num_outputs,), 2)
    residual = normal((9, num_outputs), 3)
    weight = pack_weight(dense)
    plain = run(weight, x)
    assert torch.equal(run(weight, x, bias=bias), plain + bias)
    assert torch.equal(run(weight, x, accumulate=True, out=residual.clone()), residual + plain)
    both = run(weight, x, bias=bias, accumulate=True, out=residual.clone())
    assert torch.equal(both, residual + (plain + bias))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "num_inputs,features", [(7, 1), (31, 15), (64, 16), (100, 17), (256, 704), (301, 33)]
)
def test_silu_gate_is_silu_of_the_gate_times_up(
    num_inputs: int, features: int, dtype: torch.dtype
) -> None:
    gate, up = matrix(num_inputs, features, dtype, 1) * 3, matrix(num_inputs, features, dtype, 2)
    bias = normal((2 * features,), 3)
    weight = pack_weight([gate, up], interleave_gate_up=True)
    x = normal((11, num_inputs), 4)
    for with_bias in (None, bias):
        args = (
            x.to(dtype),
            torch.cat([gate, up]),
            None if with_bias is None else with_bias.to(dtype),
        )
        plain = F.linear(*args)
        plain = F.silu(plain[:, :features]) * plain[:, features:]
        wide = F.linear(
            x.double(), args[1].double(), None if with_bias is None else with_bias.double()
        )
        exact = F.silu(wide[:, :features]) * wide[:, features:]
        assert_error_is_honest(run(weight, x, bias=with_bias, activation="silu_gate"), plain, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [1, 15, 17, 48, 704])
def test_a_gated_result_can_be_stored_rounded(features: int, dtype: torch.dtype) -> None:
    gate, up = matrix(66, features, dtype, 1) * 3, matrix(66, features, dtype, 2)
    weight = pack_weight([gate, up], interleave_gate_up=True)
    x = normal((9, 66), 3) * 10
    wide = run(weight, x, activation="silu_gate")
    rounded = torch.full((9, features), UNTOUCHED, dtype=torch.bfloat16)
    run(weight, x, make_pool(2), activation="silu_gate", out=rounded)
    assert torch.equal(rounded, wide.bfloat16())


@pytest.mark.parametrize("num_inputs,num_outputs", SHAPES)
def test_rounded_inputs_give_the_bits_of_those_it_would_round(
    num_inputs: int, num_outputs: int
) -> None:
    weight = pack_weight(matrix(num_inputs, num_outputs, torch.bfloat16))
    x = normal((11, num_inputs), 1) * 10
    if weight.input_dtype == torch.float32:
        with pytest.raises(ValueError, match=r"x: expected torch\.float32 for backend 'cpu'"):
            run(weight, x.bfloat16())
        return
    rows = torch.tensor([3, 0, 10, 3], dtype=torch.int32)
    for chosen in (None, rows):
        expected = run(weight, x, rows=chosen)
        assert torch.equal(run(weight, x.bfloat16(), make_pool(2), rows=chosen), expected)
    with pytest.raises(ValueError, match=r"x: expected torch\.float32 for backend 'cpu'"):
        run(weight, x.bfloat16(), norm=torch.ones(num_inputs))


def test_silu_gate_at_the_ends_of_the_range() -> None:
    """x holds the gate's value in its first place; up is 1."""
    values = torch.tensor(
        [0.0, -0.0, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4, 1e30, -1e30, float("nan")]
    )
    weight = pack_weight(
        [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])], interleave_gate_up=True
    )
    got = run(
        weight, torch.stack([values, torch.ones_like(values)], dim=1), activation="silu_gate"
    )[:, 0]
    torch.testing.assert_close(got, F.silu(values), rtol=1e-6, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_picks_input_rows(dtype: torch.dtype) -> None:
    weight = pack_weight(matrix(77, 50, dtype))
    x = normal((10, 77), 1)
    rows = torch.tensor([9, 0, 3, 3, 7], dtype=torch.int32)
    assert torch.equal(run(weight, x, rows=rows), run(weight, x)[rows.long()])
    one = run(weight, x, rows=rows, num_rows=count(1))
    assert torch.equal(one[0], run(weight, x)[9]) and (one[1:] == UNTOUCHED).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("live", [0, 1, 6, 8, 13])
def test_rows_past_num_rows_are_untouched(live: int, dtype: torch.dtype) -> None:
    x = normal((13, 65), 1)
    x[live:] = float("nan")
    for gated, width in ((False, 66), (True, 33)):
        weight = pack_weight(matrix(65, 66, dtype), interleave_gate_up=gated)
        padded = torch.full((15, width), UNTOUCHED)
        run(
            weight,
            x,
            out=padded[1:14],
            num_rows=count(live),
            activation="silu_gate" if gated else None,
        )
        assert padded[1 : 1 + live].isfinite().all() and (padded[1 : 1 + live] != UNTOUCHED).all()
        assert (padded[0] == UNTOUCHED).all() and (padded[1 + live :] == UNTOUCHED).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "num_inputs,num_outputs,gated", [(600, 70, False), (257, 32, False), (513, 70, True)]
)
def test_a_row_has_the_same_bits_in_any_company(
    num_inputs: int, num_outputs: int, gated: bool, dtype: torch.dtype
) -> None:
    """Alone with one thread; among 1 to 70 (and more) rows, at a random place, with 1, 2 and 3
    threads."""
    weight = pack_weight(matrix(num_inputs, num_outputs, dtype), interleave_gate_up=gated)
    args = {"bias": normal((num_outputs,), 1), "activation": "silu_gate" if gated else None}
    row = normal((1, num_inputs), 2)
    alone = run(weight, row, make_pool(1), **args)
    pools = [make_pool(n) for n in (1, 2, 3)]
    generator = torch.Generator().manual_seed(3)
    for rows in [*range(1, 71), 128, 129, 257]:
        x = normal((rows, num_inputs), rows) * 100
        place = int(torch.randint(rows, (1,), generator=generator))
        x[place] = row
        got = run(weight, x, pools[rows % 3], **args)
        assert torch.equal(got[place], alone[0]), (
            f"row {place} of {rows} with {1 + rows % 3} threads"
        )


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("packed", DTYPES)
@pytest.mark.parametrize("num_inputs,num_outputs", [(1, 2), (31, 34), (130, 64), (70, 98)])
def test_packing_loses_nothing(
    num_inputs: int, num_outputs: int, source: torch.dtype, packed: torch.dtype
) -> None:
    dense = matrix(num_inputs, num_outputs, source)
    for gated in (False, True):
        for pool in (None, make_pool(3)):
            weight = pack_weight(dense, packed, interleave_gate_up=gated, pool=pool)
            assert torch.equal(weight.unpack(), dense.to(packed))
            assert weight.dtype == packed and weight.shape == (num_outputs, num_inputs)
            padding = (
                weight.storage.float().square().sum() - dense.to(packed).float().square().sum()
            )
            assert abs(padding.item()) < 1e-4


def test_packing_stacks_parts_and_slices_without_a_copy() -> None:
    fused = matrix(40, 90, torch.bfloat16)
    parts = [fused[:30], fused[30:33], fused[33:]]
    assert torch.equal(pack_weight(parts).unpack(), fused)
    assert torch.equal(
        pack_weight([fused[:, 3:20], fused[:7, 3:20]]).unpack(),
        torch.cat([fused[:, 3:20], fused[:7, 3:20]]),
    )


def test_packs_of_one_arena_are_what_they_are_alone() -> None:
    arena = HugePageArena()
    dense = [matrix(40, 90, torch.bfloat16), matrix(33, 7, torch.float32)]
    packed = [pack_weight(d, arena=arena) for d in dense]
    for weight, alone in zip(packed, dense):
        assert torch.equal(weight.unpack(), alone)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_inputs,num_outputs", SHAPES)
def test_rows_are_normalised_as_by_a_launch_before(
    num_inputs: int, num_outputs: int, dtype: torch.dtype, backend: str
) -> None:
    weight = pack_weight(matrix(num_inputs, num_outputs, dtype))
    norm = 1.0 + 0.1 * normal((num_inputs,), 1)
    for rows in (1, 5, 14, 131):
        x = 3.0 * normal((rows, num_inputs), rows)
        normed = torch.empty_like(x)
        run_op("rms_norm", backend, x=x, weight=norm, out=normed, num_rows=count(rows), eps=1e-3)
        chosen = torch.arange(rows - 1, -1, -1, dtype=torch.int32)
        for gather in (None, chosen):
            expected = torch.full((rows, num_outputs), UNTOUCHED)
            got = expected.clone()
            args = {"weight": weight, "num_rows": count(rows), "rows": gather}
            run_op("linear", backend, x=normed, out=expected, **args)
            run_op("linear", backend, x=x, out=got, norm=norm, eps=1e-3, **args)
            assert torch.equal(got, expected)
        assert torch.equal(x, 3.0 * normal((rows, num_inputs), rows))


def good_args() -> dict[str, Any]:
    return {
        "x": torch.randn(3, 8),
        "weight": pack_weight(torch.randn(6, 8)),
        "out": torch.empty(3, 6),
        "num_rows": count(3),
    }


@pytest.mark.parametrize(
    "change,message",
    [
        ({"x": torch.randn(3, 9)}, r"x: expected shape \['any', 8\], got \[3, 9\]"),
        ({"x": torch.randn(3, 8).double()}, r"x: expected torch.float32"),
        ({"out": torch.empty(3, 5)}, r"out: expected shape \[3, 6\], got \[3, 5\]"),
        ({"out": torch.empty(6, 3).T}, r"out: expected a contiguous tensor"),
        (
            {"weight": torch.randn(6, 8)},
            r"weight: expected PackedWeight or DenseWeight, got Tensor",
        ),
        ({"bias": torch.randn(5)}, r"bias: expected shape \[6\], got \[5\]"),
        ({"norm": torch.randn(6)}, r"norm: expected shape \[8\], got \[6\]"),
        ({"norm": torch.randn(8).half()}, r"norm: expected torch.float32"),
        ({"rows": torch.zeros(4, dtype=torch.int32)}, r"out: expected shape \[4, 6\]"),
        ({"num_rows": torch.tensor(3)}, r"num_rows: expected torch.int32"),
        ({"activation": "relu"}, r"activation: expected one of .*got 'relu'"),
        ({"activation": "silu_gate"}, r"activation: got 'silu_gate' for a weight packed without"),
        (
            {"weight": pack_weight(torch.randn(6, 8), interleave_gate_up=True)},
            r"activation: got None for a weight packed with",
        ),
    ],
)
def test_linear_names_the_wrong_argument(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="linear: " + message):
        run_op("linear", **{**good_args(), **change})


def test_linear_refuses_a_gate_with_a_residual() -> None:
    weight = pack_weight(torch.randn(6, 8), interleave_gate_up=True)
    change = {
        "weight": weight,
        "out": torch.empty(3, 3),
        "activation": "silu_gate",
        "accumulate": True,
    }
    with pytest.raises(ValueError, match="linear: accumulate: not available"):
        run_op("linear", **{**good_args(), **change})


@pytest.mark.parametrize(
    "weight,options,message",
    [
        (torch.randn(4), {}, r"expected shape \[M, K\]"),
        (torch.randn(4, 4).double(), {}, "expected float32, bfloat16 or float16, got .*64"),
        (torch.randn(4, 4).T, {}, "expected contiguous rows"),
        (torch.randn(4, 4), {"dtype": torch.int8}, "dtype: expected float32, bfloat16 or float16"),
        (torch.randn(5, 4), {"interleave_gate_up": True}, "even number of rows, got 5"),
        (torch.randn(0, 4), {}, r"expected elements, got \[0, 4\]"),
        ([], {}, "at least one matrix"),
        ([torch.randn(2, 4), torch.randn(2, 5)], {}, "expected K=4 in all parts, got 5"),
        ([torch.randn(2, 4), torch.randn(2, 4).bfloat16()], {}, "one dtype"),
    ],
)
def test_packing_refuses(weight: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_weight(weight, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["x", "out"])
def test_narrow_activations_are_for_a_gpu(name: str, dtype: torch.dtype) -> None:
    args = good_args()
    args[name] = args[name].to(dtype)
    with pytest.raises(ValueError, match=f"{name}: expected torch.float32 for backend 'cpu'"):
        run_op("linear", **args)
    exact = {**good_args(), "x": args["x"].float(), "out": torch.empty(3, 6)}
    exact["weight"] = args["weight"]
    run_op("linear", "reference", **args)
    run_op("linear", "reference", **exact)
    assert torch.equal(args["out"].float(), exact["out"].to(args["out"].dtype).float())
