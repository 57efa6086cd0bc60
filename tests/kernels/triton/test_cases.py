"""Microbenchmark cases on a device: every op with a Triton kernel can plan them, and runs one."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from benchmarks.gpu.cases import device_args
from sdengine.kernels.dense_weight import DenseWeight
from sdengine.kernels.packed_weight import pack_weight
from sdengine.kernels.registry import OP_NAMES, get_op
from sdengine.kernels.triton.cases import moved
from sdengine.kernels.triton.launch import plan_op
from tests.kernels.triton.guarded import DEVICE

LAUNCHES = {"tree_attention": 2, "draft_topk": 4}  # of a pass
TRITON_OPS = [name for name in OP_NAMES if "triton" in get_op(name).backends]


@pytest.mark.parametrize("op", TRITON_OPS)
def test_the_contract_accepts_a_case_and_it_is_launched_in_one_pass(op: str) -> None:
    cases = get_op(op).bench_cases
    assert cases is not None
    for case in islice(cases(), 1):
        args = device_args(op, case.args, DEVICE)
        get_op(op).check(**args)
        assert len(plan_op(op, 90, args)) == LAUNCHES.get(op, 1)


@pytest.mark.parametrize("gated", [False, True])
def test_a_packed_weight_becomes_the_dense_one_it_was_made_of(gated: bool) -> None:
    matrix = torch.randn(6, 5)
    dense = moved(pack_weight(matrix, interleave_gate_up=gated), DEVICE)
    assert isinstance(dense, DenseWeight) and dense.is_gate_up == gated
    assert torch.equal(dense.matrix.cpu(), matrix)
