"""penalize in Triton; contract: `kernels/penalize.py`, which it equals bit for bit.

Grid (N, V / BLOCK): each program changes a piece of one row. It walks up the row's path for itself,
at most a tree's depth of dependent loads, and reads the sequence's biases and banned tokens, of
which most sequences have none; a row without anything to change ends after a few scalars.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sdengine.kernels.triton.launch import Launch

BLOCK = 1024


@triton.jit
def _drafted(at, node, parents, tokens, BLOCK: tl.constexpr):
    """How often each token of `at` stands between a node and the root, and the node's depth."""
    counts = tl.zeros([BLOCK], tl.int32)
    depth = node * 0
    while node > 0:
        counts += (at == tl.load(tokens + node)).to(tl.int32)
        node = tl.load(parents + node)
        depth += 1
    return counts, depth


@triton.jit
def penalize_kernel(
    logits,
    row_seq,
    rows,
    row_node,
    parents,
    tokens,
    tree_stride,
    prompt_counts,
    output_counts,
    count_stride,
    repetition_penalty,
    presence_penalty,
    frequency_penalty,
    bias_ids,
    bias_values,
    num_bias,
    max_bias,
    stop_ids,
    num_stops,
    max_stops,
    min_lens,
    history_lens,
    num_rows,
    vocab,
    BLOCK: tl.constexpr,
):
    line = tl.program_id(0)
    if line >= tl.load(num_rows):
        return
    packed = line
    if rows is not None:
        packed = tl.load(rows + line)
    sequence = tl.load(row_seq + packed)
    repetition = tl.load(repetition_penalty + sequence)
    presence = tl.load(presence_penalty + sequence)
    frequency = tl.load(frequency_penalty + sequence)
    biases = tl.load(num_bias + sequence)
    is_short = tl.load(history_lens + sequence) < tl.load(min_lens + sequence)
    stops = tl.where(is_short, tl.load(num_stops + sequence), 0)
    is_neutral = (repetition == 1.0) & (presence == 0.0) & (frequency == 0.0)
    if is_neutral & (biases == 0) & (stops == 0):
        return

    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_token = at < vocab
    output = tl.zeros([BLOCK], tl.int32)
    depth = sequence * 0
    if row_node is not None:
        node = tl.load(row_node + packed)
        tree = sequence.to(tl.int64) * tree_stride
        output, depth = _drafted(at, node, parents + tree, tokens + tree, BLOCK)
    seen = sequence.to(tl.int64) * count_stride + at
    output += tl.load(output_counts + seen, mask=is_token, other=0)
    prompt = tl.load(prompt_counts + seen, mask=is_token, other=0)

    at_logit = logits + line.to(tl.int64) * vocab + at
    logit = tl.load(at_logit, mask=is_token, other=0.0)
    scaled = tl.where(logit > 0.0, tl.div_rn(logit, repetition), logit * repetition)
    logit = tl.where(prompt + output > 0, scaled, logit)
    logit -= frequency * output.to(tl.float32) + tl.where(output > 0, presence, 0.0)
    for i in range(biases):
        entry = sequence * max_bias + i
        is_biased = at == tl.load(bias_ids + entry)
        logit = tl.where(is_biased, logit + tl.load(bias_values + entry), logit)
    length = tl.load(history_lens + sequence) + depth
    if length < tl.load(min_lens + sequence):
        for i in range(stops):
            banned = tl.load(stop_ids + sequence * max_stops + i)
            logit = tl.where(at == banned, float("-inf"), logit)
    tl.store(at_logit, logit, mask=is_token)


def launches(
    arch: int,
    *,
    logits: torch.Tensor,
    row_seq: torch.Tensor,
    prompt_counts: torch.Tensor,
    bias_ids: torch.Tensor,
    stop_ids: torch.Tensor,
    rows: torch.Tensor | None = None,
    row_node: torch.Tensor | None = None,
    node_tokens: torch.Tensor | None = None,
    node_parents: torch.Tensor | None = None,
    **tables: torch.Tensor,
) -> list[Launch]:
    """One launch; `tables` are the other arguments of the op, under their own names."""
    num_rows, vocab = logits.shape
    arguments = {
        "logits": logits,
        "row_seq": row_seq,
        "rows": rows,
        "row_node": row_node,
        "parents": node_parents,
        "tokens": node_tokens,
        "tree_stride": 0 if node_tokens is None else node_tokens.shape[1],
        "prompt_counts": prompt_counts,
        "count_stride": prompt_counts.shape[1],
        "bias_ids": bias_ids,
        "max_bias": bias_ids.shape[1],
        "stop_ids": stop_ids,
        "max_stops": stop_ids.shape[1],
        "vocab": vocab,
        **tables,
    }
    grid = (num_rows, triton.cdiv(vocab, BLOCK))
    return [Launch(penalize_kernel, grid, arguments, {"BLOCK": BLOCK}, fp_fusion=False)]
