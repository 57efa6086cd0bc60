"""Shows a completion while it is generated, accepted draft tokens tinted."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING, TextIO

from sdengine.cli.terminal import is_terminal, palette_for, printable, write

if TYPE_CHECKING:
    from sdengine.llm import LLM, StreamDelta

__all__ = ["StreamView"]


class StreamView:
    """Writes the text of stream deltas.

    On a terminal, text that the draft proposed and the target accepted is tinted; the target's own
    tokens stay plain. In a pipe the text comes as it is.

    Args:
        llm: whose tokenizer says how long the tokens' texts are.
        stream: where to write; None is standard output.
    """

    def __init__(self, llm: LLM, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._palette = palette_for(self._stream)
        self._tokenizer = llm.engine.tokenizer
        self._begin()

    def _begin(self) -> None:
        self._ends_line = True
        self._tints: list[bool] = []  # of characters that were told and not shown yet
        if self._tokenizer is not None:
            self._told = self._tokenizer.detokenizer(skip_special_tokens=True, continues_text=True)

    def show_prompt(self, prompt: str, in_pipe: bool = False) -> None:
        """Repeats the prompt, faint, before its completion; a pipe gets the completion alone unless
        `in_pipe`.
        """
        if in_pipe or is_terminal(self._stream):
            write(self._palette.faint(printable(prompt, self._stream)), self._stream)
            self._ends_line = prompt.endswith("\n")

    def show(self, delta: StreamDelta) -> None:
        """Writes one delta."""
        has_tints = self._palette.has_color and self._tokenizer is not None
        text = self._tinted(delta) if has_tints else printable(delta.text, self._stream)
        write(text, self._stream)
        if delta.text:
            self._ends_line = delta.text.endswith("\n")

    def show_whole(self, text: str) -> None:
        """Writes a completion that was not streamed."""
        write(printable(text, self._stream), self._stream)
        if text:
            self._ends_line = text.endswith("\n")

    def finish(self) -> None:
        """Ends the last line if the completion did not."""
        if not self._ends_line:
            write("\n", self._stream)
        self._begin()

    def _tinted(self, delta: StreamDelta) -> str:
        """The text of a delta as a terminal shows it."""
        for token, is_accepted in zip(delta.token_ids, delta.from_draft):
            self._tints += [is_accepted] * len(self._told.push([token]))
        # What was held back at the end, an unfinished character, is as the last token.
        is_last_accepted = bool(delta.from_draft and delta.from_draft[-1])
        tints = self._tints + [is_last_accepted] * (len(delta.text) - len(self._tints))
        self._tints = tints[len(delta.text) :]
        shown, start = "", 0
        for is_accepted, run in groupby(tints[: len(delta.text)]):
            end = start + len(list(run))
            text = printable(delta.text[start:end], self._stream)
            shown += self._palette.accepted(text) if is_accepted else text
            start = end
        return shown
