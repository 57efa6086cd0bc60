"""Online calibration of acceptance estimates: per bin of raw estimate, how often it came true.

Greedy and sampled requests have tables of their own, because a tempered softmax errs differently
from a perturbed one. The tables only decide what is drafted; they cannot change the output.
"""

from __future__ import annotations

import numpy as np

from sdengine.core.sampling_params import GREEDY_TEMPERATURE, SamplingParams
from sdengine.kernels.calibration import bin_centers

PRIOR_WEIGHT = 8.0
"""How many observations the drafter's own estimate counts for."""
FORGETTING = 0.98
"""Per refresh; a table remembers some 50 refreshes."""
STEPS_PER_REFRESH = 16
EARLY_REFRESHES = (1, 2, 4, 8)
"""A draft that is sure and wrong fills its first trees to the brim: it must be found out soon."""


class Calibrator:
    """Turns the verifier's counts into the tables that `tree_expand` reads.

    Args:
        tables: [B, 32] float32, written: acceptance by bin.
        tried, accepted: [B, 32] int32, added to by the verifier for ever; they may wrap around.
    """

    def __init__(self, tables: np.ndarray, tried: np.ndarray, accepted: np.ndarray) -> None:
        self._tables = tables
        self._counts = (tried, accepted)
        self._counted = [tried.copy(), accepted.copy()]
        self._prior = bin_centers().double().numpy()
        self._seen = np.zeros((2, 2, len(self._prior)))
        self._kind_of_slot = np.zeros(len(self._tables), dtype=np.int64)
        self._current = [self._prior.astype(np.float32)] * 2
        self._steps = 0

    def assign(self, slot: int, params: SamplingParams) -> None:
        """Gives a joining sequence the table of its kind."""
        kind = int(params.temperature >= GREEDY_TEMPERATURE)
        self._kind_of_slot[slot] = kind
        for counted, count in zip(self._counted, self._counts):
            counted[slot] = count[slot]
        self._tables[slot] = self._current[kind]

    def observe(self) -> None:
        """Called after every drafting step; refreshes the tables now and then."""
        self._steps += 1
        if self._steps % STEPS_PER_REFRESH and self._steps not in EARLY_REFRESHES:
            return
        self._seen *= FORGETTING
        added = [count - counted for count, counted in zip(self._counts, self._counted)]
        for kind in (0, 1):
            slots = self._kind_of_slot == kind
            for i in (0, 1):
                self._seen[kind, i] += added[i][slots].sum(axis=0)
            tried, accepted = self._seen[kind]
            rates = (accepted + PRIOR_WEIGHT * self._prior) / (tried + PRIOR_WEIGHT)
            # A higher estimate must not rank below a lower one because of a few samples.
            self._current[kind] = np.maximum.accumulate(rates).astype(np.float32)
        self._counted = [count.copy() for count in self._counts]
        for slot, kind in enumerate(self._kind_of_slot):
            self._tables[slot] = self._current[kind]
