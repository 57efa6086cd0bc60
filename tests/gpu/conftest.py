"""Tests of this folder need a CUDA device (`pytest -m gpu`); without one they are skipped.

GPU_TESTS_DRY_RUN=1 runs what can be run without one instead, in Triton's interpreter and on CPU
threads: to test these tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.gpu.on_device import IS_DRY_RUN, NEEDS_A_DEVICE, why_not

pytest.importorskip("triton", reason="the package triton is not installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of this folder, and skips those that cannot run."""
    reason = None if IS_DRY_RUN else why_not()
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker("gpu")
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif IS_DRY_RUN and item.get_closest_marker(NEEDS_A_DEVICE):
            item.add_marker(pytest.mark.skip(reason="a dry run has no device"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
