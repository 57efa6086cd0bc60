"""draft_topk in Triton; contract: `kernels/draft_topk.py`, which it equals bit for bit.

A vocabulary takes one program too long: 128256 tokens are 126 blocks, each with a sort to be
decided on, one after the other, in every draft layer. So a row is cut into splits, and four
launches do the work (the first three in `draft_topk_splits.py`), each over what the one before has
left in `scratch`:

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
from sdengine.kernels.triton.draft_topk_splits import (
    best_of_split_kernel,
    candidates_of_split_kernel,
    keep_best,
    mass_of_split_kernel,
    row_context,
)
from sdengine.kernels.triton.launch import Launch
from sdengine.kernels.triton.noise import DRAFT, TARGET, gumbel, random_words_at, stable_exp
from sdengine.kernels.triton.overlap import begin_early, can_overlap
from sdengine.kernels.triton.row_plan import integer_mass, mass_sum, rank_key, token_of

BLOCK = 1024
NUM_WARPS = 8
MAX_PROGRAMS = 528  # that share the splits: four for each multiprocessor of an H100


@triton.jit
def _merge(keys, num_keys, CANDIDATES: tl.constexpr, BLOCK: tl.constexpr):
    """The CANDIDATES largest of a row's keys, in descending order."""
    lane = tl.arange(0, CANDIDATES)
    held = rank_key(lane * 0.0 + float("-inf"), lane)
    for base in tl.range(0, num_keys, BLOCK, num_stages=1):
        at = base + tl.arange(0, BLOCK)
        none = rank_key(at * 0.0 + float("-inf"), at)
        loaded = tl.load(keys + at, mask=at < num_keys, other=0)
        held = keep_best(held, tl.where(at < num_keys, loaded, none), CANDIDATES)
    return held


@triton.jit
def draft_topk_kernel(
    logits,
    rows,
    row_seq,
    positions,
    node_slots,
    temperature,
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
    packed, sequence, row, best, is_usable, unit, is_greedy, seed, position = row_context(
        line, logits, rows, row_seq, positions, temperature, seeds, best_parts, vocab,
        num_splits, SPLIT_LANES,
    )  # fmt: skip
    lane = tl.arange(0, CANDIDATES)
    is_wanted = lane < LIMIT
    at_out = line.to(tl.int64) * LIMIT + lane
    if not is_usable:
        tl.store(out_tokens + at_out, lane * 0 - 1, mask=is_wanted)
        tl.store(out_probs + at_out, lane * 0.0, mask=is_wanted)
        return

    inverse = tl.div_rn(1.0, unit)
    own_keys = keys + line * num_splits * CANDIDATES
    held = _merge(own_keys, num_splits * CANDIDATES, CANDIDATES, BLOCK)
    token = tl.where(is_wanted, token_of(held), -1)
    scaled = (tl.load(row + token, mask=token >= 0, other=float("-inf")) - best) * inverse
    if FRESH:
        total = mass_sum(tl.sum(integer_mass(scaled), 0))
        if not is_greedy:
            root = tl.load(tree_starts + sequence) - 1
            node = tl.load(node_slots + packed)
            noise = gumbel(random_words_at(seed, root, DRAFT, node, token))
            drawn = rank_key(tl.where(token >= 0, scaled + noise, float("-inf")), token)
            token = token_of(tl.topk(drawn, CANDIDATES))
        shown = (tl.load(row + token, mask=token >= 0, other=float("-inf")) - best) * inverse
    else:
        noise = gumbel(random_words_at(seed, position, TARGET, 0, token))
        score = tl.where(is_greedy, scaled, scaled + noise)
        top = tl.max(tl.where(token >= 0, score, float("-inf")), 0)
        split = tl.arange(0, SPLIT_LANES)
        masses = tl.load(mass_parts + line * num_splits + split, mask=split < num_splits, other=0)
        total = mass_sum(tl.sum(masses, 0))
        shown = score - top
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
    node_slots: torch.Tensor | None = None,
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
    mass = {"mass_parts": scratch[parts : 2 * parts]}
    keys = {"keys": scratch[2 * parts :]}
    final = {
        "node_slots": node_slots,
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
        args = {**split, **scored, **mass, **keys}
        plan += [Launch(mass_of_split_kernel, grid, args, ranked, NUM_WARPS, fp_fusion=False)]
    args = {**shared, **scored, **mass, **keys, **final}
    last = {**ranked, "FRESH": is_fresh, "LIMIT": limit}
    plan += [Launch(draft_topk_kernel, (num_lines,), args, last, NUM_WARPS, fp_fusion=False)]
    return plan
