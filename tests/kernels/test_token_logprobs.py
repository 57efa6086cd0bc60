"""token_logprobs: what a row's law says of its token, the token's rank, the likeliest beside it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from sdengine.kernels.programs.program import make_pool, run_op
from sdengine.kernels.token_logprobs import OUTPUTS
from sdengine.kernels.token_tree import NO_LOGITS, ROOT_AND_NODES, ROOT_ONLY
from sdengine.kernels.verdict import Verdict

from .random_token_trees import int_tensor

BATCH, DEPTH, PLACES, MOST = 5, 3, 7, 20
UNTOUCHED = -77


def random_args(rng: random.Random, vocab: int) -> dict[str, Any]:
    """Walks of any length; some sequences ask for nothing, draw nothing, or drew no token."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    verdict = Verdict.allocate(BATCH, DEPTH)
    starts = [0]
    for b in range(BATCH):
        num_nodes = rng.randint(0, 6)
        accepted = rng.randint(0, min(DEPTH, num_nodes))
        starts.append(starts[-1] + 1 + num_nodes)
        verdict.num_accepted[b] = accepted
        nodes = sorted(rng.sample(range(1, num_nodes + 1), accepted))
        verdict.path[b, :accepted] = int_tensor(nodes)
        verdict.out_tokens[b] = int_tensor([rng.randrange(vocab) for _ in range(DEPTH + 1)])
    verdict.out_tokens[0, int(verdict.num_accepted[0])] = -1
    logits = torch.randn(starts[-1], vocab, generator=generator) * 3
    logits = (logits * 4).round() / 4  # many equals
    logits[torch.rand(logits.shape, generator=generator) < 0.2] = float("-inf")
    for b in range(BATCH):
        for i in range(int(verdict.num_accepted[b]) + 1):
            node = 0 if i == 0 else int(verdict.path[b, i - 1])
            token = int(verdict.out_tokens[b, i])
            logits[starts[b] + node, token] = rng.uniform(-3.0, 9.0)  # it was drawn
    wanted = [0, 5, MOST, -1, rng.randint(0, MOST)]
    return {
        "logits": logits,
        "logit_starts": int_tensor(starts),
        "wants_logits": int_tensor([ROOT_AND_NODES, ROOT_ONLY, ROOT_AND_NODES, ROOT_AND_NODES, 1]),
        "verdict": verdict,
        "history_lens": int_tensor([rng.randint(1, 40) for _ in range(BATCH)]),
        "num_alternatives": int_tensor(wanted),
        "num_seqs": int_tensor([BATCH]),
        "out_logprobs": torch.full((BATCH, PLACES), float(UNTOUCHED)),
        "out_ranks": torch.full((BATCH, PLACES), UNTOUCHED, dtype=torch.int32),
        "out_best_tokens": torch.full((BATCH, PLACES, MOST), UNTOUCHED, dtype=torch.int32),
        "out_best_logprobs": torch.full((BATCH, PLACES, MOST), float(UNTOUCHED)),
    }


def of_reference(args: dict[str, Any]) -> dict[str, torch.Tensor]:
    mine = {**args, **{name: args[name].clone() for name in OUTPUTS}}
    run_op("token_logprobs", "reference", **mine)
    return {name: mine[name] for name in OUTPUTS}


def assert_agree(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name in OUTPUTS:
        if expected[name].dtype == torch.int32:
            assert torch.equal(got[name], expected[name]), name
        else:
            assert torch.allclose(got[name], expected[name], rtol=1e-6, atol=4e-6), name


@pytest.mark.parametrize("vocab", [1, 3, 70, 2048, 9001])
@pytest.mark.parametrize("seed", range(3))
def test_random_walks_equal_the_reference(vocab: int, seed: int) -> None:
    rng = random.Random(100 * seed + vocab)
    args = random_args(rng, vocab)
    expected = of_reference(args)
    run_op("token_logprobs", "cpu", make_pool(rng.choice([1, 2, 3])), **args)
    assert_agree({name: args[name] for name in OUTPUTS}, expected)


def test_who_draws_nothing_or_asks_for_nothing_is_left_out() -> None:
    args = random_args(random.Random(1), 50)
    args["wants_logits"][1] = NO_LOGITS
    args["num_seqs"][0] = 4
    run_op("token_logprobs", "cpu", make_pool(2), **args)
    for b in (1, 3, 4):
        assert all(bool((args[name][b] == UNTOUCHED).all()) for name in OUTPUTS)
    assert not bool((args["out_ranks"][2] == UNTOUCHED).all())


def test_it_is_the_logarithm_of_the_probability() -> None:
    args = random_args(random.Random(2), 4)
    args["logits"][:] = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    args["verdict"].num_accepted[:] = 0
    args["verdict"].out_tokens[:] = 1
    args["history_lens"][:] = 9
    run_op("token_logprobs", "cpu", make_pool(1), **args)
    place = 9 % PLACES
    assert float(args["out_logprobs"][2, place].exp()) == pytest.approx(0.25)
    assert int(args["out_ranks"][2, place]) == 2
    assert args["out_best_tokens"][2, place, :5].tolist() == [0, 1, 2, 3, -1]
    best = args["out_best_logprobs"][2, place, :5].exp().tolist()
    assert best == pytest.approx([0.5, 0.25, 0.125, 0.125, 0.0])


def test_a_row_does_not_depend_on_others() -> None:
    args = random_args(random.Random(3), 300)
    alone = {**args, **{name: args[name].clone() for name in OUTPUTS}}
    alone["num_alternatives"] = int_tensor([-1, -1, MOST, -1, -1])
    run_op("token_logprobs", "cpu", make_pool(3), **args)
    run_op("token_logprobs", "cpu", make_pool(1), **alone)
    assert all(torch.equal(args[name][2], alone[name][2]) for name in OUTPUTS)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "message"),
    [
        ("out_best_tokens", (BATCH, DEPTH, MOST), torch.int32, "at least 4 places of 1 to 32"),
        ("out_best_tokens", (BATCH, PLACES, 33), torch.int32, "at least 4 places of 1 to 32"),
        ("out_ranks", (BATCH, PLACES + 1), torch.int32, "out_ranks"),
        ("num_alternatives", (BATCH + 1,), torch.int32, "num_alternatives"),
        ("logits", (4, 4), torch.float64, "logits"),
    ],
)
def test_wrong_arguments_are_named(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, message: str
) -> None:
    args = random_args(random.Random(4), 4)
    args[name] = torch.zeros(shape, dtype=dtype)
    with pytest.raises(ValueError, match=f"token_logprobs: .*{message}"):
        run_op("token_logprobs", **args)
