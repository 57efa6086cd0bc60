"""Everything a user may get wrong about a single request, refused before anything is queued."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any

from sdengine.core.argument import items_of, shown
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import RequestError

__all__ = [
    "RequestLimits",
    "check_length",
    "check_tables",
    "check_text",
    "checked_ids",
    "ending_tokens",
    "is_integer",
    "prompt_items",
]


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What the model allows.

    Args:
        vocab_size: token ids are below it.
        max_model_len: longest sequence, prompt included.
        eos_token_ids: tokens that end a sequence.
        has_speculation: whether outputs carry speculation statistics.
        max_biases: tokens of a logit_bias.
        max_masked: stop tokens that min_tokens can mask.
        can_be_longer: whether the checkpoint allows a larger max_model_len.
    """

    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    has_speculation: bool
    max_biases: int
    max_masked: int
    can_be_longer: bool = True


def ending_tokens(params: SamplingParams, limits: RequestLimits) -> frozenset[int]:
    """The tokens that end a request's sequences: its own, and end-of-sequence unless ignored.
    Where they are the same as others' they are the same object, which stays in the caches."""
    if not params.stop_token_ids:
        return frozenset() if params.ignore_eos else limits.eos_token_ids
    stops = frozenset(params.stop_token_ids)
    return stops if params.ignore_eos else stops | limits.eos_token_ids


def checked_ids(prompt: object, limits: RequestLimits) -> list[int]:
    """The token ids of a prompt, in a list of its own; also of a text's, because a tokenizer may
    have more tokens than the model's embedding has rows.

    Raises:
        RequestError: it is no list of integers, or one of them is no token.
    """
    token_ids = _integer_list(prompt)
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < limits.vocab_size:
        allowed = range(limits.vocab_size)
        position = next(i for i, token in enumerate(token_ids) if token not in allowed)
        raise RequestError.from_parts(
            f"token ids in [0, {limits.vocab_size})",
            f"{token_ids[position]} at position {position}",
        )
    return token_ids


def check_length(
    num_prompt_tokens: int, params: SamplingParams, limits: RequestLimits, capacity_tokens: int
) -> None:
    """A request has to fit into the context and into the whole KV cache of `capacity_tokens`.

    Raises:
        RequestError: it does not.
    """
    limit = limits.max_model_len
    if num_prompt_tokens >= limit:
        raise RequestError.from_parts(
            f"a prompt shorter than max_model_len = {limit} tokens",
            f"{num_prompt_tokens} tokens",
            "shorten the prompt" + " or raise max_model_len" * limits.can_be_longer,
        )
    needed = min(num_prompt_tokens + params.max_tokens, limit)
    if needed > capacity_tokens:
        raise RequestError.from_parts(
            f"prompt and max_tokens of at most {capacity_tokens} tokens, the whole KV cache",
            f"{num_prompt_tokens} prompt + {params.max_tokens} new tokens",
            "raise num_kv_blocks or lower max_tokens",
        )


def check_tables(params: SamplingParams, limits: RequestLimits) -> None:
    """logit_bias and masked stop tokens have to exist and to fit the device's tables.

    A stop token that the model cannot produce would never stop anything, so it is a mistake (an id
    of another tokenizer, mostly) as a bias of such a token is; and the tables that min_tokens masks
    stops with index the logits.

    Raises:
        RequestError: one does not exist, or there are too many.
    """
    biases = params.logit_bias or {}
    _check_vocabulary("logit_bias tokens", biases, limits.vocab_size)
    _check_vocabulary("stop_token_ids", params.stop_token_ids or (), limits.vocab_size)
    if len(biases) > limits.max_biases:
        raise RequestError.from_parts(
            f"at most {limits.max_biases} tokens in logit_bias", str(len(biases))
        )
    num_stops = len(ending_tokens(params, limits)) if params.min_tokens else 0
    if num_stops > limits.max_masked:
        raise RequestError.from_parts(
            f"at most {limits.max_masked} stop tokens together with min_tokens", str(num_stops)
        )


def check_text(params: SamplingParams, has_text: bool) -> None:
    """Stop strings are looked for in the text.

    Raises:
        RequestError: there is none to look in.
    """
    if params.stop and not has_text:
        raise RequestError.from_parts(
            "no stop strings, because the checkpoint has no tokenizer.json",
            shown(params.stop),
            "use stop_token_ids",
        )


def prompt_items(prompt: object) -> list[Any]:
    """What a list, tuple, array or tensor holds: token ids, or prompts.

    Raises:
        RequestError: it is something else. Bytes are refused because they are text to whoever
            passes them and would be taken for token ids, sets because they have no order.
    """
    items = None if isinstance(prompt, Set) else items_of(prompt)
    if items is None:
        raise RequestError.from_parts("a prompt of text or of token ids", type(prompt).__name__)
    return items


def is_integer(value: object) -> bool:
    """Whether a value is an integer of any library; a bool is none, nor a row of a tensor, which
    says of itself that it is one when it has a single number."""
    if isinstance(value, bool) or getattr(value, "ndim", False):
        return False
    try:
        return operator.index(value) is not None  # type: ignore[arg-type]
    except TypeError:
        return False


def _integer_list(prompt: object) -> list[int]:
    items = prompt_items(prompt)
    if set(map(type, items)) <= {int}:
        return items
    for position, item in enumerate(items):
        if not is_integer(item):
            raise RequestError.from_parts(
                "a prompt of text or of token ids", f"{item!r:.40} at position {position}"
            )
    return list(map(operator.index, items))


def _check_vocabulary(what: str, tokens: Iterable[int], vocab_size: int) -> None:
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise RequestError.from_parts(f"{what} in [0, {vocab_size})", str(token))
