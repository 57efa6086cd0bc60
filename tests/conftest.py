"""Decides, before anything imports Triton, where its kernels run in this process.

Without a CUDA device they run in Triton's interpreter, which is chosen when a kernel is made and so
holds for a whole process; with one, the same tests run on it. Ahead-of-time compilation needs
kernels that are not interpreted and is tested in processes of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    assert "triton" not in sys.modules, "triton was imported before the interpreter was chosen"
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With a CUDA device the tests of Triton kernels run on it, and belong to `pytest -m gpu`."""
    if not torch.cuda.is_available():
        return
    folder = Path(__file__).parent / "kernels" / "triton"
    for item in items:
        if folder in item.path.parents and item.path.stem != "test_aot":
            item.add_marker("gpu")
