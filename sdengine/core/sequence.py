"""A sequence: one completion of a request while it lives in the engine.

Holds tokens, lengths and blocks; knows nothing of models, kernels or scheduling rules.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from enum import Enum

from sdengine.core.growing_text import GrowingText
from sdengine.core.outputs import FinishReason, Logprob
from sdengine.core.sampling_params import SamplingParams

NO_SLOT = -1


class SequenceStatus(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """State of one completion.

    Args:
        request_id: id of the request it belongs to.
        index: which of the request's n completions.
        params: its sampling parameters.
        seed: 64-bit key of its noise; the same seed gives the same text.
        token_ids: prompt and generated tokens; only ever grows, as `logprobs` and `from_draft` do,
            because outputs show parts of them.
        num_prompt_tokens: how many of them are the prompt's.
        stop_token_ids: tokens that end it (end-of-sequence included unless ignored).
        max_total_tokens: length at which it ends for lack of room or by max_tokens.
        group: name that sequences have in common which are waited for together.
    """

    request_id: str
    index: int
    params: SamplingParams
    seed: int
    token_ids: list[int]
    num_prompt_tokens: int
    stop_token_ids: frozenset[int]
    max_total_tokens: int
    group: str = ""

    status: SequenceStatus = SequenceStatus.WAITING
    slot: int = NO_SLOT
    block_table: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_draft_computed: int = 0
    num_hashed_blocks: int = 0
    num_drafted_blocks: int = 0
    num_preemptions: int = 0
    growing_text: GrowingText = field(init=False)
    logprobs: list[dict[int, Logprob]] | None = None
    cumulative_logprob: float = 0.0
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    num_draft_tokens: int = 0
    from_draft: list[bool] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Text of the generated tokens, as far as it is certain; known to whom a StopChecker has
        been made for."""
        return self.growing_text.read()

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens."""
        return len(self.token_ids)

    @property
    def num_generated(self) -> int:
        """Generated tokens."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def min_total_tokens(self) -> int:
        """Length that it must have before a token may stop it, as far as it can get at all."""
        return min(self.num_prompt_tokens + self.params.min_tokens, self.max_total_tokens)

    @property
    def num_pending(self) -> int:
        """Tokens whose keys and values the target has not computed; 1 while decoding."""
        return len(self.token_ids) - self.num_computed

    @property
    def is_finished(self) -> bool:
        """Whether no more tokens will come."""
        return self.status is SequenceStatus.FINISHED

    def count_steps(
        self, num_tokens: int, num_accepted: SequenceOf[int], num_nodes: SequenceOf[int]
    ) -> None:
        """Counts iterations that committed `num_tokens` tokens together.

        Args:
            num_tokens: as many of theirs as count; iterations beyond them do not.
            num_accepted: tokens of each that are from a draft; one more is the target's own.
            num_nodes: of that draft.
        """
        from_draft = self.from_draft
        if num_tokens == 1 and not num_accepted[0]:  # every plain step
            from_draft.append(False)
            self.num_draft_tokens += num_nodes[0]
            return
        for accepted, nodes in zip(num_accepted, num_nodes):
            if accepted:
                from_draft += [True] * min(accepted, num_tokens)
            if num_tokens > accepted:
                from_draft.append(False)
            self.num_draft_tokens += nodes
            num_tokens -= accepted + 1
            if num_tokens <= 0:
                return

    def accepted_per_step(self) -> list[int]:
        """Draft tokens that each of its steps accepted: a step's own token follows them, but for
        the last one's, which a cut may have taken away."""
        runs = bytes(self.from_draft).split(b"\0")
        return [len(run) for run in (runs if runs[-1] else runs[:-1])]

    def release(self) -> None:
        """Forgets blocks and computed lengths, as after preemption or at the end."""
        self.block_table = []
        self.num_computed = 0
        self.num_draft_computed = 0
        self.num_hashed_blocks = 0
        self.num_drafted_blocks = 0
        self.slot = NO_SLOT
