"""Allowed set and weights of one row of logits, in torch: what `sample`, `draft_topk` and
`tree_verify` share.

Order: temperature, top-k, top-p on the renormalised rest, min-p. All three filters are thresholds
on the logit, so tokens with equal logits are kept or dropped together (top-k may keep more than k).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sdengine.kernels.noise import stable_exp, stable_log

GREEDY_TEMPERATURE = float(np.float32(1e-5))  # as kernels compare: the double is larger
MASS_UNIT = 2.0**-44  # weights are added as integers, so that their sum has no order


@dataclass(frozen=True, slots=True)
class RowPlan:
    """What a row comes to.

    Args:
        scaled: [V] float32, (logit - max) / temperature.
        is_allowed: [V] bool.
        argmax: Lowest id among the largest logits; -1 when nothing can be drawn (NaN, +inf,
            all -inf).
        is_greedy: Temperature below 1e-5: the argmax is the only allowed token.
    """

    scaled: torch.Tensor
    is_allowed: torch.Tensor
    argmax: int
    is_greedy: bool


def scaled_logits(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """(logit - max) * (1 / temperature) in float32; greedy rows as at temperature 1."""
    one = torch.ones(())
    inverse = one if temperature < GREEDY_TEMPERATURE else one / torch.tensor(temperature)
    return (logits - logits.max()) * inverse


def integer_mass(scaled: torch.Tensor) -> torch.Tensor:
    """exp(scaled) in units of 2^-44 as int64, rounded to nearest even."""
    return (stable_exp(scaled).double() / MASS_UNIT).round().long()


def _top_p_threshold(logits: torch.Tensor, scaled: torch.Tensor, top_p: float) -> torch.Tensor:
    order = logits.argsort(descending=True, stable=True)
    mass = integer_mass(scaled[order]).cumsum(0)
    total = mass[-1]
    wanted = torch.ceil(max(top_p, 0.0) * total.double()).long()
    crossing = int(torch.searchsorted(mass, wanted.clamp(1).minimum(total)))
    return logits[order[crossing]]


def plan_row(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> RowPlan:
    """Plans one row of float32 logits [V]."""
    best = logits.max()
    is_greedy = temperature < GREEDY_TEMPERATURE
    if not bool(best.isfinite()):
        nothing = torch.zeros_like(logits, dtype=torch.bool)
        return RowPlan(logits, nothing, -1, True)
    argmax = int((logits == best).nonzero()[0])
    scaled = scaled_logits(logits, temperature)
    if is_greedy:
        return RowPlan(scaled, torch.arange(len(logits)) == argmax, argmax, True)
    threshold = torch.tensor(float("-inf"))
    if 1 <= top_k < len(logits):
        threshold = logits.topk(top_k).values[-1]
    if top_p < 1.0:
        kept = logits >= threshold
        threshold = _top_p_threshold(logits[kept], scaled[kept], top_p)
    if min_p > 0.0:
        log_ratio = stable_log(torch.tensor(min(max(min_p, 1e-37), 1.0)))
        threshold = torch.maximum(threshold, best + log_ratio * torch.tensor(temperature))
    is_allowed = (logits >= threshold) & (logits > float("-inf"))
    return RowPlan(scaled, is_allowed, argmax, False)
