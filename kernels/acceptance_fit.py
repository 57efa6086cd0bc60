"""Tables of acceptance rates refitted to what the verifier has counted: between two steps, on the
host, in numpy or natively.

Greedy and sampled requests have tables of their own, because a tempered softmax errs differently
from a perturbed one. The tables only decide what is drafted; they cannot change the output.

numpy takes 0.2 to 0.5 ms for a refresh where no kernel leaves any of its code in the caches, which
was a quarter of what speculation on trial lost with a useless draft; `csrc/cpu/acceptance_fit.cpp`
does the same in a tenth of the time. On a device the host has that time while the next step runs.
"""

from __future__ import annotations

from math import exp

import numpy as np

from sdengine.kernels.calibration import CELLS, bin_centers, identity_table
from sdengine.kernels.cpu_library import load_cpu

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
GREEDY, SAMPLED = 0, 1
"""Kinds of requests."""

_CENTERS = bin_centers().double().numpy()
_LOGITS = np.log(_CENTERS / (1.0 - _CENTERS))
_POWERS = _LOGITS ** np.arange(3)[:, None]  # 1, logit, its square


class AcceptanceTables:
    """What is known of acceptance, by kind of request, and the tables that `tree_expand` reads.

    Args:
        tables: [B, 8, 32] float32, written: acceptance by class and bin.
        tried, accepted: [B, 8, 32] int32, added to by the verifier for ever; they may wrap around.
        by_rank: whether sampled requests have rates for each class of rank.
    """

    def __init__(
        self, tables: np.ndarray, tried: np.ndarray, accepted: np.ndarray, *, by_rank: bool
    ) -> None:
        self.tables = tables
        self.by_rank = by_rank
        self._counts = (tried, accepted)
        self._counted = np.stack(self._counts)
        self._kinds = np.zeros(len(tables), dtype=np.int32)
        self._added = np.zeros((2, 2, *CELLS), dtype=np.int64)  # since the last refresh
        self._seen = np.zeros((2, 2, *CELLS))
        self._rates = np.stack([identity_table().numpy()] * 2)
        self._curves = np.zeros((2, 2))  # offset and logarithm of the slope

    def assign(self, slot: int, kind: int) -> None:
        """Gives a joining sequence the table of its kind; what was counted in its slot belongs to
        the kind of the sequence before it."""
        self._collect(self._kinds[slot], slice(slot, slot + 1))
        self._kinds[slot] = kind
        self.tables[slot] = self._rates[kind]

    def refresh(self, kept: float) -> None:
        """Fits all tables to what has been counted; of what was seen before the last refresh only
        such a share counts from now on."""
        for kind in (GREEDY, SAMPLED):
            self._collect(kind, self._kinds == kind)
            if not self._added[kind].any():
                continue
            self._seen[kind] *= kept
            self._seen[kind] += self._added[kind]
            self._added[kind] = 0
            fit = rates_by_rank if kind == SAMPLED and self.by_rank else pooled_rates
            curve = AcceptanceCurve(*self._curves[kind])
            self._rates[kind] = fit(curve, *self._seen[kind])
            self._curves[kind] = curve.offset, curve.log_slope
        self.tables[:] = self._rates[self._kinds]

    def _collect(self, kind: int, slots: slice | np.ndarray) -> None:
        """Takes what was counted in some slots for a kind's."""
        for added, count, counted in zip(self._added[kind], self._counts, self._counted):
            added += (count[slots] - counted[slots]).sum(axis=0)
            counted[slots] = count[slots]


class NativeAcceptanceTables(AcceptanceTables):
    """The same, refreshed by the CPU extension.

    Raises:
        BackendUnavailable, ConfigError: there is none, or not for this machine.
        ValueError: an array's elements do not lie one after the other.
    """

    def __init__(
        self, tables: np.ndarray, tried: np.ndarray, accepted: np.ndarray, *, by_rank: bool
    ) -> None:
        super().__init__(tables, tried, accepted, by_rank=by_rank)
        self._refresh_native = load_cpu().refresh_acceptance
        arrays = (tables, tried, accepted, self._kinds, self._counted, self._added, self._seen)
        arrays += (self._rates, self._curves)
        if not all(array.flags.c_contiguous for array in arrays):
            raise ValueError("acceptance tables and counts must be contiguous")
        self._addresses = [array.ctypes.data for array in arrays]

    def refresh(self, kept: float) -> None:
        self._refresh_native(*self._addresses, len(self._kinds), self.by_rank, kept)


class AcceptanceCurve:
    """logit(rate) = offset + slope * logit(estimate), the slope positive, fitted to counts.

    A draft that is sure and wrong is so in many bins that are seldom tried, and then its low
    estimates are too low: without tries of their own they would never get any. So bins are taken to
    lie on one curve until their counts say otherwise.
    """

    def __init__(self, offset: float = 0.0, log_slope: float = 0.0) -> None:
        self.offset, self.log_slope = float(offset), float(log_slope)

    def rates_by_bin(self, tried: np.ndarray, accepted: np.ndarray) -> np.ndarray:
        """Rates [32] of one class from its counts [32]; refits the curve, from where it was."""
        for _ in range(NEWTON_STEPS):
            self._step(tried, accepted)
        believed = _sigmoid(self.offset + exp(self.log_slope) * _LOGITS)
        rates = (accepted + CURVE_WEIGHT * believed) / (tried + CURVE_WEIGHT)
        return non_decreasing(rates, tried + 1.0)

    def _step(self, tried: np.ndarray, accepted: np.ndarray) -> None:
        """One of Newton's steps to the largest posterior probability, shortened where it is
        long."""
        slope = exp(self.log_slope)
        rates = _sigmoid(self.offset + slope * _LOGITS)
        expected = tried * rates
        by_offset, by_slope = (_POWERS[:2] @ (accepted - expected)).tolist()
        first, cross, second = (_POWERS @ (expected * (1.0 - rates))).tolist()
        by_offset -= OFFSET_PRECISION * self.offset
        by_slope = slope * by_slope - SLOPE_PRECISION * self.log_slope
        first += OFFSET_PRECISION
        cross *= slope
        second = slope * slope * second + SLOPE_PRECISION
        determinant = first * second - cross * cross
        offset = (second * by_offset - cross * by_slope) / determinant
        log_slope = (first * by_slope - cross * by_offset) / determinant
        share = min(1.0, LONGEST_STEP / max(abs(offset), abs(log_slope), LONGEST_STEP))
        self.offset += share * offset
        self.log_slope += share * log_slope


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
