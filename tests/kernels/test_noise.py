"""Noise: Philox gives its published vectors; torch, scalar and vector code draw the same bits."""

from __future__ import annotations

import pytest
import torch

from sdengine.kernels import noise


def words(hexadecimal: str) -> list[int]:
    return [int(word, 16) for word in hexadecimal.split()]


@pytest.mark.parametrize(
    "counter,key,expected",
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_vectors(counter: str, key: str, expected: str) -> None:
    low, high = words(key)
    got = noise.philox4x32(torch.tensor(words(counter)), low | high << 32)
    assert got.tolist() == words(expected)


def test_exponential_is_accurate_at_both_ends() -> None:
    top = 2**32 - 1
    r = torch.cat([torch.arange(1000), top - torch.arange(1000), torch.arange(0, top, 104729)])
    u = (r.double() + 0.5) / 2**32
    exact = torch.where(
        u < 0.5,
        -torch.log1p(-u),
        -torch.log((top - r).double() + 0.5) + 32 * torch.log(torch.tensor(2.0).double()),
    )
    relative = noise.exponential(r).double() / exact - 1
    assert relative.abs().max() < 4e-7


def test_gumbel_of_the_extreme_words_is_finite() -> None:
    extremes = torch.tensor([0, 2**31 - 1, 2**31, 2**32 - 1])
    drawn = -noise.stable_log(noise.exponential(extremes))
    assert drawn.isfinite().all()
    assert 22.8 < float(drawn[0]) < 22.9


def test_stable_exp_and_log_are_close_to_float64() -> None:
    x = torch.linspace(-85.9, 0.0, 200001)
    assert (noise.stable_exp(x).double() / x.double().exp() - 1).abs().max() < 2e-7
    y = torch.logspace(-30, 30, 200001, base=2.0)
    assert (noise.stable_log(y).double() - y.double().log()).abs().max() < 2e-6
    assert float(noise.stable_exp(torch.tensor(0.0))) == 1.0
    assert float(noise.stable_exp(torch.tensor(float("-inf")))) == 0.0
