"""Whether completions of Python are Python: how far they parse, and how much they repeat.

    python -m benchmarks.completions
    python -m benchmarks.completions --temperatures 0.6 0.8 --min-ps 0 0.05

A small model knows the look of code before its sense, so its sampling defaults decide much of what
a reader sees. Every line of the table is one way to sample, the checkpoint's own first. A text is
its prompt and completion up to the last whole line; that it is unfinished is no error.
"""

from __future__ import annotations

import argparse
import ast
import codeop
import itertools
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import mean

from benchmarks.conditions import as_lines, describe_machine
from benchmarks.held_out import held_out_prompts
from sdengine import LLM, SamplingParams
from sdengine.cli.main import run_alone
from sdengine.cli.options import BUNDLED_MODEL, LineParser, add_debug, integer, number
from sdengine.cli.prompts import PROMPTS
from sdengine.core.argument import check_int
from sdengine.errors import ConfigError

NGRAM_ORDER = 4
GRID = {
    "temperature": "--temperatures",
    "top_p": "--top-ps",
    "min_p": "--min-ps",
    "repetition_penalty": "--repetition-penalties",
}


@dataclass(frozen=True, slots=True)
class Quality:
    """Of the completions of one way to sample.

    Args:
        sampling: what differs from the checkpoint's defaults; nothing for these.
        parsed: share of completions in which every whole line parses.
        good_lines: mean share of a completion's whole lines before the first error.
        repeated: share of 4-grams of tokens that a completion contained before.
    """

    sampling: dict[str, float]
    parsed: float
    good_lines: float
    repeated: float


def is_python(lines: list[str]) -> bool:
    """Whether these lines are, or begin, a module."""
    source = "\n".join(lines) + "\n"
    try:
        with warnings.catch_warnings():  # a wrong escape is no error
            warnings.simplefilter("ignore")
            try:
                ast.parse(source)
            except SyntaxError:
                return codeop.compile_command(source, symbol="exec") is None  # unfinished
    except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError):
        return False
    return True


def good_line_share(prompt: str, completion: str) -> float:
    """Share of the completion's whole lines before the first that cannot be Python."""
    lines = (prompt + completion).split("\n")[:-1]
    first = prompt.count("\n")  # the line that the prompt leaves unfinished is the first
    if len(lines) <= first:
        return 1.0
    good = first
    while good < len(lines) and is_python(lines[: good + 1]):
        good += 1
    return (good - first) / (len(lines) - first)


def measure(llm: LLM, prompts: list[str], args: argparse.Namespace) -> Iterator[Quality]:
    """The checkpoint's own sampling, then every combination of the command line's."""
    from sdengine.train.sampling import repeated_ngram_share

    usual = replace(llm.engine.default_params, max_tokens=args.max_tokens, n=args.samples)
    for sampling in ({}, *combinations(args)):
        params: SamplingParams = replace(usual, seed=args.seed, **sampling)
        outputs = llm.generate(prompts, params)
        texts = [(o.prompt or "", c) for o in outputs for c in o.outputs]
        shares = [good_line_share(prompt, completion.text) for prompt, completion in texts]
        repeated = repeated_ngram_share([c.token_ids for _, c in texts], NGRAM_ORDER)
        yield Quality(sampling, mean(share == 1.0 for share in shares), mean(shares), repeated)


def combinations(args: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Every combination of the values given; none if there are none."""
    given = {name: values for name in GRID if (values := getattr(args, name)) is not None}
    if given:
        for values in itertools.product(*given.values()):
            yield dict(zip(given, values))


def build_parser() -> LineParser:
    """The command line."""
    parser = LineParser(
        prog="python -m benchmarks.completions", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("--model", default=BUNDLED_MODEL, metavar="DIR", help="(%(default)s)")
    for name, default, text in (
        ("--samples", 12, "completions of each prompt (%(default)s)"),
        ("--held-out", 24, "prompts from held-out files, beside the demo's (%(default)s)"),
        ("--max-tokens", 120, "a completion (%(default)s)"),
        ("--seed", 0, "(%(default)s)"),
    ):
        parser.add_argument(name, type=integer, default=default, metavar="N", help=text)
    for name, option in GRID.items():
        parser.add_argument(option, dest=name, type=number, nargs="+", metavar="X")
    parser.add_argument("--json", action="store_true", help="one JSON document instead")
    add_debug(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures and returns the exit code."""
    return run_alone(build_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    """Measures and prints the table.

    Raises:
        ConfigError: a number is out of range.
        RequestError: sampling as asked for is impossible, or there are fewer held-out prompts.
    """
    check_int(ConfigError, "--samples", args.samples, 1)
    check_int(ConfigError, "--held-out", args.held_out, 0)
    check_int(ConfigError, "--max-tokens", args.max_tokens, NGRAM_ORDER)
    for sampling in combinations(args):
        SamplingParams(**sampling)
    prompts = list(PROMPTS) + (held_out_prompts(args.held_out) if args.held_out else [])
    llm = LLM(args.model)
    found = measure(llm, [prompt.text for prompt in prompts], args)
    conditions = describe_machine("python -m benchmarks.completions", None, with_limits=False)
    if args.json:
        rows = [
            {**q.sampling, "parsed": q.parsed, "good_lines": q.good_lines, "repeated": q.repeated}
            for q in found
        ]
        print(json.dumps({"conditions": conditions, "rows": rows}, indent=2))
        return 0
    print(f"{as_lines(conditions)}\n\nall lines parse  lines before an error  repeated 4-grams")
    for q in found:
        sampling = ", ".join(f"{name} {value:g}" for name, value in q.sampling.items())
        print(
            f"{q.parsed:15.0%}  {q.good_lines:21.1%}  {q.repeated:16.1%}  "
            f"{sampling or 'the defaults of the checkpoint'}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
