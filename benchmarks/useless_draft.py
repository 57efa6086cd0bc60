"""What a draft that is never right costs: plain decoding against adaptive speculation.

    python -m benchmarks.useless_draft

The draft has the shape of the bundled one and random weights, drawn so wide that it is sure of what
it says: the worst case for a budget that believes its drafter. Requests are decoded plainly and
speculatively in turns; the table says, after so many tokens in all, how long the speculative engine
took for them against the plain one. Its first trees come before anything is known and weigh most at
the beginning.

Two plain engines of one process differ by up to 8%, with where their memory happens to lie in the
shared cache. So several pairs of engines are made, one after the other, and their medians taken.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file, save_file

from benchmarks.conditions import as_lines, describe_machine
from sdengine import LLM, SamplingParams, SpeculationConfig
from sdengine.cli.main import run_alone
from sdengine.cli.measure import Run, run_request
from sdengine.cli.options import BUNDLED_MODEL, LineParser, add_debug, integer, number
from sdengine.cli.prompts import PROMPTS
from sdengine.core.argument import check_float, check_int
from sdengine.errors import ConfigError
from sdengine.model.registry import resolve_model

WEIGHTS_FILE = "model.safetensors"
SURENESS = 2.0  # spread of the logits in standard deviations: entropies of well under one bit


def write_useless_draft(source: Path, directory: Path, seed: int) -> None:
    """Copies a draft and replaces its weights by seeded noise.

    Args:
        source: a checkpoint directory with a single safetensors file.
        directory: created; gets the copy.
        seed: of the noise.
    """
    shutil.copytree(source, directory)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in sorted(load_file(str(source / WEIGHTS_FILE)).items()):
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() == 1:
            noise = torch.ones(tensor.shape)  # a norm
        elif "embed" in name:
            noise *= SURENESS
        else:
            noise /= tensor.shape[1] ** 0.5
        tensors[name] = noise.to(tensor.dtype)
    (directory / WEIGHTS_FILE).unlink()
    save_file(tensors, str(directory / WEIGHTS_FILE), metadata={"format": "pt"})


def in_turns(
    plain: LLM, speculative: LLM, params: SamplingParams, num_requests: int
) -> Iterator[tuple[Run, Run]]:
    """Decodes requests both ways; which goes first changes every time."""
    for index, prompt in zip(range(num_requests), itertools.cycle(PROMPTS)):
        order = (plain, speculative) if index % 2 == 0 else (speculative, plain)
        runs = {id(llm): run_request(llm, prompt.text, params) for llm in order}
        yield runs[id(plain)], runs[id(speculative)]


def measure(args: argparse.Namespace, draft: Path, temperature: float) -> list[dict[str, float]]:
    """Points of one curve, after 1, 2, 4, ... requests: medians over fresh pairs of engines."""
    curves = [measure_pair(args, draft, temperature, number) for number in range(args.pairs)]
    return [{key: median(p[key] for p in points) for key in points[0]} for points in zip(*curves)]


def measure_pair(
    args: argparse.Namespace, draft: Path, temperature: float, number: int
) -> list[dict[str, float]]:
    """A curve of one pair of engines; which is made first changes every time."""
    params = SamplingParams(
        max_tokens=args.max_tokens, temperature=temperature, seed=args.seed, ignore_eos=True
    )
    made: dict[bool, LLM] = {}
    for is_plain in (True, False) if number % 2 == 0 else (False, True):
        if is_plain:
            made[is_plain] = LLM(BUNDLED_MODEL, speculation=None, max_num_seqs=1)
        else:
            made[is_plain] = LLM(BUNDLED_MODEL, str(draft), max_num_seqs=1)
    plain, speculative = made[True], made[False]
    points: list[dict[str, float]] = []
    ratios: list[float] = []
    spent = {"plain": 0.0, "speculative": 0.0}
    tokens = steps = drafted = 0
    for count, (slow, fast) in enumerate(in_turns(plain, speculative, params, args.requests), 1):
        assert slow.token_ids == fast.token_ids, "the same seed, the same text"
        (stats,) = fast.speculation
        spent["plain"] += slow.decode_s
        spent["speculative"] += fast.decode_s
        ratios.append(slow.decode_s / fast.decode_s)
        tokens += len(slow.token_ids[0])
        steps += stats.num_steps
        drafted += stats.num_draft_tokens
        if count & (count - 1) == 0 or count == args.requests:
            points.append(
                {
                    "temperature": temperature,
                    "tokens": tokens,
                    "speed_ratio": spent["plain"] / spent["speculative"],
                    "median_request_ratio": median(ratios),
                    "draft_tokens_per_step": drafted / steps,
                }
            )
    return points


def build_parser() -> LineParser:
    """The command line."""
    parser = LineParser(
        prog="python -m benchmarks.useless_draft", description=(__doc__ or "").partition("\n\n")[0]
    )
    for name, default, text in (
        ("--requests", 48, "of each kind (%(default)s)"),
        ("--max-tokens", 128, "a request (%(default)s)"),
        ("--pairs", 3, "pairs of engines (%(default)s)"),
        ("--seed", 1, "of draft and requests (%(default)s)"),
    ):
        parser.add_argument(name, type=integer, default=default, metavar="N", help=text)
    parser.add_argument("--temperatures", type=number, nargs="+", default=[0.0, 0.8], metavar="T")
    parser.add_argument("--json", action="store_true", help="one JSON document instead")
    add_debug(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures and returns the exit code."""
    return run_alone(build_parser(), run, argv)


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses what could not be measured.

    Raises:
        ConfigError: a number is out of range.
    """
    check_int(ConfigError, "--requests", args.requests, 1)
    check_int(ConfigError, "--pairs", args.pairs, 1)
    check_int(ConfigError, "--seed", args.seed, 0)
    least = SpeculationConfig().max_depth + 2
    way_out = "shorter requests may end with their first step, which is not timed"
    check_int(ConfigError, "--max-tokens", args.max_tokens, least, way_out=way_out)
    for temperature in args.temperatures:
        check_float(ConfigError, "--temperatures", temperature, 0.0)


def run(args: argparse.Namespace) -> int:
    """Measures and prints the table."""
    check_arguments(args)
    points = []
    with tempfile.TemporaryDirectory() as directory:
        draft = Path(directory) / "draft"
        source = resolve_model(BUNDLED_MODEL).draft
        assert source is not None
        write_useless_draft(source, draft, args.seed)
        for temperature in args.temperatures:
            points += measure(args, draft, temperature)
    conditions = describe_machine("python -m benchmarks.useless_draft", None, with_limits=False)
    if args.json:
        print(json.dumps({"conditions": conditions, "points": points}, indent=2))
    else:
        print(f"{as_lines(conditions)}\n\n{table(points)}")
    return 0


def table(points: list[dict[str, float]]) -> str:
    """A line for every point."""
    lines = ["   T  tokens so far  speed over plain  median request  draft tokens a step"]
    lines += [
        f"{p['temperature']:4.1f}  {p['tokens']:13.0f}  {p['speed_ratio']:15.2f}x"
        f"  {p['median_request_ratio']:13.2f}x  {p['draft_tokens_per_step']:19.2f}"
        for p in points
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
