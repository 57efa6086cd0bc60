"""draft_topk in Triton; contract: `kernels/draft_topk.py`, which it equals bit for bit.

A vocabulary takes one program too long: 128256 tokens are 126 blocks, each with a sort to be
decided on, one after the other, in every draft layer. So a row is cut into splits, and four
launches do the work, each over what the one before has left in `scratch`:

1. `best_of_split`: the largest logit of a split.
2. `candidates_of_split`: its CANDIDATES best tokens, ranked as 64-bit keys of (score, lower id). A
   block is sorted in only when its best would enter, which after the first few is rare.
3. `mass_of_split` ("target"): the weight of its tokens, in integers, so that sums have no order.
4. `draft_topk`: the best of all splits, and their probabilities; a program for each row.

The programs of the first three share the splits of the rows that there are: a grid is fixed when it
is captured, for as many rows as there may be. Nothing depends on where a row is cut.

    scratch   int64: [N, splits] largest logits, [N, splits] weights, [N, splits, CANDIDATES] keys
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sdengine.kernels.draft_topk import MAX_SPLITS, device_candidates, device_scratch_size
from sdengine.kernels.spec import expect
from sdengine.kernels.triton.launch import Launch
from sdengine.kernels.triton.noise import (
    DRAFT,
    TARGET,
    gumbel,
    random_words,
    random_words_at,
    stable_exp,
)
from sdengine.kernels.triton.overlap import begin_early, can_overlap
from sdengine.kernels.triton.row_plan import (
    GREEDY_TEMPERATURE,
    best_of_tokens,
    integer_mass,
    mass_sum,
    order_of,
    rank_key,
    row_of,
    score_of,
    token_of,
    value_of,
)

BLOCK = 1024
NUM_WARPS = 8
MAX_PROGRAMS = 528  # that share the splits: four for each multiprocessor of an H100


@triton.jit
def _split_range(split, vocab, split_blocks, BLOCK: tl.constexpr):
    """Tokens [begin, end) of a split."""
    begin = split * split_blocks * BLOCK
    return begin, tl.minimum(begin + split_blocks * BLOCK, vocab)


@triton.jit
def _largest(parts, num_splits, SPLIT_LANES: tl.constexpr):
    """Largest logit of a row, and whether a token of it can be drawn."""
    lane = tl.arange(0, SPLIT_LANES)
    best = value_of(tl.max(tl.load(parts + lane, mask=lane < num_splits, other=0), 0))
    return best, (best > float("-inf")) & (best < float("inf"))


@triton.jit
def _heat_of(temperature, sequence):
    """Temperature of a row, 1 where it is greedy, and whether it is."""
    heat = tl.load(temperature + sequence)
    is_greedy = heat < GREEDY_TEMPERATURE
    return tl.where(is_greedy, 1.0, heat), is_greedy


@triton.jit
def _target_scores(row, base, end, best, inverse, seed, position, is_greedy, BLOCK: tl.constexpr):
    """Logits and perturbed scores of a block; a greedy row has no noise."""
    at = base + tl.arange(0, BLOCK)
    logit = tl.load(row + at, mask=at < end, other=float("-inf"))
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
def best_of_split_kernel(
    logits,
    rows,
    row_seq,
    num_rows,
    best_parts,
    vocab,
    num_splits,
    split_blocks,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    begin_early(OVERLAPS)
    num_parts = tl.load(num_rows) * num_splits
    for part in tl.range(tl.program_id(0), num_parts, tl.num_programs(0), num_stages=1):
        row = row_of(logits, rows, row_seq, part // num_splits, vocab)[2]
        begin, end = _split_range(part % num_splits, vocab, split_blocks, BLOCK)
        best, _token, is_sound = best_of_tokens(row, begin, end, BLOCK)
        tl.store(best_parts + part, order_of(tl.where(is_sound, best, float("inf"))))


@triton.jit
def candidates_of_split_kernel(
    logits,
    rows,
    row_seq,
    positions,
    temperature,
    seeds,
    num_rows,
    best_parts,
    keys,
    vocab,
    num_splits,
    split_blocks,
    FRESH: tl.constexpr,
    CANDIDATES: tl.constexpr,
    SPLIT_LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    begin_early(OVERLAPS)
    lane = tl.arange(0, CANDIDATES)
    num_parts = tl.load(num_rows) * num_splits
    for part in tl.range(tl.program_id(0), num_parts, tl.num_programs(0), num_stages=1):
        line = part // num_splits
        packed, sequence, row = row_of(logits, rows, row_seq, line, vocab)
        best, is_usable = _largest(best_parts + line * num_splits, num_splits, SPLIT_LANES)
        unit, is_greedy = _heat_of(temperature, sequence)
        inverse = tl.div_rn(1.0, unit)
        seed = tl.load(seeds + sequence)
        position = tl.load(positions + packed) + 1
        held = rank_key(lane * 0.0 + float("-inf"), lane)
        begin, end = _split_range(part % num_splits, vocab, split_blocks, BLOCK)
        for base in tl.range(begin, tl.where(is_usable, end, begin), BLOCK, num_stages=1):
            at = base + tl.arange(0, BLOCK)
            if FRESH:
                value = tl.load(row + at, mask=at < end, other=float("-inf"))
            else:
                logit, score = _target_scores(
                    row, base, end, best, inverse, seed, position, is_greedy, BLOCK
                )
                value = tl.where(is_greedy, logit, score)
            held = _keep_best(held, rank_key(value, at), CANDIDATES)
        tl.store(keys + part * CANDIDATES + lane, held)


@triton.jit
def mass_of_split_kernel(
    logits,
    rows,
    row_seq,
    positions,
    temperature,
    softness,
    seeds,
    num_rows,
    best_parts,
    mass_parts,
    keys,
    vocab,
    num_splits,
    split_blocks,
    CANDIDATES: tl.constexpr,
    SPLIT_LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    begin_early(OVERLAPS)
    num_parts = tl.load(num_rows) * num_splits
    for part in tl.range(tl.program_id(0), num_parts, tl.num_programs(0), num_stages=1):
        line = part // num_splits
        packed, sequence, row = row_of(logits, rows, row_seq, line, vocab)
        best, is_usable = _largest(best_parts + line * num_splits, num_splits, SPLIT_LANES)
        unit, is_greedy = _heat_of(temperature, sequence)
        inverse = tl.div_rn(1.0, unit)
        seed = tl.load(seeds + sequence)
        position = tl.load(positions + packed) + 1
        top = _top_score(keys + line * num_splits * CANDIDATES, num_splits, CANDIDATES, SPLIT_LANES)
        top = tl.where(is_greedy, 0.0, top)  # keys of a greedy row hold logits
        ratio = 1.0
        if softness is not None:
            ratio = tl.div_rn(unit, tl.load(softness + sequence))
        mass = tl.zeros([BLOCK], tl.int64)
        begin, end = _split_range(part % num_splits, vocab, split_blocks, BLOCK)
        for base in tl.range(begin, tl.where(is_usable, end, begin), BLOCK, num_stages=1):
            _logits, scores = _target_scores(
                row, base, end, best, inverse, seed, position, is_greedy, BLOCK
            )
            mass += integer_mass((scores - top) * ratio)
        tl.store(mass_parts + part, tl.sum(mass, 0))


@triton.jit
def _top_score(keys, num_splits, CANDIDATES: tl.constexpr, SPLIT_LANES: tl.constexpr):
    """Score of the best key of a row; those of a split are in descending order."""
    lane = tl.arange(0, SPLIT_LANES)
    none = rank_key(lane * 0.0 + float("-inf"), lane)
    firsts = tl.load(keys + lane * CANDIDATES, mask=lane < num_splits, other=0)
    return score_of(tl.max(tl.where(lane < num_splits, firsts, none), 0))


@triton.jit
def _merge(keys, num_keys, CANDIDATES: tl.constexpr, BLOCK: tl.constexpr):
    """The CANDIDATES largest of a row's keys, in descending order."""
    lane = tl.arange(0, CANDIDATES)
    held = rank_key(lane * 0.0 + float("-inf"), lane)
    for base in tl.range(0, num_keys, BLOCK, num_stages=1):
        at = base + tl.arange(0, BLOCK)
        none = rank_key(at * 0.0 + float("-inf"), at)
        loaded = tl.load(keys + at, mask=at < num_keys, other=0)
        held = _keep_best(held, tl.where(at < num_keys, loaded, none), CANDIDATES)
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
    best_parts,
    mass_parts,
    keys,
    vocab,
    num_splits,
    FRESH: tl.constexpr,
    LIMIT: tl.constexpr,
    CANDIDATES: tl.constexpr,
    SPLIT_LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    begin_early(OVERLAPS)
    line = tl.program_id(0)
    if line >= tl.load(num_rows):
        return
    packed, sequence, row = row_of(logits, rows, row_seq, line, vocab)
    lane = tl.arange(0, CANDIDATES)
    is_wanted = lane < LIMIT
    at_out = line.to(tl.int64) * LIMIT + lane
    best, is_usable = _largest(best_parts + line * num_splits, num_splits, SPLIT_LANES)
    if not is_usable:
        tl.store(out_tokens + at_out, lane * 0 - 1, mask=is_wanted)
        tl.store(out_probs + at_out, lane * 0.0, mask=is_wanted)
        return

    unit, is_greedy = _heat_of(temperature, sequence)
    inverse = tl.div_rn(1.0, unit)
    seed = tl.load(seeds + sequence)
    own_keys = keys + line * num_splits * CANDIDATES
    held = _merge(own_keys, num_splits * CANDIDATES, CANDIDATES, BLOCK)
    token = tl.where(is_wanted, token_of(held), -1)
    scaled = (tl.load(row + token, mask=token >= 0, other=float("-inf")) - best) * inverse
    if FRESH:
        total = mass_sum(tl.sum(integer_mass(scaled), 0))
        if not is_greedy:
            root = tl.load(tree_starts + sequence) - 1
            node = tl.load(creation_ids + packed)
            noise = gumbel(random_words_at(seed, root, DRAFT, node, token))
            drawn = rank_key(tl.where(token >= 0, scaled + noise, float("-inf")), token)
            token = token_of(tl.topk(drawn, CANDIDATES))
        shown = (tl.load(row + token, mask=token >= 0, other=float("-inf")) - best) * inverse
    else:
        ratio = 1.0
        if softness is not None:
            ratio = tl.div_rn(unit, tl.load(softness + sequence))
        position = tl.load(positions + packed) + 1
        noise = gumbel(random_words_at(seed, position, TARGET, 0, token))
        score = tl.where(is_greedy, scaled, scaled + noise)
        top = tl.max(tl.where(token >= 0, score, float("-inf")), 0)
        split = tl.arange(0, SPLIT_LANES)
        masses = tl.load(mass_parts + line * num_splits + split, mask=split < num_splits, other=0)
        total = mass_sum(tl.sum(masses, 0))
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
    scratch: torch.Tensor | None = None,
) -> list[Launch]:
    """Three launches over splits of the rows, then one over the rows; "fresh" needs no mass.

    Raises:
        ValueError: `scratch` is missing or too small.
    """
    (num_lines, vocab), limit = logits.shape, out_tokens.shape[1]
    needed = device_scratch_size(num_lines, limit)
    given = 0 if scratch is None else scratch.numel()
    expect(
        "draft_topk",
        scratch is not None and given >= needed,
        f"scratch: expected at least {needed} elements on a device, got {given}",
    )
    assert scratch is not None
    blocks = triton.cdiv(vocab, BLOCK)
    split_blocks = triton.cdiv(blocks, MAX_SPLITS)
    splits = triton.cdiv(blocks, split_blocks)
    parts = num_lines * splits
    is_fresh = noise == "fresh"
    shared = {
        "logits": logits,
        "rows": rows,
        "row_seq": row_seq,
        "num_rows": num_rows,
        "best_parts": scratch[:parts],
        "vocab": vocab,
        "num_splits": splits,
    }
    split = {**shared, "split_blocks": split_blocks}
    scored = {"positions": positions, "temperature": temperature, "seeds": seeds}
    weighed = {"mass_parts": scratch[parts : 2 * parts], "softness": softness}
    keys = {"keys": scratch[2 * parts :]}
    final = {
        "creation_ids": creation_ids,
        "tree_starts": tree_starts,
        "out_tokens": out_tokens,
        "out_probs": out_probs,
    }
    constants = {"BLOCK": BLOCK, "OVERLAPS": can_overlap(arch)}
    ranked = {
        **constants,
        "CANDIDATES": device_candidates(limit),
        "SPLIT_LANES": triton.next_power_of_2(splits),
    }
    grid = (min(parts, MAX_PROGRAMS),)
    plan = [
        Launch(best_of_split_kernel, grid, split, constants, NUM_WARPS),
        Launch(
            candidates_of_split_kernel,
            grid,
            {**split, **scored, **keys},
            {**ranked, "FRESH": is_fresh},
            NUM_WARPS,
            fp_fusion=False,
        ),
    ]
    if not is_fresh:
        args = {**split, **scored, **weighed, **keys}
        plan += [Launch(mass_of_split_kernel, grid, args, ranked, NUM_WARPS, fp_fusion=False)]
    args = {**shared, **scored, **weighed, **keys, **final}
    last = {**ranked, "FRESH": is_fresh, "LIMIT": limit}
    plan += [Launch(draft_topk_kernel, (num_lines,), args, last, NUM_WARPS, fp_fusion=False)]
    return plan
