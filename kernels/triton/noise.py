"""Keyed noise in Triton, bit for bit what `sdengine/noise.h` and `kernels/noise.py` draw.

Every float32 operation is one that IEEE 754 fixes to the bit; kernels that use these functions are
launched with `fp_fusion=False`, because a contracted multiply-add rounds once instead of twice.
"""

from __future__ import annotations

import triton
import triton.language as tl

TARGET = tl.constexpr(0)
DRAFT = tl.constexpr(1)


@triton.jit
def random_words(seed, position, purpose, extra, first, COUNT: tl.constexpr):
    """[COUNT] int32: the words of indices first .. first + COUNT - 1; both are multiples of 4."""
    block = first // 4 + tl.arange(0, COUNT // 4)
    zeros = block * 0
    c0, c1, c2, c3 = tl.philox(seed, block, zeros + position, zeros + purpose, zeros + extra)
    words = tl.join(tl.join(c0, c2), tl.join(c1, c3))  # [COUNT / 4, high bit, low bit of index % 4]
    return tl.reshape(words, [COUNT]).to(tl.int32, bitcast=True)


@triton.jit
def random_words_at(seed, position, purpose, extra, index):
    """int32 words of a vector of indices in any order."""
    zeros = index * 0
    c0, c1, c2, c3 = tl.philox(seed, index // 4, zeros + position, zeros + purpose, zeros + extra)
    word = index % 4
    low = tl.where(word == 0, c0, c1)
    high = tl.where(word == 2, c2, c3)
    return tl.where(word < 2, low, high).to(tl.int32, bitcast=True)


@triton.jit
def _log_reduced(f, e):
    f2 = f * f
    p01 = f * -0.250008225440979 + 0.3333333134651184
    p23 = f * -0.16623356938362122 + 0.20001226663589478
    p45 = f * -0.131601944565773 + 0.14201761782169342
    p67 = f * -0.07634429633617401 + 0.12761549651622772
    p = (p01 + p23 * f2) + (p45 + p67 * f2) * (f2 * f2)
    tail = (f2 * f) * p - f2 * 0.5
    return e * 0.693145751953125 + (f + (tail + e * 1.42860682e-6))


@triton.jit
def _exponent(x):
    return (x.to(tl.int32, bitcast=True) - 0x3F3504F3) >> 23


@triton.jit
def _mantissa(x, exponent):
    return (x.to(tl.int32, bitcast=True) - (exponent << 23)).to(tl.float32, bitcast=True)


@triton.jit
def stable_log(x):
    """Natural logarithm of positive normal float32 numbers."""
    exponent = _exponent(x)
    return _log_reduced(_mantissa(x, exponent) - 1.0, exponent.to(tl.float32))


@triton.jit
def stable_exp(x):
    """e^x of float32 x <= 88; 0 below -86, also for -inf."""
    shifted = x * 1.44269504088896341 + 12582912.0  # 1.5 * 2^23: low bits are the rounded integer
    n = shifted - 12582912.0
    r = (x - n * 0.693145751953125) - n * 1.42860682e-6
    r2 = r * r
    p01 = r * 0.1666652113199234 + 0.4999999403953552
    p23 = r * 0.0083687175065279 + 0.04166838899254799
    p = p01 + (p23 + r2 * 0.0013814596459269524) * r2
    y = (r + r2 * p) + 1.0
    bits = y.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
    return tl.where(x < -86.0, 0.0, bits.to(tl.float32, bitcast=True))


@triton.jit
def gumbel(words):
    """-log(-log(1 - u)) with u = (word + 1/2) / 2^32, words as int32 with the unsigned bits."""
    is_upper = words < 0
    near = ((words ^ (words >> 31)).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    x = tl.where(is_upper, near, 1.0 - near)
    exponent = _exponent(x)
    f = tl.where(exponent == 0, -near, _mantissa(x, exponent) - 1.0)
    return -stable_log(-_log_reduced(f, exponent.to(tl.float32)))
