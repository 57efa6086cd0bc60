"""draft_topk in Triton; contract: `kernels/draft_topk.py`, which it equals bit for bit.

Grid (N): one program walks a row with the CANDIDATES best so far in hand, ranked as 64-bit keys of
(score, lower id). A block of tokens is sorted in only when its best would enter, which after the
first few blocks of a row is rare.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sdengine.kernels.triton.launch import Launch
from sdengine.kernels.triton.noise import (
    DRAFT,
    TARGET,
    gumbel,
    random_words,
    random_words_at,
    stable_exp,
)
from sdengine.kernels.triton.row_plan import (
    GREEDY_TEMPERATURE,
    best_of_row,
    integer_mass,
    mass_sum,
    rank_key,
    row_of,
    token_of,
)

BLOCK = 1024
MIN_CANDIDATES = 16


@triton.jit
def _target_scores(row, base, vocab, best, inverse, seed, position, is_greedy, BLOCK: tl.constexpr):
    """Logits and perturbed scores of a block; a greedy row has no noise."""
    at = base + tl.arange(0, BLOCK)
    logit = tl.load(row + at, mask=at < vocab, other=float("-inf"))
    noise = gumbel(random_words(seed, position, TARGET, 0, base, BLOCK))
    scaled = (logit - best) * inverse
    return logit, tl.where(is_greedy, scaled, scaled + noise)


@triton.jit
def _keep_best(held, keys, CANDIDATES: tl.constexpr):
    """The CANDIDATES largest of what is held and a block of keys, in descending order."""
    if tl.max(keys, 0) > tl.min(held, 0):
        both = tl.reshape(tl.join(held, tl.topk(keys, CANDIDATES)), [2 * CANDIDATES])
        held = tl.topk(both, CANDIDATES)
    return held


@triton.jit
def draft_topk_kernel(
    logits,
    rows,
    row_seq,
    positions,
    creation_ids,
    temperature,
    softness,
    seeds,
    tree_starts,
    out_tokens,
    out_probs,
    num_rows,
    vocab,
    FRESH: tl.constexpr,
    LIMIT: tl.constexpr,
    CANDIDATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    line = tl.program_id(0)
    if line >= tl.load(num_rows):
        return
    packed, sequence, row = row_of(logits, rows, row_seq, line, vocab)
    lane = tl.arange(0, CANDIDATES)
    is_wanted = lane < LIMIT
    at_out = line.to(tl.int64) * LIMIT + lane
    best, _best_token, is_usable = best_of_row(row, vocab, BLOCK)
    if not is_usable:
        tl.store(out_tokens + at_out, lane * 0 - 1, mask=is_wanted)
        tl.store(out_probs + at_out, lane * 0.0, mask=is_wanted)
        return

    heat = tl.load(temperature + sequence)
    is_greedy = heat < GREEDY_TEMPERATURE
    unit = tl.where(is_greedy, 1.0, heat)
    inverse = tl.div_rn(1.0, unit)
    seed = tl.load(seeds + sequence)
    position = tl.load(positions + packed) + 1
    held = rank_key(lane * 0.0 + float("-inf"), lane)
    for base in range(0, vocab, BLOCK):
        at = base + tl.arange(0, BLOCK)
        if FRESH:
            value = tl.load(row + at, mask=at < vocab, other=float("-inf"))
        else:
            logit, score = _target_scores(
                row, base, vocab, best, inverse, seed, position, is_greedy, BLOCK
            )
            value = tl.where(is_greedy, logit, score)
        held = _keep_best(held, rank_key(value, at), CANDIDATES)
    token = tl.where(is_wanted, token_of(held), -1)

    if FRESH:
        scaled = (tl.load(row + token, mask=token >= 0, other=float("-inf")) - best) * inverse
        total = mass_sum(tl.sum(integer_mass(scaled), 0))
        if not is_greedy:
            root = tl.load(tree_starts + sequence) - 1
            node = tl.load(creation_ids + packed)
            noise = gumbel(random_words_at(seed, root, DRAFT, node, token))
            keys = rank_key(tl.where(token >= 0, scaled + noise, float("-inf")), token)
            token = token_of(tl.topk(keys, CANDIDATES))
        scaled = (tl.load(row + token, mask=token >= 0, other=float("-inf")) - best) * inverse
        shown = scaled
    else:
        ratio = 1.0
        if softness is not None:
            ratio = tl.div_rn(unit, tl.load(softness + sequence))
        scaled = (tl.load(row + token, mask=token >= 0, other=float("-inf")) - best) * inverse
        noise = gumbel(random_words_at(seed, position, TARGET, 0, token))
        score = tl.where(is_greedy, scaled, scaled + noise)
        top = tl.max(tl.where(token >= 0, score, float("-inf")), 0)
        mass = tl.zeros([BLOCK], tl.int64)
        for base in range(0, vocab, BLOCK):
            _logits, scores = _target_scores(
                row, base, vocab, best, inverse, seed, position, is_greedy, BLOCK
            )
            mass += integer_mass((scores - top) * ratio)
        total = mass_sum(tl.sum(mass, 0))
        shown = (score - top) * ratio
    tl.store(out_tokens + at_out, token, mask=is_wanted)
    probs = tl.where(token >= 0, tl.div_rn(stable_exp(shown), total), 0.0)
    tl.store(out_probs + at_out, probs, mask=is_wanted)


def launches(
    arch: int,
    *,
    noise: str,
    logits: torch.Tensor,
    row_seq: torch.Tensor,
    positions: torch.Tensor,
    temperature: torch.Tensor,
    seeds: torch.Tensor,
    out_tokens: torch.Tensor,
    out_probs: torch.Tensor,
    num_rows: torch.Tensor,
    rows: torch.Tensor | None = None,
    softness: torch.Tensor | None = None,
    creation_ids: torch.Tensor | None = None,
    tree_starts: torch.Tensor | None = None,
) -> list[Launch]:
    """One launch."""
    limit = out_tokens.shape[1]
    arguments = {
        "logits": logits,
        "rows": rows,
        "row_seq": row_seq,
        "positions": positions,
        "creation_ids": creation_ids,
        "temperature": temperature,
        "softness": softness,
        "seeds": seeds,
        "tree_starts": tree_starts,
        "out_tokens": out_tokens,
        "out_probs": out_probs,
        "num_rows": num_rows,
        "vocab": logits.shape[1],
    }
    constants = {
        "FRESH": noise == "fresh",
        "LIMIT": limit,
        "CANDIDATES": max(MIN_CANDIDATES, triton.next_power_of_2(limit)),
        "BLOCK": BLOCK,
    }
    return [Launch(draft_topk_kernel, (logits.shape[0],), arguments, constants, 8, fp_fusion=False)]
