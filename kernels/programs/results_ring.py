"""Results ring: which replays are under way on a device, and which entry of memory each one uses.

A replay takes the next entry when it is opened, is under way once it is closed (everything it
consists of is enqueued, an event behind it), and gives the entry back when it has been waited for:

    host      open close            open close  wait  read        open close  wait  read
    entry     0                     1           0                 0           1
    device          [ replay 0      ]       [ replay 1            ]     [ replay 2

So the device has its next replay before the host reads the last one, and never waits for the host.
Two entries are enough: a third replay under way would only make results older.
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch

NUM_ENTRIES = 2


class Event(Protocol):
    """A mark in a device's queue."""

    def record(self) -> None:
        """Puts it behind everything that is enqueued."""

    def synchronize(self) -> None:
        """Waits until the device has passed it."""


class PassedEvent:
    """The mark of a device that is done with every launch when it returns: the interpreter's."""

    def record(self) -> None:
        """Nothing is waiting in front of it."""

    def synchronize(self) -> None:
        """It has been passed."""


class QueueEvent:
    """A mark in the current stream of a GPU, which need not be the current GPU.

    Args:
        device: that GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.cuda.Event()

    def record(self) -> None:
        """Puts it behind everything that is enqueued."""
        self._event.record(torch.cuda.current_stream(self._device))

    def synchronize(self) -> None:
        """Waits until the GPU has passed it."""
        self._event.synchronize()


def make_event(device: torch.device) -> Event:
    """An event of a device."""
    return QueueEvent(device) if device.type == "cuda" else PassedEvent()


class ResultsRing:
    """Entries in use, first in, first out.

    Args:
        device: whose current stream the replays are enqueued on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._num_closed = self._num_read = 0
        self._is_open = False

    @cached_property
    def _events(self) -> list[Event]:
        """One an entry; made with the first replay, because a device may be described without being
        there."""
        return [make_event(self._device) for _ in range(NUM_ENTRIES)]

    @property
    def num_under_way(self) -> int:
        """Replays that were closed and not waited for."""
        return self._num_closed - self._num_read

    @property
    def entry(self) -> int:
        """Entry of the replay that is open."""
        return self._num_closed % NUM_ENTRIES

    def open(self) -> int:
        """Takes the next entry."""
        assert self.num_under_way < NUM_ENTRIES, "a replay has to be read before the next starts"
        assert not self._is_open, "a replay was left half started: abandon it first"
        self._is_open = True
        return self.entry

    def close(self) -> None:
        """Everything of the open replay is enqueued."""
        self._events[self.entry].record()
        self._num_closed += 1
        self._is_open = False

    def wait(self) -> int:
        """Waits for the first replay under way and returns its entry, which is free from now on."""
        assert self.num_under_way > 0, "no replay was started"
        entry = self._num_read % NUM_ENTRIES
        self._events[entry].synchronize()
        self._num_read += 1
        return entry

    def abandon(self) -> None:
        """Forgets a replay whose start was interrupted, once the device is done with its part."""
        if self._is_open:
            event = make_event(self._device)
            event.record()
            event.synchronize()
            self._is_open = False
