"""The sampling pipeline against an independent float64 one, on hostile rows found by hypothesis.

The independent pipeline sorts and cuts as the definitions read. Filters of the engine are
thresholds, so its allowed set may differ at a boundary by ties and by masses that agree to 1e-6,
and nowhere else.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdengine.kernels import noise
from sdengine.kernels.programs.program import make_pool, run_op
from sdengine.kernels.row_plan import plan_row
from sdengine.kernels.sampling_tables import SamplingTables
from tests.torch_threads import one_thread as one_thread

POOLS = [make_pool(1), make_pool(2)]
SLACK = 1e-6


def kept_by_top_k(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Tokens at least as large as the k-th."""
    if top_k < 1 or top_k >= len(logits):
        return torch.ones_like(logits, dtype=torch.bool)
    return logits >= logits.sort(descending=True).values[top_k - 1]


def kept_by_top_p(probs: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that must be kept and tokens that may be, with the given slack of mass."""
    if top_p >= 1:
        return probs > SLACK, torch.ones_like(probs, dtype=torch.bool)
    order = probs.argsort(descending=True)
    before = probs[order].cumsum(0) - probs[order]
    must, may = torch.zeros_like(probs, dtype=torch.bool), torch.zeros_like(probs, dtype=torch.bool)
    must[order] = before < top_p - SLACK
    may[order] = before < top_p + SLACK
    must[order[0]] = may[order[0]] = True
    return must, may


def allowed_sets(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that must be and that may be allowed, ties included."""
    kept = kept_by_top_k(logits, top_k) & (logits > -math.inf)
    scaled = torch.where(kept, logits.double() / temperature, -math.inf)
    probs = scaled.softmax(0)
    must, may = kept_by_top_p(probs, top_p)
    ratio = probs / probs.max()
    must, may = must & kept & (ratio >= min_p + SLACK), may & kept & (ratio >= min_p - SLACK)
    lowest = logits[may].min()
    return must | (logits == logits.max()), kept & (logits >= lowest)


finite = st.floats(-50, 50, width=32)
rows = st.one_of(
    st.lists(finite, min_size=1, max_size=300),
    st.lists(st.sampled_from([0.0, 1.0, 1.5, -math.inf]), min_size=1, max_size=300),
    st.builds(lambda n, v: [v] * n, st.integers(1, 300), finite),
    st.builds(
        lambda n, seed, spread: (torch.randn(n, generator=seeded(seed)) * spread).tolist(),
        st.integers(1, 700),
        st.integers(0, 10**6),
        st.sampled_from([1e-6, 0.01, 1.0, 20.0]),
    ),
)
parameters = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.01, 0.3, 1.0, 5.0]),
        "top_k": st.sampled_from([0, 1, 2, 7, 100, 10**6]),
        "top_p": st.sampled_from([0.0, 1e-6, 0.1, 0.5, 0.9, 0.999999, 1.0]),
        "min_p": st.sampled_from([0.0, 1e-9, 0.05, 0.7, 1.0]),
    }
)


def seeded(seed: int) -> torch.Generator:
    """A generator with that seed."""
    return torch.Generator().manual_seed(seed)


def sample_args(logits: torch.Tensor, seed: int, values: dict[str, float]) -> dict[str, Any]:
    """One row."""
    return {
        "logits": logits[None].contiguous(),
        "row_seq": torch.zeros(1, dtype=torch.int32),
        "positions": torch.full((1,), 3, dtype=torch.int32),
        "sampling": SamplingTables(
            temperature=torch.tensor([values["temperature"]]),
            top_k=torch.tensor([values["top_k"]], dtype=torch.int32),
            top_p=torch.tensor([values["top_p"]]),
            min_p=torch.tensor([values["min_p"]]),
            seeds=torch.tensor([seed]),
        ),
        "out_tokens": torch.full((1,), -9, dtype=torch.int32),
        "num_rows": torch.ones(1, dtype=torch.int32),
    }


def sampled(args: dict[str, Any], backend: str, pool: Any = None) -> int:
    """The token of the one row."""
    run_op("sample", backend, pool, **args)
    return int(args["out_tokens"])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rows, parameters, st.integers(-(2**63), 2**63 - 1))
def test_allowed_set_and_token_are_those_of_the_definition(
    row: list[float], values: dict[str, float], seed: int
) -> None:
    logits = torch.tensor(row)
    args = sample_args(logits, seed, values)
    tokens = {sampled(args, "reference"), *(sampled(args, "cpu", pool) for pool in POOLS)}
    assert len(tokens) == 1
    token = tokens.pop()
    if not logits.max().isfinite():
        assert token == -1
        return
    plan = plan_row(logits, **values)
    must, may = allowed_sets(logits, **values)
    assert not (must & ~plan.is_allowed).any()
    assert not (plan.is_allowed & ~may).any()
    assert plan.is_allowed[token]
    drawn = noise.gumbel(seed, 4, noise.TARGET, 0, len(row)).double()
    scores = torch.where(
        plan.is_allowed, logits.double() / values["temperature"] + drawn, -math.inf
    )
    assert scores[token] >= scores.max() - 1e-4


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows, st.integers(0, 10**6), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_greedy_rows_and_rows_that_cannot_be_drawn(row: list[float], seed: int, odd: float) -> None:
    logits = torch.tensor(row)
    values = {"temperature": 0.0, "top_k": 3, "top_p": 0.5, "min_p": 0.1}
    best = int((logits == logits.max()).nonzero()[0])
    expected = best if logits.max().isfinite() else -1
    assert sampled(sample_args(logits, seed, values), "cpu", POOLS[0]) == expected
    logits[seed % len(row)] = odd
    for temperature in (0.0, 1.0):
        args = sample_args(logits, seed, {**values, "temperature": temperature})
        token = sampled(args, "cpu", POOLS[1])
        if odd == -math.inf:
            assert (token >= 0) == bool(logits.max().isfinite())
            assert token != seed % len(row) or token == -1
        else:
            assert token == -1


def test_slicing_a_large_row_over_workers_changes_nothing() -> None:
    generator = seeded(5)
    for vocab in (16384, 50257, 32000 + 1):
        logits = torch.randn(vocab, generator=generator) * 2
        for values in (
            {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
            {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
            {"temperature": 1.3, "top_k": 2000, "top_p": 0.97, "min_p": 0.001},
        ):
            tokens = {
                sampled(sample_args(logits, 77, values), "cpu", make_pool(n)) for n in (1, 2, 3, 5)
            }
            assert tokens == {sampled(sample_args(logits, 77, values), "reference")}


def test_the_lowest_logits_of_a_sliced_row_may_lie_in_any_slice() -> None:
    """Top-p looks no further down than the row's minimum; here the first slice's is too high."""
    logits = torch.zeros(16384)
    logits[8192:] = -1.0
    values = {"temperature": 1.0, "top_k": 0, "top_p": 0.9, "min_p": 0.0}
    args = [sample_args(logits, seed, values) for seed in range(12)]
    drawn = [sampled(one, "cpu", POOLS[0]) for one in args]
    assert [sampled(one, "cpu", POOLS[1]) for one in args] == drawn
    assert max(drawn) >= 8192


@pytest.mark.parametrize("place", [0, 8191, 8192, 16383])
def test_a_nan_in_any_slice_of_a_row_is_seen(place: int) -> None:
    logits = torch.zeros(16384)
    logits[place] = math.nan
    for temperature in (0.0, 1.0):
        values = {"temperature": temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        assert sampled(sample_args(logits, 1, values), "cpu", POOLS[1]) == -1


def test_unsampled_rows_stay_untouched() -> None:
    args = sample_args(
        torch.randn(50), 1, {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    )
    args["num_rows"].zero_()
    assert sampled(args, "cpu", POOLS[0]) == -9


def test_top_p_cuts_between_neighbours_of_one_histogram_bin() -> None:
    """Two groups 0.001 apart share a bin of the row's range; the mass ends in the upper one."""
    logits = torch.full((600,), -3.0)
    logits[0], logits[1:201], logits[201:401] = 3.0, 0.0, -0.001
    values = {"temperature": 1.0, "top_k": 0, "top_p": 0.5, "min_p": 0.0}
    assert int(plan_row(logits, **values).is_allowed.sum()) == 201
    for seed in range(40):
        assert sampled(sample_args(logits, seed, values), "cpu", POOLS[0]) <= 200
