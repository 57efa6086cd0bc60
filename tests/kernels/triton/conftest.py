"""Tests of this folder need Triton; products of the interpreter do not depend on their shape."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

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


def _patching_once(patch_lang):
    """The interpreter's `_patch_lang`, which it calls for every device function, once a launch.

    Patching again changes nothing and takes half the time of these tests.
    """
    from triton.language import core
    from triton.runtime.interpreter import _LangPatchScope

    patched = set()

    def patch(fn):
        key = core in (v for v in fn.__globals__.values() if inspect.ismodule(v))
        if key in patched:
            return _LangPatchScope()
        patched.add(key)
        scope = patch_lang(fn)
        restore = scope.restore
        scope.restore = lambda: (patched.discard(key), restore())
        return scope

    return patch


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.manual_seed(0)
    if not torch.cuda.is_available():
        from triton.runtime import interpreter

        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", _multiply_add)
        monkeypatch.setattr(interpreter, "_patch_lang", _patching_once(interpreter._patch_lang))
    with np.errstate(all="ignore"):  # infinities and NaN in the lanes that are not selected
        yield
