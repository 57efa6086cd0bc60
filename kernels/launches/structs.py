"""The argument structs of csrc/include/sdengine, field by field, for ctypes.

Compiled code that takes a struct of another size is refused at its first launch; that fields have
the names and the order of their header is tested (tests/kernels/test_launches.py).
"""

from __future__ import annotations

from ctypes import Structure, c_bool, c_int32, c_int64, c_void_p
from dataclasses import dataclass, fields
from typing import Any

import torch

from sdengine.kernels.move_plan import MovePlan
from sdengine.kernels.row_batch import RowBatch
from sdengine.kernels.sampling_tables import SamplingTables
from sdengine.kernels.spec import address, addresses
from sdengine.kernels.token_tree import DraftTree, TokenTree
from sdengine.kernels.verdict import Verdict

Field = tuple[str, Any]


def pointers(*names: str) -> list[Field]:
    """Fields that hold addresses."""
    return [(name, c_void_p) for name in names]


def ints(*names: str) -> list[Field]:
    """int32 fields."""
    return [(name, c_int32) for name in names]


def longs(*names: str) -> list[Field]:
    """int64 fields."""
    return [(name, c_int64) for name in names]


@dataclass(frozen=True, slots=True)
class Launch:
    """What one launch needs besides the program or the stream.

    Args:
        arguments: the op's argument struct.
        batch_size: B, the sequences that the tensors have room for.
    """

    arguments: Structure
    batch_size: int


class DraftTreeView(Structure):
    _fields_ = pointers(*(f.name for f in fields(DraftTree))) + ints("capacity")

    @classmethod
    def of(cls, tree: DraftTree) -> DraftTreeView:
        """The view of a draft tree."""
        return cls(*addresses(tree), tree.max_nodes)


class TokenTreeView(Structure):
    _fields_ = pointers(*(f.name for f in fields(TokenTree))) + ints("capacity", "mask_words")

    @classmethod
    def of(cls, tree: TokenTree | None) -> TokenTreeView:
        """The view of a token tree; all zero for None."""
        return cls() if tree is None else cls(*addresses(tree), tree.max_nodes, tree.mask_words)


class RowBatchView(Structure):
    _fields_ = pointers(*(f.name for f in fields(RowBatch))) + ints("capacity", "mask_words")

    @classmethod
    def of(cls, rows: RowBatch | None) -> RowBatchView:
        """The view of a row batch; all zero for None."""
        return cls() if rows is None else cls(*addresses(rows), rows.max_rows, rows.mask_words)


class BlockTablesView(Structure):
    _fields_ = pointers("blocks") + ints("max_blocks", "block_size")

    @classmethod
    def of(cls, block_tables: torch.Tensor, block_size: int) -> BlockTablesView:
        """The view of block tables [B, P_max]."""
        return cls(address(block_tables), block_tables.shape[1], block_size)


class MovePlanView(Structure):
    _fields_ = pointers(*(f.name for f in fields(MovePlan))) + ints("capacity")

    @classmethod
    def of(cls, plan: MovePlan | None) -> MovePlanView:
        """The view of a move plan; all zero for None."""
        return cls() if plan is None else cls(*addresses(plan), plan.max_moves)


class BeginStepArgs(Structure):
    _fields_ = [
        *pointers("num_seqs", "min_running", "scheduled_lens", "can_draft", "max_total_lens"),
        *pointers("groups", "is_balanced", "first_stops", "stop_tokens"),
        *ints("num_stop_tokens"),
        *pointers("depth_limit", "node_limit", "history"),
        *longs("max_history"),
        *pointers("history_lens", "num_emitted", "computed_lens", "draft_computed_lens"),
        *ints("max_draft_rows"),
        ("has_trees", c_bool),
        *pointers("pending_lens", "wants_logits", "max_emit", "draft_pending_lens"),
        *pointers("draft_wants_logits", "node_budgets", "depth_limits", "root_values"),
    ]


class GatherPendingArgs(Structure):
    _fields_ = (
        pointers("history")
        + longs("max_history")
        + pointers("computed_lens", "pending_lens", "num_seqs")
        + ints("capacity")
        + pointers("pending_tokens", "cu_pending")
    )


class BuildRowsArgs(Structure):
    _fields_ = [
        *pointers("pending_tokens", "cu_pending", "computed_lens", "wants_logits", "num_seqs"),
        ("tables", BlockTablesView),
        ("has_tree", c_bool),
        ("tree", TokenTreeView),
        ("rows", RowBatchView),
        *pointers("logit_rows", "cu_logits", "num_logits"),
    ]


class CommitPlanArgs(Structure):
    _fields_ = [
        *pointers("num_seqs", "wants_logits", "pending_lens", "num_accepted", "path", "out_tokens"),
        *ints("max_depth"),
        *pointers("max_emit", "num_emitted", "history"),
        *longs("max_history"),
        *pointers("history_lens", "computed_lens"),
        ("target_moves", MovePlanView),
        *pointers("draft_slots"),
        *ints("tree_stride"),
        *pointers("draft_pending_lens", "draft_computed_lens"),
        ("draft_moves", MovePlanView),
        *pointers("output_counts"),
        *longs("vocab_size"),
    ]


class KvCompactArgs(Structure):
    _fields_ = (
        pointers("kv_cache")
        + longs("element_bytes")
        + pointers("block_tables")
        + longs("max_blocks")
        + [("moves", MovePlanView)]
        + pointers("num_seqs")
        + longs("num_layers", "num_blocks", "num_kv_heads", "block_size", "head_dim")
    )


class TreeExpandArgs(Structure):
    _fields_ = [
        *ints("layer", "rule", "max_children", "max_width", "proposal_offset"),
        *ints("num_candidates", "num_stop_tokens", "batch_size"),
        *pointers("candidate_tokens", "candidate_probs", "cu_rows", "frontier_nodes"),
        ("tree", DraftTreeView),
        *pointers("tree_starts", "root_values", "node_budgets", "total_budget", "depth_limits"),
        *pointers("stop_tokens", "calibration", "min_layer_gain", "row_prices"),
        *ints("num_prices"),
        *pointers("cu_pending", "num_seqs"),
        ("tables", BlockTablesView),
        ("rows", RowBatchView),
        *pointers("node_slots", "scratch", "keys", "buffer", "candidates", "remap"),
    ]


class TreeSelectArgs(Structure):
    _fields_ = [
        ("draft", DraftTreeView),
        *pointers("thresholds"),
        *ints("max_rows"),
        *pointers("cu_pending", "num_seqs", "total_budget"),
        *ints("batch_size"),
        ("tree", TokenTreeView),
        *pointers("scratch", "keys", "buffer", "sizes", "places", "next"),
    ]


class SamplingTablesView(Structure):
    _fields_ = pointers("temperature", "top_k", "top_p", "min_p")

    @classmethod
    def of(cls, tables: SamplingTables | None) -> SamplingTablesView:
        """The view of sampling tables, whose seeds are passed beside it; all zero for None."""
        if tables is None:
            return cls()
        return cls(*(address(getattr(tables, name)) for name, _ in cls._fields_))


class ProposalView(Structure):
    _fields_ = pointers("tokens", "probs") + ints("capacity")


class WalkView(Structure):
    _fields_ = [
        *pointers("path", "out_tokens"),
        *ints("max_depth"),
        *pointers("tried", "accepted"),
        ("is_writer", c_bool),
    ]

    @classmethod
    def of(cls, verdict: Verdict) -> WalkView:
        """The view of all walks of a verdict."""
        walk = (address(verdict.path), address(verdict.out_tokens), verdict.max_depth)
        return cls(*walk, address(verdict.tried), address(verdict.accepted), True)


class TreeVerifyArgs(Structure):
    _fields_ = [
        ("tree", TokenTreeView),
        *pointers("logit_starts", "wants_logits", "num_seqs", "target_tokens", "logits"),
        *longs("vocab_size"),
        *pointers("tree_starts"),
        ("tables", SamplingTablesView),
        *pointers("seeds"),
        ("proposals", ProposalView),
        ("is_rejection", c_bool),
        *pointers("num_accepted"),
        ("walk", WalkView),
        *pointers("scratch"),
    ]


class NgramMatchArgs(Structure):
    _fields_ = [
        *pointers("history"),
        *longs("history_stride"),
        *pointers("history_lens", "root_values", "node_budgets", "depth_limits"),
        *pointers("stop_tokens", "calibration", "num_seqs"),
        *ints("num_stop_tokens", "min_ngram", "max_ngram", "max_matches", "max_depth"),
        *ints("max_children"),
        ("tree", DraftTreeView),
        *pointers("scratch"),
    ]


class TimestampArgs(Structure):
    _fields_ = pointers("out_ns")
