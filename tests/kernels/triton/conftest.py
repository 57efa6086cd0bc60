"""Tests of this folder need Triton; products of the interpreter do not depend on their shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from tests.kernels.triton.interpreter import patched_interpreter

pytest.importorskip("triton", reason="the package triton is not installed")


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.manual_seed(0)
    with nullcontext() if torch.cuda.is_available() else patched_interpreter(monkeypatch):
        yield
