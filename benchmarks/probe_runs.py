"""The probe's runs: engines beside plain decoding, by the machine's clock or by a table's."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import harmonic_mean
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.generate_runs import measured_costs, open_engine
from benchmarks.probe_model import TreeSampler, Turn
from benchmarks.step_costs import ModelledTime, StepCosts
from sdengine.cli.measure import Run, alternate, run_batch, short
from sdengine.core.config import SpeculationConfig
from sdengine.core.plan import StepReport
from sdengine.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from sdengine.core.cost_model import CostModel
    from sdengine.engine import Engine

__all__ = ["Contestant", "run_beside", "sample", "time_steps"]

RUNG_BUDGET_S = 20.0
"""A budget's steps are timed over all prompts again and again for so long, --repeats times at
most."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """An engine and the clock of its steps.

    Args:
        engine: with room for a batch.
        modelled: what tells its steps' times by a table; None: the machine's clock does.
    """

    engine: Engine
    modelled: ModelledTime | None = None

    @classmethod
    def open(
        cls,
        args: argparse.Namespace,
        config: SpeculationConfig | None,
        batch_size: int,
        step_costs: StepCosts | None,
    ) -> Contestant:
        """A new engine."""
        engine = open_engine(args, config, batch_size)
        return cls(engine, step_costs and ModelledTime.of(engine, config, step_costs))

    def run(
        self,
        group: list[str],
        params: SamplingParams,
        after_step: Callable[[], None] | None = None,
    ) -> Run:
        """A batch, timed."""
        return run_batch(self.engine, group, params, after_step, self.modelled or perf_counter)

    def warm_up(self, group: list[str], params: SamplingParams) -> None:
        """A short batch that does not count."""
        self.run(group, short(params))

    def last_report(self) -> StepReport:
        """Of the last step, with the times that count."""
        return self.engine.last_report if self.modelled is None else self.modelled.last_report

    def costs(self) -> CostModel:
        """Of rows and draft layers, by the same clock."""
        if self.modelled is None:
            return measured_costs(self.engine)
        return self.modelled.step_costs.costs


def time_steps(
    plain: Contestant,
    other: Contestant,
    groups: list[list[str]],
    params: SamplingParams,
    repeats: int,
) -> list[Turn]:
    """Batches decoded by either engine in turns, all of them once at least."""
    for each in (plain, other):
        each.warm_up(groups[0], params)
    turns: list[Turn] = []
    deadline = perf_counter() + RUNG_BUDGET_S
    for repeat in range(repeats if other.modelled is None else 1):  # a table says no other thing
        for i, group in enumerate(groups):
            if repeat and perf_counter() > deadline:
                break
            order = (plain, other) if (i + repeat) % 2 == 0 else (other, plain)
            found = {id(each): _decode(each, group, params) for each in order}
            (plain_s, _), (step_s, run) = found[id(plain)], found[id(other)]
            requests = [
                (len(tokens), stats.num_steps)
                for tokens, stats in zip(run.token_ids, run.speculation)
            ]
            turns.append(Turn(plain_s, step_s, i, requests))
    return turns


def _decode(contestant: Contestant, group: list[str], params: SamplingParams) -> tuple[float, Run]:
    """Mean time of a step once every request of the batch decodes, and the run."""
    num_decoding: list[int] = []
    run = contestant.run(
        group, params, lambda: num_decoding.append(len(contestant.last_report().num_accepted))
    )
    started = num_decoding.index(len(group))
    return run.decode_s / (len(num_decoding) - 1 - started), run


def sample(
    contestant: Contestant, groups: list[list[str]], params: SamplingParams
) -> list[TreeSampler]:
    """Decodes every batch once and notes what its trees would have done. Longer by the deepest
    tree: the last steps of a request, which end it, are not noted."""
    depth = contestant.engine.iteration.workspace.sizes.max_depth
    params = replace(params, max_tokens=params.max_tokens + depth)
    samplers = [TreeSampler(contestant.engine, contestant.last_report) for _ in groups]
    for group, sampler in zip(groups, samplers):
        contestant.run(group, params, sampler)
    return samplers


def run_beside(
    plain: Contestant,
    other: Contestant,
    groups: list[list[str]],
    params: SamplingParams,
    repeats: int,
) -> float:
    """Speed over plain decoding, of all batches together."""
    runs = [
        alternate(
            partial(plain.run, group, params),
            partial(other.run, group, params),
            repeats,
        )
        for group in groups
    ]
    return harmonic_mean([run.speculative_tokens_per_s for run in runs]) / harmonic_mean(
        [run.plain_tokens_per_s for run in runs]
    )
