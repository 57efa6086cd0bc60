"""Token ids to text, one token at a time, in constant time per token.

The text that `push` and `finish` hand out, joined, is exactly what decoding all tokens at once
gives. So a part is held back exactly as long as later tokens could still change it: an unfinished
UTF-8 character with byte-level tokens, and a run of byte tokens (`<0xE2>`) with sentencepiece-style
tokens, where one bad byte turns the whole run into replacement characters.

Two kinds of tokenizer are understood, by the decoder that tokenizer.json names:

- byte-level BPE: every character of a token stands for a byte.
- sentencepiece style: `▁` stands for a space, byte tokens for what has no token of its own, and the
text's first space is dropped.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sdengine.errors import CheckpointError

__all__ = [
    "ByteDetokenizer",
    "DecoderRules",
    "Detokenizer",
    "PieceDetokenizer",
    "byte_level_bytes",
    "parse_decoder",
    "whole_text",
]

REPLACEMENT = "\ufffd"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class DecoderRules:
    """How the strings of tokens become text, in sentencepiece style.

    Args:
        replacements: (pattern, replacement) applied to every token, in order.
        has_byte_tokens: whether `<0x..>` tokens stand for bytes.
        strip: character dropped at the beginning of the text.
        max_stripped: how many of them at most.
        first_token_drops: characters dropped wherever they stand in the first token.
    """

    replacements: tuple[tuple[str, str], ...] = ()
    has_byte_tokens: bool = False
    strip: str = " "
    max_stripped: int = 0
    first_token_drops: str = ""


def parse_decoder(spec: Mapping[str, Any] | None) -> DecoderRules | None:
    """Read the decoder section of tokenizer.json.

    Returns:
        None for byte-level BPE, which has no rules but its alphabet.

    Raises:
        CheckpointError: a decoder that streaming is not implemented for; the message names it.
    """
    if spec is None:
        raise _unsupported("none")
    if spec["type"] == "Metaspace":
        mark = spec.get("replacement", "▁")
        is_kept = spec.get("prepend_scheme", "always") == "never"
        return DecoderRules(replacements=((mark, " "),), first_token_drops="" if is_kept else mark)
    steps = list(spec["decoders"]) if spec["type"] == "Sequence" else [spec]
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return None
    replacements: list[tuple[str, str]] = []
    while steps and steps[0]["type"] == "Replace" and "String" in steps[0]["pattern"]:
        step = steps.pop(0)
        replacements.append((step["pattern"]["String"], step["content"]))
    has_byte_tokens = bool(steps) and steps[0]["type"] == "ByteFallback"
    if has_byte_tokens:
        steps.pop(0)
    if not steps or steps.pop(0)["type"] != "Fuse":
        raise _unsupported(_type_names(spec))
    strip: Mapping[str, Any] = {"content": " ", "start": 0, "stop": 0}
    if steps and steps[0]["type"] == "Strip":
        strip = steps.pop(0)
    if steps or strip["stop"]:
        raise _unsupported(_type_names(spec))
    return DecoderRules(
        replacements=tuple(replacements),
        has_byte_tokens=has_byte_tokens,
        strip=strip["content"],
        max_stripped=strip["start"],
    )


class Detokenizer(Protocol):
    """Incremental text of one sequence of tokens."""

    @property
    def num_held_back(self) -> int:
        """Whole characters that were pushed and are held back."""

    def push(self, token_ids: Iterable[int]) -> str:
        """Append tokens and return the text that is certain now and was not before."""

    def finish(self) -> str:
        """Return what was held back, with replacement characters for what stayed unfinished."""


class ByteDetokenizer:
    """Byte-level BPE's.

    Args:
        piece_of: token id -> text of the token by itself, or its bytes where these are not whole
            characters; no text for what has none. Asked for every token that is generated.
    """

    __slots__ = ("_piece_of", "_unfinished")

    def __init__(self, piece_of: Callable[[int], str | bytes]) -> None:
        self._piece_of = piece_of
        self._unfinished = b""  # character

    @property
    def num_held_back(self) -> int:
        return 0

    def push(self, token_ids: Iterable[int]) -> str:
        pieces = list(map(self._piece_of, token_ids))
        if not self._unfinished:
            try:
                return "".join(pieces)  # type: ignore[arg-type]
            except TypeError:  # bytes among them
                pass
        waiting = self._unfinished + b"".join(map(as_bytes, pieces))
        text, num_used = codecs.utf_8_decode(waiting, "replace", False)
        self._unfinished = waiting[num_used:]
        return text

    def finish(self) -> str:
        unfinished, self._unfinished = self._unfinished, b""
        return unfinished.decode("utf-8", "replace")


class PieceDetokenizer:
    """That of sentencepiece style.

    Args:
        rules: of the tokenizer.
        piece: token id -> the token's string, or None for what has no text (padding rows of the
            vocabulary, and special tokens when these are to be skipped).
        continues_text: the tokens continue an earlier text (a prompt), so that the first space is
            a real one and kept.
    """

    __slots__ = ("_byte_run", "_is_first", "_num_to_strip", "_piece", "_rules")

    def __init__(
        self,
        rules: DecoderRules,
        piece: Callable[[int], str | None],
        *,
        continues_text: bool = False,
    ) -> None:
        self._rules = rules
        self._piece = piece
        self._byte_run = b""  # held back
        self._is_first = not continues_text
        self._num_to_strip = 0 if continues_text else rules.max_stripped

    @property
    def num_held_back(self) -> int:
        """Those of a run of byte tokens."""
        return len(codecs.utf_8_decode(self._byte_run, "replace", False)[0])

    def push(self, token_ids: Iterable[int]) -> str:
        pieces = map(self._piece, token_ids)
        return self._strip("".join([self._text_of(p) for p in pieces if p is not None]))

    def finish(self) -> str:
        return self._strip(self._end_of_run())

    def _text_of(self, piece: str) -> str:
        rules = self._rules
        if self._is_first:
            self._is_first = False
            for mark in rules.first_token_drops:
                piece = piece.replace(mark, "")
        if rules.has_byte_tokens:
            match = BYTE_TOKEN.fullmatch(piece)
            if match:
                self._byte_run += bytes([int(match.group(1), 16)])
                return ""
        for pattern, replacement in rules.replacements:
            piece = piece.replace(pattern, replacement)
        return self._end_of_run() + piece if self._byte_run else piece

    def _end_of_run(self) -> str:
        run, self._byte_run = self._byte_run, b""
        try:
            return run.decode("utf-8")
        except UnicodeDecodeError:
            return REPLACEMENT * len(run)

    def _strip(self, text: str) -> str:
        while self._num_to_strip and text:
            if not text.startswith(self._rules.strip):
                self._num_to_strip = 0
                break
            text = text[len(self._rules.strip) :]
            self._num_to_strip -= 1
        return text


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """Return character -> byte of byte-level BPE: printable Latin-1 stands for itself, the rest
    follows.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return alphabet


def as_bytes(piece: str | bytes) -> bytes:
    """Return a piece's bytes."""
    return piece if isinstance(piece, bytes) else piece.encode("utf-8")


def whole_text(piece: bytes) -> str | bytes:
    """Return the text of bytes that are whole characters; others as they are."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return piece


def byte_level_bytes(piece: str) -> bytes:
    """Return the bytes of a byte-level token; one with a foreign character (an added token) is
    plain text.
    """
    alphabet = byte_alphabet()
    try:
        return bytes([alphabet[char] for char in piece])
    except KeyError:
        return piece.encode("utf-8")


def _type_names(spec: Mapping[str, Any]) -> str:
    return " -> ".join(step["type"] for step in spec.get("decoders", [spec]))


def _unsupported(name: str) -> CheckpointError:
    return CheckpointError.from_parts(
        "a decoder in tokenizer.json of the kind ByteLevel, Metaspace, or "
        "Replace -> ByteFallback -> Fuse -> Strip",
        name,
        "this tokenizer is not supported",
    )
