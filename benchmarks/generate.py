"""Whole requests, plain against speculative; also `sdengine bench generate`.

Every method and budget is measured against plain decoding in alternation, in one process: runs take
turns, ratios are within a prompt, figures are medians over prompts of medians over repeats. Prints
a Markdown table with its conditions, or JSON; --out writes both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.generate_report import Row, conditions, summary, to_markdown
from sdengine.cli.main import run_guarded
from sdengine.cli.measure import alternate, warm_up
from sdengine.cli.options import BUNDLED_MODEL, LineParser, integer, number
from sdengine.cli.prompts import PROMPTS, Prompt
from sdengine.cli.terminal import is_terminal
from sdengine.core.config import DTYPES, METHODS, VERIFIERS, SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from sdengine.llm import LLM

ADAPTIVE = "adaptive"


def build_parser() -> LineParser:
    """The benchmark's command line."""
    parser = LineParser(
        prog="sdengine bench generate", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("--model", default=BUNDLED_MODEL, metavar="DIR", help="(%(default)s)")
    parser.add_argument("--draft", metavar="DIR")
    parser.add_argument(
        "--prompt-file",
        action="append",
        type=Path,
        metavar="FILE",
        help="a prompt; may be given several times (the demo's prompts)",
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=budget,
        default=[ADAPTIVE, "8", "24"],
        help="adaptive, or most draft tokens of a step (adaptive 8 24)",
    )
    parser.add_argument("--temperatures", nargs="+", type=number, default=[0.0, 0.8])
    parser.add_argument("--verifier", choices=VERIFIERS, default="coupled")
    parser.add_argument("--max-tokens", type=integer, default=160, metavar="N")
    parser.add_argument("--repeats", type=integer, default=5, metavar="N", help="(%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--num-threads", type=integer, metavar="N")
    parser.add_argument("--seed", type=integer, default=1)
    parser.add_argument("--limits", action="store_true", help="measure the machine's limits too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write generate.json and .md there")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def budget(text: str) -> str:
    """A budget option: "adaptive" or a number of nodes."""
    return text if text == ADAPTIVE else str(integer(text))


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    args = build_parser().parse_args(argv)
    args.run = run
    return run_guarded(args)


def run(args: argparse.Namespace) -> int:
    """Measures everything that was asked for and prints it.

    Returns:
        0, or 1 when tokens differ that must not.
    """
    if args.repeats < 1:
        raise ConfigError.from_parts("--repeats of at least 1", str(args.repeats))
    settings = [request_params(args, temperature) for temperature in args.temperatures]
    jobs = [(name, size, speculation(args, name, size)) for name, size in combinations(args)]
    prompts = read_prompts(args.prompt_file)
    rows = sorted(measure(args, jobs, settings, prompts), key=lambda row: row.temperature)
    document = {"conditions": conditions(args, prompts), "rows": [asdict(row) for row in rows]}
    markdown = to_markdown(document["conditions"], rows)
    text = json.dumps(document, indent=2)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "generate.json").write_text(text + "\n", encoding="utf-8")
        (args.out / "generate.md").write_text(markdown, encoding="utf-8")
    print(text if args.json else markdown)
    return 1 if any(row.identical_tokens is False for row in rows) else 0


def request_params(args: argparse.Namespace, temperature: float) -> SamplingParams:
    """Parameters of all requests at one temperature; end-of-sequence is ignored, so that every run
    has the same length.
    """
    return SamplingParams(
        max_tokens=args.max_tokens, temperature=temperature, seed=args.seed, ignore_eos=True
    )


def combinations(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Methods with budgets, in the order of the command line."""
    for method in args.methods:
        for size in args.budgets:
            yield method, size


def speculation(args: argparse.Namespace, method: str, size: str) -> SpeculationConfig:
    """The configuration of one combination."""
    if size == ADAPTIVE:
        return SpeculationConfig(method=method, verifier=args.verifier)
    return SpeculationConfig(
        method=method, verifier=args.verifier, adaptive=False, max_nodes=int(size)
    )


def read_prompts(files: list[Path] | None) -> list[Prompt]:
    """The prompts of --prompt-file, or the demo's.

    Raises:
        RequestError: a file cannot be read as UTF-8.
    """
    if files is None:
        return list(PROMPTS)
    prompts = []
    for file in files:
        try:
            prompts.append(Prompt(file.name, file.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError.from_parts(f"a readable prompt in {file}", str(error)) from None
    return prompts


def measure(
    args: argparse.Namespace,
    jobs: list[tuple[str, str, SpeculationConfig]],
    settings: list[SamplingParams],
    prompts: list[Prompt],
) -> Iterator[Row]:
    """Measures every job at every temperature against one plain engine."""
    from rich.console import Console
    from rich.progress import Progress

    plain = open_llm(args, None)
    warm_up(plain, prompts[0].text, settings[0])
    console = Console(stderr=True)
    with Progress(console=console, disable=not is_terminal(sys.stderr), transient=True) as bar:
        task = bar.add_task("measuring", total=len(jobs) * len(settings) * len(prompts))
        for method, size, config in jobs:
            llm = open_llm(args, config)
            warm_up(llm, prompts[0].text, settings[0])
            for params in settings:
                comparisons = []
                for prompt in prompts:
                    comparisons.append(alternate(plain, llm, prompt.text, params, args.repeats))
                    bar.advance(task)
                yield summary(method, size, params, comparisons, args.verifier)


def open_llm(args: argparse.Namespace, config: SpeculationConfig | None) -> LLM:
    """One engine for one request at a time."""
    from sdengine.llm import LLM

    return LLM(
        args.model,
        args.draft,
        speculation=config,
        dtype=args.dtype,
        num_threads=args.num_threads,
        max_num_seqs=1,
    )


if __name__ == "__main__":
    sys.exit(main())
