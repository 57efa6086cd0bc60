"""Keyed noise in torch, bit for bit what `sdengine/noise.h` draws: Philox, exponentials, Gumbel.

Every float32 operation below is one that IEEE 754 fixes to the bit, in the kernels' order.
"""

from __future__ import annotations

import torch

TARGET, DRAFT, COIN, FINAL = range(4)

_LOW = 0xFFFFFFFF
_LN2_HIGH = 0.693145751953125
_LN2_LOW = 1.42860682e-6
_LOG = (
    0.3333333134651184,
    -0.250008225440979,
    0.20001226663589478,
    -0.16623356938362122,
    0.14201761782169342,
    -0.131601944565773,
    0.12761549651622772,
    -0.07634429633617401,
)
_EXP = (
    0.4999999403953552,
    0.1666652113199234,
    0.04166838899254799,
    0.0083687175065279,
    0.0013814596459269524,
)


def philox4x32(counter: torch.Tensor, key: int) -> torch.Tensor:
    """Random words at counters.

    Args:
        counter: [..., 4] int64, each word in [0, 2^32).
        key: 64-bit key, as a signed or unsigned integer.

    Returns:
        [..., 4] int64 words in [0, 2^32).

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key & _LOW, (key >> 32) & _LOW
    for _ in range(10):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # the low 64 bits, whatever the sign
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _LOW) ^ c1 ^ k0,
            product1 & _LOW,
            ((product0 >> 32) & _LOW) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return torch.stack([c0, c1, c2, c3], dim=-1)


def random_words(seed: int, position: int, purpose: int, extra: int, count: int) -> torch.Tensor:
    """[count] int64: the words of indices 0 .. count - 1 under one key."""
    blocks = torch.arange((count + 3) // 4, dtype=torch.int64)
    rest = torch.tensor([position & _LOW, purpose, extra & _LOW]).expand(len(blocks), 3)
    return philox4x32(torch.cat([blocks[:, None], rest], dim=1), seed).reshape(-1)[:count]


def _log_reduced(f: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    f2 = f * f
    p01, p23, p45, p67 = (f * _LOG[i + 1] + _LOG[i] for i in (0, 2, 4, 6))
    p = (p01 + p23 * f2) + (p45 + p67 * f2) * (f2 * f2)
    tail = (f2 * f) * p - f2 * 0.5
    return e * _LN2_HIGH + (f + (tail + e * _LN2_LOW))


def _exponent_and_mantissa(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    bits = x.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    return exponent, (bits - (exponent << 23)).view(torch.float32)


def stable_log(x: torch.Tensor) -> torch.Tensor:
    """Natural logarithm of positive normal float32 numbers, the same bits as in the kernels."""
    exponent, mantissa = _exponent_and_mantissa(x)
    return _log_reduced(mantissa - 1.0, exponent.float())


def stable_exp(x: torch.Tensor) -> torch.Tensor:
    """e^x of float32 x <= 88, 0 below -86, the same bits as in the kernels."""
    shifted = x * 1.44269504088896341 + 12582912.0
    n = shifted - 12582912.0
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    r2 = r * r
    p01, p23 = (r * _EXP[i + 1] + _EXP[i] for i in (0, 2))
    p = p01 + (p23 + r2 * _EXP[4]) * r2
    y = (r + r2 * p) + 1.0
    scaled = (y.view(torch.int32) + (shifted.view(torch.int32) << 23)).view(torch.float32)
    return torch.where(x < -86.0, torch.zeros_like(x), scaled)


def exponential(words: torch.Tensor) -> torch.Tensor:
    """-log(1 - u) with u = (word + 1/2) / 2^32 as float32, accurate at both ends."""
    is_upper = words >= 1 << 31
    near = (torch.where(is_upper, _LOW - words, words).int().float() + 0.5) * 2.0**-32
    x = torch.where(is_upper, near, 1.0 - near)
    exponent, mantissa = _exponent_and_mantissa(x)
    f = torch.where(exponent == 0, -near, mantissa - 1.0)
    return -_log_reduced(f, exponent.float())


def gumbel(seed: int, position: int, purpose: int, extra: int, count: int) -> torch.Tensor:
    """[count] float32 Gumbel noise of indices 0 .. count - 1 under one key."""
    return -stable_log(exponential(random_words(seed, position, purpose, extra, count)))


def uniform(seed: int, position: int, purpose: int, extra: int, index: int) -> float:
    """The uniform number in (0, 1) of one index under one key, as float64."""
    return (int(random_words(seed, position, purpose, extra, index + 1)[index]) + 0.5) * 2.0**-32
