"""draft_topk: candidates and probabilities equal the reference bit for bit, for both noises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdengine.kernels import noise as keyed
from sdengine.kernels.programs.program import make_pool, run_op
from sdengine.kernels.sampling_tables import SamplingTables
from tests.torch_threads import one_thread as one_thread


def draft_args(
    noise: str, logits: torch.Tensor, candidates: int, temperature: float = 0.8
) -> dict[str, Any]:
    """Rows of two sequences, three in a row each, two to a position."""
    rows = logits.shape[0]
    return {
        "noise": noise,
        "logits": logits,
        "row_seq": (torch.arange(rows) // 3 % 2).int(),
        "positions": (torch.arange(rows) // 2).int() + 40,
        "temperature": torch.tensor([temperature, 1.3]),
        "seeds": torch.tensor([11, -(2**50)]),
        "out_tokens": torch.full((rows, candidates), -9, dtype=torch.int32),
        "out_probs": torch.full((rows, candidates), -9.0),
        "num_rows": torch.tensor([rows], dtype=torch.int32),
        "node_slots": torch.arange(rows, dtype=torch.int32) * 3,
        "tree_starts": torch.tensor([17, 23], dtype=torch.int32),
    }


def run_both(args: dict[str, Any], workers: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs kernel and reference, insists on the same bits and returns them."""
    mine = {name: args[name].clone() for name in ("out_tokens", "out_probs")}
    run_op("draft_topk", "reference", **{**args, **mine})
    run_op("draft_topk", "cpu", make_pool(workers), **args)
    for name, expected in mine.items():
        assert torch.equal(args[name], expected), name
    return args["out_tokens"], args["out_probs"]


@pytest.mark.parametrize("noise", ["target", "fresh"])
@pytest.mark.parametrize(
    "vocab,candidates", [(1, 1), (3, 8), (64, 64), (65, 5), (2048, 8), (5000, 64)]
)
@pytest.mark.parametrize("temperature", [0.0, 0.05, 0.8])
def test_candidates_equal_the_reference(
    noise: str, vocab: int, candidates: int, temperature: float
) -> None:
    logits = torch.randn(7, vocab, generator=torch.Generator().manual_seed(vocab)) * 4
    run_both(draft_args(noise, logits, candidates, temperature), workers=2)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("vocab", [1023, 1100, 5000])
def test_workers_share_the_noise_of_a_layer(vocab: int, rows: int, workers: int) -> None:
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab)) * 4
    args = draft_args("target", logits, 8)
    args["row_seq"].zero_()
    args["positions"].fill_(40)
    run_both(args, workers)
    if rows > 1:
        args["positions"][-1] += 1  # another layer among them
        run_both(args, workers)


def test_probabilities_are_a_softmax_over_the_row_and_follow_the_noise() -> None:
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(1))
    args = draft_args("target", logits, 5)
    tokens, probs = run_both(args)
    scores = logits[0].double() / 0.8 + keyed.gumbel(11, 41, keyed.TARGET, 0, 300).double()
    expected = scores.softmax(0).topk(5)
    assert tokens[0].tolist() == expected.indices.tolist()
    assert torch.allclose(probs[0].double(), expected.values, rtol=1e-5)


def test_the_coupled_draft_of_the_target_itself_proposes_the_sampled_token() -> None:
    logits = torch.randn(12, 1000, generator=torch.Generator().manual_seed(3)) * 2
    args = draft_args("target", logits, 1)
    tokens, _ = run_both(args)
    out = torch.empty(12, dtype=torch.int32)
    run_op(
        "sample",
        logits=logits,
        row_seq=args["row_seq"],
        positions=args["positions"],
        sampling=SamplingTables(
            temperature=args["temperature"],
            top_k=torch.zeros(2, dtype=torch.int32),
            top_p=torch.ones(2),
            min_p=torch.zeros(2),
            seeds=args["seeds"],
        ),
        out_tokens=out,
        num_rows=args["num_rows"],
    )
    assert torch.equal(tokens[:, 0], out)


def test_fresh_candidates_are_the_support_in_another_order() -> None:
    logits = torch.randn(6, 400, generator=torch.Generator().manual_seed(4))
    tokens, probs = run_both(draft_args("fresh", logits, 16))
    support = logits.topk(16).indices
    assert torch.equal(tokens.long().sort().values, support.sort().values)
    assert torch.allclose(probs.sum(1), torch.ones(6), atol=1e-6)
    assert not torch.equal(tokens.long(), support)


def test_fresh_noise_depends_on_the_node_and_not_on_the_depth_alone() -> None:
    logits = torch.randn(1, 64, generator=torch.Generator().manual_seed(5)).repeat(4, 1)
    args = draft_args("fresh", logits, 64)
    args["row_seq"].zero_()
    args["positions"].zero_()
    tokens, _ = run_both(args)
    assert len({tuple(row) for row in tokens.tolist()}) == 4


@pytest.mark.parametrize("noise", ["target", "fresh"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_rows_that_cannot_be_drawn_have_no_candidates(noise: str, bad: float | None) -> None:
    logits = torch.zeros(2, 70)
    logits[0] = float("-inf") if bad is None else logits[0]
    logits[0, 69] = float("-inf") if bad is None else bad
    logits[1, 1:] = float("-inf")
    tokens, probs = run_both(draft_args(noise, logits, 3))
    assert tokens[0].tolist() == [-1, -1, -1] and probs[0].tolist() == [0.0, 0.0, 0.0]
    assert tokens[1].tolist() == [0, -1, -1] and probs[1].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("noise", ["target", "fresh"])
def test_equal_logits_rank_by_token_at_temperature_zero(noise: str) -> None:
    logits = torch.zeros(1, 200)
    logits[0, [7, 150]] = 1.0
    tokens, _ = run_both(draft_args(noise, logits, 4, temperature=0.0))
    assert tokens[0].tolist() == [7, 150, 0, 1]


def test_the_number_of_candidates_is_checked() -> None:
    with pytest.raises(ValueError, match="draft_topk: out_tokens: expected 1 <= K <= 64, got 65"):
        run_op("draft_topk", **draft_args("target", torch.zeros(1, 100), 65))


def test_a_token_whose_chance_is_none_in_float32_is_no_fresh_candidate() -> None:
    """Its scaled logit overflows to -inf: there is nothing to rank it by."""
    logits = torch.tensor([[1e38, 3e38, -2e38, 2.999e38, -3e38, 0.0, 1.0]])
    tokens, _ = run_both(draft_args("fresh", logits, 8, temperature=0.1))
    assert tokens[0].tolist() == [1, 3] + [-1] * 6
