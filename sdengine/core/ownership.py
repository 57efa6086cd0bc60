"""Who may call an engine: anyone, or the one thread that has claimed it."""

from __future__ import annotations

from threading import Lock, get_ident

__all__ = ["Ownership"]


class Ownership:
    """Free at first; a claim holds until it is given up, from whichever thread."""

    def __init__(self) -> None:
        self._claimed = Lock()
        self._thread: int | None = None

    def claim(self) -> bool:
        """Takes it if it is free; returns whether it was."""
        return self._claimed.acquire(blocking=False)

    def enter(self) -> None:
        """From now on until the claim is given up only the calling thread may call the engine."""
        self._thread = get_ident()

    def give_up(self) -> None:
        """Ends the claim."""
        self._thread = None
        self._claimed.release()

    @property
    def is_another_thread_s(self) -> bool:
        """Whether the calling thread has to keep out."""
        return self._thread is not None and self._thread != get_ident()
