"""What budgets gain where steps take what a table says; no clock decides.

    python -m benchmarks.modelled_budgets                           # a 1.1B target on two cores
    python -m benchmarks.modelled_budgets --step-costs 8b-h200 --budgets adaptive 8 16 32 64
    python -m benchmarks.modelled_budgets --step-costs my.json      # rows, verify_ms, ...
    python -m benchmarks.modelled_budgets --first-request --step-costs 13m-avx2-cached \
        --measured 13m-avx2-start-up     # engines that know nothing but costs that are not true
    python -m benchmarks.modelled_budgets --step-costs 13m-two-dots --noise 0.1 --engines 12 \
        --measured 13m-two-dots-start-up --elsewhere 13m-two-dots-apart  # a shared server's noise

Text, trees and acceptance are those of an engine that runs (the bundled pair unless another one is
named), seconds come from the table (`step_costs.py`). So the adaptive budget can be held against
fixed ones, and both against plain decoding, without a machine's noise, or with noise that is drawn
from a seed (`step_noise.py`), and two runs print the same.
It says nothing about the machine it runs on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean

from benchmarks.conditions import as_lines, describe_machine
from benchmarks.generate import (
    ADAPTIVE,
    budget,
    check_requests,
    check_room,
    combinations,
    read_prompts,
    request_params,
    speculation,
)
from benchmarks.generate_runs import batches, open_engine
from benchmarks.progress import progress_bar
from benchmarks.step_costs import TABLES, ModelledTime, StepCosts, read_step_costs
from benchmarks.step_noise import Noise, NoisySteps
from sdengine.cli.main import run_alone
from sdengine.cli.measure import Run, run_batch
from sdengine.cli.options import BUNDLED_MODEL, LineParser, add_debug, integer, number
from sdengine.core.config import DTYPES, METHODS, VERIFIERS, SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import ConfigError

PROGRAM = "python -m benchmarks.modelled_budgets"
MOST_NOISE = 1.0  # a drift of e to either side


@dataclass(frozen=True, slots=True)
class Row:
    """One method and budget at one temperature and batch size.

    Args:
        speedup: over plain decoding, all batches together: a batch ends with its last request.
        request_speedup: of a request, mean: how much faster its tokens come than plain decoding's.
        tokens_per_step: of a sequence.
    """

    temperature: float
    batch_size: int
    method: str
    budget: str
    speedup: float
    request_speedup: float
    tokens_per_step: float


def build_parser() -> LineParser:
    """The command line."""
    parser = LineParser(
        prog=PROGRAM,
        description=(__doc__ or "").partition("\n\n")[0],
    )
    parser.add_argument(
        "--step-costs",
        default="1.1b-avx2",
        metavar="TABLE",
        help=f"{', '.join(TABLES)} or a JSON file (%(default)s)",
    )
    parser.add_argument(
        "--measured", metavar="TABLE", help="costs that an engine is told at its start (the same)"
    )
    parser.add_argument(
        "--first-request", action="store_true", help="every batch by an engine of its own"
    )
    parser.add_argument(
        "--noise", type=number, default=0.0, metavar="SD", help="of the steps' times; 0.1 is usual"
    )
    parser.add_argument(
        "--elsewhere", metavar="TABLE", help="where the cores are at other times, with --noise"
    )
    parser.add_argument(
        "--engines", type=integer, default=1, metavar="N", help="that decode everything, each once"
    )
    parser.add_argument("--model", default=BUNDLED_MODEL, metavar="DIR", help="(%(default)s)")
    parser.add_argument("--draft", metavar="DIR")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["dyspec"])
    parser.add_argument("--budgets", nargs="+", type=budget, default=[ADAPTIVE, "1", "2", "4", "8"])
    parser.add_argument("--temperatures", nargs="+", type=number, default=[0.0, 0.6, 1.0])
    parser.add_argument("--batch-sizes", nargs="+", type=integer, default=[1], metavar="B")
    parser.add_argument("--verifier", choices=VERIFIERS, default="coupled")
    parser.add_argument("--held-out", type=integer, default=12, metavar="N", help="prompts")
    parser.add_argument("--max-tokens", type=integer, default=64, metavar="N")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--num-threads", type=integer, metavar="N")
    parser.add_argument("--seed", type=integer, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.set_defaults(repeats=1, prompt_file=None, device="cpu")
    add_debug(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_alone(build_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    """Decodes everything that was asked for and prints the table."""
    check_requests(args)
    noise = read_noise(args)
    step_costs = read_step_costs(args.step_costs)
    measured = None if args.measured is None else read_step_costs(args.measured)
    jobs = [(name, size, speculation(args, name, size)) for name, size in combinations(args)]
    settings = [request_params(args, temperature) for temperature in args.temperatures]
    prompts = [prompt.text for prompt in read_prompts(args)]
    check_room(args, prompts)
    rows: list[Row] = []
    with progress_bar() as bar:
        task = bar.add_task("budgets", total=len(args.batch_sizes) * len(settings) * len(jobs))
        for batch_size in args.batch_sizes:
            groups = batches(prompts, batch_size)
            for params in settings:
                plain = decode(args, None, step_costs, params, groups, noise=noise)
                for method, size, config in jobs:
                    runs = decode(args, config, step_costs, params, groups, measured, noise)
                    rows.append(row_of(method, size, params, batch_size, plain, runs))
                    bar.advance(task)
    conditions = describe_machine(PROGRAM, args.num_threads, with_limits=False)
    if args.json:
        print(json.dumps({"conditions": conditions, "rows": [asdict(row) for row in rows]}))
    else:
        print(f"{as_lines(conditions)}\n\n{to_markdown(args, rows)}")
    return 0


def read_noise(args: argparse.Namespace) -> Noise | None:
    """What --noise and --elsewhere ask for.

    Raises:
        ConfigError: they make no sense, or no engine is asked for.
    """
    if args.engines < 1:
        raise ConfigError.from_parts("--engines of at least 1", str(args.engines))
    if not 0.0 <= args.noise <= MOST_NOISE:
        raise ConfigError.from_parts(f"--noise from 0 to {MOST_NOISE:g}", str(args.noise))
    if args.noise == 0.0:
        if args.elsewhere is not None:
            raise ConfigError.from_parts("--elsewhere with --noise", "without it", "add --noise")
        return None
    elsewhere = None if args.elsewhere is None else read_step_costs(args.elsewhere)
    return Noise(args.noise, args.seed, elsewhere)


def decode(
    args: argparse.Namespace,
    config: SpeculationConfig | None,
    step_costs: StepCosts,
    params: SamplingParams,
    groups: list[list[str]],
    measured: StepCosts | None = None,
    noise: Noise | None = None,
) -> list[Run]:
    """Every batch once by each of --engines new engines, one after the other as its requests would
    come; or each by one of its own. Noise is as slow with every budget."""
    sharing = [[group] for group in groups] if args.first_request else [groups]
    runs = []
    if noise is not None and config is not None and not config.needs_draft_model:
        noise = noise.of_lookups()
    for index, of_an_engine in enumerate(sharing * args.engines):
        engine = open_engine(args, config, len(groups[0]))
        with_noise = None if noise is None else partial(NoisySteps, noise=noise, index=index)
        time = ModelledTime.of(engine, config, step_costs, measured, with_noise)
        runs += [run_batch(engine, group, params, clock=time) for group in of_an_engine]
    return runs


def row_of(
    method: str,
    size: str,
    params: SamplingParams,
    batch_size: int,
    plain: list[Run],
    runs: list[Run],
) -> Row:
    """A line of the table."""
    stats = [s for run in runs for s in run.speculation]
    committed = sum(s.mean_acceptance_length * s.num_steps for s in stats)
    waits = [[wait for run in side for wait in run.token_s] for side in (plain, runs)]
    return Row(
        temperature=params.temperature,
        batch_size=batch_size,
        method=method,
        budget=size,
        speedup=sum(1.0 / run.tokens_per_s for run in plain)
        / sum(1.0 / run.tokens_per_s for run in runs),
        request_speedup=fmean(before / max(now, 1e-9) for before, now in zip(*waits)),
        tokens_per_step=committed / sum(s.num_steps for s in stats),
    )


def to_markdown(args: argparse.Namespace, rows: list[Row]) -> str:
    """The table, a line for each temperature, batch size and method."""
    lines = [
        f"step costs {args.step_costs}, measured {args.measured or 'the same'}, "
        f"{args.held_out} held-out prompts, {args.max_tokens} tokens each"
        f"{', every batch by a new engine' * args.first_request}, verifier {args.verifier}"
        f"{noise_words(args)}; "
        "over plain decoding (tokens a step)",
        "",
        "A batch ends with its last request; by requests: the mean of theirs.",
        "",
        f"| T | sequences | method | {' | '.join(args.budgets)} | adaptive of the best fixed "
        "| by requests |",
        "|---" * (5 + len(args.budgets)) + "|",
    ]
    for first in range(0, len(rows), len(args.budgets)):
        line = rows[first : first + len(args.budgets)]
        cells = [f"{row.speedup:.2f}x ({row.tokens_per_step:.2f})" for row in line]
        head = f"| {line[0].temperature:g} | {line[0].batch_size} | {line[0].method} | "
        shares = [share_of_best(line, by) for by in ("speedup", "request_speedup")]
        lines.append(head + " | ".join([*cells, *shares]) + " |")
    return "\n".join(lines)


def noise_words(args: argparse.Namespace) -> str:
    """What of it the table was made with."""
    if args.noise == 0.0:
        return ""
    elsewhere = "" if args.elsewhere is None else f", at times {args.elsewhere}"
    return f", noise {args.noise:g}{elsewhere}, {args.engines} engines"


def share_of_best(line: list[Row], by: str = "speedup") -> str:
    """What the adaptive budget reaches of the best fixed one, plain decoding among them."""
    adaptive = [getattr(row, by) for row in line if row.budget == ADAPTIVE]
    if not adaptive:
        return ""
    fixed = [1.0, *(getattr(row, by) for row in line if row.budget != ADAPTIVE)]
    return f"{adaptive[0] / max(fixed):.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
