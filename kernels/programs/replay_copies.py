"""Replay copies: what each of several replays in a row left behind in the tensors that the host
reads.

On a CPU kernels and host share their memory, so a replay overwrites what the one before it wrote.
So each of several replays that `Program.start` runs copies these tensors once, every one to a row
of its own, and the host reads all rows when the last replay is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sdengine.kernels.cpu_library import load_cpu

MAX_REPLAYS = 64
"""In a row."""


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """What the replays of the last start left behind in a tensor.

    `rows[index : index + n * stride : stride].tolist()` is what the first n of them left in one
    element.

    Args:
        newest: its elements, as the last replay left them.
        rows: row by row what each replay left; not written by a single one.
        stride: from an element to the same one of the next replay.
    """

    newest: memoryview
    rows: memoryview
    stride: int


class ReplayCopies:
    """Tensors that replays copy, and room for the copies."""

    def __init__(self) -> None:
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []  # a tensor, and a row for each replay
        self._native: Any = None  # the same for native replays

    def keep(self, tensor: torch.Tensor) -> LeftBehind:
        """Has a contiguous tensor copied from now on."""
        rows = np.zeros((MAX_REPLAYS, *tensor.shape), dtype=tensor.numpy().dtype)
        self._pairs.append((tensor.numpy(), rows))
        self._native = None
        return LeftBehind(flat_items(tensor.numpy()), flat_items(rows), tensor.numel())

    def copy(self, replay: int) -> None:
        """Copies what lies there now, for a replay that does not copy by itself."""
        for source, rows in self._pairs:
            rows[replay] = source

    @property
    def native(self) -> Any:
        """Where native replays copy from and to."""
        if self._native is None:
            self._native = load_cpu().ReplayCopies()
            for source, rows in self._pairs:
                self._native.add(source.ctypes.data, source.nbytes, rows.ctypes.data)
        return self._native


def flat_items(array: np.ndarray) -> memoryview:
    """An array's elements one after the other: reading or writing one takes half as long as through
    the array, and touches less code, none of which is cached after the kernels ran.

    Raises:
        TypeError: they do not lie one after the other.
    """
    return memoryview(array).cast("B").cast(array.dtype.char)
