"""The text of tokens that keep coming, decoded when somebody reads it.

Outputs are cumulative and come with every step. A copy of the text at every token was half of what
a sequence's new token cost the host (1.1 us of 450 characters, 16 sequences, Zen 5), and whoever
wants a text at its end never looks at it before.
"""

from __future__ import annotations

import copy
from threading import Lock
from typing import Protocol


class TextStream(Protocol):
    """Incremental detokeniser: token ids in, text deltas out. `copy.copy` of one is independent of
    it."""

    def push(self, token_ids: list[int]) -> str:
        """Text that became certain with these tokens."""

    def finish(self) -> str:
        """Text held back so far (an incomplete character becomes U+FFFD)."""


TextMoment = tuple[int, tuple[int, str]]
"""Length of a growing list of tokens, and an earlier length with the text as it was then."""


class GrowingText:
    """The text of a list's tokens from its present end on. One thread makes it grow; what it was at
    some moment can be read in any.

    Args:
        stream: detokeniser, for nobody else.
        token_ids: the list; may grow at its end, and do nothing else.
    """

    __slots__ = ("_decoded", "_is_ended", "_lock", "_new_stream", "_start", "_stream", "_tokens")

    def __init__(self, stream: TextStream, token_ids: list[int]) -> None:
        self._new_stream = copy.copy(stream)
        self._stream = stream
        self._tokens = token_ids
        self._start = len(token_ids)
        self._decoded = (self._start, "")  # length of the list, and its text then
        self._is_ended = False
        self._lock = Lock()

    def read(self) -> str:
        """As much of it as is certain now."""
        return self._decoded[1] if self._is_ended else self._until(len(self._tokens))

    def moment(self) -> TextMoment:
        """Now, for `at`, while the list is to grow."""
        return len(self._tokens), self._decoded

    def at(self, moment: TextMoment) -> str:
        """What was certain at a moment."""
        num_tokens, (num_decoded, text) = moment
        return text if num_decoded == num_tokens else self._until(num_tokens)

    def if_ended_at(self, num_tokens: int) -> str:
        """All of it if it ends with so many tokens, no fewer than were ever read."""
        return self._until(num_tokens) + copy.copy(self._stream).finish()

    def end(self, text: str) -> None:
        """Says what all of it is from now on."""
        with self._lock:
            self._decoded, self._is_ended = (len(self._tokens), text), True

    def _until(self, num_tokens: int) -> str:
        with self._lock:
            num_decoded, text = self._decoded
            if num_decoded <= num_tokens and not self._is_ended:
                text += self._stream.push(self._tokens[num_decoded:num_tokens])
                self._decoded = (num_tokens, text)
                return text
        # Whoever reads late, after others or the end: rare, since only the newest is worth reading.
        return copy.copy(self._new_stream).push(self._tokens[self._start : num_tokens])
