"""Where an engine's buffers lie, and how the host and the kernels exchange the few that both use.

The kernels of a CPU work in the host's own memory (`HostMemory`): nothing is copied but what each
of several replays in a row leaves behind, see `replay_copies.py`. A device has memory of its own
(`StagedMemory`): what both sides use has a twin on the host, and twins of a kind lie side by side,
so that one copy moves all of them:

    kind       the host     the kernels   copied
    inputs     writes       read          to the device before every replay
    tables     writes       read          to the device before a replay, after `mark_changed`
    state      sets         change        to the device before a replay, unless one is under way;
                                          back after every replay
    results    reads        write         to the host after every replay
    totals     reads        add to        the same; on a CPU never, the newest are as good

Replays are started (`push`, the launches, `pull`) and read (`land`) in order. One may be started
while the one before it is under way: it goes on from the state that lies on the device by then.
What is being copied lies in an entry of page-locked memory that the host leaves alone until the
replay has landed; see `results_ring.py`.

Everything else is `zeros`, `pages`, `empty` or `full`: the kernels' alone, the host at most writes
a row.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from sdengine.kernels.huge_pages import HugePageArena
from sdengine.kernels.programs.replay_copies import LeftBehind, ReplayCopies, flat_items
from sdengine.kernels.programs.results_ring import ResultsRing
from sdengine.kernels.programs.twins import Twins


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

    def totals(
        self, *shape: int, dtype: torch.dtype = torch.int32, fill: float = 0
    ) -> torch.Tensor:
        """A tensor that the kernels add to, and of which the host needs the newest state."""

    def host(self, tensor: torch.Tensor) -> np.ndarray:
        """The host's view of an exchanged tensor: a scalar costs some 50 ns instead of a torch
        call."""

    def left_behind(self, tensor: torch.Tensor) -> LeftBehind:
        """The host's view of what each replay leaves in a state or result: of all that the last
        start ran, once they have landed. To be asked for once, before the first of them."""

    def write_row(self, tensor: torch.Tensor, row: int, values: np.ndarray) -> None:
        """Overwrites the beginning of a row of a tensor of the kernels. Waits for a device."""

    def clear_row(self, tensor: torch.Tensor, row: int) -> None:
        """Zeroes a row of a tensor of the kernels, after the replays that were started."""

    def mark_changed(self) -> None:
        """Says that a table was written."""

    def land(self) -> None:
        """Waits for the first replay that was started and not read yet; `host` then shows what it
        left behind."""

    def drain(self) -> None:
        """Lands every replay under way, also one that was left half started."""


class HostMemory:
    """Memory that host and kernels share."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.copies = ReplayCopies()

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

    tables = state = results = totals = inputs

    def host(self, tensor: torch.Tensor) -> np.ndarray:
        return tensor.numpy()

    def left_behind(self, tensor: torch.Tensor) -> LeftBehind:
        return self.copies.keep(tensor)

    def write_row(self, tensor: torch.Tensor, row: int, values: np.ndarray) -> None:
        tensor.numpy()[row, : len(values)] = values

    def clear_row(self, tensor: torch.Tensor, row: int) -> None:
        tensor.numpy()[row] = 0

    def mark_changed(self) -> None:
        """Nothing to do: there is no copy to be refreshed."""

    def land(self) -> None:
        """Nothing to do, see `drain`."""

    def drain(self) -> None:
        """Nothing to do: a replay is over when its start returns."""


class StagedMemory:
    """Memory of a device, and twins of what the host exchanges with it.

    Args:
        device: a CUDA device; "cpu" for kernels in Triton's interpreter, whose exchanged tensors
            have twins all the same, so that a missing copy shows on any machine.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._ring = ResultsRing(device)
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

    totals = results

    def host(self, tensor: torch.Tensor) -> np.ndarray:
        return self._hosts[tensor.data_ptr()]

    def left_behind(self, tensor: torch.Tensor) -> LeftBehind:
        newest = flat_items(self.host(tensor))
        return LeftBehind(newest, newest, tensor.numel())  # a start is one replay

    def write_row(self, tensor: torch.Tensor, row: int, values: np.ndarray) -> None:
        tensor[row, : len(values)].copy_(torch.from_numpy(values))

    def clear_row(self, tensor: torch.Tensor, row: int) -> None:
        tensor[row].zero_()

    def mark_changed(self) -> None:
        self._has_changed_tables = True

    @property
    def num_under_way(self) -> int:
        """Replays that were started and have not landed."""
        return self._ring.num_under_way

    def push(self) -> None:
        """Begins a replay: enqueues the copies to the device."""
        entry = self._ring.open()
        if self._has_changed_tables:
            self._tables.push(entry)
            self._has_changed_tables = False
        self._inputs.push(entry)
        if self._ring.num_under_way == 0:
            self._state.push(entry)

    def pull(self) -> None:
        """Ends what is enqueued of a replay: the copies to the host."""
        entry = self._ring.entry
        self._state.pull(entry)
        self._results.pull(entry)
        self._ring.close()

    def land(self) -> None:
        entry = self._ring.wait()
        self._state.land(entry)
        self._results.land(entry)

    def drain(self) -> None:
        while self._ring.num_under_way:
            self.land()
        self._ring.abandon()

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
