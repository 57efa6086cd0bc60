"""filter_logits: what `sample` may not draw is masked, and nothing else is touched."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from sdengine.kernels.programs.program import make_pool, run_op
from sdengine.kernels.sampling_tables import SamplingTables

from .random_token_trees import int_tensor

MINUS_INFINITY = float("-inf")


def tables(filters: list[tuple[float, int, float, float]]) -> SamplingTables:
    """Of (temperature, top-k, top-p, min-p) by sequence."""
    temperature, top_k, top_p, min_p = zip(*filters, strict=True)
    return SamplingTables(
        temperature=torch.tensor(temperature),
        top_k=int_tensor(list(top_k)),
        top_p=torch.tensor(top_p),
        min_p=torch.tensor(min_p),
        seeds=torch.zeros(len(filters), dtype=torch.int64),
    )


def random_args(rng: random.Random, vocab: int) -> dict[str, Any]:
    """Rows of several sequences in any order, flat laws and sharp ones, with equal logits."""
    batch, n = 4, 9
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    logits = torch.randn(n, vocab, generator=generator) * torch.rand(n, 1, generator=generator) * 9
    logits[::2] = (logits[::2] * 2).round() / 2
    logits[torch.rand(logits.shape, generator=generator) < 0.1] = MINUS_INFINITY
    logits[:, rng.randrange(vocab)] = 3.0
    packed = [rng.randrange(n) for _ in range(n)]
    filters = [
        (
            rng.choice([0.0, 0.7, 1.0]) if b else 0.9,
            rng.choice([0, 1, 7, 50, vocab]),
            rng.choice([1.0, 0.95, 0.3]),
            rng.choice([0.0, 0.1]),
        )
        for b in range(batch)
    ]
    return {
        "logits": logits,
        "row_seq": int_tensor([rng.randrange(batch) for _ in range(n)]),
        "sampling": tables(filters),
        "num_rows": int_tensor([n - 1]),
        "rows": int_tensor(packed),
    }


@pytest.mark.parametrize("vocab", [1, 5, 70, 300, 2048, 9001])
@pytest.mark.parametrize("seed", range(4))
def test_random_rows_equal_the_reference(vocab: int, seed: int) -> None:
    rng = random.Random(seed * 10000 + vocab)
    args = random_args(rng, vocab)
    mine = {**args, "logits": args["logits"].clone()}
    run_op("filter_logits", "reference", **mine)
    run_op("filter_logits", "cpu", make_pool(rng.choice([1, 2, 3])), **args)
    assert torch.equal(args["logits"], mine["logits"])


def test_a_filter_keeps_what_it_says() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().repeat(4, 1)
    filters = [(1.0, 3, 1.0, 0.0), (1.0, 0, 0.6, 0.0), (1.0, 0, 1.0, 0.6), (0.0, 1, 1.0, 0.0)]
    args = {
        "logits": logits.clone(),
        "row_seq": int_tensor([0, 1, 2, 3]),
        "sampling": tables(filters),
        "num_rows": int_tensor([4]),
    }
    run_op("filter_logits", "cpu", make_pool(2), **args)
    kept = args["logits"] > MINUS_INFINITY
    assert kept.sum(dim=1).tolist() == [3, 2, 2, 4]
    assert torch.equal(args["logits"][kept], logits[kept])


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), MINUS_INFINITY])
def test_rows_of_which_nothing_can_be_drawn_keep_their_bits(broken: float) -> None:
    logits = torch.randn(2, 100)
    logits[0, :] = MINUS_INFINITY
    logits[0, 5] = broken
    args = {
        "logits": logits.clone(),
        "row_seq": int_tensor([0, 0]),
        "sampling": tables([(0.8, 10, 0.9, 0.1)]),
        "num_rows": int_tensor([2]),
    }
    run_op("filter_logits", "cpu", make_pool(1), **args)
    assert torch.equal(args["logits"][0].view(torch.int32), logits[0].view(torch.int32))
    assert not torch.equal(args["logits"][1], logits[1])


def test_wrong_arguments_are_named() -> None:
    args = random_args(random.Random(1), 20)
    with pytest.raises(ValueError, match="filter_logits: row_seq"):
        run_op("filter_logits", **{**args, "row_seq": args["row_seq"].long()})
    with pytest.raises(ValueError, match="filter_logits: sampling"):
        run_op("filter_logits", **{**args, "sampling": None})
