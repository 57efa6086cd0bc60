"""Whole requests, plain against speculative; also `sdengine bench generate`.

Plain decoding and all budgets of a method take turns in one process, each with an engine of its
own (--apart: one budget at a time, where so many engines do not fit); ratios are within a batch of
prompts, figures are medians over these of medians over repeats. One more run of every batch is not
timed: it notes how reliable the drafter's estimates are. Prints a Markdown table with its
conditions, or JSON; --out writes both and draws plots.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks.conditions import describe_machine
from benchmarks.generate_report import to_markdown
from benchmarks.generate_runs import Figures, measure
from benchmarks.held_out import held_out_prompts
from benchmarks.plotting import require_matplotlib
from sdengine.cli.main import run_alone
from sdengine.cli.options import (
    BUNDLED_MODEL,
    LineParser,
    add_debug,
    add_device_option,
    add_thread_option,
    integer,
    number,
)
from sdengine.cli.prompts import PROMPTS, Prompt
from sdengine.core.config import (
    DTYPES,
    MAX_TREE_NODES,
    METHODS,
    METHODS_WITHOUT_DRAFT_MODEL,
    VERIFIERS,
    EngineConfig,
    SpeculationConfig,
)
from sdengine.core.env import read_environment
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import ConfigError, RequestError
from sdengine.model.config_file import load_model_config
from sdengine.model.registry import resolve_model
from sdengine.model.tokenizer import load_tokenizer
from sdengine.runner.placement import choose_placement
from sdengine.train.directories import make_directory

PROGRAM = "sdengine bench generate"
ADAPTIVE = "adaptive"


def build_parser(program: str = PROGRAM) -> LineParser:
    """The benchmark's command line, of a program that may pass it options of its own."""
    parser = LineParser(prog=PROGRAM, description=(__doc__ or "").partition("\n\n")[2])
    parser.set_defaults(program=program)
    parser.add_argument("--model", default=BUNDLED_MODEL, metavar="DIR", help="(%(default)s)")
    parser.add_argument("--draft", metavar="DIR", help="(the bundled pair's own, or none)")
    parser.add_argument(
        "--prompt-file",
        action="append",
        type=Path,
        metavar="FILE",
        help="a prompt; may be given several times (the demo's prompts, which no model was trained "
        "on)",
    )
    parser.add_argument(
        "--held-out",
        type=integer,
        metavar="N",
        help="N prompts from library files that the bundled pair was not trained on",
    )
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="(all of them)"
    )
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=budget,
        default=[ADAPTIVE, "4", "8", "16", "32"],
        help="adaptive, or most draft tokens of a step (adaptive 4 8 16 32)",
    )
    parser.add_argument(
        "--temperatures", nargs="+", type=number, default=[0.0, 0.6, 1.0], help="(0 0.6 1)"
    )
    parser.add_argument(
        "--batch-sizes", nargs="+", type=integer, default=[1], metavar="B", help="(1)"
    )
    parser.add_argument("--verifier", choices=VERIFIERS, default="coupled", help="(%(default)s)")
    parser.add_argument(
        "--max-tokens", type=integer, default=160, metavar="N", help="(%(default)s)"
    )
    parser.add_argument("--repeats", type=integer, default=5, metavar="N", help="(%(default)s)")
    add_device_option(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="(%(default)s)")
    add_thread_option(parser)
    parser.add_argument("--seed", type=integer, default=1, help="(%(default)s)")
    parser.add_argument(
        "--apart",
        action="store_true",
        help="one budget at a time takes turns with plain decoding: less memory, but budgets are "
        "then compared over different minutes",
    )
    parser.add_argument(
        "--no-limits", action="store_true", help="do not measure the machine's limits"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write generate.json, generate.md and plots there"
    )
    parser.add_argument("--no-plots", action="store_true", help="with --out: figures only")
    add_debug(parser)
    return parser


def budget(text: str) -> str:
    """A budget option: "adaptive" or a number of nodes."""
    if text == ADAPTIVE:
        return text
    try:
        nodes = int(text)
    except ValueError:
        nodes = 0
    if not 1 <= nodes <= MAX_TREE_NODES:
        raise argparse.ArgumentTypeError(
            f"expected {ADAPTIVE} or an integer from 1 to {MAX_TREE_NODES}, got {text!r}"
        )
    return str(nodes)


def main(argv: list[str] | None = None, program: str = PROGRAM) -> int:
    """Runs the benchmark and returns its exit code.

    Args:
        argv: arguments; None for the process's.
        program: what was typed, for the conditions: the process's arguments follow it there.
    """
    return run_alone(build_parser(program), run, argv)


def run(args: argparse.Namespace) -> int:
    """Measures everything that was asked for and prints it.

    Returns:
        0, or 1 when tokens differ that must not.
    """
    check_arguments(args)
    settings = [request_params(args, temperature) for temperature in args.temperatures]
    jobs = [(name, size, speculation(args, name, size)) for name, size in combinations(args)]
    prompts = read_prompts(args)
    texts = [prompt.text for prompt in prompts]
    check_room(args, texts)
    figures = measure(args, jobs, settings, texts)
    document = to_document(args, prompts, figures)
    text = json.dumps(document, indent=2) if args.json else to_markdown(document)
    print(text, flush=True)  # first: a disk may be full by now
    write(args, document)
    return 1 if any(row.identical_tokens is False for row in figures.rows) else 0


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses what could not work before anything is loaded.

    Raises:
        ConfigError: as `check_requests`, or plots without matplotlib, or a directory that cannot be
            written to.
    """
    check_requests(args)
    if args.out is not None:
        if not args.no_plots:
            require_matplotlib()
        make_directory("--out", args.out)


def check_requests(args: argparse.Namespace) -> None:
    """Refuses requests that could not be made.

    Args:
        args: with model, device, repeats, batch_sizes, held_out and prompt_file.

    Raises:
        ConfigError: a count below 1, two sources of prompts, or no such device.
        BackendUnavailable: no kernels for that device here.
    """
    for name, values in (
        ("--repeats", [args.repeats]),
        ("--batch-sizes", args.batch_sizes),
        ("--held-out", [] if args.held_out is None else [args.held_out]),
    ):
        if min(values, default=1) < 1:
            raise ConfigError.from_parts(f"{name} of at least 1", str(min(values)))
    if args.held_out is not None and args.prompt_file is not None:
        raise ConfigError.from_parts("one source of prompts", "--held-out and --prompt-file")
    choose_placement(EngineConfig(args.model, device=args.device), None)


def check_room(args: argparse.Namespace, prompts: list[str]) -> None:
    """Refuses requests that would end before they have the tokens that the figures claim.

    Args:
        args: with model and max_tokens.
        prompts: all texts.

    Raises:
        ConfigError: one has no room for max_tokens behind it in the model's context.
        CheckpointError: the model is unusable.
    """
    target = resolve_model(args.model, bundled_dir=read_environment().bundled_dir).target
    context = load_model_config(target).default_context
    tokenizer = load_tokenizer(target)
    room = context - max(len(tokenizer.encode(prompt)) for prompt in prompts)
    if args.max_tokens > room >= 1:  # without any, the engine says what is wrong with the prompt
        raise ConfigError.from_parts(
            f"--max-tokens of at most {room}, the room behind the longest prompt in a context of "
            f"{context} tokens",
            str(args.max_tokens),
        )


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


def read_prompts(args: argparse.Namespace) -> list[Prompt]:
    """The prompts of --prompt-file or --held-out, or the demo's.

    Raises:
        RequestError: a file is empty or cannot be read as UTF-8, or there are too few held-out
            statements.
    """
    if args.held_out is not None:
        return held_out_prompts(args.held_out)
    if args.prompt_file is None:
        return list(PROMPTS)
    prompts = []
    for file in args.prompt_file:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError.from_parts(f"a readable prompt in {file}", str(error)) from None
        if not text:
            raise RequestError.from_parts(f"a prompt in {file}", "an empty file")
        prompts.append(Prompt(file.name, text))
    return prompts


def to_document(
    args: argparse.Namespace, prompts: list[Prompt], figures: Figures
) -> dict[str, object]:
    """Everything as JSON: conditions, rows, costs."""
    conditions = describe_machine(
        args.program, args.num_threads, not args.no_limits, device=args.device
    )
    conditions |= {
        "model": args.model,
        "draft": draft_that_ran(args),
        "dtype": args.dtype,
        "verifier": args.verifier,
        "prompts": [prompt.title for prompt in prompts],
        "new tokens": args.max_tokens,
        "repeats": args.repeats,
    }
    return {
        "conditions": conditions,
        "rows": [asdict(row) for row in figures.rows],
        "costs": None if figures.costs is None else asdict(figures.costs),
    }


def draft_that_ran(args: argparse.Namespace) -> str:
    """The draft model of the conditions; the pair's own has no directory worth naming."""
    if set(args.methods) <= set(METHODS_WITHOUT_DRAFT_MODEL):
        return "none"
    return args.draft or "the pair's own"


def write(args: argparse.Namespace, document: dict[str, object]) -> None:
    """Writes what --out asks for."""
    if args.out is None:
        return
    text = json.dumps(document, indent=2)
    (args.out / "generate.json").write_text(text + "\n", encoding="utf-8")
    (args.out / "generate.md").write_text(to_markdown(document), encoding="utf-8")
    if not args.no_plots:
        from benchmarks.generate_plots import draw_all

        draw_all(document, args.out)


if __name__ == "__main__":
    sys.exit(main())
