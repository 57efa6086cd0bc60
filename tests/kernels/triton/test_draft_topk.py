"""draft_topk in Triton: tokens and probabilities equal the reference's, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdengine.kernels.draft_topk import device_scratch_size, reference
from sdengine.kernels.triton import draft_topk
from tests.kernels.triton.guarded import run_guarded

INF = float("inf")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks in a small vocabulary, and short sorts for the interpreter."""
    monkeypatch.setattr(draft_topk, "BLOCK", 64)


def make_args(noise: str, logits: torch.Tensor, limit: int, temperature: float) -> dict[str, Any]:
    rows = logits.shape[0]
    return {
        "noise": noise,
        "logits": logits,
        "row_seq": torch.arange(rows, dtype=torch.int32) % 2,
        "positions": torch.arange(rows, dtype=torch.int32) * 3,
        "temperature": torch.tensor([temperature, 1.0]),
        "seeds": torch.tensor([-(2**50) - 1, 11]),
        "out_tokens": torch.full((rows, limit), -9, dtype=torch.int32),
        "out_probs": torch.full((rows, limit), -9.0),
        "num_rows": torch.tensor([rows], dtype=torch.int32),
        "node_slots": torch.arange(rows, dtype=torch.int32) + 4,
        "tree_starts": torch.tensor([17, 31], dtype=torch.int32),
        "scratch": torch.full((device_scratch_size(rows, limit),), -9),
    }


def assert_equals_reference(args: dict[str, Any]) -> dict[str, Any]:
    expected = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in args.items()}
    reference(**expected)
    got = run_guarded("draft_topk", args, scratch=("scratch",))
    assert torch.equal(got["out_tokens"], expected["out_tokens"])
    assert torch.equal(got["out_probs"], expected["out_probs"])
    return got


@pytest.mark.parametrize(
    "noise,temperature,vocab,limit",
    [
        ("target", 0.8, 1, 1),
        ("target", 0.8, 5, 8),
        ("target", 0.0, 140, 5),
        ("target", 0.8, 70, 64),
        ("target", 0.8, 140, 4),
        ("fresh", 0.8, 5, 8),
        ("fresh", 0.0, 140, 3),
        ("fresh", 0.8, 140, 17),
    ],
)
def test_equals_the_reference(noise: str, temperature: float, vocab: int, limit: int) -> None:
    logits = torch.randn(2, vocab) * 3
    logits[0] = logits[0].round()  # ties, and both zeros
    logits[1, 1::2] = -INF
    assert_equals_reference(make_args(noise, logits, limit, temperature))


def test_large_logits_that_noise_collapses_are_ranked_by_themselves_when_greedy() -> None:
    logits = torch.tensor([[1e6, 1e6 + 1, -3e38, 0.0], [0.0, 0.0, 0.0, 0.0]])
    got = assert_equals_reference(make_args("target", logits, 3, 0.0))
    assert got["out_tokens"][0].tolist() == [1, 0, 3]


@pytest.mark.parametrize("noise", ["target", "fresh"])
def test_minus_zero_ties_with_zero(noise: str) -> None:
    got = assert_equals_reference(make_args(noise, torch.tensor([[-1.0, -0.0, 0.0, -0.0]]), 3, 0.0))
    assert got["out_tokens"].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("noise", ["target", "fresh"])
def test_broken_rows_give_none_and_rows_past_num_rows_stay(noise: str) -> None:
    logits = torch.randn(5, 40)
    logits[0, 3], logits[1, 39], logits[2] = float("nan"), INF, -INF
    args = make_args(noise, logits, 4, 1.0)
    args["num_rows"][0] = 4
    got = assert_equals_reference(args)
    assert (got["out_tokens"][:3] == -1).all() and (got["out_probs"][:3] == 0).all()
    assert (got["out_tokens"][4] == -9).all() and (got["out_probs"][4] == -9).all()


def test_the_block_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_topk, "BLOCK", 1024)
    assert_equals_reference(make_args("target", torch.randn(1, 1100), 5, 0.8))


def test_packed_rows_choose_sequence_position_and_node() -> None:
    for noise in ("target", "fresh"):
        args = make_args(noise, torch.randn(3, 50), 6, 0.9)
        for name in ("row_seq", "positions", "node_slots"):
            args[name] = torch.tensor([1, 0, 1, 0, 1], dtype=torch.int32)
        args["rows"] = torch.tensor([3, 4, 1], dtype=torch.int32)
        assert_equals_reference(args)


@pytest.mark.parametrize("noise", ["target", "fresh"])
@pytest.mark.parametrize("max_splits", [1, 2, 3, 64])
def test_where_a_row_is_cut_does_not_show(
    noise: str, max_splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Splits of several blocks, a last one that is shorter, and programs that share them."""
    monkeypatch.setattr(draft_topk, "MAX_SPLITS", max_splits)
    monkeypatch.setattr(draft_topk, "MAX_PROGRAMS", 3)
    logits = torch.randn(3, 310) * 3
    logits[1] = logits[1].round()  # ties across splits
    logits[2, :250] = -INF  # nothing to draw in most of them
    assert_equals_reference(make_args(noise, logits, 20, 0.8))


def test_too_little_working_memory_is_refused() -> None:
    args = make_args("target", torch.randn(2, 90), 5, 0.8)
    for scratch in (None, args["scratch"][:-1]):
        with pytest.raises(ValueError, match="draft_topk: scratch: expected at least 2304"):
            run_guarded("draft_topk", {**args, "scratch": scratch})
