"""Draft model: a small model of the same vocabulary grows the tree, one batched pass per layer.

Layer 0 computes the tokens that the draft has not seen yet (the ones committed last) and draws the
children of the root; every further layer computes the frontier that `tree_expand` chose, and is
skipped when that is empty. Keys and values of all forwarded nodes stay in the draft's cache behind
the root, so that an accepted path needs no recomputation: `commit_plan` moves them into place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from sdengine.cache.kv_cache import KVCache
from sdengine.core.growth import TreePolicy
from sdengine.kernels.draft_topk import device_scratch_size
from sdengine.kernels.programs.memory import StagedMemory
from sdengine.kernels.programs.program import Program
from sdengine.kernels.row_batch import RowBatch
from sdengine.kernels.token_tree import MASK_BITS, mask_words
from sdengine.kernels.tree_attention import MAX_MASK_WORDS
from sdengine.runner.drafter import Proposals
from sdengine.runner.forward import Activations, Logits, Spans, describe_forward
from sdengine.runner.penalties import describe_penalties
from sdengine.runner.variant import Variant
from sdengine.runner.weights import ModelWeights
from sdengine.runner.workspace import Workspace


class DraftModelDrafter:
    """Grows trees with a draft model.

    Args:
        weights: the draft model.
        cache: its KV cache; same number of blocks and block tables as the target's.
        policy: how the tree grows.
        workspace: the engine's buffers.
        is_sampled: draw candidates without replacement with noise of their own, as the rejection
            verifier needs; otherwise they are ranked with the target's noise (coupled).
        temperature: [B] float32 of the draft, usually the requests' own.
        calibrate: correct estimates by the workspace's tables.
        num_threads: workers of the pool.
        positional_acceptance: [K] float32, never increasing: what a node's first, second, ...
            candidate is taken to be accepted with, whatever the draft says of it. The policy then
            grows the same tree every time, the best static one of its size (Sequoia, arXiv
            2402.12374); None asks the draft.
    """

    def __init__(
        self,
        weights: ModelWeights,
        cache: KVCache,
        policy: TreePolicy,
        workspace: Workspace,
        *,
        is_sampled: bool,
        temperature: torch.Tensor,
        calibrate: bool,
        num_threads: int,
        positional_acceptance: torch.Tensor | None = None,
    ) -> None:
        sizes = workspace.sizes
        self._weights = weights
        self.cache = cache
        self.cost_key = weights.config
        self._policy = policy
        self._workspace = workspace
        self._is_sampled = is_sampled
        self._temperature = temperature
        self._calibrate = calibrate
        self.max_depth = sizes.max_depth
        self.tree_room = tree_room(sizes.max_nodes, sizes.max_depth, sizes.max_width)
        batch = sizes.max_num_seqs
        words = min(mask_words(sizes.max_depth * sizes.max_width), MAX_MASK_WORDS)
        memory = workspace.memory

        def ints(*shape: int) -> torch.Tensor:
            return memory.zeros(*shape, dtype=torch.int32)

        self._rows = RowBatch.allocate(batch, sizes.max_draft_rows, words, memory.device)
        self._buffers = Activations.allocate(
            weights, sizes.max_draft_rows, sizes.max_context, num_threads, memory
        )
        self._spans = Spans(self._rows, workspace.state.block_tables)
        self._pending_tokens = ints(sizes.max_batched_tokens)
        self._cu_pending = ints(batch + 1)
        self._cu_logits = ints(batch + 1)
        self._num_logits = ints(1)
        self._logit_rows = ints(sizes.max_draft_rows)
        frontier = batch * max(sizes.max_width, 1)
        self._logits = memory.empty(frontier, weights.lm_head.num_outputs)
        self._topk_scratch: torch.Tensor | None = None
        self._is_on_host = not isinstance(memory, StagedMemory)
        # A device would search a row of a large vocabulary for a threshold longer than a layer of a
        # small model takes. Of drawn tokens, what is drafted decides the text: it must be the same.
        self.uses_filters = self._is_on_host and not is_sampled
        if isinstance(memory, StagedMemory):
            size = device_scratch_size(frontier, sizes.num_candidates)
            self._topk_scratch = memory.empty(size, dtype=torch.int64)
        self._node_slots = ints(sizes.max_draft_rows)
        self._root_slots = ints(sizes.max_draft_rows)
        store = (sizes.max_depth * frontier, sizes.num_candidates)
        self.proposals = Proposals(ints(*store), memory.zeros(*store))
        self._ranking: torch.Tensor | None = None
        if positional_acceptance is not None:
            assert positional_acceptance.shape == (sizes.num_candidates,), positional_acceptance
            self._ranking = positional_acceptance.to(memory.device).repeat(frontier, 1)

    def propose(self, program: Program, variant: Variant) -> None:
        self._describe_chain(program)
        num_layers = min(program.limits.layers or self.max_depth, self.max_depth)
        self._describe_layer(program, variant, 0, num_layers)

    def _describe_layer(
        self, program: Program, variant: Variant, layer: int, num_layers: int
    ) -> None:
        """A layer and all that follow it; when one has no rows, none after it has."""
        frontier = len(self._logits)
        if layer == 0:
            rows = self._rows
            logits = Logits(self._logits, self._logit_rows[:frontier], self._num_logits)
        else:
            rows = self._rows.first(frontier)
            logits = Logits(self._logits, None, self._rows.num_rows)
        self._describe_pass(program, logits)
        if variant.has_penalties:
            workspace, known = self._workspace, self._workspace.state.history_lens
            tables, tree = workspace.penalties, workspace.draft_tree
            describe_penalties(program, tables, known, logits, rows, tree)
        if variant.has_filters:
            self._describe_filters(program, logits, rows)
        self._describe_growth(program, layer, num_layers, logits, rows)
        if layer + 1 < num_layers:
            with program.only_if(self._rows.num_rows):
                self._describe_layer(program, variant, layer + 1, num_layers)

    def _describe_filters(self, program: Program, logits: Logits, rows: RowBatch) -> None:
        program.launch(
            "filter_logits",
            logits=logits.values,
            row_seq=rows.row_seq,
            sampling=replace(self._workspace.state.sampling, temperature=self._temperature),
            num_rows=logits.num_rows,
            rows=logits.rows,
        )

    def catch_up(self, program: Program) -> None:
        self._describe_chain(program)
        self._describe_pass(program, None)

    def _describe_chain(self, program: Program) -> None:
        workspace, state = self._workspace, self._workspace.state
        program.launch(
            "gather_pending",
            history=state.history,
            computed_lens=state.draft_computed_lens,
            pending_lens=state.draft_pending_lens,
            num_seqs=workspace.num_seqs,
            pending_tokens=self._pending_tokens,
            cu_pending=self._cu_pending,
        )
        program.launch(
            "build_rows",
            pending_tokens=self._pending_tokens,
            cu_pending=self._cu_pending,
            computed_lens=state.draft_computed_lens,
            wants_logits=state.draft_wants_logits,
            num_seqs=workspace.num_seqs,
            block_tables=state.block_tables,
            block_size=workspace.sizes.block_size,
            tree=None,
            rows=self._rows,
            logit_rows=self._logit_rows,
            cu_logits=self._cu_logits,
            num_logits=self._num_logits,
        )

    def _describe_pass(self, program: Program, logits: Logits | None) -> None:
        limit = program.limits.draft_rows
        spans, buffers = self._spans, self._buffers
        describe_forward(program, self._weights, self.cache, spans, buffers, logits, limit)

    def _describe_growth(
        self, program: Program, layer: int, num_layers: int, logits: Logits, packed: RowBatch
    ) -> None:
        workspace, state, rows = self._workspace, self._workspace.state, self._rows
        growth = self._policy.grow(layer)
        is_last = layer + 1 == num_layers
        frontier = len(self._logits)
        offset = layer * frontier
        tokens = self.proposals.tokens[offset : offset + frontier]
        probs = self.proposals.probs[offset : offset + frontier]
        program.launch(
            "draft_topk",
            logits=logits.values,
            row_seq=packed.row_seq,
            positions=packed.positions,
            temperature=self._temperature,
            seeds=state.seeds,
            out_tokens=tokens,
            out_probs=probs,
            num_rows=logits.num_rows,
            rows=logits.rows,
            scratch=self._topk_scratch,
            **self._noise_arguments(layer, len(packed.tokens)),
        )
        program.launch(
            "tree_expand",
            layer=layer,
            rule=growth.rule,
            max_children=growth.max_children,
            max_width=workspace.sizes.max_width,
            block_size=workspace.sizes.block_size,
            candidate_tokens=tokens,
            candidate_probs=probs if self._ranking is None else self._ranking,
            cu_rows=self._cu_logits if layer == 0 else rows.cu_rows,
            frontier_nodes=None if layer == 0 else rows.row_node,
            tree=workspace.draft_tree,
            tree_starts=rows.tree_starts,
            node_budgets=state.node_budgets,
            total_budget=workspace.total_budget,
            depth_limits=state.depth_limits,
            stop_tokens=workspace.stop_tokens,
            min_layer_gain=workspace.min_layer_gain,
            row_prices=workspace.thresholds,
            cu_pending=workspace.cu_pending,
            block_tables=state.block_tables,
            num_seqs=workspace.num_seqs,
            scratch=workspace.tree_scratch,
            rows=None if is_last else rows,
            node_slots=None if is_last else self._node_slots,
            calibration=workspace.calibration if self._calibrate else None,
            root_values=state.root_values,
            proposal_offset=offset,
        )
        if self._is_on_host:
            program.launch("timestamp", out_ns=workspace.layer_ends_ns[layer : layer + 1])

    def _noise_arguments(self, layer: int, packed: int) -> dict[str, Any]:
        """Coupled drafts share the target's noise; sampled ones have noise of their own, keyed by
        step (where its tree starts) and node."""
        if not self._is_sampled:
            return {"noise": "target"}
        ids = self._root_slots if layer == 0 else self._node_slots
        return {
            "noise": "fresh",
            "node_slots": ids[:packed],
            "tree_starts": self._rows.tree_starts,
        }


def tree_room(max_nodes: int, max_depth: int, max_width: int) -> int:
    """Logical KV slots behind the root that a tree needs in either cache.

    The target writes one per node; the draft one per forwarded node, kept or not: every layer but
    the last forwards at most `max_width`, all together as many as the attention's masks hold.
    """
    forwarded = min((max_depth - 1) * max_width, MASK_BITS * MAX_MASK_WORDS)
    return max(max_nodes, forwarded) + 1
