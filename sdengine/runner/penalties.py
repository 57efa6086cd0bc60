"""Penalties, logit bias and masked stop tokens: their tables by slot, and the launch that applies
them, to the target's logits and to a draft's, which would propose what is not wanted. Without a
sequence that needs them the launches are left out of the iteration."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch

from sdengine.core.sequence import Sequence
from sdengine.kernels.programs.memory import Memory
from sdengine.kernels.programs.program import Program
from sdengine.kernels.row_batch import RowBatch
from sdengine.kernels.token_tree import DraftTree, TokenTree
from sdengine.runner.forward import Logits

MAX_BIASES = 1024
"""Entries of logit_bias per sequence (servers of the field accept 300 to 1024)."""
MAX_MASKED = 64
"""Stop tokens per sequence that min_tokens can mask."""


@dataclass(frozen=True, slots=True, eq=False)
class PenaltyBuffers:
    """Tables by slot; arguments of the op `penalize`, where they are documented."""

    prompt_counts: torch.Tensor
    output_counts: torch.Tensor
    repetition_penalty: torch.Tensor
    presence_penalty: torch.Tensor
    frequency_penalty: torch.Tensor
    bias_ids: torch.Tensor
    bias_values: torch.Tensor
    num_bias: torch.Tensor
    stop_ids: torch.Tensor
    num_stops: torch.Tensor
    min_lens: torch.Tensor

    @classmethod
    def allocate(cls, memory: Memory, max_num_seqs: int, vocab_size: int) -> PenaltyBuffers:
        """Neutral tables; pages of the count tables take memory when a sequence first uses them."""
        b = max_num_seqs
        return cls(
            prompt_counts=memory.zeros(b, vocab_size, dtype=torch.int32),
            output_counts=memory.zeros(b, vocab_size, dtype=torch.int32),
            repetition_penalty=memory.tables(b, dtype=torch.float32, fill=1),
            presence_penalty=memory.tables(b, dtype=torch.float32),
            frequency_penalty=memory.tables(b, dtype=torch.float32),
            bias_ids=memory.tables(b, MAX_BIASES),
            bias_values=memory.tables(b, MAX_BIASES, dtype=torch.float32),
            num_bias=memory.tables(b),
            stop_ids=memory.tables(b, MAX_MASKED),
            num_stops=memory.tables(b),
            min_lens=memory.tables(b),
        )


def describe_penalties(
    program: Program,
    buffers: PenaltyBuffers,
    history_lens: torch.Tensor,
    logits: Logits,
    rows: RowBatch,
    tree: DraftTree | TokenTree | None,
) -> None:
    """Appends the launch that changes logits in place, the target's or a draft's.

    Args:
        program: appended to.
        buffers: tables by slot.
        history_lens: [B] int32, known tokens by slot.
        logits: which, and the rows they are of.
        rows: these rows.
        tree: whose nodes they are; None: all of them stand behind known tokens.
    """
    program.launch(
        "penalize",
        logits=logits.values,
        row_seq=rows.row_seq,
        history_lens=history_lens,
        num_rows=logits.num_rows,
        rows=logits.rows,
        row_node=None if tree is None else rows.row_node,
        node_tokens=None if tree is None else tree.tokens,
        node_parents=None if tree is None else tree.parents,
        prompt_counts=buffers.prompt_counts,
        output_counts=buffers.output_counts,
        repetition_penalty=buffers.repetition_penalty,
        presence_penalty=buffers.presence_penalty,
        frequency_penalty=buffers.frequency_penalty,
        bias_ids=buffers.bias_ids,
        bias_values=buffers.bias_values,
        num_bias=buffers.num_bias,
        stop_ids=buffers.stop_ids,
        num_stops=buffers.num_stops,
        min_lens=buffers.min_lens,
    )


class PenaltyTables:
    """Keeps the tables as sequences join and leave; the commit counts output tokens itself.

    Args:
        buffers: written.
        memory: where they lie.
    """

    def __init__(self, buffers: PenaltyBuffers, memory: Memory) -> None:
        self._memory = memory
        self._counts = (buffers.prompt_counts, buffers.output_counts)
        self._repetition = memory.host(buffers.repetition_penalty)
        self._presence = memory.host(buffers.presence_penalty)
        self._frequency = memory.host(buffers.frequency_penalty)
        self._bias_ids = memory.host(buffers.bias_ids)
        self._bias_values = memory.host(buffers.bias_values)
        self._num_bias = memory.host(buffers.num_bias)
        self._stop_ids = memory.host(buffers.stop_ids)
        self._num_stops = memory.host(buffers.num_stops)
        self._min_lens = memory.host(buffers.min_lens)
        self._slots: set[int] = set()

    @property
    def is_needed(self) -> bool:
        """Whether any sequence's logits must be changed."""
        return bool(self._slots)

    def admit(self, sequence: Sequence) -> None:
        """Fills a joining sequence's tables, its earlier output included (after a preemption)."""
        params, slot = sequence.params, sequence.slot
        if not params.changes_logits:
            return
        self._slots.add(slot)
        end = sequence.num_prompt_tokens
        self._write_counts(slot, sequence.token_ids[:end], sequence.token_ids[end:])
        self._repetition[slot] = params.repetition_penalty
        self._presence[slot] = params.presence_penalty
        self._frequency[slot] = params.frequency_penalty
        biases = params.logit_bias or {}
        self._num_bias[slot] = len(biases)
        self._bias_ids[slot, : len(biases)] = list(biases.keys())
        self._bias_values[slot, : len(biases)] = list(biases.values())
        if params.min_tokens:
            stops = sorted(sequence.stop_token_ids)
            self._num_stops[slot] = len(stops)
            self._stop_ids[slot, : len(stops)] = stops
            self._min_lens[slot] = sequence.min_total_tokens
        self._memory.mark_changed()

    def release(self, slot: int) -> None:
        """Makes a slot neutral again."""
        if slot not in self._slots:
            return
        for counts in self._counts:
            self._memory.clear_row(counts, slot)
        self._repetition[slot] = 1.0
        for array in (
            self._presence,
            self._frequency,
            self._num_bias,
            self._num_stops,
            self._min_lens,
        ):
            array[slot] = 0
        self._memory.mark_changed()
        self._slots.remove(slot)  # last: after an interrupt before it all of this is done again

    def _write_counts(self, slot: int, *token_ids: SequenceOf[int]) -> None:
        """counts[slot, t] = occurrences of t, in prompt and output."""
        for counts, tokens in zip(self._counts, token_ids, strict=True):
            row = np.bincount(np.asarray(tokens, dtype=np.int64), minlength=counts.shape[1])
            self._memory.write_row(counts, slot, row.astype(np.int32))
