"""sample in Triton: tokens equal the reference's, whatever the filters, ties and masked tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdengine.kernels.sample import reference
from sdengine.kernels.sampling_tables import SamplingTables
from tests.kernels.test_sample import INF, sampling_args
from tests.kernels.triton.guarded import run_guarded

FILTERS = [
    (0, 1.0, 0.0),
    (1, 1.0, 0.0),
    (70, 0.95, 0.05),
    (3, 1.0, 0.0),
    (0, 0.9, 0.0),
    (0, 0.0, 0.0),
    (0, 1.0, 0.3),
]


def expected_tokens(args: dict[str, Any]) -> list[int]:
    out = torch.full_like(args["out_tokens"], -9)
    reference(**{**args, "out_tokens": out})
    return out.tolist()


def tokens(args: dict[str, Any]) -> list[int]:
    return run_guarded("sample", args)["out_tokens"].tolist()


@pytest.mark.parametrize("top_k,top_p,min_p", FILTERS)
@pytest.mark.parametrize("vocab,temperature,spread", [(65, 0.3, 3.0), (1100, 2.0, 0.01)])
def test_tokens_equal_the_reference(
    vocab: int, temperature: float, spread: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = torch.randn(2, vocab) * spread
    logits[0] = (logits[0] * 2).round() / 2  # ties, and both zeros
    logits[1, ::3] = -INF
    args = sampling_args(logits, temperature, top_k, top_p, min_p, seed=-(2**40) - 3)
    assert tokens(args) == expected_tokens(args)


def test_a_vocabulary_of_one() -> None:
    assert tokens(sampling_args(torch.zeros(1, 1), 1.0, 1, 0.5, 0.5)) == [0]


def test_the_law_is_drawn_from_and_not_its_mode() -> None:
    """Enough rows that a kernel without noise, or with another row's, would be caught."""
    args = sampling_args(torch.randn(1, 40).repeat(24, 1), 1.5)
    got = tokens(args)
    assert got == expected_tokens(args) and len(set(got)) > 5


@pytest.mark.parametrize("top_k,top_p,min_p", [(3, 1.0, 0.0), (0, 0.5, 0.0), (0, 1.0, 0.7)])
def test_filters_keep_what_the_reference_keeps(top_k: int, top_p: float, min_p: float) -> None:
    """Nearly flat rows, so that a token too many or too few shows in some of the draws."""
    args = sampling_args(torch.randn(14, 8) * 0.3, 1.0, top_k, top_p, min_p)
    assert tokens(args) == expected_tokens(args)


def test_greedy_takes_the_lowest_id_and_broken_rows_give_none() -> None:
    logits = torch.zeros(6, 1030)
    logits[0, [7, 1029]] = 2.0
    logits[1, 1028] = float("nan")
    logits[2, 3] = INF
    logits[3] = -INF
    logits[4] = -INF
    logits[4, 1029] = -5.0
    for temperature in (0.0, 1.0):
        args = sampling_args(logits, temperature)
        got = tokens(args)
        assert got == expected_tokens(args)
        assert got[1:5] == [-1, -1, -1, 1029]


def test_parameters_of_the_row_s_own_sequence_and_rows_past_num_rows() -> None:
    args = sampling_args(torch.randn(4, 70))
    args["row_seq"] = torch.tensor([1, 0, 1, 0, 1], dtype=torch.int32)
    args["positions"] = torch.tensor([5, 9, 2, 2, 8], dtype=torch.int32)
    args["rows"] = torch.tensor([4, 3, 0, 1], dtype=torch.int32)
    args["num_rows"][0] = 3
    args["sampling"] = SamplingTables(
        temperature=torch.tensor([0.5, 3.0]),
        top_k=torch.tensor([5, 70], dtype=torch.int32),
        top_p=torch.tensor([1.0, 0.8]),
        min_p=torch.tensor([0.0, 0.01]),
        seeds=torch.tensor([3, 2**62]),
    )
    got = tokens(args)
    assert got == expected_tokens(args) and got[3] == -9
