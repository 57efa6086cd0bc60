"""Outputs of requests: of one that goes on, made when somebody looks at it, and of one that ended.

A step makes an output for every sequence that moved, and most callers look at few of them, or at a
part (docs/log.md, "What nobody looks at").
"""

from __future__ import annotations

from typing import Any, Protocol

from sdengine.core.frozen import late_maker, quick_maker
from sdengine.core.growing_text import TextMoment
from sdengine.core.outputs import (
    CompletionOutput,
    RequestMetrics,
    RequestOutput,
    SpeculationStats,
)
from sdengine.core.sequence import Sequence
from sdengine.core.snapshot import Snapshot


class Requested(Protocol):
    """What outputs show of a request."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_view: Snapshot[int]
    arrival_time: float
    first_token_time: float | None
    num_generated: int


make_output = late_maker(RequestOutput, "outputs", "metrics")
make_completion = quick_maker(CompletionOutput)
make_metrics = quick_maker(RequestMetrics)


def running_output(request: Requested, sequence: Sequence) -> RequestOutput:
    """Output of a sequence that goes on."""
    text, logprob = sequence.growing_text.moment(), sequence.cumulative_logprob
    arguments = (request, sequence, text, logprob, request.num_generated)
    return make_output(  # type: ignore[no-any-return]
        request.request_id,
        request.prompt,
        request.prompt_view,
        False,
        (running_fields, arguments),
    )


def completion_output(sequence: Sequence) -> CompletionOutput:
    """Everything that a sequence which has ended has generated."""
    logprobs = sequence.logprobs
    return CompletionOutput(
        index=sequence.index,
        text=sequence.text,
        token_ids=sequence.token_ids[sequence.num_prompt_tokens :],
        logprobs=None if logprobs is None else list(logprobs),
        cumulative_logprob=None if logprobs is None else sequence.cumulative_logprob,
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
        from_draft=list(sequence.from_draft),
    )


def running_fields(
    request: Requested,
    sequence: Sequence,
    text: TextMoment,
    cumulative_logprob: float,
    num_generated: int,
) -> dict[str, Any]:
    """Late fields of an output of a sequence that went on: what it had generated.

    Args:
        request: of it.
        sequence: whose lists have grown since, at most.
        text: of it, then.
        cumulative_logprob: then.
        num_generated: tokens of the request, then.
    """
    num_tokens, logprobs = text[0], sequence.logprobs
    num_own = num_tokens - sequence.num_prompt_tokens
    completion = make_completion(
        sequence.index,
        sequence.growing_text.at(text),
        Snapshot(sequence.token_ids, sequence.num_prompt_tokens, num_tokens),
        None if logprobs is None else Snapshot(logprobs, 0, num_own),
        None if logprobs is None else cumulative_logprob,
        None,
        None,
        Snapshot(sequence.from_draft, 0, num_own),
    )
    return {"outputs": [completion], "metrics": request_metrics(request, num_generated)}


def request_metrics(
    request: Requested,
    num_generated: int,
    finished_time: float | None = None,
    speculation: SpeculationStats | None = None,
) -> RequestMetrics:
    """Times and counts of a request when it had generated so many tokens."""
    return make_metrics(
        request.arrival_time,
        request.first_token_time,
        finished_time,
        len(request.prompt_token_ids),
        num_generated,
        speculation,
    )
