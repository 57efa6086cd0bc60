"""How log-probabilities write tokens: names, bytes, and where each stands in the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sdengine.core.outputs import Logprob
from sdengine.model.tokenizer import Tokenizer

__all__ = ["TextOffsets", "TokenTexts"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TokenTexts:
    """Tokens as a request's text shows them.

    Args:
        tokenizer: the checkpoint's; None for a model without text.
        skip_special_tokens: the request's.
    """

    def __init__(self, tokenizer: Tokenizer | None, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skips_special = skip_special_tokens

    def bytes_of(self, token: int) -> bytes:
        """A token's bytes; for a part of a character they are no text."""
        return b"" if self._tokenizer is None else self._tokenizer.token_bytes(token)

    def name(self, token: int, entry: Logprob) -> str:
        """A token's text, or its bytes in OpenAI's spelling ("bytes:\\xe4\\xbd"): all parts of
        characters have the same text, and one would hide the other.
        """
        if REPLACEMENT not in entry.decoded_token:
            return entry.decoded_token
        own = self.bytes_of(token)
        if own == entry.decoded_token.encode():  # the token is this very character
            return entry.decoded_token
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in own)

    def offsets(self) -> TextOffsets:
        """The offsets of a choice's tokens."""
        if self._tokenizer is None:
            return TextOffsets(lambda token: "", lambda: 0)
        text = self._tokenizer.detokenizer(
            skip_special_tokens=self._skips_special, continues_text=True
        )
        return TextOffsets(lambda token: text.push([token]), lambda: text.num_held_back)


class TextOffsets:
    """Where the tokens of a choice begin in its text, in characters.

    Args:
        push: takes the choice's next token and gives the text that is certain with it.
        num_held_back: whole characters pushed that are not certain yet.
    """

    def __init__(self, push: Callable[[int], str], num_held_back: Callable[[], int]) -> None:
        self._push = push
        self._num_held_back = num_held_back
        self._num_certain = 0

    def of(self, tokens: Sequence[int], texts: Sequence[str]) -> list[int]:
        """The offsets of the choice's next tokens.

        Args:
            tokens: their ids.
            texts: of each of them alone.
        """
        return [self._next(token, text) for token, text in zip(tokens, texts)]

    def _next(self, token: int, text: str) -> int:
        """A token's text is the end of what is certain with it: what was held back may have come
        before it. Less is certain with a part of a character, whose offset is the character's.
        """
        before = self._num_certain + self._num_held_back()
        self._num_certain += len(self._push(token))
        return max(before, self._num_certain - len(text))
