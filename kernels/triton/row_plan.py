"""Passes over logits that `sample` and `draft_topk` share; see `kernels/row_plan.py`.

Logits are ranked as integers of the same order and weights are added up as integers of 2^-44, so
no result depends on the order in which a row is walked. -0 counts as 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sdengine.kernels.triton.noise import stable_exp

GREEDY_TEMPERATURE = tl.constexpr(1e-5)
NO_TOKEN = tl.constexpr(2**31 - 1)


@triton.jit
def row_of(logits, rows, row_seq, line, vocab):
    """The packed row that a line of logits belongs to, its sequence, and where its logits begin."""
    packed = line
    if rows is not None:
        packed = tl.load(rows + line)
    return packed, tl.load(row_seq + packed), logits + line.to(tl.int64) * vocab


@triton.jit
def best_of_tokens(row, begin, end, BLOCK: tl.constexpr):
    """Largest logit of tokens [begin, end), its lowest id, and whether none is NaN or +inf."""
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    token = tl.full([BLOCK], NO_TOKEN, tl.int32)
    broken = tl.zeros([BLOCK], tl.int32)
    for base in tl.range(begin, end, BLOCK, num_stages=1):
        at = base + tl.arange(0, BLOCK)
        logit = tl.load(row + at, mask=at < end, other=float("-inf"))
        broken |= ((logit != logit) | (logit == float("inf"))).to(tl.int32)
        token = tl.where(logit > best, at, token)
        best = tl.where(logit > best, logit, best)
    largest = tl.max(best, 0)
    lowest_id = tl.min(tl.where(best == largest, token, NO_TOKEN), 0)
    return largest, lowest_id, tl.max(broken, 0) == 0


@triton.jit
def best_of_row(row, vocab, BLOCK: tl.constexpr):
    """Largest logit, its lowest id, and whether a token can be drawn (no NaN, no +inf, not all
    -inf)."""
    largest, lowest_id, is_sound = best_of_tokens(row, 0, vocab, BLOCK)
    return largest, lowest_id, is_sound & (largest > float("-inf"))


@triton.jit
def order_of(value):
    """int64 in [0, 2^32) that orders like float32 `value`."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648


@triton.jit
def value_of(order):
    """The float32 that an order was made of."""
    bits = (order - 2147483648).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def integer_mass(scaled):
    """exp(scaled) in units of 2^-44 as int64, rounded to nearest even; scaled <= 0."""
    mass = stable_exp(scaled).to(tl.float64) * 17592186044416.0
    return ((mass + 6755399441055744.0) - 6755399441055744.0).to(tl.int64)  # 1.5 * 2^52


@triton.jit
def mass_sum(total):
    """A sum of `integer_mass` as float32."""
    return (total.to(tl.float64) * 5.684341886080802e-14).to(tl.float32)  # 2^-44


@triton.jit
def rank_key(value, token):
    """int64 that orders by value, among equals by the lower token id; -inf is below all others."""
    key = ((order_of(value) - 2147483648) << 32) + (4294967295 - token.to(tl.int64))
    return tl.where(value > float("-inf"), key, -0x7FFFFFFFFFFFFFFF)


@triton.jit
def token_of(key):
    """Token id of a rank key; -1 for none."""
    token = (4294967295 - (key & 4294967295)).to(tl.int32)
    return tl.where(key == -0x7FFFFFFFFFFFFFFF, -1, token)


@triton.jit
def score_of(key):
    """The value that a rank key was made of; of none, anything."""
    return value_of((key >> 32) + 2147483648)
