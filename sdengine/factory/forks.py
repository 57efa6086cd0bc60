"""What a forked process does with its parent's thread pools: nothing, not even end them.

Threads are not forked along, so a pool's end would wait for some that never come.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any

__all__ = ["outlives_forks"]

_pools: weakref.WeakSet[Any] = weakref.WeakSet()


def outlives_forks(pool: Any) -> Any:
    """Returns a native thread pool, which forked processes will leave alone until they end."""
    if pool is not None:
        _pools.add(pool)
    return pool


def _keep_all() -> None:
    for pool in _pools:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pool))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_all)
