"""Shows a completion while it is generated, accepted draft tokens tinted."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from sdengine.cli.terminal import is_terminal, palette_for, printable, write

if TYPE_CHECKING:
    from sdengine.llm import LLM, StreamDelta

__all__ = ["StreamView"]


class StreamView:
    """Writes the text of stream deltas.

    On a terminal, text that the draft proposed and the target accepted is tinted; the last token of
    a step is the target's own and stays plain. In a pipe the text comes as it is.

    Args:
        llm: whose tokenizer says how long the last token's text is.
        stream: where to write; None is standard output.
    """

    def __init__(self, llm: LLM, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._palette = palette_for(self._stream)
        self._tokenizer = llm.engine.tokenizer
        self._ends_line = True

    def show_prompt(self, prompt: str, in_pipe: bool = False) -> None:
        """Repeats the prompt, faint, before its completion; a pipe gets the completion alone unless
        `in_pipe`.
        """
        if in_pipe or is_terminal(self._stream):
            write(self._palette.faint(printable(prompt, self._stream)), self._stream)
            self._ends_line = prompt.endswith("\n")

    def show(self, delta: StreamDelta) -> None:
        """Writes one delta."""
        accepted, own = self._split(delta)
        text = self._palette.accepted(printable(accepted, self._stream))
        write(text + printable(own, self._stream), self._stream)
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
        self._ends_line = True

    def _split(self, delta: StreamDelta) -> tuple[str, str]:
        """Text of the accepted draft tokens, and text of the target's own last token."""
        if not (self._palette.has_color and delta.num_accepted):
            return "", delta.text
        if self._tokenizer is None:
            return delta.text, ""
        stream = self._tokenizer.detokenizer(skip_special_tokens=True, continues_text=True)
        own = stream.push(delta.token_ids[-1:]) + stream.finish()
        if own and delta.text.endswith(own):
            return delta.text[: -len(own)], own
        return delta.text, ""
