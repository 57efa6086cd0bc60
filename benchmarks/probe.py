"""Is speculation worth it for this pair, on this machine? Also `sdengine bench probe`.

Measures what a target pass costs by rows and what draft layers cost (the engine's own cost model),
then decodes some of the prompts with one large tree a step. Best-first trees of smaller budgets are
contained in it, so that one sample says what every budget would have accepted. From both follow
predicted speeds by budget; the best is recommended, and a short real run beside plain decoding says
how far off the prediction was.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.batch_run import batches, run_batch, take_turns, warm_up
from benchmarks.conditions import describe_machine
from benchmarks.generate import open_engine, read_prompts, request_params
from benchmarks.probe_model import Prediction, StepCosts, TreeSampler, between, predict
from sdengine.cli.main import run_alone
from sdengine.cli.options import BUNDLED_MODEL, LineParser, add_debug, integer, number
from sdengine.core.config import DTYPES, SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import ConfigError

SMALL_TREE = 2
BUDGETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One batch size and temperature.

    Args:
        batch_size, temperature: of the requests.
        predictions: by budget.
        best: the budget recommended; 0 is plain decoding.
        predicted, measured: speed over plain decoding with the budget that was run.
        budget_run: the recommended one, or the best above 0 where none pays.
    """

    batch_size: int
    temperature: float
    predictions: list[Prediction]
    best: int
    budget_run: int
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was measured."""
        return self.predicted / self.measured - 1.0


def build_parser() -> LineParser:
    """The probe's command line."""
    parser = LineParser(
        prog="sdengine bench probe", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("--model", default=BUNDLED_MODEL, metavar="DIR", help="(%(default)s)")
    parser.add_argument("--draft", metavar="DIR", help="none: repetitions in the text (ngram)")
    parser.add_argument("--prompt-file", action="append", type=Path, metavar="FILE")
    parser.add_argument("--held-out", type=integer, metavar="N", help="as of bench generate")
    parser.add_argument("--temperatures", nargs="+", type=number, default=[0.0, 0.8])
    parser.add_argument("--batch-sizes", nargs="+", type=integer, default=[1], metavar="B")
    parser.add_argument("--max-nodes", type=integer, default=32, help="largest tree (%(default)s)")
    parser.add_argument("--max-tokens", type=integer, default=96, metavar="N", help="(%(default)s)")
    parser.add_argument("--repeats", type=integer, default=3, metavar="N", help="(%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--num-threads", type=integer, metavar="N")
    parser.add_argument("--seed", type=integer, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_debug(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the probe and returns its exit code."""
    return run_alone(build_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    """Probes every batch size and temperature that was asked for, and prints what it found."""
    smallest = min(args.repeats, args.max_nodes, *args.batch_sizes)
    if smallest < 1:
        raise ConfigError.from_parts(
            "--repeats, --max-nodes and --batch-sizes of at least 1", str(smallest)
        )
    prompts = [prompt.text for prompt in read_prompts(args)]
    verdicts = []
    for size in args.batch_sizes:
        verdicts += probe_batch_size(args, batches(prompts, size))
    conditions = describe_machine("sdengine bench probe", args.num_threads, with_limits=True)
    found = [{**asdict(v), "error": v.error, "use": setting(args, v.best)} for v in verdicts]
    document = {"conditions": conditions, "verdicts": found}
    print(json.dumps(document, indent=2) if args.json else to_text(args, conditions, verdicts))
    return 0


def probe_batch_size(args: argparse.Namespace, groups: list[list[str]]) -> list[Verdict]:
    """Samples, predicts and runs; one engine of largest trees, one plain, one per budget run."""
    from sdengine.runner.costs import measure_costs

    size = len(groups[0])
    sizes = min(SMALL_TREE, args.max_nodes), args.max_nodes
    engines = [open_engine(args, config_of(args, nodes), size) for nodes in sizes]
    costs = measure_costs(engines[1].iteration)
    plain = open_engine(args, None, size)
    verdicts = []
    for temperature in args.temperatures:
        params = request_params(args, temperature)
        warm_up(plain, groups[0], params)
        small, large = (sample(engine, groups, params) for engine in engines)
        ends = [
            StepCosts(costs, s.draft_factor(costs), s.verify_factor(costs)) for s in (small, large)
        ]
        plain_s = plain_step_seconds(plain, groups, params)
        predictions = []
        for budget in (n for n in BUDGETS if n <= args.max_nodes):
            share = (budget - sizes[0]) / max(sizes[1] - sizes[0], 1)
            step_costs = between(*ends, min(max(share, 0.0), 1.0))
            predictions.append(predict(large, step_costs, budget, size, plain_s))
        verdicts.append(settle(args, plain, groups, params, predictions))
    return verdicts


def sample(engine: Any, groups: list[list[str]], params: SamplingParams) -> TreeSampler:
    """Decodes every batch once and notes what its trees would have done."""
    warm_up(engine, groups[0], params)
    sampler = TreeSampler(engine)
    for group in groups:
        run_batch(engine, group, params, sampler)
    return sampler


def plain_step_seconds(plain: Any, groups: list[list[str]], params: SamplingParams) -> float:
    """Median duration of a plain step with the whole batch running."""
    steps: list[float] = []

    def note() -> None:
        report = plain.last_report
        if report.is_steady and len(report.num_accepted) == len(groups[0]):
            steps.append(report.step_s)

    for group in groups:
        run_batch(plain, group, params, note)
    return median(steps)


def settle(
    args: argparse.Namespace,
    plain: Any,
    groups: list[list[str]],
    params: SamplingParams,
    predictions: list[Prediction],
) -> Verdict:
    """Picks a budget, and holds its prediction against a run beside plain decoding."""
    top = max(predictions, key=lambda p: p.speedup)
    engine = open_engine(args, config_of(args, top.budget), len(groups[0]))
    warm_up(engine, groups[0], params)
    pairs = [take_turns(plain, engine, group, params, args.repeats) for group in groups]
    return Verdict(
        len(groups[0]),
        params.temperature,
        predictions,
        top.budget if top.speedup > 1.0 else 0,
        top.budget,
        top.speedup,
        median(pair.ratio for pair in pairs),
    )


def config_of(args: argparse.Namespace, max_nodes: int) -> SpeculationConfig:
    """A fixed tree of that size: of the draft model's where there is one."""
    has_draft = args.draft is not None or args.model == BUNDLED_MODEL
    method = "dyspec" if has_draft else "ngram"
    return SpeculationConfig(method=method, adaptive=False, max_nodes=max_nodes)


def setting(args: argparse.Namespace, best: int) -> str:
    """The line to paste."""
    if best == 0:
        return "speculation=None"
    config = config_of(args, best)
    return (
        f'speculation=SpeculationConfig(method="{config.method}", adaptive=False, max_nodes={best})'
    )


def to_text(args: argparse.Namespace, conditions: dict, verdicts: list[Verdict]) -> str:
    """What a person reads."""
    lines = [f"{name}: {value}" for name, value in conditions.items()]
    for v in verdicts:
        lines += ["", f"batch {v.batch_size}, temperature {v.temperature:g}", ""]
        lines.append("budget  tokens/step  draft layers  predicted ms/step  predicted speed-up")
        for p in v.predictions:
            mark = " <" if p.budget == v.best else ""
            lines.append(
                f"{p.budget:6}  {p.tokens_per_step:11.2f}  {p.draft_layers:12.1f}"
                f"  {1e3 * p.step_s:17.3g}  {p.speedup:17.2f}x{mark}"
            )
        lines += [
            "",
            f"use: {setting(args, v.best)}",
            f"budget {v.budget_run}: predicted {v.predicted:.2f}x, measured {v.measured:.2f}x, "
            f"error {v.error:+.0%}",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
