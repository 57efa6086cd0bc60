"""Interrupts, by which a slice is told to end what it has started."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


def heed_interrupts() -> None:
    """Takes interrupts also where they are ignored: in what a shell without job control starts in
    the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Lets an interrupt wait for the end of the block: in the middle of starting a process it
    would leave one behind that nobody knows. In the main thread only."""
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        signal.raise_signal(signal.SIGINT)
