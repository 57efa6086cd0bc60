"""Noise for steps that take what a table says: a shared server's, drawn from a seed.

What it is like was seen on a server with two cores whose neighbours and hypervisor are strangers
(docs/log.md, "Adaptive budgets of one sequence by the clock"): all steps drift together, single
ones take a little longer or a lot, plain steps one after the other find more of their weights in
the caches, and the cores move between two places in which a step costs differently.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, sqrt

import numpy as np

from benchmarks.step_costs import StepCosts
from sdengine.core.plan import StepReport

__all__ = ["Noise", "NoisySteps"]

DRIFT_S = 0.05  # after which a drift is forgotten, to 1/e
JITTER = 0.5  # of a single step, as a share of the drift; half a normal one: never shorter
HICCUPS, HICCUP = 0.01, 2.0  # share of steps, and how many times longer they take on average
ALONE, ALONE_STEPS = 0.88, 8.0  # of a plain step's time after many others, and after how many
STAY_S = 0.6  # in one place, on average


@dataclass(frozen=True, slots=True)
class Noise:
    """What the noise of a run is drawn from.

    Args:
        level: standard deviation of the drift, as a share of a step's time.
        seed: of the first engine; others have one of their own.
        elsewhere: what steps take in the other place; None: the cores stay.
    """

    level: float
    seed: int = 0
    elsewhere: StepCosts | None = None

    def of_lookups(self) -> Noise:
        """The same where the drafter looks the text's own repetitions up."""
        elsewhere = None if self.elsewhere is None else self.elsewhere.of_lookups()
        return replace(self, elsewhere=elsewhere)


class NoisySteps:
    """Steps of one engine.

    Args:
        step_costs: what they take without noise.
        noise: what is drawn.
        index: of the engine: 0, 1, ...
    """

    def __init__(self, step_costs: StepCosts, *, noise: Noise, index: int) -> None:
        self._places = [step_costs, noise.elsewhere or step_costs]
        self._level = noise.level
        self._rng = np.random.default_rng([noise.seed, index])
        self._drift = 0.0
        self._plain_run = 0
        self._seconds = 0.0
        self._moves_at = self._rng.exponential(STAY_S)

    def report(self, seen: StepReport, num_layers: int, num_missed: int) -> StepReport:
        """As `StepCosts.report`, with noise."""
        if self._seconds >= self._moves_at:
            self._places.reverse()
            self._moves_at = self._seconds + self._rng.exponential(STAY_S)
        quiet = self._places[0].report(seen, num_layers, num_missed)
        kept = exp(-quiet.step_s / DRIFT_S)
        self._drift = kept * self._drift + sqrt(1.0 - kept * kept) * self._rng.normal()
        draft, verify = self._slowness(), self._slowness() * self._warmth(num_layers)
        noisy = replace(
            quiet,
            draft_time_s=quiet.draft_time_s * draft,
            first_layer_s=quiet.first_layer_s * draft,
            verify_time_s=quiet.verify_time_s * verify,
        )
        noisy.step_s += noisy.draft_time_s - quiet.draft_time_s
        noisy.step_s += noisy.verify_time_s - quiet.verify_time_s
        self._seconds += noisy.step_s
        return noisy

    def _slowness(self) -> float:
        """Of a part of a step."""
        longer = self._drift + JITTER * abs(self._rng.normal())
        is_hiccup = self._rng.random() < HICCUPS
        return exp(self._level * longer) + is_hiccup * self._rng.exponential(HICCUP)

    def _warmth(self, num_layers: int) -> float:
        """Of a plain step after others."""
        self._plain_run = 0 if num_layers else self._plain_run + 1
        return ALONE + (1.0 - ALONE) * exp(-max(self._plain_run - 1, 0) / ALONE_STEPS)
