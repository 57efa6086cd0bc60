"""Twins: tensors on a device and on the host that hold the same, and the copies between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdengine.kernels.programs.places import Places
from sdengine.kernels.programs.results_ring import NUM_ENTRIES


@dataclass(frozen=True, slots=True)
class Chunk:
    """The same bytes four times: the device's, the host's, and one entry per replay under way."""

    device: torch.Tensor
    host: torch.Tensor
    entries: list[torch.Tensor]


class Twins:
    """Tensors on a device and their twins on the host, side by side in few chunks.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._chunks: list[Chunk] = []
        self._places = Places()

    def allocate(
        self, shape: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A tensor and its twin; not initialised."""
        place = self._places.take(shape, dtype, self._add_chunk)
        both = (self._chunks[-1].device, self._chunks[-1].host)
        tensor, host = (chunk[place].view(dtype).view(shape) for chunk in both)
        return tensor, host

    def push(self, entry: int) -> None:
        """Copies what the host wrote into an entry, and enqueues that one's copy to the device."""
        for chunk, used in zip(self._chunks, self._places.used):
            staged = chunk.entries[entry][:used]
            staged.copy_(chunk.host[:used])
            enqueue_copy(chunk.device[:used], staged)

    def pull(self, entry: int) -> None:
        """Enqueues the copy to an entry."""
        for chunk, used in zip(self._chunks, self._places.used):
            enqueue_copy(chunk.entries[entry][:used], chunk.device[:used])

    def land(self, entry: int) -> None:
        """Copies an entry that has arrived to where the host reads it."""
        for chunk, used in zip(self._chunks, self._places.used):
            chunk.host[:used].copy_(chunk.entries[entry][:used])

    def clear(self) -> None:
        """Zeroes the device's side."""
        for chunk in self._chunks:
            chunk.device.zero_()

    def _add_chunk(self, size: int) -> None:
        is_pinned = self._device.type == "cuda"
        tensor = torch.zeros(size, dtype=torch.uint8, device=self._device)
        host, *entries = (
            torch.zeros(size, dtype=torch.uint8, pin_memory=is_pinned and i > 0)
            for i in range(1 + NUM_ENTRIES)
        )
        self._chunks.append(Chunk(tensor, host, entries))


def enqueue_copy(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copies on the device's current stream, once what was enqueued before is done."""
    target.copy_(source, non_blocking=True)
