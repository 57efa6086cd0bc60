"""Runs of the end-to-end benchmark: engines that take turns, and what they were seen to do."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

from benchmarks.generate_report import PLAIN, Row, plain_row, summary
from benchmarks.memory_meter import memory_meter
from benchmarks.progress import progress_bar
from benchmarks.reliability import TreeObserver
from sdengine.cli.measure import Comparison, Run, run_batch, short, take_turns
from sdengine.core.config import SpeculationConfig
from sdengine.core.env import read_environment
from sdengine.core.plan import MAX_ITERATIONS
from sdengine.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from sdengine.core.cost_model import CostModel
    from sdengine.engine import Engine

Prompt = TypeVar("Prompt", str, list[int])
Job = tuple[str, str, SpeculationConfig]
"""Method, budget and the configuration that they make."""


@dataclass(slots=True)
class Figures:
    """What a run of the benchmark found."""

    rows: list[Row] = field(default_factory=list)
    costs: CostModel | None = None


@dataclass(frozen=True, slots=True)
class Contender:
    """An engine that takes turns with the others.

    Args:
        method, budget: how it speculates; PLAIN and "0" where it does not.
        engine: with room for a batch.
        peak_memory_mb: that opening and a first batch took; None: not measured.
    """

    method: str
    budget: str
    engine: Engine
    peak_memory_mb: float | None

    def run(self, prompts: list[str], params: SamplingParams) -> Run:
        """A timed batch."""
        return run_batch(self.engine, prompts, params, max_iterations=MAX_ITERATIONS)


def measure(
    args: argparse.Namespace,
    jobs: list[Job],
    settings: list[SamplingParams],
    prompts: list[str],
) -> Figures:
    """Measures every job at every batch size and temperature against one plain engine a size."""
    figures = Figures()
    with progress_bar() as bar:
        for size in args.batch_sizes:
            groups = batches(prompts, size)
            total = len(rounds(args, jobs)) * len(settings) * len(groups)
            task = bar.add_task(f"batch size {size}", total=total)
            measure_batch_size(args, jobs, settings, groups, figures, lambda t=task: bar.advance(t))
    figures.rows.sort(key=lambda row: (row.batch_size, row.temperature))
    return figures


def measure_batch_size(
    args: argparse.Namespace,
    jobs: list[Job],
    settings: list[SamplingParams],
    groups: list[list[str]],
    figures: Figures,
    advance: Callable[[], None],
) -> None:
    """Adds the rows of one batch size: plain decoding over all its runs, then every job."""
    plain = enter(args, (PLAIN, "0", None), groups[0], settings[0], figures)
    seen: dict[float, list[Comparison]] = {params.temperature: [] for params in settings}
    rows: list[Row] = []
    for together in rounds(args, jobs):
        contenders = [enter(args, job, groups[0], settings[0], figures) for job in together]
        for params in settings:
            pairs: list[list[Comparison]] = []
            for group in groups:
                pairs.append(compare(plain, contenders, group, params, args.repeats))
                advance()
            seen[params.temperature] += [pair[0] for pair in pairs]
            observers = [observe(contender, groups, params) for contender in contenders]
            for contender, observer, mine in zip(contenders, observers, zip(*pairs)):
                rows.append(row_of(contender, observer, params, list(mine), args.verifier))
        del contenders
    figures.rows += [
        plain_row(params, seen[params.temperature], plain.peak_memory_mb) for params in settings
    ]
    figures.rows += rows


def rounds(args: argparse.Namespace, jobs: list[Job]) -> list[list[Job]]:
    """Jobs whose engines are open at the same time."""
    if args.apart:
        return [[job] for job in jobs]
    return [list(same) for _, same in groupby(jobs, key=lambda job: job[0])]


def enter(
    args: argparse.Namespace,
    job: Job | tuple[str, str, None],
    prompts: list[str],
    params: SamplingParams,
    figures: Figures,
) -> Contender:
    """Opens an engine, wakes it, and notes its costs if none are known yet."""
    method, budget, config = job
    memory = memory_meter(args.device)
    engine = open_engine(args, config, len(prompts))
    if config is not None and config.adaptive and config.needs_draft_model:
        # Before the first request: the measurement writes into KV blocks that later ones share.
        figures.costs = figures.costs or measured_costs(engine)
    run_batch(engine, prompts, short(params))
    return Contender(method, budget, engine, memory.peak_mb)


def compare(
    plain: Contender,
    contenders: list[Contender],
    prompts: list[str],
    params: SamplingParams,
    repeats: int,
) -> list[Comparison]:
    """Every contender against the same plain runs, all of them in turn."""
    everybody = [partial(c.run, prompts, params) for c in (plain, *contenders)]
    plain_runs, *others = take_turns(everybody, repeats)
    return [Comparison(plain_runs, runs) for runs in others]


def observe(contender: Contender, groups: list[list[str]], params: SamplingParams) -> TreeObserver:
    """What trees promised and held, over one more run of every group, an iteration at a time and
    untimed. After all timed ones: an adaptive engine learns from these runs, too, which are slower
    (between them it came out at 0.98 of itself)."""
    observer = TreeObserver(contender.engine)
    for group in groups:
        run_batch(contender.engine, group, params, observer)
    return observer


def row_of(
    contender: Contender,
    observer: TreeObserver,
    params: SamplingParams,
    pairs: list[Comparison],
    verifier: str,
) -> Row:
    """A contender's line of the table."""
    return summary(
        contender.method,
        contender.budget,
        params,
        pairs,
        verifier,
        peak_memory_mb=contender.peak_memory_mb,
        reliability=observer.bins(),
    )


def open_engine(
    args: argparse.Namespace, config: SpeculationConfig | None, batch_size: int
) -> Engine:
    """One engine with room for a batch, which reads every prompt anew: the runs before have read
    the same ones, of some contenders one more than of others."""
    from sdengine.engine import Engine

    return Engine(
        args.model,
        draft=args.draft if config is not None and config.needs_draft_model else None,
        speculation=config,
        device=args.device,
        dtype=args.dtype,
        num_threads=args.num_threads,
        max_num_seqs=batch_size,
        enable_prefix_caching=False,
    )


def measured_costs(engine: Engine) -> CostModel:
    """T(M) and the draft's layers, as the adaptive budget takes them."""
    from sdengine.runner.cost_file import known_costs

    return known_costs(engine.iteration, read_environment().cache_dir)


def batches(prompts: list[Prompt], batch_size: int) -> list[list[Prompt]]:
    """Prompts in groups of one size; the beginning of the list fills the last group up."""
    count = -(-len(prompts) // batch_size)
    cycled = [prompts[i % len(prompts)] for i in range(count * batch_size)]
    return [cycled[i * batch_size : (i + 1) * batch_size] for i in range(count)]
