"""What the device knows of every slot: tokens, lengths, blocks, sampling parameters, budgets.

A request keeps its slot for life. The host writes a slot when a sequence joins, and before a step
how many of its tokens are scheduled; the kernels advance `history` and the lengths themselves, and
`begin_step` derives from them what the other launches read, so that a step can be started before
the host knows what the last one did.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from zlib import crc32

import numpy as np
import torch

from sdengine.core.sequence import Sequence
from sdengine.kernels.programs.memory import Memory
from sdengine.kernels.sampling_tables import SamplingTables

TWO_TO_64 = 1 << 64
INT32_MAX = 2**31 - 1
FLOAT32_MAX = float(np.finfo(np.float32).max)
KERNELS_OWN = ("history", "root_values")


@dataclass(frozen=True, slots=True, eq=False)
class BatchState:
    """Struct of arrays over B slots; int32 unless said otherwise.

    Args:
        history: [B, S] known tokens, prompt and generated.
        history_lens: [B] how many.
        computed_lens: [B] of these, in the target's KV cache.
        draft_computed_lens: [B] of these, in the draft's KV cache.
        scheduled_lens: [B] most tokens that the target computes in this step; 0: takes no part.
        can_draft: [B] whether blocks for a tree are reserved.
        max_total_lens: [B] length at which the sequence ends.
        groups: [B] equal where sequences are waited for together.
        first_stops: [B] position of the first token that may stop it.
        pending_lens: [B] tokens the target computes in this step; 0 for a slot that takes no part.
        draft_pending_lens: [B] the same for the draft.
        wants_logits: [B] NO_LOGITS (unfinished prefill), ROOT_AND_NODES or ROOT_ONLY.
        draft_wants_logits: [B] ROOT_AND_NODES where a tree is grown, else NO_LOGITS.
        max_emit: [B] most tokens the step may commit.
        block_tables: [B, P_max] logical block -> physical block, of both caches.
        node_budgets: [B] most tree nodes.
        depth_limits: [B] most tree depth.
        root_values: [B] float32, what a tree is worth beside others of its group.
        temperature, top_p, min_p: [B] float32. top_k: [B]. seeds: [B] int64.
    """

    history: torch.Tensor
    history_lens: torch.Tensor
    computed_lens: torch.Tensor
    draft_computed_lens: torch.Tensor
    scheduled_lens: torch.Tensor
    can_draft: torch.Tensor
    max_total_lens: torch.Tensor
    groups: torch.Tensor
    first_stops: torch.Tensor
    pending_lens: torch.Tensor
    draft_pending_lens: torch.Tensor
    wants_logits: torch.Tensor
    draft_wants_logits: torch.Tensor
    max_emit: torch.Tensor
    block_tables: torch.Tensor
    node_budgets: torch.Tensor
    depth_limits: torch.Tensor
    root_values: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seeds: torch.Tensor

    @classmethod
    def allocate(
        cls, memory: Memory, max_num_seqs: int, max_history: int, max_blocks: int
    ) -> BatchState:
        """All slots empty."""
        b = max_num_seqs
        return cls(
            history=memory.zeros(b, max_history, dtype=torch.int32),
            history_lens=memory.state(b),
            computed_lens=memory.state(b),
            draft_computed_lens=memory.state(b),
            scheduled_lens=memory.inputs(b),
            can_draft=memory.inputs(b),
            max_total_lens=memory.inputs(b),
            groups=memory.inputs(b),
            first_stops=memory.inputs(b),
            pending_lens=memory.state(b),
            draft_pending_lens=memory.state(b),
            wants_logits=memory.state(b),
            draft_wants_logits=memory.state(b),
            max_emit=memory.state(b),
            block_tables=memory.tables(b, max_blocks),
            node_budgets=memory.state(b),
            depth_limits=memory.state(b),
            root_values=memory.full((b,), 1.0, torch.float32),
            temperature=memory.inputs(b, dtype=torch.float32),
            top_k=memory.inputs(b),
            top_p=memory.inputs(b, dtype=torch.float32, fill=1),
            min_p=memory.inputs(b, dtype=torch.float32),
            seeds=memory.inputs(b, dtype=torch.int64),
        )

    @property
    def sampling(self) -> SamplingTables:
        """How each slot draws, as the ops take it."""
        return SamplingTables(self.temperature, self.top_k, self.top_p, self.min_p, self.seeds)


class HostView:
    """What the host reads and writes of it, as numpy arrays; the history it only ever overwrites.

    Args:
        state: the slots.
        memory: where they lie.
    """

    def __init__(self, state: BatchState, memory: Memory) -> None:
        self._history = state.history
        self._memory = memory
        for f in fields(state):
            if f.name not in KERNELS_OWN:
                setattr(self, f.name, memory.host(getattr(state, f.name)))

    history_lens: np.ndarray
    computed_lens: np.ndarray
    draft_computed_lens: np.ndarray
    scheduled_lens: np.ndarray
    can_draft: np.ndarray
    max_total_lens: np.ndarray
    groups: np.ndarray
    first_stops: np.ndarray
    pending_lens: np.ndarray
    draft_pending_lens: np.ndarray
    wants_logits: np.ndarray
    draft_wants_logits: np.ndarray
    max_emit: np.ndarray
    block_tables: np.ndarray
    node_budgets: np.ndarray
    depth_limits: np.ndarray
    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    seeds: np.ndarray

    def admit(self, sequence: Sequence) -> None:
        """Fills a sequence's slot."""
        slot, params = sequence.slot, sequence.params
        tokens = np.asarray(sequence.token_ids, dtype=np.int32)
        self._memory.write_row(self._history, slot, tokens)
        self.history_lens[slot] = sequence.num_tokens
        self.computed_lens[slot] = sequence.num_computed
        self.draft_computed_lens[slot] = sequence.num_draft_computed
        self.max_total_lens[slot] = sequence.max_total_tokens
        self.groups[slot] = _group_number(sequence.group)
        self.first_stops[slot] = sequence.min_total_tokens
        self.temperature[slot] = min(params.temperature, FLOAT32_MAX)
        self.top_k[slot] = min(params.top_k, INT32_MAX)
        self.top_p[slot] = params.top_p
        self.min_p[slot] = params.min_p
        self.seeds[slot] = sequence.seed - (TWO_TO_64 if sequence.seed >= 1 << 63 else 0)

    def set_blocks(self, slot: int, block_table: list[int]) -> None:
        """Writes a sequence's blocks."""
        self.block_tables[slot, : len(block_table)] = block_table
        self._memory.mark_changed()

    def release(self, slot: int) -> None:
        """Empties a slot: it takes no part in steps that start from now on."""
        self.scheduled_lens[slot] = 0
        self.can_draft[slot] = 0


def _group_number(group: str) -> int:
    """A number that equal names have in common; should others share it, they only grow trees
    together."""
    return crc32(group.encode("utf-8", "surrogatepass")) & INT32_MAX
