"""The visible table of ops: name -> module `sdengine.kernels.<name>` holding `OP`."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from sdengine.kernels.spec import Op

OP_NAMES = (
    "embed",
    "rms_norm",
    "linear",
    "rope_kv_append",
    "tree_attention",
    "silu_and_mul",
    "penalize",
    "filter_logits",
    "sample",
    "draft_topk",
    "tree_expand",
    "tree_select",
    "begin_step",
    "gather_pending",
    "build_rows",
    "tree_verify",
    "token_logprobs",
    "commit_plan",
    "kv_compact",
    "ngram_match",
    "timestamp",
)


@cache
def get_op(name: str) -> Op:
    """The op of that name.

    Raises:
        KeyError: No such op; the message lists those that exist.
    """
    if name not in OP_NAMES:
        raise KeyError(f"op: expected one of {', '.join(OP_NAMES)}, got {name!r}")
    op = import_module(f"sdengine.kernels.{name}").OP
    assert isinstance(op, Op) and op.name == name
    return op
