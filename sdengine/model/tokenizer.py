"""Text to tokens and back, for the tokenizer.json of a checkpoint.

Special tokens are placed as the checkpoint's own tokenizer_config.json says. Decoding never "cleans
up" spaces: the text is what the tokens say.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from sdengine.core.argument import python_command
from sdengine.errors import CheckpointError, ConfigError, RequestError
from sdengine.model.detokenizer import (
    BYTE_TOKEN,
    ByteDetokenizer,
    Detokenizer,
    PieceDetokenizer,
    byte_level_bytes,
    parse_decoder,
    whole_text,
)
from sdengine.model.tokenizer_settings import (
    apply_declarations,
    apply_prefix_space,
    is_llama,
    special_token_strings,
    tokenizer_settings,
)

__all__ = ["Tokenizer", "load_tokenizer"]

LONG_TEXT = 1024
"""Characters beyond which a text is encoded without Python's lock. `encode` keeps it all the while:
2.0 s for 640 kB of code (2 cores of a Zen 3 server), in which no other thread runs, beside gaps of
0.02 s. Shorter texts take less than 1 ms and stay in the calling thread: the other way goes through
the library's threads, which may be busy with long ones."""


class Tokenizer:
    """A checkpoint's tokenizer; make one with `load_tokenizer`.

    Args:
        backend: the tokenizer proper.
        settings: parsed tokenizer_config.json, possibly empty.

    Raises:
        CheckpointError: a part of it is not supported, or the two contradict each other.
    """

    __slots__ = (
        "_backend",
        "_ordinary_piece",
        "_ordinary_text",
        "_prefix",
        "_rules",
        "_special",
        "_suffix",
        "_token_text",
        "special_tokens",
        "vocab_size",
    )

    def __init__(self, backend: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.special_tokens = special_token_strings(settings)
        self._special = apply_declarations(backend, settings, self.special_tokens)
        default = None if is_llama(settings) else False
        apply_prefix_space(backend, settings.get("add_prefix_space", default))
        decoder = backend.decoder
        self._rules = parse_decoder(None if decoder is None else json.loads(decoder.__getstate__()))
        # For every token that is generated; the backend's own look-up makes a new string each time.
        self._ordinary_piece = functools.cache(self._find_ordinary_piece)
        self._ordinary_text = functools.cache(self._find_ordinary_text)
        self._token_text = functools.cache(self._find_token_text)  # for every logprob, 5 to 14 us
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self._prefix, self._suffix = self._flagged_specials(settings)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the tokens of a text.

        Args:
            text: any text; special tokens spelt out in it become these tokens.
            add_special_tokens: place the beginning-of-sequence token and others as the checkpoint
                does. A rendered chat template contains them already: pass False for it.

        Raises:
            RequestError: it is no text, or holds lone surrogates.
        """
        if not isinstance(text, str):
            raise RequestError.from_parts("prompt to be a string", type(text).__name__)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError.from_parts(
                "prompt to be valid Unicode", f"a lone surrogate at index {error.start}"
            ) from None
        if self._prefix is None or not add_special_tokens:
            return self._ids(text, add_special_tokens)
        return [*self._prefix, *self._ids(text, False), *self._suffix]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of tokens; ids beyond the vocabulary (padding rows) have none."""
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def detokenizer(
        self, *, skip_special_tokens: bool = True, continues_text: bool = False
    ) -> Detokenizer:
        """Return an incremental decoder for one sequence.

        Args:
            skip_special_tokens: leave special tokens out of the text.
            continues_text: the tokens continue a prompt, so that a leading space is kept.
        """
        if self._rules is None:
            return ByteDetokenizer(
                self._ordinary_text if skip_special_tokens else self._text_or_bytes
            )
        piece = self._ordinary_piece if skip_special_tokens else self._backend.id_to_token
        return PieceDetokenizer(self._rules, piece, continues_text=continues_text)

    def token_text(self, token_id: int) -> str:
        """Return the text of one token in the middle of a text, special tokens included."""
        return self._token_text(token_id)

    def _find_token_text(self, token_id: int) -> str:
        one = self.detokenizer(skip_special_tokens=False, continues_text=True)
        return one.push([token_id]) + one.finish()

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token in the middle of a text: UTF-8, or a part of a character
        that other tokens make whole.
        """
        piece: str | None = self._backend.id_to_token(token_id)
        if piece is None:
            return b""
        if self._rules is None:
            return byte_level_bytes(piece)
        byte = BYTE_TOKEN.fullmatch(piece) if self._rules.has_byte_tokens else None
        return bytes.fromhex(byte[1]) if byte else self.token_text(token_id).encode("utf-8")

    def token_id(self, token: str) -> int | None:
        """Return the id of a token's string as tokenizer.json spells it, or None."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def is_special(self, token_id: int) -> bool:
        """Whether `skip_special_tokens` leaves this token out."""
        return self._backend.id_to_token(token_id) in self._special

    @property
    def bos_token_id(self) -> int | None:
        """Id of the beginning-of-sequence token, if tokenizer_config.json names one."""
        return self._special_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Id of the end-of-sequence token, if tokenizer_config.json names one."""
        return self._special_id("eos_token")

    def first_difference(self, other: Tokenizer) -> str | None:
        """Describe the lowest token id at which two tokenizers differ, or return None."""
        mine, theirs = self._backend.get_vocab(), other._backend.get_vocab()
        if mine == theirs:
            return None
        ours = {index: token for token, index in mine.items()}
        others = {index: token for token, index in theirs.items()}
        for index in sorted(ours.keys() | others.keys()):
            if ours.get(index) != others.get(index):
                return f"token {index} is {ours.get(index)!r} and {others.get(index)!r}"
        return None

    def require_same(self, other: Tokenizer) -> None:
        """Refuse a draft model whose tokens mean something else.

        Args:
            other: the draft model's tokenizer.

        Raises:
            ConfigError: the tokenizers differ; names the first differing token.
        """
        difference = self.first_difference(other)
        if difference is not None:
            raise ConfigError.from_parts(
                "target and draft model with the same tokenizer",
                f"two that differ: {difference}",
                "choose a draft model of the same family",
            )

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        if len(text) <= LONG_TEXT:
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        else:  # "fast" leaves out the offsets, which nobody reads: half the time of `encode`
            (encoding,) = self._backend.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )
        ids: list[int] = encoding.ids
        return ids

    def _find_ordinary_piece(self, token_id: int) -> str | None:
        if self.is_special(token_id):
            return None
        piece: str | None = self._backend.id_to_token(token_id)
        return piece

    def _find_ordinary_text(self, token_id: int) -> str | bytes:
        return "" if self.is_special(token_id) else self._text_or_bytes(token_id)

    def _text_or_bytes(self, token_id: int) -> str | bytes:
        return whole_text(self.token_bytes(token_id))

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.token_id(token)

    def _flagged_specials(
        self, settings: Mapping[str, Any]
    ) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
        """Return ids put before and after a text by flags; (None, ()) leaves it to
        tokenizer.json.
        """
        is_named = settings.get("tokenizer_class") is not None
        if not is_llama(settings) or (not is_named and self._special_id("bos_token") is None):
            return None, ()
        placed = []
        for flag, default, name in (
            ("add_bos_token", True, "bos_token"),
            ("add_eos_token", False, "eos_token"),
        ):
            wanted = settings.get(flag)
            ids: tuple[int, ...] = ()
            if default if wanted is None else wanted:
                found = self._special_id(name)
                if found is None:
                    raise CheckpointError.from_parts(
                        f"{name} in tokenizer_config.json, for {flag}", "no such token"
                    )
                ids = (found,)
            placed.append(ids)
        return placed[0], placed[1]


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Read tokenizer.json and, where there is one, tokenizer_config.json.

    Raises:
        CheckpointError: missing, damaged or unsupported; the message names the file.
    """
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        others = [
            name for name in ("tokenizer.model", "vocab.json") if (path.parent / name).exists()
        ]
        folder = repr(str(path.parent))
        code = "from transformers import AutoTokenizer as T; "
        code += f"T.from_pretrained({folder}).save_pretrained({folder})"
        raise CheckpointError.from_parts(
            f"{path}",
            f"only {', '.join(others)}" if others else "no such file",
            f"save it in the fast format: {python_command(code)}",
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError.from_parts(f"{path} to be a tokenizer", str(error)[:200]) from None
    return Tokenizer(backend, tokenizer_settings(path.parent))
