"""The one cut point: where a sequence ends, inside newly committed tokens too.

Text, token ids, logprobs and counts of a request are all cut by what `StopChecker.accept` says.
"""

from __future__ import annotations

from typing import NamedTuple

from sdengine.core.growing_text import GrowingText, TextStream
from sdengine.core.outputs import CompletionOutput, FinishReason
from sdengine.core.sampling_params import SamplingParams
from sdengine.core.sequence import Sequence


class Cut(NamedTuple):
    """What of the new tokens counts.

    Args:
        num_tokens: how many of them are kept.
        finish_reason: None while the sequence goes on.
        stop_reason: the stop string or token that ended it; None for end-of-sequence.
    """

    num_tokens: int
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


ONE_TOKEN = Cut(1)
"""Kept, and the sequence goes on."""


class HeldBack:
    """Characters at the end of a growing text that may turn out to begin a stop string, so that a
    stream must not show them yet.

    Source: Knuth, Morris and Pratt. A character is looked at twice on average, however long text
    and stop strings are: to compare their ends anew at every token took seconds for what a client
    can bring about (a text of 16 000 spaces, 64 stop strings of spaces).

    Args:
        params: of the request.
    """

    __slots__ = ("_begun", "_num_seen")

    def __init__(self, params: SamplingParams) -> None:
        strings = () if params.include_stop_str_in_output else params.stop_strings
        self._begun = [BegunString(string) for string in strings]
        self._num_seen = 0

    def num(self, text: str) -> int:
        """How many they are.

        Args:
            text: all of it; begins with that of the call before.
        """
        new = text[self._num_seen :]
        self._num_seen = len(text)
        return max((begun.num_after(new) for begun in self._begun), default=0)


class StreamCursor:
    """How far a growing completion has been told to whoever streams it.

    Args:
        params: of the request.
    """

    __slots__ = ("_held_back", "_num_characters", "_num_tokens")

    def __init__(self, params: SamplingParams) -> None:
        self._held_back = HeldBack(params)
        self._num_characters = self._num_tokens = 0

    @property
    def num_tokens(self) -> int:
        """Of the completion, at the last call of `advance`."""
        return self._num_tokens

    def advance(self, completion: CompletionOutput) -> tuple[str, slice]:
        """What is new since the call before.

        Args:
            completion: so far; begins with that of the call before.

        Returns:
            Text that no stop string can take back, and which of the tokens.
        """
        text, num_tokens = completion.text, len(completion.token_ids)
        num_held = 0 if completion.is_finished else self._held_back.num(text)
        new_text = text[self._num_characters : len(text) - num_held]
        new_tokens = slice(self._num_tokens, num_tokens)
        self._num_characters += len(new_text)
        self._num_tokens = num_tokens
        return new_text, new_tokens


class BegunString:
    """How much of a string the end of a growing text is the beginning of; never all of it."""

    __slots__ = ("_borders", "_length", "_string")

    def __init__(self, string: str) -> None:
        self._string = string
        self._length = 0
        # Of the first n characters, longest end that they also begin with; known for as many as
        # the text ever had.
        self._borders = [0, 0]

    def num_after(self, new: str) -> int:
        """The number with more text."""
        string, borders, length = self._string, self._borders, self._length
        if not length and string[0] not in new:
            return 0
        for character in new:
            while length and string[length] != character:
                length = borders[length]
            length += string[length] == character
            if length == len(borders):
                borders.append(self._next_border())
            if length == len(string):
                length = borders[length]
        self._length = length
        return length

    def _next_border(self) -> int:
        string, borders = self._string, self._borders
        last = len(borders) - 1
        border = borders[last]
        while border and string[border] != string[last]:
            border = borders[border]
        return border + (string[border] == string[last])


class StopChecker:
    """Applies new tokens to a sequence's text and says where it ends.

    Args:
        sequence: whose text grows.
        stream: its detokeniser.
        eos_token_ids: tokens that end it without a stop_reason.
    """

    __slots__ = ("_eos", "_hides_stop_token", "_sequence", "_strings", "_text")

    def __init__(
        self, sequence: Sequence, stream: TextStream, eos_token_ids: frozenset[int]
    ) -> None:
        self._sequence = sequence
        self._text = sequence.growing_text = GrowingText(stream, sequence.token_ids)
        params = sequence.params
        self._eos = frozenset() if params.ignore_eos else eos_token_ids
        self._strings = params.stop_strings
        self._hides_stop_token = (
            params.skip_special_tokens and not params.include_stop_str_in_output
        )

    def accept(self, token_ids: list[int]) -> Cut:
        """Takes newly committed tokens; `sequence.text` and `sequence.token_ids` grow by what
        counts.

        Args:
            token_ids: tokens in order, at least one.
        """
        if self._strings:
            return self._accept_one_by_one(token_ids)
        sequence = self._sequence
        num_tokens = len(sequence.token_ids) + len(token_ids)
        if num_tokens < sequence.max_total_tokens and sequence.stop_token_ids.isdisjoint(token_ids):
            sequence.token_ids += token_ids
            return Cut(len(token_ids)) if len(token_ids) > 1 else ONE_TOKEN
        kept, cut = self._scan(token_ids)
        sequence.token_ids += kept
        if cut.finish_reason is not None:
            self._end(is_stop_token=cut.finish_reason == "stop")
        return cut

    def end_text(self) -> None:
        """Ends the text where the tokens end: for a sequence that ends between two steps, so that
        `accept` does not know of it. A stop string that the end reveals is cut off all the same.
        """
        before = len(self._text.read())
        text = self._text.if_ended_at(self._sequence.num_tokens)
        if self._find_stop_string(text, before) is None:
            self._text.end(text)

    def _scan(self, token_ids: list[int]) -> tuple[list[int], Cut]:
        sequence = self._sequence
        room = sequence.max_total_tokens - sequence.num_tokens
        min_length = sequence.num_prompt_tokens + sequence.params.min_tokens
        for i, token in enumerate(token_ids):
            long_enough = sequence.num_tokens + i + 1 > min_length
            if token in sequence.stop_token_ids and long_enough:
                reason = None if token in self._eos else token
                return token_ids[: i + 1], Cut(i + 1, "stop", reason)
            if i + 1 == room:
                return token_ids[:room], Cut(room, "length")
        return token_ids, Cut(len(token_ids))

    def _accept_one_by_one(self, token_ids: list[int]) -> Cut:
        for i, token in enumerate(token_ids):
            _, cut = self._scan([token])
            if cut.finish_reason == "stop":
                found = self._append_stop_token(token)
            else:
                found = self._append_text_token(token, is_last=cut.finish_reason is not None)
            if found is not None:
                return Cut(i + 1, "stop", found)
            if cut.finish_reason is not None:
                return Cut(i + 1, cut.finish_reason, cut.stop_reason)
        return Cut(len(token_ids))

    def _append_text_token(self, token: int, is_last: bool) -> str | None:
        """Adds a token; returns the stop string that ends in what it made certain, if any."""
        sequence, text = self._sequence, self._text
        before = len(text.read())
        sequence.token_ids.append(token)
        found = self._find_stop_string(
            text.if_ended_at(sequence.num_tokens) if is_last else text.read(), before
        )
        if is_last and found is None:
            self._end(is_stop_token=False)
        return found

    def _append_stop_token(self, token: int) -> str | None:
        """Adds a stop token; returns the stop string that ends in what was held back before it, if
        any. With one, the sequence ends as if any other token had made it certain; the stop token's
        own text is no part of one.
        """
        sequence, text = self._sequence, self._text
        before, held_back = len(text.read()), text.if_ended_at(sequence.num_tokens)
        sequence.token_ids.append(token)
        found = self._find_stop_string(held_back, before)
        if found is None:
            self._end(is_stop_token=True)
        return found

    def _end(self, is_stop_token: bool) -> None:
        """Ends the text with the last token, which may be one that is not to be seen."""
        num_hidden = is_stop_token and self._hides_stop_token
        self._text.end(self._text.if_ended_at(self._sequence.num_tokens - num_hidden))

    def _find_stop_string(self, text: str, before: int) -> str | None:
        """Ends the text at the first stop string that ends in its new part, and returns that.

        Args:
            text: all of it, up to the newest token.
            before: characters without the new part.
        """
        sequence = self._sequence
        if sequence.num_generated <= sequence.params.min_tokens:
            return None
        hits = [(text.find(s, max(0, before - len(s) + 1)), s) for s in self._strings]
        hits = [(position, s) for position, s in hits if position >= 0]
        if not hits:
            return None
        position, string = min(hits, key=lambda hit: (hit[0], len(hit[1])))
        keep = position + (len(string) if sequence.params.include_stop_str_in_output else 0)
        self._text.end(text[:keep])
        return string
