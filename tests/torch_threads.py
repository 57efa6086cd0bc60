"""torch on one thread, for tests of many small operations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Neighbours on the machine keep their cores, and sums keep one order; on busy cores torch's
    workers wait for one another most of the time. For the tests of the module
    that imports it, or below the conftest that does.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
