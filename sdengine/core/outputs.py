"""What the engine hands back: cumulative text and tokens per request, and how speculation did.

Once a completion has finished it is plain data: `dataclasses.asdict` makes of it what `json.dumps`
takes. While it is running its tokens and logprobs, and the prompt's tokens, are read-only views of
the engine's lists (`Snapshot`): equal to a list, and slices, sums and copies of it are lists
(`json.dumps` takes `list(token_ids)`), so that a step costs the same however long the text is.
`asdict` copies views as they are, so that it leaves the `Logprob`s of a running completion objects;
all else becomes plain data there, too.

All times are seconds; `*_time` of `RequestMetrics` are points on the clock `time.monotonic`,
`*_time_s` of `SpeculationStats` are durations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sdengine.core.frozen import LateFields

__all__ = [
    "CompletionOutput",
    "FinishReason",
    "Logprob",
    "RequestMetrics",
    "RequestOutput",
    "SpeculationStats",
    "StepTree",
]

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability of one token under the target model at one position.

    Args:
        logprob: natural logarithm of its probability before temperature and filters, with penalties
            and logit_bias.
        rank: 1 for the most likely token of the vocabulary.
        decoded_token: text of the token alone.
    """

    logprob: float
    rank: int
    decoded_token: str


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One completion of a request, cumulative: everything generated so far.

    Args:
        index: which of the request's n completions.
        text: decoded tokens, cut before the stop string unless it was to be kept.
        token_ids: generated tokens, cut at the same token as the text, logprobs and counts.
        logprobs: per generated token a map from token id (its own and the alternatives asked for)
            to its Logprob.
        cumulative_logprob: sum of the generated tokens' own logprobs; None when logprobs were not
            asked for.
        finish_reason: None while it is running.
        stop_reason: the stop string or stop token id that ended it; with finish_reason "abort" what
            made it end if that was not the caller, logits that are not finite; None for
            end-of-sequence and for other reasons.
        from_draft: per generated token, whether a draft proposed it and the target accepted it;
            every other token is the target's own. Two outputs that differ in this alone are equal.
    """

    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[dict[int, Logprob]] | None = None
    cumulative_logprob: float | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    from_draft: Sequence[bool] = field(default=(), compare=False)

    @property
    def is_finished(self) -> bool:
        """Whether no more tokens will come."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class StepTree:
    """The token tree that one step verified for one sequence, parents before children.

    Args:
        token_ids: its nodes; the root, a token committed before, is not among them.
        parents: per node the index of its parent in `token_ids`, or -1 below the root.
        accepted: indices of the accepted nodes, from the root downwards.
        own_token_id: the token that the target added itself.
    """

    token_ids: Sequence[int]
    parents: Sequence[int]
    accepted: Sequence[int]
    own_token_id: int


@dataclass(frozen=True, slots=True)
class SpeculationStats:
    """How speculation did for one request, over all its completions.

    A step is one target forward that committed tokens of a sequence; with an empty tree it is a
    plain decoding step.

    Args:
        num_steps: steps taken.
        num_draft_tokens: tree nodes sent to the target, roots not counted.
        num_accepted_draft_tokens: of these, committed.
        mean_acceptance_length: tokens committed per step, bonus token included; 0 without steps.
        draft_acceptance_rate: accepted / drafted; 0 when nothing was drafted.
        acceptance_histogram: index i = number of steps that accepted exactly i draft tokens.
        acceptance_by_depth: index d = share of the steps that accepted a draft token at depth d +
            1.
        draft_time_s: time spent proposing, from its first token on; in steps that others take part
            in, too, the whole of it.
        verify_time_s: the same in the target forward and the verifier.
        other_time_s: the same of everything else between two steps.
    """

    num_steps: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    mean_acceptance_length: float
    draft_acceptance_rate: float
    acceptance_histogram: Sequence[int]
    acceptance_by_depth: Sequence[float]
    draft_time_s: float = 0.0
    verify_time_s: float = 0.0
    other_time_s: float = 0.0

    @classmethod
    def from_histogram(
        cls,
        acceptance_histogram: Sequence[int],
        num_draft_tokens: int,
        num_committed_tokens: int,
        *,
        draft_time_s: float = 0.0,
        verify_time_s: float = 0.0,
        other_time_s: float = 0.0,
    ) -> SpeculationStats:
        """Derive every count and rate from what an engine has to count.

        Args:
            acceptance_histogram: as the field; trailing zeros are dropped.
            num_draft_tokens: as the field.
            num_committed_tokens: tokens committed in these steps, after the cut at a stop; it can
                be less than accepted + steps, because a step that ends at a stop commits no bonus
                token.
            draft_time_s: as the field.
            verify_time_s: as the field.
            other_time_s: as the field.
        """
        histogram = list(acceptance_histogram)
        while histogram and histogram[-1] == 0:
            histogram.pop()
        num_steps = sum(histogram)
        num_accepted = sum(i * count for i, count in enumerate(histogram))
        return cls(
            num_steps=num_steps,
            num_draft_tokens=num_draft_tokens,
            num_accepted_draft_tokens=num_accepted,
            mean_acceptance_length=num_committed_tokens / num_steps if num_steps else 0.0,
            draft_acceptance_rate=num_accepted / num_draft_tokens if num_draft_tokens else 0.0,
            acceptance_histogram=tuple(histogram),
            acceptance_by_depth=tuple(
                sum(histogram[d + 1 :]) / num_steps for d in range(len(histogram) - 1)
            ),
            draft_time_s=draft_time_s,
            verify_time_s=verify_time_s,
            other_time_s=other_time_s,
        )


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """When a request came, moved and ended, and what it cost.

    Args:
        arrival_time: when it was added.
        first_token_time: when its first token was committed; None before.
        finished_time: when its last completion ended; None before.
        num_prompt_tokens: tokens of the prompt.
        num_generated_tokens: over all completions.
        speculation: None when the engine decodes plainly, and until the request has finished.
    """

    arrival_time: float
    first_token_time: float | None = None
    finished_time: float | None = None
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    speculation: SpeculationStats | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput(LateFields):
    """State of one request, cumulative. While the request is running, `outputs` and `metrics` are
    made when they are looked at, of the state that this is an output of.

    Args:
        request_id: as given to `add_request`.
        prompt: its text; None when it came as token ids.
        prompt_token_ids: its tokens.
        outputs: completions, in the order of their index. An output of `Engine.step` holds only
            the one that moved; those of `Engine.abort_request` and `LLM.generate` hold all.
        finished: whether every completion is finished.
        metrics: times and counts so far.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: Sequence[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
