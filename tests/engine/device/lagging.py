"""A device that lags behind as far as it may: nothing that is enqueued runs until somebody waits.

So whatever the host writes too early reaches a kernel that must not see it, and whatever it reads
too early is not there yet. On a machine without a GPU, whose kernels would otherwise be done at
once, that is what makes such mistakes visible.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sdengine.kernels.programs import device_program, results_ring, twins
from sdengine.kernels.programs.device_program import StagedProgram
from sdengine.kernels.programs.memory import StagedMemory
from sdengine.kernels.programs.results_ring import ResultsRing

Work = Callable[[], object]


class LaggingDevice:
    """A queue that is run by those who wait for it.

    Attributes:
        log: "start" and "wait" for every replay of a program, in the order of the host.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self._queue: list[Work] = []
        self._num_run = 0

    @property
    def position(self) -> int:
        """How much was enqueued so far."""
        return self._num_run + len(self._queue)

    def enqueue(self, work: Work) -> None:
        """Puts work behind all other."""
        self._queue.append(work)

    def run_to(self, position: int) -> None:
        """Runs what was enqueued before a position."""
        while self._num_run < position:
            self._num_run += 1
            self._queue.pop(0)()

    def finish(self) -> None:
        """Runs everything."""
        self.run_to(self.position)

    def num_ahead(self) -> int:
        """Replays that were started while another was not yet waited for."""
        under_way = found = 0
        for event in self.log:
            found += event == "start" and under_way > 0
            under_way += 1 if event == "start" else -1
        return found


class LaggingEvent:
    """A mark in the queue."""

    def __init__(self, device: LaggingDevice) -> None:
        self._device = device
        self._position = 0

    def record(self) -> None:
        self._position = self._device.position

    def synchronize(self) -> None:
        self._device.run_to(self._position)


def lagging_device(monkeypatch: pytest.MonkeyPatch) -> LaggingDevice:
    """Puts one in the place of the device of every engine made from now on."""
    device = LaggingDevice()

    def enqueue_copy(target: torch.Tensor, source: torch.Tensor) -> None:
        device.enqueue(lambda: target.copy_(source))

    def capture_graph(run: Work) -> Work:
        return lambda: device.enqueue(run)

    def in_order(method: Callable[..., Any]) -> Callable[..., Any]:
        """What the host does to the device's memory itself comes after what is enqueued."""

        def done(*args: Any) -> Any:
            device.finish()
            return method(*args)

        return done

    def clear_row(memory: StagedMemory, tensor: torch.Tensor, row: int) -> None:
        device.enqueue(tensor[row].zero_)

    monkeypatch.setattr(twins, "enqueue_copy", enqueue_copy)
    monkeypatch.setattr(results_ring, "make_event", lambda _: LaggingEvent(device))
    monkeypatch.setattr(device_program, "is_captured", lambda _: True)
    monkeypatch.setattr(device_program, "capture_graph", capture_graph)
    monkeypatch.setattr(StagedMemory, "clear_inputs", in_order(StagedMemory.clear_inputs))
    monkeypatch.setattr(StagedMemory, "write_row", in_order(StagedMemory.write_row))
    monkeypatch.setattr(StagedMemory, "clear_row", clear_row)
    monkeypatch.setattr(StagedProgram, "start", logged(device, "start", StagedProgram.start))
    monkeypatch.setattr(ResultsRing, "wait", logged(device, "wait", ResultsRing.wait))
    return device


def logged(device: LaggingDevice, event: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, noted when it is called."""

    def noted(*args: Any) -> Any:
        device.log.append(event)
        return method(*args)

    return noted
