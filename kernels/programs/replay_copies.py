"""Replay copies: what each of several replays in a row left behind, when nobody read in between.

On a CPU kernels and host share their memory, so the second replay overwrites what the first one
wrote. The tensors that the host reads lie side by side here; replays in a row copy them once each,
and `restore` brings the copies back one at a time, oldest first. The last copy is what lies there
anyway: once all are back, memory is as if the host had read after every replay.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch

from sdengine.kernels.programs.places import Places


class ReplayCopies:
    """Tensors that replays write, and copies of them.

    Attributes:
        num_left: copies that were not brought back; 0 for whoever does not care about them.
    """

    def __init__(self) -> None:
        self._chunks: list[np.ndarray] = []
        self._addresses: list[int] = []
        self._places = Places()
        self._copies = np.empty((0, 0), dtype=np.uint8)
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []  # of each chunk, and its copies
        self._num_done = self.num_left = 0

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of zeros that is copied."""
        place = self._places.take(shape, dtype, self._add_chunk)
        return torch.from_numpy(self._chunks[-1][place]).view(dtype).view(shape)

    def _add_chunk(self, size: int) -> None:
        chunk = torch.zeros(size, dtype=torch.uint8)
        self._chunks.append(chunk.numpy())
        self._addresses.append(chunk.data_ptr())

    @property
    def sources(self) -> list[tuple[int, int]]:
        """Address and size of everything that is copied."""
        return list(zip(self._addresses, self._places.used))

    def begin(self, num_replays: int) -> int:
        """Makes room for the copies of up to so many replays, which come next; returns its
        address."""
        used = self._places.used
        size = sum(used)
        if len(self._copies) < num_replays or self._copies.shape[1] != size:
            self._copies = np.empty((num_replays, size), dtype=np.uint8)
            starts = accumulate(used, initial=0)
            self._parts = [
                (chunk[:length], self._copies[:, start : start + length])
                for chunk, length, start in zip(self._chunks, used, starts)
            ]
        return int(self._copies.ctypes.data)

    def end(self, num_replays: int) -> None:
        """So many there were; the next call of `restore` brings the first one back."""
        self._num_done = self.num_left = num_replays

    def keep(self, replay: int) -> None:
        """Copies what lies there now, for a replay that does not copy by itself."""
        for source, copies in self._parts:
            copies[replay] = source

    def restore(self) -> None:
        """Brings the oldest copy back; nothing to do when none is left, after a single replay."""
        if not self.num_left:
            return
        oldest = self._num_done - self.num_left
        for source, copies in self._parts:
            source[:] = copies[oldest]
        self.num_left -= 1
