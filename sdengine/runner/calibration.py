"""Online calibration of acceptance estimates: how often they came true, by class of a child's rank
and bin of its raw estimate.

Greedy and sampled requests have tables of their own, because a tempered softmax errs differently
from a perturbed one. The tables only decide what is drafted; they cannot change the output.
"""

from __future__ import annotations

from math import exp

import numpy as np

from sdengine.core.sampling_params import GREEDY_TEMPERATURE, SamplingParams
from sdengine.kernels.calibration import bin_centers, identity_table

CURVE_WEIGHT = 32.0
"""How many observations of a bin count as much as the curve through all bins. An undertrained draft
in the coupled walk at temperature 0.6 got 0.949 of a static tree's tokens at 64 nodes where bins
had the draft's own estimates for a prior, 0.969 with a weight of 8 and 0.994 with 32."""
OFFSET_PRECISION, SLOPE_PRECISION = 0.5, 4.0
"""Of the curve's offset and the logarithm of its slope around 0, where it changes nothing."""
NEWTON_STEPS, LONGEST_STEP = 3, 0.7
"""Per refresh."""
CLASS_WEIGHT, LEVEL_WEIGHT = 8.0, 2.0
"""How many observations count as much as what the class before says of a bin, and of the level."""
REMEMBERED_STEPS = 800
"""After so many a count is worth a third (1 / e)."""
STEPS_PER_REFRESH = 128
"""A refresh takes 0.1 ms, with rates by rank 0.2 ms (Zen 3); between two steps, in cold code, up to
0.8 ms. Every 32 steps that was 1% of a step of the bundled pair."""
EARLY_REFRESHES = (1, 2, 4, 8, 16, 32, 64)
"""A draft that is sure and wrong fills its first trees to the brim: it must be found out soon."""

_CENTERS = bin_centers().double().numpy()
_LOGITS = np.log(_CENTERS / (1.0 - _CENTERS))
_POWERS = _LOGITS ** np.arange(3)[:, None]  # 1, logit, its square


class Calibrator:
    """Turns the verifier's counts into the tables that `tree_expand` reads.

    Args:
        tables: [B, 8, 32] float32, written: acceptance by class and bin.
        tried, accepted: [B, 8, 32] int32, added to by the verifier for ever; they may wrap around.
        by_rank: whether sampled requests have rates for each class of rank.
    """

    def __init__(
        self, tables: np.ndarray, tried: np.ndarray, accepted: np.ndarray, *, by_rank: bool
    ) -> None:
        self._tables = tables
        self._counts = (tried, accepted)
        self._counted = [tried.copy(), accepted.copy()]
        self._by_rank = by_rank
        identity = identity_table().numpy()
        self._seen = np.zeros((2, 2, *identity.shape))
        self._added = np.zeros((2, 2, *identity.shape), dtype=np.int64)  # since the last refresh
        self._kind_of_slot = np.zeros(len(self._tables), dtype=np.int64)
        self._current = [identity] * 2
        self._curves = [AcceptanceCurve() for _ in range(2)]
        self._steps = self._refreshed_at = 0
        self._refresh_at = EARLY_REFRESHES[0]

    def assign(self, slot: int, params: SamplingParams) -> None:
        """Gives a joining sequence the table of its kind; what was counted in its slot belongs to
        the kind of the sequence before it."""
        self._collect(self._kind_of_slot[slot], slice(slot, slot + 1))
        kind = int(params.temperature >= GREEDY_TEMPERATURE)
        self._kind_of_slot[slot] = kind
        self._tables[slot] = self._current[kind]

    @property
    def steps_to_refresh(self) -> int:
        """Drafting steps until the tables change, at least 1."""
        return self._refresh_at - self._steps

    def observe(self, num_steps: int = 1) -> None:
        """Called after drafting steps; refreshes the tables now and then."""
        self._steps = now = self._steps + num_steps
        if now < self._refresh_at:
            return
        later = (now // STEPS_PER_REFRESH + 1) * STEPS_PER_REFRESH
        self._refresh_at = next((step for step in EARLY_REFRESHES if step > now), later)
        kept = exp((self._refreshed_at - self._steps) / REMEMBERED_STEPS)
        self._refreshed_at = self._steps
        for kind in (0, 1):
            self._collect(kind, self._kind_of_slot == kind)
            if not self._added[kind].any():
                continue
            self._seen[kind] *= kept
            self._seen[kind] += self._added[kind]
            self._added[kind] = 0
            fit = rates_by_rank if kind == 1 and self._by_rank else pooled_rates
            self._current[kind] = fit(self._curves[kind], *self._seen[kind])
        for slot, kind in enumerate(self._kind_of_slot):
            self._tables[slot] = self._current[kind]

    def _collect(self, kind: int, slots: slice | np.ndarray) -> None:
        """Takes what was counted in some slots for a kind's."""
        for added, count, counted in zip(self._added[kind], self._counts, self._counted):
            added += (count[slots] - counted[slots]).sum(axis=0)
            counted[slots] = count[slots]


class AcceptanceCurve:
    """logit(rate) = offset + slope * logit(estimate), the slope positive, fitted to counts.

    A draft that is sure and wrong is so in many bins that are seldom tried, and then its low
    estimates are too low: without tries of their own they would never get any. So bins are taken to
    lie on one curve until their counts say otherwise.
    """

    def __init__(self) -> None:
        self._offset = self._log_slope = 0.0

    def rates_by_bin(self, tried: np.ndarray, accepted: np.ndarray) -> np.ndarray:
        """Rates [32] of one class from its counts [32]; refits the curve, from where it was."""
        for _ in range(NEWTON_STEPS):
            self._step(tried, accepted)
        believed = _sigmoid(self._offset + exp(self._log_slope) * _LOGITS)
        rates = (accepted + CURVE_WEIGHT * believed) / (tried + CURVE_WEIGHT)
        return non_decreasing(rates, tried + 1.0)

    def _step(self, tried: np.ndarray, accepted: np.ndarray) -> None:
        """One of Newton's steps to the largest posterior probability, shortened where it is
        long."""
        slope = exp(self._log_slope)
        rates = _sigmoid(self._offset + slope * _LOGITS)
        expected = tried * rates
        by_offset, by_slope = (_POWERS[:2] @ (accepted - expected)).tolist()
        first, cross, second = (_POWERS @ (expected * (1.0 - rates))).tolist()
        by_offset -= OFFSET_PRECISION * self._offset
        by_slope = slope * by_slope - SLOPE_PRECISION * self._log_slope
        first += OFFSET_PRECISION
        cross *= slope
        second = slope * slope * second + SLOPE_PRECISION
        determinant = first * second - cross * cross
        offset = (second * by_offset - cross * by_slope) / determinant
        log_slope = (first * by_slope - cross * by_offset) / determinant
        share = min(1.0, LONGEST_STEP / max(abs(offset), abs(log_slope), LONGEST_STEP))
        self._offset += share * offset
        self._log_slope += share * log_slope


def pooled_rates(curve: AcceptanceCurve, tried: np.ndarray, accepted: np.ndarray) -> np.ndarray:
    """Rates [8, 32] float32 that do not ask for the rank, from counts [8, 32]."""
    rates = curve.rates_by_bin(tried.sum(axis=0), accepted.sum(axis=0))
    return np.broadcast_to(rates, tried.shape).astype(np.float32)


def rates_by_rank(curve: AcceptanceCurve, tried: np.ndarray, accepted: np.ndarray) -> np.ndarray:
    """Rates [8, 32] float32 of every class, from counts [8, 32].

    A class is taken to be like the one before it, at a level of its own, until its counts say
    otherwise: of later draws there are few, and their rates fall far below what their share of the
    rest says (0.60, 0.23, 0.14, 0.10, 0.07 of the first five on the bundled pair at temperature 1).
    """
    believed = curve.rates_by_bin(tried[0], accepted[0])
    rates = [believed]
    for seen, came_true in zip(tried[1:], accepted[1:]):
        if not seen.any():
            rates.append(believed)  # like the one before it; later classes are seldom drawn
            continue
        expected = (seen * believed).sum() + LEVEL_WEIGHT
        believed = np.minimum(believed * ((came_true.sum() + LEVEL_WEIGHT) / expected), 1.0)
        mixed = (came_true + CLASS_WEIGHT * believed) / (seen + CLASS_WEIGHT)
        believed = non_decreasing(mixed, seen + 1.0)
        rates.append(believed)
    return np.stack(rates).astype(np.float32)


def non_decreasing(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The nearest never decreasing values in weighted least squares: neighbours that fall are
    pooled (pool adjacent violators)."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, places
    for mean, weight in zip(values.tolist(), weights.tolist()):
        places = 1
        while pools and pools[-1][0] > mean:
            lower, other, count = pools.pop()
            mean = (mean * weight + lower * other) / (weight + other)
            weight, places = weight + other, places + count
        pools.append((mean, weight, places))
    return np.repeat([mean for mean, _, _ in pools], [places for _, _, places in pools])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))
