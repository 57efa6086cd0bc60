"""Tests of this folder need Triton; products of the interpreter do not depend on their shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="the package triton is not installed")


def _multiply_add(self, a, b, d, input_precision, max_num_imprecise_acc):
    """a b + d as a tensor core does it: every element by itself, in the order of the inner index.

    The interpreter's own product is a BLAS call, whose rounding depends on the shape of the whole
    matrix, and it adds d last.
    """
    from triton.runtime.interpreter import TensorHandle

    products = np.empty((a.data.shape[1] + 1, *d.data.shape), d.data.dtype)
    products[0] = d.data
    np.multiply(a.data.T[:, :, None], b.data[:, None, :], out=products[1:])
    return TensorHandle(np.add.reduce(products, axis=0), d.dtype.scalar)


@pytest.fixture(autouse=True)
def _products_by_element(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    monkeypatch.setattr(InterpreterBuilder, "create_dot", _multiply_add)
    torch.manual_seed(0)
