"""What the terminal gets to see: colours only where they are wanted, control characters never.

Colours appear when the stream is a terminal, NO_COLOR is not set and TERM is not "dumb".
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TextIO

from sdengine.core.env import read_environment

__all__ = ["Palette", "is_terminal", "palette_for", "printable", "write"]

RESET = "\x1b[0m"
# C0 and C1 control characters could move the cursor or retitle the window; newline and tab stay.
UNPRINTABLE = dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")
SAFE = {code: text for code, text in UNPRINTABLE.items() if chr(code) not in "\n\t"}


@dataclass(frozen=True, slots=True)
class Palette:
    """The few styles of the command line; every one is the identity when `has_color` is False.

    Args:
        has_color: whether escape sequences may be written.
    """

    has_color: bool

    def accepted(self, text: str) -> str:
        """Text of draft tokens that the target accepted."""
        return self._styled(text, "36")

    def faint(self, text: str) -> str:
        """What the user knows already: prompts, captions."""
        return self._styled(text, "2")

    def strong(self, text: str) -> str:
        """Headings and results."""
        return self._styled(text, "1")

    def _styled(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}{RESET}" if self.has_color and text else text


def is_terminal(stream: TextIO) -> bool:
    """Whether somebody watches this stream."""
    return not stream.closed and stream.isatty()


def palette_for(stream: TextIO) -> Palette:
    """Colours for a stream.

    Raises:
        ConfigError: an SDENGINE_ environment variable is unknown or unusable.
    """
    is_dumb = os.environ.get("TERM") == "dumb"
    return Palette(is_terminal(stream) and not is_dumb and not read_environment().no_color)


def printable(text: str, stream: TextIO) -> str:
    """Text as it may be written: on a terminal without control characters, else as it is."""
    return text.translate(SAFE) if is_terminal(stream) else text


def write(text: str, stream: TextIO | None = None) -> None:
    """Writes and flushes; None is standard output."""
    stream = sys.stdout if stream is None else stream
    stream.write(text)
    stream.flush()
