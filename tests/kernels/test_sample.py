"""sample: kernel tokens equal the reference's, whatever the filters, slicing, workers and tails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sdengine.kernels.programs.program import make_pool, run_op
from sdengine.kernels.sampling_tables import SamplingTables

INF = float("inf")


def sampling_args(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 7,
) -> dict[str, Any]:
    rows = logits.shape[0]
    return {
        "logits": logits.contiguous(),
        "row_seq": torch.zeros(rows, dtype=torch.int32),
        "positions": torch.arange(rows, dtype=torch.int32),
        "sampling": SamplingTables(
            temperature=torch.tensor([temperature]),
            top_k=torch.tensor([top_k], dtype=torch.int32),
            top_p=torch.tensor([top_p]),
            min_p=torch.tensor([min_p]),
            seeds=torch.tensor([seed]),
        ),
        "out_tokens": torch.full((rows,), -9, dtype=torch.int32),
        "num_rows": torch.tensor([rows], dtype=torch.int32),
    }


def tokens(backend: str, args: dict[str, Any], pool: Any = None) -> list[int]:
    out = torch.full_like(args["out_tokens"], -9)
    run_op("sample", backend, pool, **{**args, "out_tokens": out})
    return out.tolist()


@pytest.fixture(scope="module")
def pools() -> list[Any]:
    return [make_pool(n) for n in (1, 3)]


@pytest.mark.parametrize("vocab", [1, 2, 63, 64, 65, 257, 2048, 20000])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 2.0])
def test_tokens_equal_the_reference(vocab: int, temperature: float, pools: list[Any]) -> None:
    generator = torch.Generator().manual_seed(vocab)
    for spread in (0.01, 3.0):
        logits = torch.randn(2, vocab, generator=generator) * spread
        for top_k, top_p, min_p in (
            (0, 1.0, 0.0),
            (1, 1.0, 0.0),
            (70, 0.95, 0.05),
            (0, 0.9, 0.0),
            (0, 0.0, 0.0),
        ):
            args = sampling_args(logits, temperature, top_k, top_p, min_p, seed=-(2**40) - 3)
            expected = tokens("reference", args)
            assert [tokens("cpu", args, pool) for pool in pools] == [expected, expected]


@pytest.mark.parametrize("temperature", [1e-5, 1e30, 1e37, 1.1e37, 1e38, 3.4e38])
@pytest.mark.parametrize("top_k", [0, 1500])
def test_temperatures_whose_range_of_logits_overflows(
    temperature: float, top_k: int, pools: list[Any]
) -> None:
    """A bin of top-p was a place outside the table: some token is masked, and 32 T is infinite."""
    logits = torch.randn(4, 2048, generator=torch.Generator().manual_seed(3))
    logits[1:, 7] = -INF
    logits[2, :1000] *= 1e37
    logits[3, :5] = torch.tensor([3.4e38, -3.4e38, 0.0, 1e38, -1e38])
    args = sampling_args(logits, temperature, top_k, 0.9)
    expected = tokens("reference", args)
    assert [tokens("cpu", args, pool) for pool in pools] == [expected, expected]


def test_zeros_of_either_sign_are_one_logit(pools: list[Any]) -> None:
    """Their range is -0, which divides to minus infinity."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.where(torch.rand(64, 129, generator=generator) > 0.5, 0.0, -0.0)
    args = sampling_args(logits, 1.0, 0, 0.5)
    drawn = [tokens("cpu", args, pool) for pool in pools]
    assert drawn[0] == drawn[1] == tokens("reference", args)
    assert len(set(drawn[0])) > 8


def test_names_the_wrong_field() -> None:
    args = sampling_args(torch.randn(2, 5))
    sampling: SamplingTables = args["sampling"]
    for wrong, message in (
        (sampling.temperature, "sampling: expected a SamplingTables, got Tensor"),
        (replace(sampling, top_k=torch.ones(1)), "sampling.top_k: expected torch.int32, got torch"),
        (
            replace(sampling, min_p=torch.ones(2)),
            r"sampling.min_p: expected shape \[1\], got \[2\]",
        ),
    ):
        with pytest.raises(ValueError, match=f"sample: {message}"):
            run_op("sample", **{**args, "sampling": wrong})
