"""Where an engine's buffers lie, and how the host and the kernels exchange the few that both use.

The kernels of a CPU work in the host's own memory (`HostMemory`): nothing is ever copied. A device
has memory of its own (`StagedMemory`): what both sides use has a twin in page-locked host memory,
and twins of a kind lie side by side, so that one copy moves all of them:

    kind       the host     the kernels   copied
    inputs     writes       read          to the device before every replay
    tables     writes       read          to the device before a replay, after `mark_changed`
    state      writes       change        to the device before, and back after every replay
    results    reads        write         to the host after every replay

Everything else is `zeros`, `pages`, `empty` or `full`: the kernels' alone, the host at most writes
a row.
"""

from __future__ import annotations

from math import prod
from typing import Protocol

import numpy as np
import torch

from sdengine.kernels.huge_pages import HugePageArena

ALIGNMENT = 64
CHUNK_BYTES = 1 << 20


class Memory(Protocol):
    """What allocates an engine's buffers."""

    @property
    def device(self) -> torch.device:
        """Where the kernels' tensors lie."""

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A tensor for the kernels alone."""

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The same, not initialised."""

    def pages(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """`zeros` for what may be the largest of all, and goes back to the system whole."""

    def full(self, shape: tuple[int, ...], value: float, dtype: torch.dtype) -> torch.Tensor:
        """The same, every element `value`."""

    def inputs(
        self, *shape: int, dtype: torch.dtype = torch.int32, fill: float = 0
    ) -> torch.Tensor:
        """A tensor that the host writes for every step."""

    def tables(
        self, *shape: int, dtype: torch.dtype = torch.int32, fill: float = 0
    ) -> torch.Tensor:
        """A tensor that the host writes now and then, and says so with `mark_changed`."""

    def state(self, *shape: int, dtype: torch.dtype = torch.int32, fill: float = 0) -> torch.Tensor:
        """A tensor that the host sets and the kernels advance."""

    def results(
        self, *shape: int, dtype: torch.dtype = torch.int32, fill: float = 0
    ) -> torch.Tensor:
        """A tensor that the kernels write and the host reads after a step."""

    def host(self, tensor: torch.Tensor) -> np.ndarray:
        """The host's view of an exchanged tensor: a scalar costs some 50 ns instead of a torch
        call."""

    def write_row(self, tensor: torch.Tensor, row: int, values: np.ndarray) -> None:
        """Overwrites the beginning of a row of a tensor of the kernels."""

    def mark_changed(self) -> None:
        """Says that a table was written."""


class HostMemory:
    """Memory that host and kernels share."""

    device = torch.device("cpu")

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def pages(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return HugePageArena().zeros(shape, dtype)

    def full(self, shape: tuple[int, ...], value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full(shape, value, dtype=dtype)

    def inputs(
        self, *shape: int, dtype: torch.dtype = torch.int32, fill: float = 0
    ) -> torch.Tensor:
        # Zeros are not written: pages of a large table take memory when they are first used.
        return self.full(shape, fill, dtype) if fill else self.zeros(*shape, dtype=dtype)

    tables = state = results = inputs

    def host(self, tensor: torch.Tensor) -> np.ndarray:
        return tensor.numpy()

    def write_row(self, tensor: torch.Tensor, row: int, values: np.ndarray) -> None:
        tensor.numpy()[row, : len(values)] = values

    def mark_changed(self) -> None:
        """Nothing to do: there is no copy to be refreshed."""


class StagedMemory:
    """Memory of a device, and page-locked twins of what the host exchanges with it.

    Args:
        device: a CUDA device; "cpu" for kernels in Triton's interpreter, whose exchanged tensors
            have twins all the same, so that a missing copy shows on any machine.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._is_cuda = device.type == "cuda"
        self._inputs, self._tables = Twins(device), Twins(device)
        self._state, self._results = Twins(device), Twins(device)
        self._hosts: dict[int, np.ndarray] = {}
        self._has_changed_tables = True

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    pages = zeros

    def full(self, shape: tuple[int, ...], value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full(shape, value, dtype=dtype, device=self.device)

    def inputs(
        self, *shape: int, dtype: torch.dtype = torch.int32, fill: float = 0
    ) -> torch.Tensor:
        return self._exchanged(self._inputs, shape, dtype, fill)

    def tables(
        self, *shape: int, dtype: torch.dtype = torch.int32, fill: float = 0
    ) -> torch.Tensor:
        return self._exchanged(self._tables, shape, dtype, fill)

    def state(self, *shape: int, dtype: torch.dtype = torch.int32, fill: float = 0) -> torch.Tensor:
        return self._exchanged(self._state, shape, dtype, fill)

    def results(
        self, *shape: int, dtype: torch.dtype = torch.int32, fill: float = 0
    ) -> torch.Tensor:
        return self._exchanged(self._results, shape, dtype, fill)

    def host(self, tensor: torch.Tensor) -> np.ndarray:
        return self._hosts[tensor.data_ptr()]

    def write_row(self, tensor: torch.Tensor, row: int, values: np.ndarray) -> None:
        tensor[row, : len(values)].copy_(torch.from_numpy(values))

    def mark_changed(self) -> None:
        self._has_changed_tables = True

    def push(self) -> None:
        """Enqueues the copies to the device."""
        if self._has_changed_tables:
            self._tables.push()
            self._has_changed_tables = False
        self._inputs.push()
        self._state.push()

    def pull(self) -> None:
        """Enqueues the copies to the host; `wait` before they are read."""
        self._state.pull()
        self._results.pull()

    def wait(self) -> None:
        """Waits for everything that was enqueued on the device's current stream."""
        if self._is_cuda:
            torch.cuda.current_stream(self.device).synchronize()

    def clear_inputs(self) -> None:
        """Zeroes the device's inputs until the next push: no sequences, so nothing to do."""
        self._inputs.clear()

    def _exchanged(
        self, twins: Twins, shape: tuple[int, ...], dtype: torch.dtype, fill: float
    ) -> torch.Tensor:
        tensor, host = twins.allocate(shape, dtype)
        tensor.fill_(fill)
        host.fill_(fill)
        self._hosts[tensor.data_ptr()] = host.numpy()
        return tensor


class Twins:
    """Tensors on a device and their twins on the host, side by side in few chunks.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._chunks: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._used: list[int] = []

    def allocate(
        self, shape: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A tensor and its twin; not initialised."""
        size = -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        if not self._chunks or self._used[-1] + size > len(self._chunks[-1][0]):
            self._add_chunk(max(size, CHUNK_BYTES))
        start = self._used[-1]
        self._used[-1] += size
        end = start + prod(shape) * dtype.itemsize
        tensor, host = (chunk[start:end].view(dtype).view(shape) for chunk in self._chunks[-1])
        return tensor, host

    def push(self) -> None:
        """Enqueues the copy to the device."""
        for (tensor, host), used in zip(self._chunks, self._used):
            tensor[:used].copy_(host[:used], non_blocking=True)

    def pull(self) -> None:
        """Enqueues the copy to the host."""
        for (tensor, host), used in zip(self._chunks, self._used):
            host[:used].copy_(tensor[:used], non_blocking=True)

    def clear(self) -> None:
        """Zeroes the device's side."""
        for tensor, _ in self._chunks:
            tensor.zero_()

    def _add_chunk(self, size: int) -> None:
        is_pinned = self._device.type == "cuda"
        tensor = torch.zeros(size, dtype=torch.uint8, device=self._device)
        host = torch.zeros(size, dtype=torch.uint8, pin_memory=is_pinned)
        self._chunks.append((tensor, host))
        self._used.append(0)
