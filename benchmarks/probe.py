"""Is speculation worth it for this pair, on this machine? Also `sdengine bench probe`.

Decodes some of the prompts with trees of 1, 2, 4, ... nodes, each in turns with plain decoding:
that says what a step of each size costs in plain steps, as the engine runs them. Best-first trees
of smaller budgets are contained in the largest, so that its sample says what every budget would
have accepted; between the sizes that ran, the engine's cost model says how costs rise. From both
follow predicted speeds by budget; the best is recommended, and a real run beside plain decoding
says how far off the prediction was. What it was predicted from is timed again in turns with that
run: the machine may change within seconds. The adaptive budget is predicted by its own controller,
which decodes the sampled trees at those costs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.conditions import describe_machine
from benchmarks.generate import (
    ADAPTIVE,
    check_requests,
    check_room,
    read_prompts,
    request_params,
)
from benchmarks.generate_runs import batches
from benchmarks.probe_adaptive import StepTimes, replay_speedup
from benchmarks.probe_model import (
    Prediction,
    Rung,
    TreeSampler,
    Turn,
    neighbours,
    predict,
    step_cost,
)
from benchmarks.probe_report import Check, Verdict, to_document, to_text
from benchmarks.probe_runs import Contestant, run_beside, sample, time_steps
from benchmarks.step_costs import TABLES, StepCosts, read_step_costs
from sdengine.cli.main import run_alone
from sdengine.cli.measure import WARM_UP_TOKENS
from sdengine.cli.options import (
    BUNDLED_MODEL,
    LineParser,
    add_debug,
    add_device_option,
    add_thread_option,
    integer,
    number,
)
from sdengine.controllers.adaptive import AdaptiveController
from sdengine.controllers.tree_size import GrowingSize
from sdengine.core.argument import check_int
from sdengine.core.config import DTYPES, MAX_TREE_NODES, SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from sdengine.core.cost_model import CostModel

BUDGETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
REPLAYS = 5
"""Engines whose adaptive budget is simulated: what its trials find is partly chance."""


def build_parser() -> LineParser:
    """The probe's command line."""
    parser = LineParser(
        prog="sdengine bench probe", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("--model", default=BUNDLED_MODEL, metavar="DIR", help="(%(default)s)")
    parser.add_argument(
        "--draft", metavar="DIR", help="(the bundled pair's own; otherwise none: ngram)"
    )
    parser.add_argument(
        "--prompt-file", action="append", type=Path, metavar="FILE", help="as of bench generate"
    )
    parser.add_argument("--held-out", type=integer, metavar="N", help="as of bench generate")
    parser.add_argument(
        "--temperatures", nargs="+", type=number, default=[0.0, 0.8], help="(0 0.8)"
    )
    parser.add_argument(
        "--batch-sizes", nargs="+", type=integer, default=[1], metavar="B", help="(1)"
    )
    parser.add_argument("--max-nodes", type=integer, default=32, help="largest tree (%(default)s)")
    parser.add_argument("--max-tokens", type=integer, default=96, metavar="N", help="(%(default)s)")
    parser.add_argument("--repeats", type=integer, default=3, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--check",
        nargs="+",
        metavar="N",
        help="budgets to run for real, or adaptive; otherwise the best one",
    )
    parser.add_argument(
        "--step-costs",
        metavar="TABLE",
        help="steps take what a table says, prediction and check alike: how far off the method is "
        f"without a machine's noise; {', '.join(TABLES)} or a JSON file",
    )
    add_device_option(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="(%(default)s)")
    add_thread_option(parser)
    parser.add_argument("--seed", type=integer, default=1, help="(%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_debug(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the probe and returns its exit code."""
    return run_alone(build_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    """Probes every batch size and temperature that was asked for, and prints what it found."""
    check_arguments(args)
    step_costs = None if args.step_costs is None else read_step_costs(args.step_costs)
    prompts = [prompt.text for prompt in read_prompts(args)]
    check_room(args, prompts)
    verdicts = []
    for size in args.batch_sizes:
        verdicts += probe_batch_size(args, step_costs, batches(prompts, size))
    is_timed = step_costs is None
    conditions = describe_machine(
        "sdengine bench probe", args.num_threads, with_limits=is_timed, device=args.device
    )
    if not is_timed:
        conditions["step costs"] = args.step_costs
    found = [to_document(verdict) for verdict in verdicts]
    document = {"conditions": conditions, "verdicts": found}
    print(json.dumps(document, indent=2) if args.json else to_text(conditions, verdicts))
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses what could not be probed before anything is loaded.

    Raises:
        ConfigError: as `check_requests`, or trees, requests or budgets of impossible sizes.
    """
    check_requests(args)
    check_int(ConfigError, "--max-nodes", args.max_nodes, 1, MAX_TREE_NODES)
    # A step may commit a whole path and one token more: behind the first there must be a second.
    least = config_of(args, ADAPTIVE).max_depth + 2
    way_out = "shorter requests may end with their first step"
    check_int(ConfigError, "--max-tokens", args.max_tokens, least, way_out=way_out)
    known = [*map(str, budgets(args.max_nodes)), ADAPTIVE]
    if unknown := [budget for budget in args.check or () if budget not in known]:
        raise ConfigError.from_parts(f"--check of {', '.join(known)}", ", ".join(unknown))


def budgets(max_nodes: int) -> list[int]:
    """Budgets that are predicted, the largest among them."""
    return sorted({n for n in BUDGETS if n < max_nodes} | {max_nodes})


def ladder(max_nodes: int) -> list[int]:
    """Those whose steps are timed: powers of two, and the largest."""
    return [n for n in budgets(max_nodes) if n & (n - 1) == 0 or n == max_nodes]


def probe_batch_size(
    args: argparse.Namespace, step_costs: StepCosts | None, groups: list[list[str]]
) -> list[Verdict]:
    """Samples, predicts and checks."""
    size = len(groups[0])
    settings = [request_params(args, temperature) for temperature in args.temperatures]

    def enter(config: SpeculationConfig | None) -> Contestant:
        return Contestant.open(args, config, size, step_costs)

    plain = enter(None)
    rungs: list[list[Rung]] = [[] for _ in settings]
    for nodes in ladder(args.max_nodes):
        other = enter(config_of(args, nodes))
        for params, found in zip(settings, rungs):
            timed = time_steps(plain, other, groups, params, args.repeats)
            found.append(Rung.from_turns(nodes, timed))
    samplers = [sample(other, groups, params) for params in settings]  # of the largest trees
    costs = other.costs()
    verdicts = []
    for params, found, some in zip(settings, rungs, samplers):
        adaptive = predict_adaptive(args, some, costs, found, size)
        listed = budgets(args.max_nodes)
        predicted = partial(predict, some, costs, found, listed, size, args.max_tokens)
        run = partial(run_in_turns, args, enter, plain, groups, params)
        verdicts.append(settle(args, size, params, run, found, predicted, adaptive))
    return verdicts


def run_in_turns(
    args: argparse.Namespace,
    enter: Callable[[SpeculationConfig | None], Contestant],
    plain: Contestant,
    groups: list[list[str]],
    params: SamplingParams,
    budget: str,
    near: list[int],
) -> tuple[float, list[Rung]]:
    """Speed of a budget over plain decoding, and in turns with it what steps of the budgets near it
    cost: a machine may change within seconds."""
    engines = {nodes: enter(config_of(args, nodes)) for nodes in near}
    other = enter(config_of(args, budget))
    other.warm_up(groups[0], params)
    turns: dict[int, list[Turn]] = {nodes: [] for nodes in near}
    speedups = []
    for _ in range(1 if args.step_costs else (args.repeats + 1) // 2):
        for nodes, engine in engines.items():
            turns[nodes] += time_steps(plain, engine, groups, params, 1)
        speedups.append(run_beside(plain, other, groups, params, 2))  # either one first
    rungs = [Rung.from_turns(nodes, timed) for nodes, timed in turns.items()]
    return median(speedups), rungs


def predict_adaptive(
    args: argparse.Namespace,
    samplers: list[TreeSampler],
    costs: CostModel,
    rungs: list[Rung],
    batch_size: int,
) -> float:
    """Speed over plain decoding of an engine whose budget is adaptive, from its first request on,
    as `run_beside` finds it."""
    config = config_of(args, ADAPTIVE)
    times = StepTimes(
        costs,
        median(rung.plain_s for rung in rungs),
        median(s.overhead_s for s in samplers),
        median(s.missed_token_s(costs.draft_time(config.max_depth)) for s in samplers),
        step_cost(samplers, costs, rungs, batch_size),
    )
    controllers = [
        AdaptiveController(costs, GrowingSize(config.max_depth, config.max_nodes))
        for _ in range(REPLAYS)
    ]
    warm_up = min(args.max_tokens, WARM_UP_TOKENS)
    return replay_speedup(
        controllers, samplers, times, batch_size, args.max_tokens, warm_up, args.repeats
    )


def settle(
    args: argparse.Namespace,
    batch_size: int,
    params: SamplingParams,
    run: Callable[[str, list[int]], tuple[float, list[Rung]]],
    rungs: list[Rung],
    predicted: Callable[[], list[Prediction]],
    adaptive: float,
) -> Verdict:
    """Picks a budget, and holds predictions, `predicted` from `rungs`, against runs beside plain
    decoding; what steps cost about then takes the place of what they did before."""
    predictions = predicted()
    top = max(predictions, key=lambda p: p.speedup).budget
    checks = []
    for budget in args.check or [str(top)]:
        near = [] if budget == ADAPTIVE else [r.budget for r in neighbours(rungs, int(budget))]
        measured, fresh = run(budget, near)
        kept = [rung for rung in rungs if rung.budget not in near]
        rungs[:] = sorted([*kept, *fresh], key=lambda rung: rung.budget)
        predictions = predicted()
        expected = {str(p.budget): p.speedup for p in predictions} | {ADAPTIVE: adaptive}
        checks.append(Check(budget, expected[budget], measured))
    best = top if any(p.budget == top and p.speedup > 1.0 for p in predictions) else 0
    line = setting(args, best)
    return Verdict(batch_size, params.temperature, predictions, best, adaptive, line, checks)


def config_of(args: argparse.Namespace, budget: int | str) -> SpeculationConfig:
    """A fixed tree of that size, or the adaptive one: of the draft model's where there is one."""
    has_draft = args.draft is not None or args.model == BUNDLED_MODEL
    method = "dyspec" if has_draft else "ngram"
    if budget == ADAPTIVE:
        return SpeculationConfig(method=method)
    return SpeculationConfig(method=method, adaptive=False, max_nodes=int(budget))


def setting(args: argparse.Namespace, best: int) -> str:
    """The line to paste."""
    if best == 0:
        return "speculation=None"
    config = config_of(args, best)
    return (
        f'speculation=SpeculationConfig(method="{config.method}", adaptive=False, max_nodes={best})'
    )


if __name__ == "__main__":
    sys.exit(main())
