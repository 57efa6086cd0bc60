"""Losses and distances between next-token distributions; pure functions on tensors.

Every function takes fp32 logits [..., V] (or ids [...]) and an optional mask [...], and averages
over the positions whose mask is true.  Teacher logits never receive a gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of `values` [...] where `mask` [...] is true (everywhere if None); 0 if nowhere."""
    if mask is None:
        return values.mean()
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp_min(1.0)


def cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean negative log-likelihood in nats. logits [..., V], labels int64 [...]."""
    values = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return masked_mean(values.view(labels.shape), mask)


def forward_kl(draft_logits: Tensor, target_logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean KL(target || draft) in nats; the gradient reaches the draft alone.

    Source: DistillSpec (forward-KL variant).
    """
    teacher = target_logits.detach()
    log_target = teacher - teacher.logsumexp(-1, keepdim=True)
    # KL = sum p log p - sum p q_logit + logsumexp(q_logit): the draft's log-softmax, a tensor as
    # large as the logits, is never stored.
    target_probs = log_target.exp()
    negative_entropy = (target_probs * log_target).sum(-1)
    agreement = torch.einsum("...v,...v->...", target_probs, draft_logits)
    return masked_mean(negative_entropy - agreement + draft_logits.logsumexp(-1), mask)


def acceptance_loss(
    draft_logits: Tensor, target_logits: Tensor, mask: Tensor | None, overlap_weight: float
) -> tuple[Tensor, Tensor]:
    """Mean of KL(target || draft) + overlap_weight * (1 - expected acceptance).

    The KL alone asks a draft that is too small for its target to spread over all that the target
    might say; the second term, the total variation distance, is what verification rejects.

    Args:
        overlap_weight: of the second term, in nats.

    Returns:
        The loss, whose gradient reaches the draft alone, and its KL for the log.

    Source: DistillSpec (forward KL and total variation as divergences of one distillation).
    """
    values, kl = _AcceptanceLoss.apply(draft_logits, target_logits.detach(), overlap_weight)
    return masked_mean(values, mask), masked_mean(kl, mask)


class _AcceptanceLoss(torch.autograd.Function):
    """Values and gradient in one pass over the logits: composed of torch's functions, with
    softmaxes and their products kept for the way back, a step of the draft takes twice as long."""

    @staticmethod
    def forward(ctx, draft_logits, target_logits, overlap_weight):  # type: ignore[no-untyped-def]
        log_target = target_logits - target_logits.logsumexp(-1, keepdim=True)
        log_draft = draft_logits - draft_logits.logsumexp(-1, keepdim=True)
        target_probs, draft_probs = log_target.exp(), log_draft.exp()
        kl = torch.einsum("...v,...v->...", target_probs, log_target.sub_(log_draft))
        # Where the draft says too little, more of it is more overlap: d min(p, q) / dq is 1.
        too_little = (draft_probs < target_probs).float()
        overlap = torch.minimum(target_probs, draft_probs).sum(-1)
        share = torch.einsum("...v,...v->...", draft_probs, too_little)[..., None]
        # Through the softmax: q (1 + w (share - too_little)) - p.
        slope = too_little.neg_().add_(share).mul_(overlap_weight).add_(1.0)
        ctx.save_for_backward(slope.mul_(draft_probs).sub_(target_probs))
        ctx.mark_non_differentiable(kl)
        return kl + overlap_weight * (1.0 - overlap), kl

    @staticmethod
    def backward(ctx, gradient, _):  # type: ignore[no-untyped-def]
        (slope,) = ctx.saved_tensors
        return slope * gradient[..., None], None, None


def expected_acceptance(
    draft_logits: Tensor, target_logits: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Mean probability that a token sampled from the draft survives verification: sum min(p, q).

    Source: Leviathan et al. 2023, Corollary 3.6.
    """
    overlap = torch.minimum(draft_logits.softmax(-1), target_logits.softmax(-1)).sum(-1)
    return masked_mean(overlap, mask)


def greedy_agreement(
    draft_logits: Tensor, target_logits: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Share of positions where both distributions have the same most likely token."""
    return masked_mean((draft_logits.argmax(-1) == target_logits.argmax(-1)).float(), mask)
