"""What clients may ask for, in OpenAI's words, and how it becomes `SamplingParams`.

A field that is not supported is refused by name unless it holds the value that changes nothing.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import RequestError
from sdengine.server.complaints import shown
from sdengine.server.neutral import (
    NEUTRAL,
    NEUTRAL_IN_CHAT,
    NEUTRAL_IN_COMPLETIONS,
    NEUTRAL_IN_MESSAGES,
    NEUTRAL_IN_STREAM_OPTIONS,
    Neutral,
)

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "GenerationRequest",
    "PlaygroundRequest",
    "field_of",
]

MAX_STOPS = 64
"""Each is looked for in the text at every token, by the engine and by the event loop: 100 000 of
them made the others' requests 40 times slower."""
MAX_TEXTS = 4096
"""Messages and text parts of a conversation. Checking and rendering them is the event loop's work:
90 000 messages, which fit into a body of 3 MB, stopped it for 1.7 s."""
FIELD_ERROR = "field"
"""Kind of the errors that are raised here; their context names the field."""
SAMPLING_FIELDS = (
    "n",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "top_k",
    "min_p",
    "min_tokens",
    "repetition_penalty",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
    "include_stop_str_in_output",
)
# Whose name is in other words comes after them: "n", "stop" (tokens), "prompt" (tokens).
NAMED_IN_ERRORS = (
    *(name for name in SAMPLING_FIELDS if name not in ("n", "stop")),
    *("logit_bias", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"),
    *("messages", "n", "stop", "prompt"),
)


def _field_error(field: str, message: str) -> PydanticCustomError:
    return PydanticCustomError(FIELD_ERROR, "{message}", {"field": field, "message": message})


def _either(expected: str) -> WrapValidator:
    """One error for a field of several types, instead of one for each of them, by its name."""

    def check(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            message = {"message": f"expected {expected}, got {shown(value)}"}
            raise PydanticCustomError("either", "{message}", message) from None

    return WrapValidator(check)


def _without_more_wrong(value: Any) -> Any:
    """An object of numbers; where some are none, the first of these alone."""
    items = value.items() if isinstance(value, dict) else ()
    wrong = ((k, v) for k, v in items if type(v) not in (int, float))
    return dict([first]) if (first := next(wrong, None)) else value


Texts = Annotated[list[str], Field(fail_fast=True)]
Integers = Annotated[list[int], Field(fail_fast=True)]
"""Here, below and in `Strict` one error is enough: only the first is told, and to describe each of
800 000, which fit into a body of 4 MB, stopped the event loop for 2 s."""
Biases = Annotated[dict[str, float], BeforeValidator(_without_more_wrong)]


class Strict(BaseModel):
    """No unknown fields, no conversions between types; values that ask for nothing are dropped.

    Fields of `neutral` are known and not supported.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    neutral: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, values in cls.neutral.items():
            if data.get(name) is not None and not _is_among(data[name], values):
                raise _field_error(name, "this server does not support it; leave it out")
        known = {name: value for name, value in data.items() if name in cls.model_fields}
        unknown = (name for name in data if name not in known and name not in cls.neutral)
        return known | {name: data[name] for name in islice(unknown, 1)}


class StreamOptions(Strict):
    """Options of a streamed answer."""

    neutral: ClassVar[Neutral] = NEUTRAL_IN_STREAM_OPTIONS

    include_usage: bool | None = None


class GenerationRequest(Strict):
    """What both endpoints share. `user` names an end user and changes nothing."""

    neutral: ClassVar[Neutral] = NEUTRAL

    model: str
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Annotated[
        str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None,
        _either(f"text or a list of at most {MAX_STOPS} texts"),
    ] = None
    logit_bias: Biases | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    stop_token_ids: Integers | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise _field_error("stream_options", "expected only together with stream = true")
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk of counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling_params(
        self, defaults: SamplingParams, max_tokens: int, logprobs: int | None
    ) -> SamplingParams:
        """The request's parameters over the checkpoint's.

        Raises:
            RequestError: one is out of range.
        """
        given: dict[str, Any] = {
            name: value for name in SAMPLING_FIELDS if (value := getattr(self, name)) is not None
        }
        if self.logit_bias is not None:
            given["logit_bias"] = _biases(self.logit_bias)
        given.setdefault("min_tokens", min(defaults.min_tokens, max(max_tokens, 0)))
        try:
            return replace(defaults, max_tokens=max_tokens, logprobs=logprobs, **given)
        except RequestError as error:
            raise self.in_own_words(error) from None

    def in_own_words(self, error: RequestError) -> RequestError:
        """An error that names the client's field, where the engine's has another name."""
        return error


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    neutral: ClassVar[Neutral] = NEUTRAL_IN_COMPLETIONS

    prompt: Annotated[
        str | Texts | Integers | Annotated[list[Integers], Field(fail_fast=True)],
        _either("text, token ids, or a list of either"),
    ]
    max_tokens: int | None = None
    logprobs: int | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one by one.

        Raises:
            RequestError: there is none.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise RequestError.from_parts("at least one prompt", "an empty list")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    @property
    def max_new_tokens(self) -> int | None:
        """Tokens to generate; None for OpenAI's default."""
        return self.max_tokens


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    """A message; `name` is for templates that show it."""

    neutral: ClassVar[Neutral] = NEUTRAL_IN_MESSAGES

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | list[TextPart], _either("text, or text parts only")]
    name: str | None = None


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    neutral: ClassVar[Neutral] = NEUTRAL_IN_CHAT

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_counts(cls, data: Any) -> Any:
        """Before anything is looked at one by one."""
        messages = data.get("messages") if isinstance(data, dict) else None
        if isinstance(messages, list):
            contents = [m.get("content") for m in messages if isinstance(m, dict)]
            num = len(messages) + sum(len(c) for c in contents if isinstance(c, list))
            if num > MAX_TEXTS:
                expected = f"expected at most {MAX_TEXTS} messages and text parts together"
                raise _field_error("messages", f"{expected}, got {num}")
        return data

    @model_validator(mode="after")
    def _check_pairs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise _field_error("top_logprobs", "expected only together with logprobs = true")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise _field_error("max_tokens", "expected it or max_completion_tokens, got both")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives per token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def max_new_tokens(self) -> int | None:
        """Tokens to generate; None as far as the context goes."""
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens

    def in_own_words(self, error: RequestError) -> RequestError:
        """As `GenerationRequest.in_own_words`."""
        message = str(error).replace("expected logprobs", "expected top_logprobs")
        if self.max_completion_tokens is not None:
            message = re.sub(r"\bmax_tokens\b", "max_completion_tokens", message)
        return RequestError(message)


class PlaygroundRequest(Strict):
    """Body of POST /playground/generate, the page's own endpoint."""

    prompt: str = Field(min_length=1)
    max_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    is_plain: bool = False


def field_of(message: str) -> str | None:
    """The field that an error of the engine speaks of: what it says it expected names it.

    Args:
        message: as `SdengineError.from_parts` makes them.
    """
    expected = message.partition(", got ")[0]
    found = (name for name in NAMED_IN_ERRORS if re.search(rf"\b{name}\b", expected))
    return next(found, "prompt" if "token ids" in expected else None)


def _is_among(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether a value is one of these and of its type: 1 is not True."""
    return any(type(value) is type(other) and value == other for other in values)


def _biases(by_key: dict[str, float]) -> dict[int, float]:
    """A logit_bias by token id; "3" and "003" are one."""
    biases: dict[int, float] = {}
    for key, bias in by_key.items():
        token_id = _token_id(key)
        if token_id in biases:
            raise RequestError.from_parts(
                "logit_bias with one key for a token", f"another for token {token_id}, {key!r:.40}"
            )
        biases[token_id] = bias
    return biases


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 12):
        raise RequestError.from_parts("logit_bias keys to be token ids", f"{key!r:.40}")
    return int(key)
