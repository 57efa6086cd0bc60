"""All static buffers of an iteration: what the launches of drafter, target and verifier share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sdengine.kernels.programs.memory import Memory, StagedMemory
from sdengine.kernels.row_batch import RowBatch
from sdengine.kernels.token_tree import DraftTree, TokenTree, allocate_tree_scratch, mask_words
from sdengine.kernels.tree_verify import walk_scratch_size
from sdengine.runner.batch_state import BatchState
from sdengine.runner.penalties import PenaltyBuffers


@dataclass(frozen=True, slots=True)
class Sizes:
    """Capacities of an engine, fixed at construction.

    Args:
        max_num_seqs: B, slots.
        max_batched_tokens: most pending tokens per step over all sequences.
        max_history: S, tokens a sequence can have.
        block_size: tokens per KV block.
        num_blocks: P.
        max_blocks: logical blocks per sequence, tree room included.
        vocab_size: V of the target.
        max_nodes: T, tree nodes per sequence; 0 without speculation.
        max_depth: deepest tree; 0 without speculation.
        num_candidates: K, candidates per draft row.
        max_width: draft rows per sequence and layer.
        num_stop_tokens: stop tokens per sequence known to the device.
    """

    max_num_seqs: int
    max_batched_tokens: int
    max_history: int
    block_size: int
    num_blocks: int
    max_blocks: int
    vocab_size: int
    max_nodes: int
    max_depth: int
    num_candidates: int
    max_width: int
    num_stop_tokens: int

    @property
    def max_target_rows(self) -> int:
        """Rows of the largest target pass: pending tokens and a whole tree per slot."""
        return self.max_batched_tokens + self.max_num_seqs * self.max_nodes

    @property
    def max_logit_rows(self) -> int:
        """Rows whose logits a target pass can be asked for: roots and nodes."""
        return self.max_num_seqs * (self.max_nodes + 1)

    @property
    def max_draft_rows(self) -> int:
        """Rows of the largest draft pass."""
        return max(self.max_batched_tokens, self.max_num_seqs * self.max_width)

    @property
    def max_context(self) -> int:
        """Keys that a row can see at most."""
        return self.max_blocks * self.block_size


@dataclass(frozen=True, slots=True, eq=False)
class Workspace:
    """Buffers of one engine.

    Args:
        memory: where they lie; what else an iteration needs is allocated there too.
        sizes: their capacities.
        state: per-slot state.
        penalties: per-slot tables of what changes logits.
        num_seqs: [1] = B; slots that take no part have no pending tokens.
        is_balanced [1]: whether sequences of a group are to end together.
        min_running [1]: fewest sequences that go on; where fewer do, a step does nothing.
        draft_tree, token_tree: trees while and after they grow.
        target_rows: the target's pass.
        pending_tokens [N], cu_pending [B + 1]: its pending tokens, packed.
        logits [R, V]: its logits; logit_rows [N], cu_logits [B + 1], num_logits [1] say whose.
        thresholds [N]: value a node must have to become row r of the target's pass.
        depth_limit [1]: deepest tree of this step; node_limit [1]: nodes of the largest.
        total_budget [1]: tree nodes of the whole batch.
        min_layer_gain [1]: expected tokens that a further draft layer must promise.
        stop_tokens [B, S_stop]: tokens below which nothing is drafted.
        calibration [B, 8, 32]: acceptance rate by class of rank and bin of raw estimate.
        layer_ends_ns [D] int64: when each draft layer of the last iteration ended, where layers
            without rows do not run (a CPU); of those that did not, when they did last.
        tree_scratch: working memory of the tree ops.
        walk_scratch: of `tree_verify` on a device; None on a CPU.
    """

    memory: Memory
    sizes: Sizes
    state: BatchState
    penalties: PenaltyBuffers
    num_seqs: torch.Tensor
    min_running: torch.Tensor
    is_balanced: torch.Tensor
    draft_tree: DraftTree
    token_tree: TokenTree
    target_rows: RowBatch
    pending_tokens: torch.Tensor
    cu_pending: torch.Tensor
    logits: torch.Tensor
    logit_rows: torch.Tensor
    cu_logits: torch.Tensor
    num_logits: torch.Tensor
    thresholds: torch.Tensor
    depth_limit: torch.Tensor
    node_limit: torch.Tensor
    total_budget: torch.Tensor
    min_layer_gain: torch.Tensor
    stop_tokens: torch.Tensor
    calibration: torch.Tensor
    layer_ends_ns: torch.Tensor
    tree_scratch: torch.Tensor
    walk_scratch: torch.Tensor | None

    @property
    def sampled_rows(self) -> torch.Tensor:
        """[R]: packed row of each row of `logits`."""
        return self.logit_rows[: self.logits.shape[0]]

    @classmethod
    def allocate(cls, sizes: Sizes, calibration: torch.Tensor, memory: Memory) -> Workspace:
        """Buffers for these sizes; `calibration` [8, 32] is every slot's first table."""
        b, rows, logit_rows = sizes.max_num_seqs, sizes.max_target_rows, sizes.max_logit_rows
        nodes = max(sizes.max_nodes, 1)
        device = memory.device

        def ints(*shape: int) -> torch.Tensor:
            return memory.zeros(*shape, dtype=torch.int32)

        workspace = cls(
            memory=memory,
            sizes=sizes,
            state=BatchState.allocate(memory, b, sizes.max_history, sizes.max_blocks),
            penalties=PenaltyBuffers.allocate(memory, b, sizes.vocab_size),
            num_seqs=memory.inputs(1, fill=b),
            min_running=memory.inputs(1),
            is_balanced=memory.inputs(1),
            draft_tree=DraftTree.allocate(b, nodes, device),
            token_tree=_shown_tree(TokenTree.allocate(b, nodes, device), memory),
            target_rows=RowBatch.allocate(b, rows, mask_words(nodes), device),
            pending_tokens=ints(sizes.max_batched_tokens),
            cu_pending=ints(b + 1),
            logits=memory.empty(logit_rows, sizes.vocab_size),
            logit_rows=ints(rows),
            cu_logits=ints(b + 1),
            num_logits=ints(1),
            thresholds=memory.inputs(rows, dtype=torch.float32),
            depth_limit=memory.inputs(1),
            node_limit=memory.inputs(1),
            total_budget=memory.inputs(1),
            min_layer_gain=memory.inputs(1, dtype=torch.float32),
            stop_tokens=memory.inputs(b, sizes.num_stop_tokens, fill=-1),
            calibration=memory.inputs(b, *calibration.shape, dtype=torch.float32),
            layer_ends_ns=memory.results(max(sizes.max_depth, 1), dtype=torch.int64),
            tree_scratch=allocate_tree_scratch(
                b, nodes, max(sizes.max_width, 1), max(sizes.num_candidates, 1), device
            ),
            walk_scratch=memory.zeros(walk_scratch_size(b), dtype=torch.int64)
            if isinstance(memory, StagedMemory)
            else None,
        )
        memory.host(workspace.calibration)[:] = calibration.numpy()
        return workspace


def _shown_tree(tree: TokenTree, memory: Memory) -> TokenTree:
    """The tree with those arrays exchanged that the host reads after a step."""
    shown = {}
    for name in ("tokens", "parents", "num_nodes"):
        tensor = getattr(tree, name)
        shown[name] = memory.results(*tensor.shape)
        shown[name].copy_(tensor)
    return replace(tree, **shown)
