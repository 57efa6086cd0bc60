"""Log-probabilities of emitted tokens, from the target's logits before temperature and filters:
their tables by slot, the launch that fills them, and what a sequence gets of them. Without a
sequence that asks for them the launch is left out of the iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from sdengine.core.outputs import Logprob
from sdengine.core.sampling_params import MAX_LOGPROBS
from sdengine.core.sequence import Sequence
from sdengine.kernels.programs.memory import Memory, StagedMemory
from sdengine.kernels.programs.program import Program
from sdengine.kernels.programs.replay_copies import MAX_REPLAYS
from sdengine.kernels.verdict import Verdict
from sdengine.runner.workspace import Workspace

NOT_ASKED = -1
"""In place of a number of alternatives: the slot's sequence wants no logprobs at all."""


class TokenText(Protocol):
    """What naming a token needs of a tokenizer."""

    def token_text(self, token_id: int) -> str:
        """Text of one token alone."""


@dataclass(frozen=True, slots=True, eq=False)
class LogprobBuffers:
    """Tables by slot; arguments of the op `token_logprobs`, where they are documented."""

    num_alternatives: torch.Tensor
    out_logprobs: torch.Tensor
    out_ranks: torch.Tensor
    out_best_tokens: torch.Tensor
    out_best_logprobs: torch.Tensor

    @classmethod
    def allocate(cls, memory: Memory, max_num_seqs: int, max_depth: int) -> LogprobBuffers:
        """Nothing asked for. On a CPU there are places for all iterations that may follow one
        another before the host reads, whose pages take memory when a sequence first uses them; a
        device's results are copied after each."""
        num_iterations = 1 if isinstance(memory, StagedMemory) else MAX_REPLAYS
        b, places = max_num_seqs, num_iterations * (max_depth + 1)
        return cls(
            num_alternatives=memory.tables(b, fill=NOT_ASKED),
            out_logprobs=memory.results(b, places, dtype=torch.float32),
            out_ranks=memory.results(b, places),
            out_best_tokens=memory.results(b, places, MAX_LOGPROBS),
            out_best_logprobs=memory.results(b, places, MAX_LOGPROBS, dtype=torch.float32),
        )


def describe_logprobs(
    program: Program, workspace: Workspace, verdict: Verdict, buffers: LogprobBuffers
) -> None:
    """Appends the launch that describes the verdict's tokens; they must not be committed yet."""
    program.launch(
        "token_logprobs",
        logits=workspace.logits,
        logit_starts=workspace.cu_logits,
        wants_logits=workspace.state.wants_logits,
        verdict=verdict,
        history_lens=workspace.state.history_lens,
        num_alternatives=buffers.num_alternatives,
        num_seqs=workspace.num_seqs,
        out_logprobs=buffers.out_logprobs,
        out_ranks=buffers.out_ranks,
        out_best_tokens=buffers.out_best_tokens,
        out_best_logprobs=buffers.out_best_logprobs,
    )


class LogprobTables:
    """Says who asks, and hands what was found to the sequences.

    Args:
        buffers: the iteration's.
        memory: where they lie.
    """

    def __init__(self, buffers: LogprobBuffers, memory: Memory) -> None:
        self._memory = memory
        self._num_alternatives = memory.host(buffers.num_alternatives)
        self._logprobs = memory.host(buffers.out_logprobs)
        self._ranks = memory.host(buffers.out_ranks)
        self._best_tokens = memory.host(buffers.out_best_tokens)
        self._best_logprobs = memory.host(buffers.out_best_logprobs)
        self._slots: set[int] = set()

    @property
    def is_needed(self) -> bool:
        """Whether any sequence asks."""
        return bool(self._slots)

    def admit(self, sequence: Sequence) -> None:
        """Notes what a joining sequence asks for."""
        wanted = sequence.params.logprobs
        if wanted is None:
            return
        self._slots.add(sequence.slot)
        self._num_alternatives[sequence.slot] = wanted
        self._memory.mark_changed()

    def release(self, slot: int) -> None:
        """Empties a slot."""
        if slot not in self._slots:
            return
        # In this order: an interrupt in between leaves a slot that is written once more.
        self._num_alternatives[slot] = NOT_ASKED
        self._memory.mark_changed()
        self._slots.discard(slot)

    def append(self, sequence: Sequence, slot: int, codec: TokenText | None) -> None:
        """Extends `sequence.logprobs` by the entries of those tokens that have none yet, which are
        of the step that has landed.

        Args:
            sequence: with logprobs asked for.
            slot: where it ran.
            codec: tokenizer, or None for empty token texts.
        """
        entries, wanted = sequence.logprobs, sequence.params.logprobs
        assert entries is not None and wanted is not None
        first, places = sequence.num_prompt_tokens + len(entries), self._ranks.shape[1]
        for position in range(first, sequence.num_tokens):
            place = position % places
            token = sequence.token_ids[position]
            value = float(self._logprobs[slot, place])
            rank = int(self._ranks[slot, place])
            entry = {token: Logprob(value, rank, _text(codec, token))}
            values = self._best_logprobs[slot, place, :wanted].tolist()
            for j, other in enumerate(self._best_tokens[slot, place, :wanted].tolist()):
                if other >= 0 and other != token:
                    entry[other] = Logprob(values[j], j + 1, _text(codec, other))
            entries.append(entry)
            sequence.cumulative_logprob += value


def _text(codec: TokenText | None, token: int) -> str:
    return "" if codec is None else codec.token_text(token)
