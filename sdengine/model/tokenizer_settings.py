"""tokenizer_config.json: settings of a tokenizer, and what it says of added tokens.

What it declares wins over tokenizer.json, and tokens that only it declares are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, pre_tokenizers

from sdengine.core.argument import shown
from sdengine.errors import CheckpointError
from sdengine.model.config_file import read_json

__all__ = [
    "apply_declarations",
    "apply_prefix_space",
    "is_llama",
    "special_token_strings",
    "template_tokens",
    "tokenizer_settings",
]

LLAMA_CLASSES = (
    *("LlamaTokenizer", "LlamaTokenizerFast"),
    *("CodeLlamaTokenizer", "CodeLlamaTokenizerFast"),
)
LLAMA_MODELS = ("llama", "mistral", "phi3")  # whose tokenizers are LlamaTokenizers by default
SPECIAL_NAMES = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)


def tokenizer_settings(directory: Path) -> dict[str, Any]:
    """Return what tokenizer_config.json and the files beside it say, as transformers reads them.

    All are optional. special_tokens_map.json and added_tokens.json are older than
    added_tokens_decoder: where that is missing, the first wins over tokenizer_config.json, and the
    second is here under "added_tokens". Without a tokenizer_class there is config.json's, or its
    "model_type" decides (see `is_llama`); classes of Llama's have names for their special tokens.
    """
    own, named, added, model = (
        read_json(directory / name) if (directory / name).is_file() else {}
        for name in (
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "config.json",
        )
    )
    is_older = "added_tokens_decoder" not in own
    settings = {**own, **named, "added_tokens": added} if is_older else {**named, **own}
    if settings.get("tokenizer_class") is None:
        given = model.get("tokenizer_class")
        settings |= {"tokenizer_class": given, "model_type": model.get("model_type")}
    if is_llama(settings):
        settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **settings}
    return settings


def is_llama(settings: Mapping[str, Any]) -> bool:
    """Whether flags place the special tokens, whatever tokenizer.json says."""
    name = settings.get("tokenizer_class")
    return name in LLAMA_CLASSES or (name is None and settings.get("model_type") in LLAMA_MODELS)


def special_token_strings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the named special tokens, such as bos_token, that the settings give; of
    extra_special_tokens under names of the checkpoint's own."""
    found = {name: _content(settings.get(name)) for name in SPECIAL_NAMES}
    extra = settings.get("extra_special_tokens")
    if isinstance(extra, Mapping):
        found |= {str(name): _content(value) for name, value in extra.items()}
    return {name: content for name, content in found.items() if content is not None}


def template_tokens(settings: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Return the variables of special tokens that chat templates are written for.

    Raises:
        CheckpointError: as `apply_declarations`.
    """
    named: dict[str, str | list[str]] = {**special_token_strings(settings)}
    more = _more_special(settings)
    return {**named, "additional_special_tokens": more} if more else named


def apply_prefix_space(backend: tokenizers.Tokenizer, flag: object) -> None:
    """Give a byte-level tokenizer the settings' word on a space in front of a text, which wins over
    its file's. Where the text is split in several stages the file's stays, as in transformers.

    Args:
        backend: the tokenizer proper; is changed.
        flag: add_prefix_space; what is no bool changes nothing.
    """
    splitter = backend.pre_tokenizer
    if isinstance(splitter, pre_tokenizers.ByteLevel) and isinstance(flag, bool):
        splitter.add_prefix_space = flag
        backend.pre_tokenizer = splitter


def apply_declarations(
    backend: tokenizers.Tokenizer, settings: Mapping[str, Any], specials: Mapping[str, str]
) -> frozenset[str]:
    """Give added tokens what the settings say of them.

    Args:
        backend: the tokenizer proper; is changed.
        settings: of `tokenizer_settings`.
        specials: of `special_token_strings`.

    Returns:
        The strings of special tokens. One of tokenizer.json stays special whatever the settings
        say: so it is for the backend's own decoding, and for transformers.

    Raises:
        CheckpointError: a declaration is malformed, or its token gets another id than it declares.
    """
    backend.encode_special_tokens = settings.get("split_special_tokens") is True
    known = backend.get_added_tokens_decoder()
    special = _special_strings(backend)
    for index, token in [*_declared_tokens(settings), *_older_tokens(backend, settings)]:
        if index in known and _properties(known[index]) == _properties(token):
            continue
        backend.add_tokens([token])
        if backend.token_to_id(token.content) != index:
            raise CheckpointError.from_parts(
                f"token {token.content!r} of tokenizer_config.json to have id {index}",
                str(backend.token_to_id(token.content)),
                "tokenizer.json and tokenizer_config.json are not of the same tokenizer",
            )
    for content in {*specials.values(), *_more_special(settings)}:
        _make_special(backend, content)
    return special | _special_strings(backend)


def _special_strings(backend: tokenizers.Tokenizer) -> frozenset[str]:
    tokens = backend.get_added_tokens_decoder().values()
    return frozenset(token.content for token in tokens if token.special)


def _declared_tokens(settings: Mapping[str, Any]) -> list[tuple[int, AddedToken]]:
    """The tokens of added_tokens_decoder by id."""
    tokens = []
    try:
        for index, entry in (settings.get("added_tokens_decoder") or {}).items():
            flags = {key: bool(entry.get(key)) for key in ("lstrip", "rstrip", "single_word")}
            is_special = bool(entry.get("special"))
            is_normalized = bool(entry.get("normalized", not is_special))
            token = AddedToken(
                entry["content"], special=is_special, normalized=is_normalized, **flags
            )
            tokens.append((int(index), token))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError.from_parts(
            "added_tokens_decoder of tokenizer_config.json to map ids to tokens with a content",
            f"{type(error).__name__}: {error}",
        ) from None
    return sorted(tokens, key=lambda item: item[0])


def _older_tokens(
    backend: tokenizers.Tokenizer, settings: Mapping[str, Any]
) -> list[tuple[int, AddedToken]]:
    """The tokens of added_tokens.json that tokenizer.json lacks, by id."""
    added = settings.get("added_tokens") or {}
    if not all(type(index) is int for index in added.values()):
        raise CheckpointError.from_parts("added_tokens.json to map tokens to ids", shown(added))
    lacking = [(i, text) for text, i in added.items() if backend.token_to_id(text) is None]
    return [(i, AddedToken(text, normalized=True)) for i, text in sorted(lacking)]


def _more_special(settings: Mapping[str, Any]) -> list[str]:
    """Special tokens without a name."""
    more = settings.get("additional_special_tokens") or []
    if not isinstance(more, list):
        raise CheckpointError.from_parts(
            "additional_special_tokens of tokenizer_config.json to be a list of tokens", shown(more)
        )
    return [content for content in map(_content, more) if content]


def _make_special(backend: tokenizers.Tokenizer, content: str) -> None:
    """Make a token special that tokenizer_config.json names as one; text is no token for that."""
    index = backend.token_to_id(content)
    known = backend.get_added_tokens_decoder().get(index)
    if index is None or (known is not None and known.special):
        return
    flags = {} if known is None else {"lstrip": known.lstrip, "rstrip": known.rstrip}
    backend.add_special_tokens([AddedToken(content, special=True, **flags)])


def _content(value: object) -> str | None:
    """The string of a special token, written as such or as an object that holds it."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _properties(token: AddedToken) -> tuple[Any, ...]:
    """All that an added token is."""
    flags = (token.lstrip, token.rstrip, token.normalized, token.single_word, token.special)
    return token.content, *flags
