"""sample in Triton; contract: `kernels/sample.py`, which it equals token for token.

Grid (N): one program walks a row. Without filters it walks twice (maximum, perturbed argmax). The
threshold of top-k or top-p is found without sorting, four bits of the logit's ordered integer in a
walk: the largest number such that the tokens from it on are enough (in count, or in mass).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sdengine.kernels.sampling_tables import SamplingTables
from sdengine.kernels.triton.launch import Launch
from sdengine.kernels.triton.noise import TARGET, gumbel, random_words, stable_log
from sdengine.kernels.triton.row_plan import (
    GREEDY_TEMPERATURE,
    NO_TOKEN,
    best_of_row,
    integer_mass,
    order_of,
    row_of,
    value_of,
)

BLOCK = 1024
SEARCH_BLOCK = 256  # [256, 16] int64 in a search; 512 spills on sm_120


@triton.jit
def _weight(logit, order, best, inverse, floor, BY_MASS: tl.constexpr):
    """What a token counts: its mass or 1; 0 below the order `floor`."""
    weight = integer_mass((logit - best) * inverse) if BY_MASS else order * 0 + 1
    return tl.where((order >= floor) & (logit > float("-inf")), weight, 0)


@triton.jit
def _total_weight(
    row, vocab, best, inverse, floor, BY_MASS: tl.constexpr, SEARCH_BLOCK: tl.constexpr
):
    total = tl.zeros([SEARCH_BLOCK], tl.int64)
    for base in range(0, vocab, SEARCH_BLOCK):
        at = base + tl.arange(0, SEARCH_BLOCK)
        logit = tl.load(row + at, mask=at < vocab, other=float("-inf"))
        total += _weight(logit, order_of(logit), best, inverse, floor, BY_MASS)
    return tl.sum(total, 0)


@triton.jit
def _threshold(
    row, vocab, best, inverse, floor, wanted, BY_MASS: tl.constexpr, SEARCH_BLOCK: tl.constexpr
):
    """The largest order such that the tokens from it on weigh at least `wanted`."""
    digit = tl.arange(0, 16).to(tl.int64)
    found = floor * 0
    for step in range(8):
        shift = 28 - 4 * step
        pivot = found + (digit << shift)
        weights = tl.zeros([16], tl.int64)
        for base in range(0, vocab, SEARCH_BLOCK):
            at = base + tl.arange(0, SEARCH_BLOCK)
            logit = tl.load(row + at, mask=at < vocab, other=float("-inf"))
            order = order_of(logit)
            weight = _weight(logit, order, best, inverse, floor, BY_MASS)
            reaches = order[:, None] >= pivot[None, :]
            weights += tl.sum(tl.where(reaches, weight[:, None], 0), 0)
        found += tl.max(tl.where(weights >= wanted, digit, 0), 0) << shift
    return found


@triton.jit
def sample_kernel(
    logits,
    row_seq,
    positions,
    temperature,
    top_k,
    top_p,
    min_p,
    seeds,
    out_tokens,
    num_rows,
    rows,
    vocab,
    BLOCK: tl.constexpr,
    SEARCH_BLOCK: tl.constexpr,
):
    line = tl.program_id(0)
    if line >= tl.load(num_rows):
        return
    packed, sequence, row = row_of(logits, rows, row_seq, line, vocab)
    best, best_token, is_usable = best_of_row(row, vocab, BLOCK)
    heat = tl.load(temperature + sequence)
    if (not is_usable) | (heat < GREEDY_TEMPERATURE):
        tl.store(out_tokens + line, tl.where(is_usable, best_token, -1))
        return

    inverse = tl.div_rn(1.0, heat)
    floor = tl.zeros([], tl.int64)
    k = tl.load(top_k + sequence)
    if (k >= 1) & (k < vocab):
        floor = _threshold(row, vocab, best, inverse, floor, k.to(tl.int64), False, SEARCH_BLOCK)
    p = tl.load(top_p + sequence)
    if p < 1.0:
        total = _total_weight(row, vocab, best, inverse, floor, True, SEARCH_BLOCK)
        wanted = tl.ceil(tl.maximum(p, 0.0).to(tl.float64) * total.to(tl.float64)).to(tl.int64)
        wanted = tl.minimum(tl.maximum(wanted, 1), total)
        floor = _threshold(row, vocab, best, inverse, floor, wanted, True, SEARCH_BLOCK)
    share = tl.load(min_p + sequence)
    least = tl.where(floor > 0, value_of(floor), float("-inf"))
    if share > 0.0:
        log_ratio = stable_log(tl.minimum(tl.maximum(share, 1e-37), 1.0))
        least = tl.maximum(least, best + log_ratio * heat)

    seed = tl.load(seeds + sequence)
    position = tl.load(positions + packed) + 1
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    token = tl.full([BLOCK], NO_TOKEN, tl.int32)
    for base in range(0, vocab, BLOCK):
        at = base + tl.arange(0, BLOCK)
        logit = tl.load(row + at, mask=at < vocab, other=float("-inf"))
        noise = gumbel(random_words(seed, position, TARGET, 0, base, BLOCK))
        score = (logit - best) * inverse + noise
        score = tl.where((logit >= least) & (logit > float("-inf")), score, float("-inf"))
        token = tl.where(score > top, at, token)
        top = tl.where(score > top, score, top)
    winner = tl.min(tl.where(top == tl.max(top, 0), token, NO_TOKEN), 0)
    tl.store(out_tokens + line, winner)


def launches(
    arch: int,
    *,
    logits: torch.Tensor,
    row_seq: torch.Tensor,
    positions: torch.Tensor,
    sampling: SamplingTables,
    out_tokens: torch.Tensor,
    num_rows: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> list[Launch]:
    """One launch."""
    arguments = {
        "logits": logits,
        "row_seq": row_seq,
        "positions": positions,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seeds": sampling.seeds,
        "out_tokens": out_tokens,
        "num_rows": num_rows,
        "rows": rows,
        "vocab": logits.shape[1],
    }
    constants = {"BLOCK": BLOCK, "SEARCH_BLOCK": SEARCH_BLOCK}
    return [Launch(sample_kernel, (logits.shape[0],), arguments, constants, 8, fp_fusion=False)]
