"""What draft_topk does over splits of a row: its largest logit, candidates, and weight.

The programs of a launch share the splits of the rows that there are; see `draft_topk.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sdengine.kernels.triton.noise import TARGET, gumbel, random_words
from sdengine.kernels.triton.overlap import begin_early
from sdengine.kernels.triton.row_plan import (
    GREEDY_TEMPERATURE,
    best_of_tokens,
    integer_mass,
    order_of,
    rank_key,
    row_of,
    score_of,
    value_of,
)


@triton.jit
def _split_range(split, vocab, split_blocks, BLOCK: tl.constexpr):
    """Tokens [begin, end) of a split."""
    begin = split * split_blocks * BLOCK
    return begin, tl.minimum(begin + split_blocks * BLOCK, vocab)


@triton.jit
def largest(parts, num_splits, SPLIT_LANES: tl.constexpr):
    """Largest logit of a row, and whether a token of it can be drawn."""
    lane = tl.arange(0, SPLIT_LANES)
    best = value_of(tl.max(tl.load(parts + lane, mask=lane < num_splits, other=0), 0))
    return best, (best > float("-inf")) & (best < float("inf"))


@triton.jit
def row_context(
    line,
    logits,
    rows,
    row_seq,
    positions,
    temperature,
    seeds,
    best_parts,
    vocab,
    num_splits,
    SPLIT_LANES: tl.constexpr,
):
    """Of a line of logits: its packed row, its sequence, where it begins, its largest logit,
    whether a token can be drawn; temperature (1 where greedy), whether it is greedy; seed and
    position of the noise."""
    packed, sequence, row = row_of(logits, rows, row_seq, line, vocab)
    best, is_usable = largest(best_parts + line * num_splits, num_splits, SPLIT_LANES)
    heat = tl.load(temperature + sequence)
    is_greedy = heat < GREEDY_TEMPERATURE
    seed = tl.load(seeds + sequence)
    position = tl.load(positions + packed) + 1
    unit = tl.where(is_greedy, 1.0, heat)
    return packed, sequence, row, best, is_usable, unit, is_greedy, seed, position


@triton.jit
def _target_scores(row, base, end, best, inverse, seed, position, is_greedy, BLOCK: tl.constexpr):
    """Logits and perturbed scores of a block; a greedy row has no noise."""
    at = base + tl.arange(0, BLOCK)
    logit = tl.load(row + at, mask=at < end, other=float("-inf"))
    noise = gumbel(random_words(seed, position, TARGET, 0, base, BLOCK))
    scaled = (logit - best) * inverse
    return logit, tl.where(is_greedy, scaled, scaled + noise)


@triton.jit
def keep_best(held, keys, CANDIDATES: tl.constexpr):
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
        _packed, _sequence, row, best, is_usable, unit, is_greedy, seed, position = row_context(
            line, logits, rows, row_seq, positions, temperature, seeds, best_parts, vocab,
            num_splits, SPLIT_LANES,
        )  # fmt: skip
        inverse = tl.div_rn(1.0, unit)
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
            held = keep_best(held, rank_key(value, at), CANDIDATES)
        tl.store(keys + part * CANDIDATES + lane, held)


@triton.jit
def mass_of_split_kernel(
    logits,
    rows,
    row_seq,
    positions,
    temperature,
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
        _packed, _sequence, row, best, is_usable, unit, is_greedy, seed, position = row_context(
            line, logits, rows, row_seq, positions, temperature, seeds, best_parts, vocab,
            num_splits, SPLIT_LANES,
        )  # fmt: skip
        inverse = tl.div_rn(1.0, unit)
        top = _top_score(keys + line * num_splits * CANDIDATES, num_splits, CANDIDATES, SPLIT_LANES)
        top = tl.where(is_greedy, 0.0, top)  # keys of a greedy row hold logits
        mass = tl.zeros([BLOCK], tl.int64)
        begin, end = _split_range(part % num_splits, vocab, split_blocks, BLOCK)
        for base in tl.range(begin, tl.where(is_usable, end, begin), BLOCK, num_stages=1):
            _logits, scores = _target_scores(
                row, base, end, best, inverse, seed, position, is_greedy, BLOCK
            )
            mass += integer_mass(scores - top)
        tl.store(mass_parts + part, tl.sum(mass, 0))


@triton.jit
def _top_score(keys, num_splits, CANDIDATES: tl.constexpr, SPLIT_LANES: tl.constexpr):
    """Score of the best key of a row; those of a split are in descending order."""
    lane = tl.arange(0, SPLIT_LANES)
    none = rank_key(lane * 0.0 + float("-inf"), lane)
    firsts = tl.load(keys + lane * CANDIDATES, mask=lane < num_splits, other=0)
    return score_of(tl.max(tl.where(lane < num_splits, firsts, none), 0))
