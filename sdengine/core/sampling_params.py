"""How one request is sampled: validated once, at construction, and never changed afterwards.

The order in which an engine applies these is part of the contract:
penalties, logit_bias and masks -> temperature -> top-k -> top-p -> min-p.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

from sdengine.core.argument import (
    INT64_MAX,
    INT64_MIN,
    check_bool,
    check_float,
    check_int,
    check_int_list,
    items_of,
    shown,
)
from sdengine.core.frozen import FrozenDict
from sdengine.errors import RequestError

__all__ = ["GREEDY_TEMPERATURE", "MAX_LOGPROBS", "MAX_NUM_COMPLETIONS", "SamplingParams"]

GREEDY_TEMPERATURE = 1e-5
"""Temperatures below this are greedy: z / T would overflow fp32 for ordinary logits soon after."""

MAX_LOGPROBS = 20
MAX_NUM_COMPLETIONS = 128
MAX_TOKEN_ID = 2**31 - 1
MAX_BIAS = 100.0
MAX_REPETITION_PENALTY = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of one request. What is left out has the values below, whatever the
    checkpoint's generation_config.json says: `Engine.default_params` has those, and
    `dataclasses.replace` changes them.

    Args:
        n: completions per prompt, 1 to 128.
        max_tokens: most tokens to generate per completion, >= 1.
        min_tokens: end-of-sequence and stop tokens are masked until so many tokens are generated,
            and stop strings that end before are not looked at; <= max_tokens. With it an engine
            takes at most 64 ending tokens, the checkpoint's included.
        temperature: >= 0; below 1e-5 the most likely token is taken.
        top_p: nucleus mass in (0, 1]; 1 keeps all tokens.
        top_k: keep the k most likely tokens; 0 (or -1) keeps all.
        min_p: drop tokens less likely than min_p times the most likely one, 0 to 1.
        presence_penalty: subtracted once from the logit of every token generated before, -2 to 2.
        frequency_penalty: subtracted per earlier occurrence among the generated tokens, -2 to 2.
        repetition_penalty: 0.001 to 1000; divides positive and multiplies negative logits of tokens
            of prompt and output.
        logit_bias: token id -> number of [-100, 100] added to its logit; an engine takes 1024.
        seed: 64-bit integer that fixes the request's random numbers; None takes one from the
            engine's seed.
        stop: a string or a list of strings that end the generation; kept as a tuple.
        stop_token_ids: token ids that end the generation; kept as a tuple. An engine refuses ids
            that its model does not have, as it does in logit_bias.
        ignore_eos: do not end at the checkpoint's end-of-sequence tokens.
        logprobs: 0 to 20 alternatives per generated token, beside the token's own; None for none at
            all.
        skip_special_tokens: leave special tokens out of the text, and with them the token that
            ended the generation, unless include_stop_str_in_output keeps it.
        include_stop_str_in_output: keep the stop string in the text, and a token that ended the
            generation unless that is a special one to be left out.

    Raises:
        RequestError: an argument is of the wrong type or out of range; the message names it.
    """

    n: int = 1
    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    seed: int | None = None
    stop: str | Iterable[str] | None = None
    stop_token_ids: Iterable[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        for name, value in _checked(self).items():
            object.__setattr__(self, name, value)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken and no random number is used."""
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings; empty when there are none."""
        return cast("tuple[str, ...]", self.stop)

    @property
    def has_filters(self) -> bool:
        """Whether tokens that could be drawn are left out: top-k, top-p or min-p, not greedy."""
        is_cut = self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0
        return is_cut and not self.is_greedy

    @property
    def changes_logits(self) -> bool:
        """Whether penalties, a bias or a mask of end tokens change what the model says."""
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
            or bool(self.logit_bias)
            or self.min_tokens > 0
        )


def _checked(params: SamplingParams) -> dict[str, object]:
    """Return the normalised value of every field that needs one; raises RequestError."""
    error = RequestError
    values: dict[str, object] = {
        "n": check_int(error, "n", params.n, 1, MAX_NUM_COMPLETIONS),
        "max_tokens": check_int(error, "max_tokens", params.max_tokens, 1),
        "min_tokens": check_int(error, "min_tokens", params.min_tokens, 0),
        "temperature": check_float(error, "temperature", params.temperature, 0.0),
        "top_p": check_float(error, "top_p", params.top_p, 0.0, 1.0, low_is_open=True),
        "top_k": max(0, check_int(error, "top_k", params.top_k, -1)),
        "min_p": check_float(error, "min_p", params.min_p, 0.0, 1.0),
        "repetition_penalty": check_float(
            error,
            "repetition_penalty",
            params.repetition_penalty,
            1 / MAX_REPETITION_PENALTY,
            MAX_REPETITION_PENALTY,
        ),
        "logit_bias": _checked_bias(params.logit_bias),
        "stop": _checked_stop(params.stop),
        "stop_token_ids": (),
    }
    for name in ("presence_penalty", "frequency_penalty"):
        values[name] = check_float(error, name, getattr(params, name), -2.0, 2.0)
    for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
        values[name] = check_bool(error, name, getattr(params, name))
    if params.stop_token_ids is not None:
        values["stop_token_ids"] = check_int_list(
            error, "stop_token_ids", params.stop_token_ids, 0, MAX_TOKEN_ID
        )
    if params.seed is not None:
        values["seed"] = check_int(error, "seed", params.seed, INT64_MIN, INT64_MAX)
    if params.logprobs is not None:
        values["logprobs"] = check_int(error, "logprobs", params.logprobs, 0, MAX_LOGPROBS)
    if params.min_tokens > params.max_tokens:
        raise error.from_parts(
            f"min_tokens <= max_tokens = {params.max_tokens}",
            str(params.min_tokens),
            "raise max_tokens or lower min_tokens",
        )
    return values


def _checked_stop(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = [stop] if isinstance(stop, str) else items_of(stop)
    if strings is None:
        raise RequestError.from_parts("stop to be a string or a list of strings", shown(stop))
    for i, item in enumerate(strings):
        if not isinstance(item, str) or not item:
            raise RequestError.from_parts(f"stop[{i}] to be a non-empty string", shown(item))
    return tuple(strings)


def _checked_bias(bias: object) -> dict[int, float] | None:
    if bias is None:
        return None
    if not isinstance(bias, Mapping):
        raise RequestError.from_parts("logit_bias to map token ids to numbers", shown(bias))
    checked = {
        check_int(RequestError, "token id in logit_bias", token, 0, MAX_TOKEN_ID): check_float(
            RequestError, f"logit_bias[{token!r}]", value, -MAX_BIAS, MAX_BIAS
        )
        for token, value in bias.items()
    }
    return FrozenDict(checked)
