"""Backends: what is usable, why the rest is not, and that nothing is loaded before it is used."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from sdengine.errors import BackendUnavailable
from sdengine.kernels import backends
from sdengine.kernels.program import make_program, run_op


def test_without_the_package_triton_is_refused_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "triton is not installed" in str(backends.available()["triton"])
    with pytest.raises(BackendUnavailable, match="triton is not installed"):
        make_program("triton")


def test_without_a_device_or_the_interpreter_triton_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "no CUDA device" in str(backends.available()["triton"])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.available()["triton"] is None


def test_triton_is_imported_at_the_first_launch_only() -> None:
    code = (
        "import sys; from sdengine.kernels.registry import OP_NAMES, get_op;"
        "import sdengine.kernels.triton; ops = [get_op(name) for name in OP_NAMES];"
        "assert any('triton' in op.backends for op in ops) and 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_op_without_a_triton_kernel_says_what_exists() -> None:
    pytest.importorskip("triton")
    with pytest.raises(
        BackendUnavailable, match=r"'timestamp' has no triton kernel; .*: reference"
    ):
        run_op("timestamp", "triton", out_ns=torch.zeros(1, dtype=torch.int64))


def test_an_unknown_backend_lists_those_that_exist() -> None:
    with pytest.raises(BackendUnavailable, match="one of reference, cpu, triton, got 'metal'"):
        make_program("metal")
