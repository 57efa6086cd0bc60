"""Dense kernels on the device, in every format: within twice the error that plain torch makes
with the same operands, rows that do not depend on their company, exact copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdengine.kernels import embed, kv_compact, rope_kv_append, tree_attention
from sdengine.kernels.dense_weight import DenseWeight
from sdengine.kernels.registry import get_op
from sdengine.kernels.triton.launch import arch_of_device
from sdengine.kernels.triton.linear import launches as linear_launches
from tests.gpu.on_device import DTYPES, EXACT_DTYPES, IS_DRY_RUN, run_on_device
from tests.kernels import test_rope_kv_append as rope_test
from tests.kernels import test_tree_attention as attention_test
from tests.kernels.test_kv_compact import make_args as compact_args
from tests.kernels.test_tree_attention import CHAIN_IN_TREE, Span, as_chain, path_to, rows_alone
from tests.kernels.triton.test_linear import make_args as linear_args
from tests.kernels.triton.test_tree_attention import SMALL, with_scratch

LONG = 1101 if not IS_DRY_RUN else 70


def linear_of(dtype: torch.dtype, rows: int, inputs: int, outputs: int, gated: bool) -> Any:
    args = linear_args(rows, inputs, 2 * outputs if gated else outputs, gated)
    return {**args, "weight": DenseWeight(args["weight"].matrix.to(dtype), gated)}


def product(x: torch.Tensor, matrix: torch.Tensor, gated: bool) -> torch.Tensor:
    y = torch.nn.functional.linear(x, matrix)
    if not gated:
        return y
    gate, up = y.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    "rows,inputs,outputs", [(1, 1, 1), (1, 256, 128), (3, 37, 65), (17, 96, 130), (65, 320, 70)]
)
def test_linear(dtype: torch.dtype, gated: bool, rows: int, inputs: int, outputs: int) -> None:
    args = linear_of(dtype, rows, inputs, outputs, gated)
    matrix, x = args["weight"].matrix, args["x"]
    exact = product(x.double(), matrix.double(), gated)
    plain = product(x.to(dtype).float(), matrix.float(), gated)
    run_on_device("linear", **args)
    allowed = 2 * (plain - exact).abs().max() + 4 * exact.abs().max() * 2.0**-23
    assert (args["out"] - exact).abs().max() <= allowed


@pytest.mark.parametrize("dtype", EXACT_DTYPES)
@pytest.mark.parametrize("gated", [False, True])
def test_rows_of_linear_have_the_same_bits_in_any_company(dtype: torch.dtype, gated: bool) -> None:
    args = linear_of(dtype, 150 if not IS_DRY_RUN else 20, 512, 192, gated)
    run_on_device("linear", **args)
    for count in (1, 2, 16, 17, 64, 65):
        some = args["x"][:count].clone()
        few = {**args, "x": some, "out": torch.empty_like(args["out"][:count])}
        few["num_rows"] = torch.tensor([len(some)], dtype=torch.int32)
        run_on_device("linear", **few)
        assert torch.equal(few["out"], args["out"][:count]), count


@pytest.mark.parametrize("dtype", EXACT_DTYPES)
@pytest.mark.parametrize("rows", [1, 80] if not IS_DRY_RUN else [3])
def test_parts_side_by_side_have_the_bits_of_parts_one_after_another(
    dtype: torch.dtype, rows: int
) -> None:
    """Whichever program ends last; again and again, since the counters have to be zeros again."""
    outputs = 2048 if not IS_DRY_RUN else 70
    args = linear_of(dtype, rows, 2048, outputs, False)
    args |= {"bias": torch.randn(outputs), "accumulate": True}
    (launch,) = linear_launches(arch_of_device(), **args)
    assert launch.constants["NUM_PARTS"] > 1
    together = {**args, "out": args["out"].clone()}
    run_on_device("linear", **together)
    apart = {"scratch": torch.full((4 * 128 * outputs,), float("nan"))}
    apart["counters"] = torch.zeros(256, dtype=torch.int32)
    (launch,) = linear_launches(arch_of_device(), **args, **apart)
    assert launch.arguments["parts"] is not None
    for _ in range(20 if not IS_DRY_RUN else 2):
        again = {**args, **apart, "out": args["out"].clone()}
        run_on_device("linear", **again)
        assert torch.equal(again["out"], together["out"])
        assert not apart["counters"].any()


def attention_of(spans: list[Span], dtype: torch.dtype, **options: Any) -> dict[str, Any]:
    return with_scratch(attention_test.make_args(spans, dtype=dtype, **options))


def attend(args: dict[str, Any]) -> torch.Tensor:
    args = with_scratch({**args, "out": torch.full_like(args["out"], -7.0)})
    run_on_device("tree_attention", **args)
    return args["out"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "spans,options",
    [
        ([Span(1, 1)], {"heads": 4, "kv_heads": 1}),
        ([Span(2, LONG, SMALL), Span(1, 64)], {"heads": 4, "kv_heads": 1, "dim": 128}),
        ([Span(3, 70, SMALL), Span(0, 9), Span(1, 1)], {"heads": 6, "kv_heads": 2, "dim": 80}),
        ([Span(1, 65, CHAIN_IN_TREE)], {"heads": 8, "kv_heads": 1, "block_size": 64}),
        ([Span(3, LONG, SMALL)], {"heads": 2, "kv_heads": 2, "window": 40, "block_size": 8}),
    ],
)
def test_tree_attention(dtype: torch.dtype, spans: list[Span], options: dict[str, Any]) -> None:
    args = attention_of(spans, dtype, **options)
    exact, plain = torch.zeros_like(args["out"]).double(), torch.zeros_like(args["out"]).to(dtype)
    tree_attention.reference(**{**args, "qkv": args["qkv"].double(), "out": exact})
    tree_attention.reference(**{**args, "qkv": args["qkv"].to(dtype), "out": plain})
    allowed = 2 * (plain.double() - exact).abs().max() + 4 * exact.abs().max() * 2.0**-23
    assert (attend(args) - exact).abs().max() <= allowed


@pytest.mark.parametrize("dtype", EXACT_DTYPES)
@pytest.mark.parametrize("window", [0, 6])
def test_tree_rows_have_the_bits_of_plain_decoding(dtype: torch.dtype, window: int) -> None:
    parents, context = (0, 0, 1, 3, 4, 2), LONG
    args = attention_of([Span(1, context, parents)], dtype, heads=8, kv_heads=2, window=window)
    together = attend(args)
    for node in (2, 5, 6):
        chain = as_chain(args, node, context, path_to(node, parents))
        assert torch.equal(attend(chain)[0], together[node]), node


@pytest.mark.parametrize("dtype", EXACT_DTYPES)
def test_rows_of_attention_have_the_same_bits_in_any_company(dtype: torch.dtype) -> None:
    """Also where the company makes row tiles wider: 40 rows of a sequence against one."""
    args = attention_of([Span(40 if not IS_DRY_RUN else 6, LONG, SMALL)], dtype, heads=8)
    together = attend(args)
    for rows in ([3], [3, 4, 5]):
        assert torch.equal(attend(rows_alone(args, 0, rows)), together[rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dim,rotary", [(64, 64), (80, 20), (128, 128)])
def test_rope_kv_append(dtype: torch.dtype, norm: bool, dim: int, rotary: int) -> None:
    args = rope_test.make_args(rows=5, heads=6, kv_heads=2, dim=dim, rotary=rotary, norm=norm)
    args["kv_cache"] = args["kv_cache"].to(dtype)
    exact = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in args.items()}
    rope_kv_append.reference(**exact)
    run_on_device("rope_kv_append", **args)
    assert torch.allclose(rope_test.q_part(args), rope_test.q_part(exact), rtol=1e-5, atol=1e-5)
    ulp = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 1e-5}[dtype]
    ours, wanted = args["kv_cache"].float(), exact["kv_cache"].float()
    assert torch.allclose(ours[:, 0], wanted[:, 0], rtol=ulp, atol=1e-5)  # rounding may differ once
    assert torch.equal(ours[:, 1], wanted[:, 1])


@pytest.mark.parametrize(
    "op,width", [("rms_norm", 100), ("rms_norm", 4096), ("silu_and_mul", 1100)]
)
def test_elementwise_ops(op: str, width: int) -> None:
    args: dict[str, Any] = {
        "x": torch.randn(5, width if op == "rms_norm" else 2 * width) * 2,
        "out": torch.full((5, width), -7.0),
        "num_rows": torch.tensor([4], dtype=torch.int32),
    }
    if op == "rms_norm":
        args |= {"weight": torch.randn(width), "eps": 1e-5}
    expected = {**args, "out": args["out"].clone()}
    get_op(op).reference(**expected)
    run_on_device(op, **args)
    assert torch.allclose(args["out"], expected["out"], rtol=4e-6, atol=1e-6)
    assert (args["out"][4] == -7.0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_embed_copies_exactly(dtype: torch.dtype) -> None:
    args = {
        "tokens": torch.tensor([3, 0, 8, 8], dtype=torch.int32),
        "weight": torch.randn(9, 1030).to(dtype),
        "out": torch.full((4, 1030), -7.0),
        "num_rows": torch.tensor([3], dtype=torch.int32),
    }
    expected = {**args, "out": args["out"].clone()}
    embed.reference(**expected)
    run_on_device("embed", **args)
    assert torch.equal(args["out"], expected["out"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("block_size,dim", [(8, 64), (16, 80), (64, 128)])
def test_kv_compact(backend: str, dtype: torch.dtype, block_size: int, dim: int) -> None:
    moves = [[*range(9, 42)], [3, 4, 9, 30], []]
    args = compact_args(moves, [7, 2, 5], dtype, block_size, dim)
    expected = {**args, "kv_cache": args["kv_cache"].clone()}
    kv_compact.reference(**expected)
    run_on_device("kv_compact", backend, **args)
    assert torch.equal(args["kv_cache"], expected["kv_cache"])
