"""Losses against formulas written out by hand, and where their gradients go."""

from __future__ import annotations

import pytest
import torch

from sdengine.train.losses import (
    acceptance_loss,
    cross_entropy,
    expected_acceptance,
    forward_kl,
    greedy_agreement,
    masked_mean,
)


def random_logits(seed: int) -> torch.Tensor:
    return 3.0 * torch.randn((2, 5, 11), generator=torch.Generator().manual_seed(seed))


MASK = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])


def test_masked_mean_ignores_the_rest():
    values = torch.tensor([1.0, 100.0, 3.0])
    assert masked_mean(values, torch.tensor([True, False, True])) == 2.0
    assert masked_mean(values, torch.tensor([False, False, False])) == 0.0


def test_cross_entropy_is_the_mean_negative_log_probability():
    logits, labels = random_logits(0), torch.randint(11, (2, 5))
    chosen = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    torch.testing.assert_close(cross_entropy(logits, labels, MASK), -chosen[MASK].mean())


def test_forward_kl_equals_its_definition():
    draft, target = random_logits(1), random_logits(2)
    log_p, log_q = target.log_softmax(-1), draft.log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)[MASK].mean()
    torch.testing.assert_close(forward_kl(draft, target, MASK), expected)


def test_forward_kl_of_equal_distributions_is_zero():
    logits = random_logits(3)
    assert abs(float(forward_kl(logits + 7.0, logits))) < 1e-5


def test_gradient_of_the_kl_reaches_the_draft_alone(tiny_pair):
    target, draft = tiny_pair
    token_ids = torch.randint(target.shape.vocab_size, (2, 16))
    forward_kl(draft(token_ids), target(token_ids)).backward()
    assert all(parameter.grad is None for parameter in target.parameters())
    for name, parameter in draft.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_masked_positions_have_no_gradient():
    draft, target = random_logits(4).requires_grad_(), random_logits(5)
    forward_kl(draft, target, MASK).backward()
    assert draft.grad is not None
    assert torch.equal(draft.grad.abs().sum(-1) > 0, MASK)


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_acceptance_loss_and_its_gradient_equal_torchs_own(weight):
    drafts = [random_logits(8).requires_grad_() for _ in range(2)]
    target = random_logits(9)
    loss, kl = acceptance_loss(drafts[0], target, MASK, weight)
    overlap = expected_acceptance(drafts[1], target, MASK)
    expected = forward_kl(drafts[1], target, MASK) + weight * (1.0 - overlap)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(kl, forward_kl(drafts[1], target, MASK).detach())
    (3.0 * loss).backward()
    (3.0 * expected).backward()
    torch.testing.assert_close(drafts[0].grad, drafts[1].grad)
    assert not kl.requires_grad


def test_expected_acceptance_is_the_overlap():
    draft, target = random_logits(6), random_logits(7)
    overlap = torch.minimum(draft.softmax(-1), target.softmax(-1)).sum(-1)
    torch.testing.assert_close(expected_acceptance(draft, target, MASK), overlap[MASK].mean())
    torch.testing.assert_close(expected_acceptance(target, target), torch.tensor(1.0))


def test_greedy_agreement_counts_equal_argmax():
    target = random_logits(8)
    draft = target.clone()
    draft[0, 0] = -draft[0, 0]  # the least likely token becomes the most likely
    torch.testing.assert_close(greedy_agreement(draft, target), torch.tensor(0.9))
