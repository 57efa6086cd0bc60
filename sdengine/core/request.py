"""Requests: opened, looked up, turned into outputs, closed.

A request is its prompt, its parameters and one sequence per completion. Everything a user may get
wrong about a single request is refused here, before anything is queued.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Set
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from sdengine.core.frozen import quick_maker
from sdengine.core.outputs import (
    CompletionOutput,
    RequestMetrics,
    RequestOutput,
    SpeculationStats,
)
from sdengine.core.sampling_params import SamplingParams
from sdengine.core.sequence import Sequence
from sdengine.core.snapshot import Snapshot, list_part
from sdengine.core.stop import StopChecker, TextStream
from sdengine.errors import RequestError

MASK64 = (1 << 64) - 1

# Of what every step makes for every sequence.
make_completion = quick_maker(CompletionOutput)
make_metrics = quick_maker(RequestMetrics)
make_output = quick_maker(RequestOutput)


class TextCodec(Protocol):
    """What a request needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, special tokens added as the checkpoint says."""

    def detokenizer(self, *, skip_special_tokens: bool, continues_text: bool) -> TextStream:
        """A stream that turns generated tokens into text."""


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
    """

    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    has_speculation: bool
    max_biases: int
    max_masked: int


@dataclass(slots=True, eq=False)
class Request:
    """One request while it lives."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival_time: float
    sequences: list[Sequence] = field(default_factory=list)
    stop_checkers: list[StopChecker] = field(default_factory=list)
    first_token_time: float | None = None
    num_generated: int = 0  # tokens, over all sequences

    @property
    def is_finished(self) -> bool:
        """Whether all completions are."""
        return all(sequence.is_finished for sequence in self.sequences)


class RequestBook:
    """The unfinished requests by id.

    Args:
        codec: tokenizer of the target; None when prompts are token ids only.
        limits: what the model allows.
        capacity_tokens: tokens that fit into the whole KV cache.
        seed: from which requests without a seed get theirs.
    """

    def __init__(
        self, codec: TextCodec | None, limits: RequestLimits, capacity_tokens: int, seed: int
    ) -> None:
        self.limits = limits
        self._codec = codec
        self._capacity_tokens = capacity_tokens
        self._seed = seed
        self._num_opened = 0
        self._requests: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: object) -> bool:
        return isinstance(request_id, str) and request_id in self._requests

    def get(self, request_id: str) -> Request:
        """The unfinished request of that id.

        Raises:
            RequestError: there is none.
        """
        try:
            return self._requests[request_id]
        except (KeyError, TypeError):
            raise RequestError.from_parts(
                "the id of an unfinished request", repr(request_id), "it may have finished already"
            ) from None

    def open(
        self, request_id: str, prompt: str | SequenceOf[int], params: SamplingParams
    ) -> list[Sequence]:
        """Checks a request and makes its sequences.

        Raises:
            RequestError: see `Engine.add_request`.
        """
        if not isinstance(request_id, str) or request_id in self._requests:
            raise RequestError.from_parts(
                "a request_id that no unfinished request has", repr(request_id)
            )
        if not isinstance(params, SamplingParams):
            raise RequestError.from_parts("params to be SamplingParams", type(params).__name__)
        token_ids = self._token_ids(prompt)
        self._check_length(token_ids, params)
        self._check_tables(params)
        request = Request(
            request_id, prompt if isinstance(prompt, str) else None, token_ids, params, monotonic()
        )
        base = params.seed if params.seed is not None else mix64(self._seed + self._num_opened)
        self._num_opened += 1
        for index in range(params.n):
            self._add_sequence(request, index, completion_seed(base, index))
        self._requests[request_id] = request
        return request.sequences

    def close(self, request: Request) -> RequestOutput:
        """Forgets a request and returns its last, whole output."""
        self._requests.pop(request.request_id, None)
        outputs = [completion_output(sequence) for sequence in request.sequences]
        return self._request_output(request, outputs, monotonic())

    def output(self, request: Request, sequence: Sequence) -> RequestOutput:
        """Cumulative output of one sequence of a request."""
        is_finished = sequence.finish_reason is not None and request.is_finished
        finished_time = monotonic() if is_finished else None
        return self._request_output(request, [completion_output(sequence)], finished_time)

    def _request_output(
        self, request: Request, outputs: list[CompletionOutput], finished_time: float | None
    ) -> RequestOutput:
        is_finished = finished_time is not None
        metrics = make_metrics(
            request.arrival_time,
            request.first_token_time,
            finished_time,
            len(request.prompt_token_ids),
            request.num_generated,
            self._speculation_stats(request) if is_finished else None,
        )
        return make_output(
            request.request_id,
            request.prompt,
            request.prompt_token_ids,
            outputs,
            is_finished,
            metrics,
        )

    def _speculation_stats(self, request: Request) -> SpeculationStats | None:
        if not self.limits.has_speculation:
            return None
        longest = max(len(s.acceptance_histogram) for s in request.sequences)
        histogram = [0] * longest
        for sequence in request.sequences:
            for accepted, count in enumerate(sequence.acceptance_histogram):
                histogram[accepted] += count
        return SpeculationStats.from_histogram(
            histogram,
            sum(s.num_draft_tokens for s in request.sequences),
            request.num_generated,
            draft_time_s=sum(s.draft_time_s for s in request.sequences),
            verify_time_s=sum(s.verify_time_s for s in request.sequences),
            other_time_s=sum(s.other_time_s for s in request.sequences),
        )

    def _add_sequence(self, request: Request, index: int, seed: int) -> None:
        params, limits = request.params, self.limits
        stops = frozenset(params.stop_token_ids or ())
        room = len(request.prompt_token_ids) + params.max_tokens
        sequence = Sequence(
            request_id=request.request_id,
            index=index,
            params=params,
            seed=seed,
            token_ids=list(request.prompt_token_ids),
            num_prompt_tokens=len(request.prompt_token_ids),
            stop_token_ids=stops if params.ignore_eos else stops | limits.eos_token_ids,
            max_total_tokens=min(room, limits.max_model_len),
        )
        if params.logprobs is not None:
            sequence.logprobs = []
        stream: TextStream = (
            self._codec.detokenizer(
                skip_special_tokens=params.skip_special_tokens, continues_text=True
            )
            if self._codec is not None
            else NoText()
        )
        request.sequences.append(sequence)
        request.stop_checkers.append(StopChecker(sequence, stream, limits.eos_token_ids))

    def _token_ids(self, prompt: str | SequenceOf[int]) -> list[int]:
        if isinstance(prompt, str):
            if self._codec is None:
                raise RequestError.from_parts(
                    "token ids, because the checkpoint has no tokenizer.json", "text"
                )
            token_ids = self._codec.encode(prompt)
        else:
            token_ids = self._checked_ids(prompt)
        if not token_ids:
            raise RequestError.from_parts("a prompt of at least one token", "an empty prompt")
        return token_ids

    def _checked_ids(self, prompt: SequenceOf[int]) -> list[int]:
        token_ids = integer_list(prompt)
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self.limits.vocab_size:
            allowed = range(self.limits.vocab_size)
            position = next(i for i, token in enumerate(token_ids) if token not in allowed)
            raise RequestError.from_parts(
                f"token ids in [0, {self.limits.vocab_size})",
                f"{token_ids[position]} at position {position}",
            )
        return token_ids

    def _check_length(self, token_ids: list[int], params: SamplingParams) -> None:
        limit = self.limits.max_model_len
        if len(token_ids) >= limit:
            raise RequestError.from_parts(
                f"a prompt shorter than max_model_len = {limit} tokens",
                f"{len(token_ids)} tokens",
                "shorten the prompt or raise max_model_len",
            )
        needed = min(len(token_ids) + params.max_tokens, limit)
        if needed > self._capacity_tokens:
            raise RequestError.from_parts(
                f"a request of at most {self._capacity_tokens} tokens, the whole KV cache",
                f"{len(token_ids)} prompt + {params.max_tokens} new tokens",
                "raise num_kv_blocks or lower max_tokens",
            )

    def _check_tables(self, params: SamplingParams) -> None:
        """logit_bias and masked stop tokens have to fit the device's tables."""
        biases, limits = params.logit_bias or {}, self.limits
        for token in biases:
            if not 0 <= token < limits.vocab_size:
                raise RequestError.from_parts(
                    f"logit_bias tokens in [0, {limits.vocab_size})", str(token)
                )
        if len(biases) > limits.max_biases:
            raise RequestError.from_parts(
                f"at most {limits.max_biases} tokens in logit_bias", str(len(biases))
            )
        num_stops = len(tuple(params.stop_token_ids or ())) + len(limits.eos_token_ids)
        if params.min_tokens and num_stops > limits.max_masked:
            raise RequestError.from_parts(
                f"at most {limits.max_masked} stop tokens together with min_tokens", str(num_stops)
            )


class NoText:
    """Text stream of a checkpoint without a tokenizer: no text."""

    def push(self, token_ids: list[int]) -> str:
        return ""

    def finish(self) -> str:
        return ""


def completion_output(sequence: Sequence) -> CompletionOutput:
    """Everything a sequence has generated so far; in lists of its own once it has ended."""
    part = Snapshot if sequence.finish_reason is None else list_part
    tokens, from_draft, logprobs = sequence.token_ids, sequence.from_draft, sequence.logprobs
    return make_completion(
        sequence.index,
        sequence.text,
        part(tokens, sequence.num_prompt_tokens, len(tokens)),
        None if logprobs is None else part(logprobs, 0, len(logprobs)),
        None if logprobs is None else sequence.cumulative_logprob,
        sequence.finish_reason,
        sequence.stop_reason,
        part(from_draft, 0, len(from_draft)),
    )


def integer_list(prompt: object) -> list[int]:
    """The token ids of a list, tuple, array or tensor.

    Raises:
        RequestError: it is something else, or holds something that is no integer.
    """
    expected = "a prompt of text or of token ids"
    if isinstance(prompt, (bytes, bytearray, Mapping, Set)) or not isinstance(prompt, Iterable):
        raise RequestError.from_parts(expected, type(prompt).__name__)
    items = list(prompt)
    if set(map(type, items)) <= {int}:
        return items
    for position, item in enumerate(items):
        if not is_integer(item):
            raise RequestError.from_parts(expected, f"{item!r:.40} at position {position}")
    return list(map(operator.index, items))


def is_integer(value: object) -> bool:
    """Whether a value is an integer of any library; a bool is none."""
    try:
        return not isinstance(value, bool) and operator.index(value) is not None  # type: ignore[arg-type]
    except TypeError:
        return False


def completion_seed(seed: int, index: int) -> int:
    """Noise key of a request's completion: the request's own seed for the first, and for the others
    one that no completion of a neighbouring seed has.
    """
    return (mix64(mix64(seed) + index) if index else seed) & MASK64


def mix64(value: int) -> int:
    """A bijective scrambling of 64-bit integers, so that neighbouring seeds share no noise
    (splitmix64's finaliser).
    """
    value = (value + 0x9E3779B97F4A7C15) & MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK64
    return value ^ (value >> 31)
