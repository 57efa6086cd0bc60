"""Triton's interpreter for tests: products that do not depend on their shape, and less overhead."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest


@contextmanager
def patched_interpreter(
    monkeypatch: pytest.MonkeyPatch, checks_overflow: bool = True
) -> Iterator[None]:
    """The interpreter with products as a tensor core's; half its time is saved, too.

    Args:
        monkeypatch: undone at the end of a test.
        checks_overflow: do every integer operation a second time in 64 bits.
    """
    from triton.runtime import interpreter

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", _multiply_add)
    monkeypatch.setattr(interpreter, "_patch_lang", _patching_once(interpreter._patch_lang))
    monkeypatch.setattr(interpreter, "_get_np_dtype", _remembering(interpreter._get_np_dtype))
    builder = interpreter.interpreter_builder
    options = replace(builder.options, sanitize_overflow=checks_overflow)
    monkeypatch.setattr(builder, "options", options)
    with np.errstate(all="ignore"):  # infinities and NaN in the lanes that are not selected
        yield


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


def _remembering(get_np_dtype):
    """The interpreter's `_get_np_dtype`, which makes a table of all types at every call."""
    from triton.language import block_type, pointer_type

    known = functools.cache(get_np_dtype)

    def get(dtype):
        scalar = dtype.element_ty if isinstance(dtype, block_type) else dtype
        return np.dtype(np.uint64) if isinstance(scalar, pointer_type) else known(scalar)

    return get


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
