"""Requests: opened, looked up, turned into outputs, closed.

A request is its prompt, its parameters and one sequence per completion. What it may ask for is
checked by `request_checks`, before anything is queued.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from sdengine.core.growing_text import TextStream
from sdengine.core.outputs import (
    CompletionOutput,
    RequestOutput,
    SpeculationStats,
)
from sdengine.core.request_checks import (
    RequestLimits,
    check_length,
    check_tables,
    check_text,
    checked_ids,
    ending_tokens,
)
from sdengine.core.request_outputs import completion_output, request_metrics, running_output
from sdengine.core.sampling_params import SamplingParams
from sdengine.core.sequence import Sequence
from sdengine.core.snapshot import Snapshot
from sdengine.core.spent_time import SpentTime, Totals
from sdengine.core.stop import StopChecker
from sdengine.errors import RequestError

__all__ = ["Request", "RequestBook", "RequestLimits", "TextCodec", "completion_seed", "mix64"]

MASK64 = (1 << 64) - 1


class TextCodec(Protocol):
    """What a request needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, special tokens added as the checkpoint says."""

    def detokenizer(self, *, skip_special_tokens: bool, continues_text: bool) -> TextStream:
        """A stream that turns generated tokens into text."""


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
    spent_before: Totals | None = None  # its first step
    num_generated: int = 0  # tokens, over all sequences
    prompt_view: Snapshot[int] = field(init=False)  # for outputs while it lives

    def __post_init__(self) -> None:
        self.prompt_view = Snapshot(self.prompt_token_ids, 0, len(self.prompt_token_ids))

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
        spent: by the engine's steps so far.
    """

    def __init__(
        self,
        codec: TextCodec | None,
        limits: RequestLimits,
        capacity_tokens: int,
        seed: int,
        spent: SpentTime,
    ) -> None:
        self.limits = limits
        self._spent = spent
        self._codec = codec
        self._capacity_tokens = capacity_tokens
        # Scrambled, because the k-th request's seed adds k to it, so that neighbouring seeds would
        # share all but one; and twice, because `completion_seed` of the k-th completion of a
        # request that brings this very seed scrambles it once.
        self._seed = mix64(mix64(seed))
        self._num_opened = 0
        self._requests: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: object) -> bool:
        return isinstance(request_id, str) and request_id in self._requests

    def unfinished(self) -> list[Request]:
        """All of them, oldest first."""
        return list(self._requests.values())

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
        self,
        wanted: Iterable[tuple[str, str | SequenceOf[int], SamplingParams]],
        group: str | None = None,
    ) -> list[Sequence]:
        """Checks requests and makes their sequences: of all of them, or of none.

        Args:
            wanted: request_id, prompt and params of each.
            group: of them all; None: each is one by itself.

        Raises:
            RequestError: see `Engine.add_request`.
        """
        if group is not None and not isinstance(group, str):
            raise RequestError.from_parts("group to be a string or None", repr(group))
        requests: dict[str, Request] = {}
        for request_id, prompt, params in wanted:
            if not isinstance(request_id, str):
                raise RequestError.from_parts("request_id to be a string", repr(request_id))
            if request_id in self or request_id in requests:
                raise RequestError.from_parts(
                    "a request_id that no unfinished request has", repr(request_id)
                )
            requests[request_id] = self._checked(request_id, prompt, params)
        for request in requests.values():
            self._prepare(request, group)
        self._requests.update(requests)  # at once: an interrupt leaves all of them, or none
        return [sequence for request in requests.values() for sequence in request.sequences]

    def _checked(
        self, request_id: str, prompt: str | SequenceOf[int], params: SamplingParams
    ) -> Request:
        if not isinstance(params, SamplingParams):
            raise RequestError.from_parts("params to be SamplingParams", type(params).__name__)
        token_ids = self._token_ids(prompt)
        check_length(len(token_ids), params, self.limits, self._capacity_tokens)
        check_tables(params, self.limits)
        check_text(params, self._codec is not None)
        text = prompt if isinstance(prompt, str) else None
        return Request(request_id, text, token_ids, params, monotonic())

    def _prepare(self, request: Request, group: str | None) -> None:
        params, name = request.params, _group_name(request.request_id, group)
        base = params.seed if params.seed is not None else mix64(self._seed + self._num_opened)
        self._num_opened += 1
        for index in range(params.n):
            self._add_sequence(request, index, completion_seed(base, index), name)

    def close(self, request: Request) -> RequestOutput:
        """Forgets a request and returns its last, whole output."""
        self._requests.pop(request.request_id, None)
        outputs = [completion_output(sequence) for sequence in request.sequences]
        return self._request_output(request, outputs, monotonic())

    def output(self, request: Request, sequence: Sequence) -> RequestOutput:
        """Cumulative output of one sequence of a request."""
        if sequence.finish_reason is None:
            return running_output(request, sequence)
        finished_time = monotonic() if request.is_finished else None
        return self._request_output(request, [completion_output(sequence)], finished_time)

    def _request_output(
        self, request: Request, outputs: list[CompletionOutput], finished_time: float | None
    ) -> RequestOutput:
        is_finished = finished_time is not None
        stats = self._speculation_stats(request) if is_finished else None
        return RequestOutput(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_token_ids=(
                list(request.prompt_token_ids) if is_finished else request.prompt_view
            ),
            outputs=outputs,
            finished=is_finished,
            metrics=request_metrics(request, request.num_generated, finished_time, stats),
        )

    def _speculation_stats(self, request: Request) -> SpeculationStats | None:
        if not self.limits.has_speculation:
            return None
        accepted = [n for sequence in request.sequences for n in sequence.accepted_per_step()]
        histogram = [0] * (max(accepted, default=0) + 1)
        for num_accepted in accepted:
            histogram[num_accepted] += 1
        before, spent = request.spent_before, (0.0, 0.0, 0.0)
        if before is not None:
            spent = self._spent.since(before)
        draft_s, verify_s, other_s = spent
        return SpeculationStats.from_histogram(
            histogram,
            sum(s.num_draft_tokens for s in request.sequences),
            request.num_generated,
            draft_time_s=draft_s,
            verify_time_s=verify_s,
            other_time_s=other_s,
        )

    def _add_sequence(self, request: Request, index: int, seed: int, group: str) -> None:
        params, limits = request.params, self.limits
        room = len(request.prompt_token_ids) + params.max_tokens
        sequence = Sequence(
            request_id=request.request_id,
            index=index,
            params=params,
            seed=seed,
            token_ids=list(request.prompt_token_ids),
            num_prompt_tokens=len(request.prompt_token_ids),
            stop_token_ids=ending_tokens(params, limits),
            max_total_tokens=min(room, limits.max_model_len),
            group=group,
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
            prompt = self._codec.encode(prompt)
        token_ids = checked_ids(prompt, self.limits)
        if not token_ids:
            raise RequestError.from_parts("a prompt of at least one token", "an empty prompt")
        return token_ids


class NoText:
    """Text stream of a checkpoint without a tokenizer: no text."""

    def push(self, token_ids: list[int]) -> str:
        return ""

    def finish(self) -> str:
        return ""


def _group_name(request_id: str, group: str | None) -> str:
    """A request's own group has a name that no group of the caller's has."""
    return f"request {request_id}" if group is None else f"group {group}"


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
