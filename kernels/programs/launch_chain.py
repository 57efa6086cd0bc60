"""Whether launches belong to a program, whose order is known.

In a program, every pass begins with `embed`, and what says how many rows a pass has, and where they
lie, was written before that. So a kernel of a pass may read those before the kernel in front of it
has ended (`kernels/triton/overlap.py`). Nobody promises that of an op that is launched by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_IS_CHAINED: ContextVar[bool] = ContextVar("is_chained", default=False)


@contextmanager
def chained() -> Iterator[None]:
    """Launches inside are a program's."""
    token = _IS_CHAINED.set(True)
    try:
        yield
    finally:
        _IS_CHAINED.reset(token)


def is_chained() -> bool:
    """Whether the launches that are being made are a program's."""
    return _IS_CHAINED.get()
