"""Noise in Triton: the words and every float equal those of the torch reference, bit for bit."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from sdengine.kernels import noise
from sdengine.kernels.triton.noise import (
    gumbel,
    random_words,
    random_words_at,
    stable_exp,
    stable_log,
)
from tests.kernels.triton.guarded import DEVICE

COUNT = 256


@triton.jit
def words_kernel(seed, key, ordered, scattered, COUNT: tl.constexpr):
    lane = tl.arange(0, COUNT)
    position, purpose, extra, first = (
        tl.load(key),
        tl.load(key + 1),
        tl.load(key + 2),
        tl.load(key + 3),
    )
    words = random_words(tl.load(seed), position, purpose, extra, first, COUNT)
    tl.store(ordered + lane, words)
    index = first + COUNT - 1 - lane
    tl.store(scattered + lane, random_words_at(tl.load(seed), position, purpose, extra, index))


@triton.jit
def floats_kernel(words, x, y, out, COUNT: tl.constexpr):
    lane = tl.arange(0, COUNT)
    tl.store(out + lane, gumbel(tl.load(words + lane)))
    tl.store(out + COUNT + lane, stable_exp(tl.load(x + lane)))
    tl.store(out + 2 * COUNT + lane, stable_log(tl.load(y + lane)))


@pytest.mark.parametrize("seed", [0, 7, -(2**40) - 3, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("key", [(0, 0, 0, 0), (131071, 3, 500, 128), (2**31 - 1, 1, -1, 128000)])
def test_words(seed: int, key: tuple[int, int, int, int]) -> None:
    position, purpose, extra, first = key
    expected = noise.random_words(seed, position, purpose, extra, first + COUNT)[first:].int()
    ordered, scattered = (torch.zeros(COUNT, dtype=torch.int32, device=DEVICE) for _ in range(2))
    keys = torch.tensor(key, dtype=torch.int32, device=DEVICE)
    words_kernel[(1,)](torch.tensor([seed], device=DEVICE), keys, ordered, scattered, COUNT)
    assert torch.equal(ordered.cpu(), expected)
    assert torch.equal(scattered.cpu().flip(0), expected)


def test_floats() -> None:
    words = torch.randint(-(2**31), 2**31, (COUNT,)).int()
    words[:6] = torch.tensor([0, 1, 2**31 - 1, -(2**31), -1, -2])
    x = torch.linspace(-90.0, 0.0, COUNT)
    x[0] = float("-inf")
    y = torch.logspace(-37, 30, COUNT, base=10.0)
    unsigned = words.long() & 0xFFFFFFFF
    expected = [-noise.stable_log(noise.exponential(unsigned)), noise.stable_exp(x)]
    expected.append(noise.stable_log(y))
    out = torch.zeros(3 * COUNT, device=DEVICE)
    moved = (t.to(DEVICE) for t in (words, x, y))
    floats_kernel[(1,)](*moved, out, COUNT, enable_fp_fusion=False)
    assert torch.equal(out.cpu(), torch.cat(expected))
