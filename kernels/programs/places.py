"""Places: tensors side by side in few chunks of memory, which are copied as one."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch

__all__ = ["Places"]

ALIGNMENT = 64
CHUNK_BYTES = 1 << 20  # of which what is never touched costs address space only


class Places:
    """Where in which chunk the next tensor lies.

    Attributes:
        used: bytes that are taken, of each chunk.
    """

    def __init__(self) -> None:
        self.used: list[int] = []
        self._left = 0

    def take(
        self, shape: tuple[int, ...], dtype: torch.dtype, add_chunk: Callable[[int], None]
    ) -> slice:
        """Bytes of the last chunk, which is a new one where there is no room in that before.

        Args:
            shape, dtype: of the tensor.
            add_chunk: makes the next chunk, of so many bytes.
        """
        num_bytes = prod(shape) * dtype.itemsize
        size = -(-num_bytes // ALIGNMENT) * ALIGNMENT
        if not self.used or size > self._left:
            self._left = max(size, CHUNK_BYTES)
            add_chunk(self._left)
            self.used.append(0)
        start = self.used[-1]
        self.used[-1] += size
        self._left -= size
        return slice(start, start + num_bytes)
