"""Operators of torch: schemas that say what is written, contracts checked on fake tensors, the same
results as the ops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch

from benchmarks.kernels.harness import UNCOMPARABLE_OPS
from sdengine.kernels.dense_weight import DenseWeight
from sdengine.kernels.registry import OP_NAMES, get_op
from sdengine.kernels.torch_library import (
    OPERATORS,
    STRUCTS,
    device_backend,
    flatten,
    implementation,
    unflatten,
)

OPS = tuple(OPERATORS)
COMPARABLE = [op for op in OPS if op not in UNCOMPARABLE_OPS]


def mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The argument with every tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if is_dataclass(value):
        changed = {f.name: mapped(getattr(value, f.name), change) for f in fields(value)}
        return replace(value, **changed)
    return value


def small_weights(op: str) -> dict[str, Any]:
    """Three rows of two ops whose microbenchmarks have a large model's weights."""
    rows = {"out": torch.empty(3, 12), "num_rows": torch.tensor([2], dtype=torch.int32)}
    if op == "embed":
        return {**rows, "tokens": torch.arange(3, dtype=torch.int32), "weight": torch.randn(5, 12)}
    weight = DenseWeight(torch.randn(24, 16), is_gate_up=True)
    return {**rows, "x": torch.randn(3, 16), "weight": weight, "activation": "silu_gate"}


def small_args(op: str) -> dict[str, Any]:
    """The op's first microbenchmark case, as a GPU takes it, without a large model's sizes."""
    if op in ("linear", "embed"):
        return small_weights(op)
    cases = get_op(op).bench_cases
    assert cases is not None
    args = next(cases()).args
    if op == "kv_compact":
        args["kv_cache"] = args["kv_cache"][:1, :, :, :1].contiguous()
    return {name: mapped(value, torch.clone) for name, value in args.items()}


def test_every_device_kernel_is_an_operator() -> None:
    assert set(OPS) == {name for name in OP_NAMES if get_op(name).backends}
    assert device_backend(get_op("tree_verify")) == device_backend(get_op("kv_compact")) == "cuda"
    assert device_backend(get_op("linear")) == "triton"


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str) -> None:
    """Mutations as declared, fake kernels that agree, nothing amiss under autograd."""
    args = flatten(op, small_args(op))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(OPERATORS[op], (), args, test_utils=tests)


@pytest.mark.parametrize("op", ["silu_and_mul", "linear", "sample", "gather_pending"])
def test_graphs_with_sizes_as_symbols(op: str) -> None:
    args = flatten(op, small_args(op))
    torch.library.opcheck(OPERATORS[op], (), args, test_utils="test_aot_dispatch_dynamic")


def test_a_mutation_that_is_not_declared_is_found() -> None:
    silent = torch.library.custom_op(
        "sdengine_test::silent_rms_norm",
        implementation("rms_norm", lambda spec: spec.reference),
        mutates_args=(),
        schema="(Tensor x, Tensor weight, Tensor out, Tensor num_rows, float eps) -> ()",
    )
    args = flatten("rms_norm", small_args("rms_norm"))
    with pytest.raises(Exception, match="out is not defined as mutable"):
        torch.library.opcheck(silent, (), args, test_utils="test_schema")


@pytest.mark.parametrize("op", COMPARABLE)
def test_an_operator_gives_what_the_op_gives(op: str) -> None:
    args = small_args(op)
    mine = flatten(op, copy.deepcopy(args))
    OPERATORS[op](**mine)
    get_op(op).reference(**args)
    for name, expected in flatten(op, args).items():
        if isinstance(expected, torch.Tensor):
            same = mine[name].view(torch.uint8), expected.view(torch.uint8)  # NaN equals itself
            assert name == "scratch" or torch.equal(*same), name


@pytest.mark.parametrize("op", OPS)
def test_meta_tensors_are_checked_and_never_read(op: str) -> None:
    args = {name: mapped(value, lambda t: t.to("meta")) for name, value in small_args(op).items()}
    flat = flatten(op, args)
    OPERATORS[op](**flat)
    wrong = next(name for name in flat if isinstance(flat[name], torch.Tensor))
    with pytest.raises(ValueError, match=rf"^{op}: .*expected "):
        OPERATORS[op](**{**flat, wrong: torch.empty((1, 1, 1, 1, 1, 1, 1), device="meta")})


@pytest.mark.parametrize("op", OPS)
def test_arguments_survive_being_flattened(op: str) -> None:
    args = small_args(op)
    back = unflatten(op, flatten(op, args))
    for name, value in args.items():
        if isinstance(value, STRUCTS):
            assert all(getattr(value, f.name) is getattr(back[name], f.name) for f in fields(value))
        elif isinstance(value, DenseWeight):
            assert back[name].matrix is value.matrix and back[name].is_gate_up == value.is_gate_up
        else:
            assert back[name] is value


def test_half_a_struct_is_refused() -> None:
    flat = flatten("build_rows", {**small_args("build_rows")})
    names = [name for name in flat if name.startswith("tree_")]
    flat |= dict.fromkeys(names)
    flat[names[0]] = torch.zeros(1)
    with pytest.raises(ValueError, match="build_rows: tree: expected all of tree_tokens, "):
        unflatten("build_rows", flat)


def test_torch_compile_keeps_the_operator_in_one_graph() -> None:
    args = flatten("silu_and_mul", small_args("silu_and_mul"))

    def doubled(x: torch.Tensor, out: torch.Tensor, num_rows: torch.Tensor) -> torch.Tensor:
        torch.ops.sdengine.silu_and_mul(x=x, out=out, num_rows=num_rows)
        return 2 * out

    compiled = torch.compile(doubled, backend="aot_eager", fullgraph=True)
    got, expected = compiled(**copy.deepcopy(args)), doubled(**args)
    assert torch.equal(got, expected) and bool(got.any())
