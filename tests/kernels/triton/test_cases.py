"""Microbenchmark cases on a device: every op with a Triton kernel can plan them, and runs one."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from sdengine.kernels.dense_weight import DenseWeight
from sdengine.kernels.registry import OP_NAMES, get_op
from sdengine.kernels.triton.cases import device_cases
from sdengine.kernels.triton.launch import plan_op
from tests.kernels.triton.guarded import DEVICE, run_guarded

TRITON_OPS = [name for name in OP_NAMES if "triton" in get_op(name).backends]


@pytest.mark.parametrize("op", TRITON_OPS)
def test_the_contract_accepts_a_case_and_it_is_launched_in_one_pass(op: str) -> None:
    for case in islice(device_cases(op, DEVICE), 1):
        get_op(op).check(**case.args)
        assert len(plan_op(op, 90, case.args)) == (2 if op == "tree_attention" else 1)


def test_a_packed_weight_becomes_the_dense_one_it_was_made_of() -> None:
    case = list(device_cases("linear", DEVICE))[-1]
    assert isinstance(case.args["weight"], DenseWeight)
    expected = case.args["x"] @ case.args["weight"].matrix.T
    got = run_guarded("linear", {**case.args, "num_rows": torch.ones(1, dtype=torch.int32)})
    assert torch.allclose(got["out"][:1], expected[:1].cpu(), atol=1e-4)
