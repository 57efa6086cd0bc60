"""Standard output whose errors can be told from those of other files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

__all__ = ["StdoutError", "WatchedStream"]


class StdoutError(OSError):
    """Standard output takes no more."""


class WatchedStream:
    """A stream that raises StdoutError where writing fails, but BrokenPipeError as ever; for the
    rest it is the stream that it was made of.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As of the stream."""
        with _told_apart():
            return self._stream.write(text)

    def flush(self) -> None:
        """As of the stream."""
        with _told_apart():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _told_apart() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StdoutError(*error.args) from error
