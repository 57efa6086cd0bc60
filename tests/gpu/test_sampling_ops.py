"""Sampling on the device: the same bits as the CPU's, for real vocabularies and every filter."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

from sdengine.kernels import draft_topk, sample
from tests.gpu.on_device import IS_DRY_RUN, run_on_device
from tests.kernels.random_token_trees import random_token_tree
from tests.kernels.same_tensors import assert_same_tensors
from tests.kernels.test_residual import rejection_args
from tests.kernels.test_sample import sampling_args
from tests.kernels.test_tree_verify import coupled_args, filtered_args
from tests.kernels.triton.test_draft_topk import make_args as topk_args

LARGE = 1100 if IS_DRY_RUN else 128256


def assert_same(op: str, reference: Any, args: dict[str, Any], outputs: tuple[str, ...]) -> None:
    """The device writes what the reference writes."""
    expected = copy.deepcopy(args)
    reference(**expected)
    run_on_device(op, **args)
    for name in outputs:
        assert_same_tensors(name, args[name], expected[name])


@pytest.mark.parametrize("vocab", [1, 65, 1030, LARGE])
@pytest.mark.parametrize(
    "temperature,top_k,top_p,min_p",
    [
        (0.0, 0, 1.0, 0.0),
        (0.8, 0, 1.0, 0.0),
        (1.3, 50, 1.0, 0.0),
        (0.8, 0, 0.9, 0.0),
        (0.8, 40, 0.95, 0.05),
    ],
)
def test_sample(vocab: int, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = torch.randn(4, vocab) * 3
    logits[0] = logits[0].round()  # ties
    args = sampling_args(logits, temperature, top_k, top_p, min_p)
    assert_same("sample", sample.reference, args, ("out_tokens",))


@pytest.mark.parametrize("noise", ["target", "fresh"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("vocab,limit", [(5, 8), (1030, 16), (LARGE, 8), (LARGE, 64)])
def test_draft_topk(noise: str, temperature: float, vocab: int, limit: int) -> None:
    args = topk_args(noise, torch.randn(4, vocab) * 3, limit, temperature)
    assert_same("draft_topk", draft_topk.reference, args, ("out_tokens", "out_probs"))


def compared_walks(args: dict[str, Any]) -> None:
    from sdengine.kernels.tree_verify import OP

    assert_same("tree_verify", OP.reference, args, OP.outputs)


@pytest.mark.parametrize("vocab", [5, 4102, LARGE])
def test_coupled_walks(vocab: int) -> None:
    """A team of blocks a sequence, whatever the filters; NaN in one row."""
    tree = random_token_tree(random.Random(vocab), batch=4, max_nodes=20, vocab=4)
    logits = torch.randn(int(tree.num_nodes.sum()) + 4, vocab)
    compared_walks(filtered_args(tree, logits))


@pytest.mark.parametrize("seed,vocab", [(1, 8), (2, 70), (3, 4100), (4, LARGE)])
def test_rejection_walks(seed: int, vocab: int) -> None:
    torch.manual_seed(seed)
    compared_walks(rejection_args(random.Random(seed), 4, 10, vocab, 8))


def test_walks_of_many_sequences() -> None:
    """More sequences than multiprocessors: a block each, and no block may wait for another."""
    torch.manual_seed(5)
    batch = 3 if IS_DRY_RUN else 300
    compared_walks(rejection_args(random.Random(5), batch, 6, 70, 8))


def test_walks_of_given_tokens() -> None:
    tree = random_token_tree(random.Random(1), batch=5, max_nodes=30, vocab=3)
    tokens = torch.randint(0, 3, (int(tree.num_nodes.sum()) + 5,)).int()
    compared_walks(coupled_args(tree, tokens, depth=8))
