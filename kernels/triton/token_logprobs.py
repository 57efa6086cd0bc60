"""token_logprobs in Triton; contract: `kernels/token_logprobs.py`.

Grid (B, D + 1): each program reads one row twice. First its largest logit and its likeliest
tokens, as 64-bit keys of (logit, lower id); a block is sorted in only when its best would enter,
which after the first few is rare. Then the sum of all weights, in integers as everywhere, and how
many logits are larger than the token's. A program without a token ends after a few scalars, and
sequences that ask for no logprobs have none.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sdengine.kernels.token_logprobs import MAX_ALTERNATIVES
from sdengine.kernels.triton.draft_topk_splits import keep_best
from sdengine.kernels.triton.launch import Launch
from sdengine.kernels.triton.row_plan import integer_mass, mass_sum, rank_key, token_of
from sdengine.kernels.verdict import Verdict

BLOCK = 1024
NUM_WARPS = 8


@triton.jit
def token_logprobs_kernel(
    logits,
    logit_starts,
    wants_logits,
    num_accepted,
    path,
    tokens,
    history_lens,
    num_alternatives,
    num_seqs,
    out_logprobs,
    out_ranks,
    out_best_tokens,
    out_best_logprobs,
    vocab,
    max_depth,
    places,
    most,
    CANDIDATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sequence = tl.program_id(0)
    index = tl.program_id(1)
    if sequence >= tl.load(num_seqs):
        return
    wanted = tl.load(num_alternatives + sequence)
    is_drawn = (wanted >= 0) & (tl.load(wants_logits + sequence) != 0)
    if (index > tl.load(num_accepted + sequence)) | (not is_drawn):
        return
    token = tl.load(tokens + sequence * (max_depth + 1) + index)
    if token < 0:
        return
    at_node = path + sequence * max_depth + index - 1
    node = tl.load(at_node, mask=index > 0, other=0)
    row = logits + (tl.load(logit_starts + sequence) + node).to(tl.int64) * vocab

    lane = tl.arange(0, CANDIDATES)
    held = rank_key(lane * 0.0 + float("-inf"), lane)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    for base in tl.range(0, vocab, BLOCK, num_stages=1):
        at = base + tl.arange(0, BLOCK)
        logit = tl.load(row + at, mask=at < vocab, other=float("-inf"))
        largest = tl.maximum(largest, logit)
        if wanted > 0:
            held = keep_best(held, rank_key(logit, at), CANDIDATES)
    best = tl.max(largest, 0)

    own = tl.load(row + token)
    mass = tl.zeros([BLOCK], tl.int64)
    larger = tl.zeros([BLOCK], tl.int32)
    for base in tl.range(0, vocab, BLOCK, num_stages=1):
        at = base + tl.arange(0, BLOCK)
        logit = tl.load(row + at, mask=at < vocab, other=float("-inf"))
        mass += integer_mass(logit - best)
        larger += (logit > own).to(tl.int32)
    log_total = tl.log(mass_sum(tl.sum(mass, 0)))

    place = sequence * places + (tl.load(history_lens + sequence) + index) % places
    tl.store(out_logprobs + place, own - best - log_total)
    tl.store(out_ranks + place, tl.sum(larger, 0) + 1)
    at_out = place.to(tl.int64) * most + lane
    is_wanted = lane < wanted
    likeliest = token_of(held)
    tl.store(out_best_tokens + at_out, likeliest, mask=is_wanted)
    logit = tl.load(row + likeliest, mask=likeliest >= 0, other=float("-inf"))
    tl.store(out_best_logprobs + at_out, logit - best - log_total, mask=is_wanted)


def launches(
    arch: int,
    *,
    logits: torch.Tensor,
    logit_starts: torch.Tensor,
    wants_logits: torch.Tensor,
    verdict: Verdict,
    history_lens: torch.Tensor,
    num_alternatives: torch.Tensor,
    num_seqs: torch.Tensor,
    out_logprobs: torch.Tensor,
    out_ranks: torch.Tensor,
    out_best_tokens: torch.Tensor,
    out_best_logprobs: torch.Tensor,
) -> list[Launch]:
    """One launch."""
    batch, places, most = out_best_tokens.shape
    arguments = {
        "logits": logits,
        "logit_starts": logit_starts,
        "wants_logits": wants_logits,
        "num_accepted": verdict.num_accepted,
        "path": verdict.path,
        "tokens": verdict.out_tokens,
        "history_lens": history_lens,
        "num_alternatives": num_alternatives,
        "num_seqs": num_seqs,
        "out_logprobs": out_logprobs,
        "out_ranks": out_ranks,
        "out_best_tokens": out_best_tokens,
        "out_best_logprobs": out_best_logprobs,
        "vocab": logits.shape[1],
        "max_depth": verdict.max_depth,
        "places": places,
        "most": most,
    }
    constants = {"CANDIDATES": MAX_ALTERNATIVES, "BLOCK": BLOCK}
    grid = (batch, verdict.max_depth + 1)
    return [Launch(token_logprobs_kernel, grid, arguments, constants, num_warps=NUM_WARPS)]
