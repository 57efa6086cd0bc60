"""What clients may ask for, in OpenAI's words, and how it becomes `SamplingParams`.

A field that is not supported is refused by name unless it holds the value that changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import RequestError

__all__ = ["ChatRequest", "CompletionRequest", "PlaygroundRequest"]

DEFAULT_MAX_TOKENS = 16
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

# Field -> values that ask for nothing; None always does.
Neutral = dict[str, tuple[Any, ...]]
NEUTRAL: Neutral = {
    "response_format": ({"type": "text"},),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
}
NEUTRAL_IN_COMPLETIONS: Neutral = {**NEUTRAL, "echo": (False,), "suffix": (), "best_of": (1,)}
NEUTRAL_IN_CHAT: Neutral = {
    **NEUTRAL,
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
}


class Strict(BaseModel):
    """No unknown fields, no conversions between types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool = False


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
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, values in cls.neutral.items():
            if data.get(name) is not None and data[name] not in values:
                raise _field_error(name, "this server does not support it; leave it out")
        return {name: value for name, value in data.items() if name not in cls.neutral}

    @model_validator(mode="after")
    def _check_stream_options(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise _field_error("stream_options", "expected only together with stream = true")
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk of counts."""
        return self.stream_options is not None and self.stream_options.include_usage

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
            given["logit_bias"] = {_token_id(key): bias for key, bias in self.logit_bias.items()}
        given.setdefault("min_tokens", min(defaults.min_tokens, max(max_tokens, 0)))
        return replace(defaults, max_tokens=max_tokens, logprobs=logprobs, **given)


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    neutral: ClassVar[Neutral] = NEUTRAL_IN_COMPLETIONS

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = None
    logprobs: int | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one by one.

        Raises:
            RequestError: there is none.
        """
        if not self.prompt:
            raise RequestError.from_parts("a prompt", "an empty one")
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]

    @property
    def max_new_tokens(self) -> int:
        """Tokens to generate; OpenAI's default when the client does not say."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    """A message; `name` is for templates that show it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    neutral: ClassVar[Neutral] = NEUTRAL_IN_CHAT

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

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


class PlaygroundRequest(Strict):
    """Body of POST /playground/generate, the page's own endpoint."""

    prompt: str = Field(min_length=1)
    max_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    is_plain: bool = False


def _field_error(field: str, message: str) -> PydanticCustomError:
    return PydanticCustomError(FIELD_ERROR, "{message}", {"field": field, "message": message})


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 12):
        raise RequestError.from_parts("logit_bias keys to be token ids", f"{key!r:.40}")
    return int(key)
