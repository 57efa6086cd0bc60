"""DySpec's claims: tokens per step of dynamic trees against static ones, chains and SpecInfer.

    python -m benchmarks.tree_methods                          # everything: an hour or two
    python -m benchmarks.tree_methods --pairs bundled --temperatures 0.6 --budgets 8 64 768

Figures are tokens per target forward, so the machine does not matter. Prompts come from files that
no model was trained on; Sequoia's vector and SpecInfer's depth are fitted on other prompts than the
measured ones, and DySpec's calibration has seen those for a while. The coupled walks of a pair at a
temperature all decode the very same text. A table that exists is continued, with its own settings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.conditions import describe_machine
from benchmarks.held_out import held_out_prompts
from benchmarks.tree_methods.comparison import BATCH, METHODS, Comparison, Prompts, compare
from benchmarks.tree_methods.pairs import PAIRS, load_pair
from benchmarks.tree_methods.report import to_markdown
from sdengine.cli.main import run_alone
from sdengine.cli.options import LineParser, add_debug, integer, number
from sdengine.core.argument import check_int
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import ConfigError
from sdengine.train.directories import make_directory

BUDGETS = (8, 16, 32, 64, 128, 256, 512, 768)
SETTINGS = (
    "bundled pair",
    "prompts",
    "new tokens",
    "new tokens of a fitting text",
    "deepest tree",
    "seed",
    "replays by rejection walks",
)
"""Conditions that all cells of a table share."""


def build_parser() -> LineParser:
    """The command line."""
    parser = LineParser(
        prog="python -m benchmarks.tree_methods",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--temperatures", nargs="+", type=number, default=[0.0, 0.6, 1.0])
    parser.add_argument("--budgets", nargs="+", type=integer, default=list(BUDGETS))
    parser.add_argument("--prompts", type=integer, default=12, help="multiple of 6 (%(default)s)")
    parser.add_argument("--max-tokens", type=integer, default=96, help="a prompt (%(default)s)")
    parser.add_argument("--max-depth", type=integer, default=16, help="of a tree (%(default)s)")
    parser.add_argument("--fit-tokens", type=integer, default=64, help="a fitting prompt")
    parser.add_argument("--seed", type=integer, default=1)
    parser.add_argument("--replays", type=integer, default=1, help="of a text by rejection walks")
    parser.add_argument(
        "--drafts",
        type=Path,
        default=Path("runs/tree_methods"),
        metavar="DIR",
        help="where the worse drafts are kept (%(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="tree_methods.json and .md")
    add_debug(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures, prints and writes the table."""
    return run_alone(build_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    """Measures every cell that the table in --out does not hold yet."""
    import torch

    check_arguments(args)
    torch.set_num_threads(1)
    path = None if args.out is None else args.out / "tree_methods.json"
    document = open_table(path, conditions(args))
    prompts = tokenized_prompts(args.prompts)
    for name in args.pairs:
        for temperature in args.temperatures:
            known = {key(cell) for cell in document["cells"]}
            wanted = {
                budget: [m for m in args.methods if (name, temperature, budget, m) not in known]
                for budget in args.budgets
            }
            if any(wanted.values()):
                measure(args, name, temperature, wanted, prompts, document, path)
    print(to_markdown(document))
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses what could not be measured, and makes the directory of --out.

    Raises:
        ConfigError: a number out of range, or a directory that cannot be written to.
    """
    if args.prompts < BATCH or args.prompts % BATCH:
        raise ConfigError.from_parts(f"--prompts, a multiple of {BATCH}", str(args.prompts))
    for name, least in (
        ("--replays", args.replays),
        ("--budgets", min(args.budgets)),
        ("--max-depth", args.max_depth),
        ("--fit-tokens", args.fit_tokens),
        ("--max-tokens", args.max_tokens),
    ):
        check_int(ConfigError, name, least, 1)
    if args.out is not None:
        make_directory("--out", args.out)


def open_table(path: Path | None, wanted: dict[str, object]) -> dict:
    """The table to be continued, or an empty one.

    Raises:
        ConfigError: the table is of other settings; its cells could not stand beside new ones.
    """
    if path is None or not path.is_file():
        return {"conditions": wanted, "cells": []}
    document: dict = json.loads(path.read_text(encoding="utf-8"))
    found = document["conditions"]
    for name in SETTINGS:
        if found.get(name, wanted[name]) != wanted[name]:
            raise ConfigError.from_parts(
                f"{name} {found[name]} of the table in {path}", str(wanted[name]), "another --out"
            )
    return document


def key(cell: dict) -> tuple[str, float, int, str]:
    """Cells of one key, both walks, are measured together."""
    return cell["pair"], cell["temperature"], cell["budget"], cell["method"]


def measure(
    args: argparse.Namespace,
    name: str,
    temperature: float,
    wanted: dict[int, list[str]],
    prompts: Prompts,
    document: dict,
    path: Path | None,
) -> None:
    """Adds one pair's cells at one temperature, the wanted methods of every budget, and writes the
    table after each budget."""
    params = SamplingParams(max_tokens=args.max_tokens, temperature=temperature, seed=args.seed)
    pair = load_pair(name, args.drafts)
    comparison = Comparison(
        pair, prompts, params, args.max_depth, args.fit_tokens, replays=args.replays
    )
    for budget, methods in wanted.items():
        document["cells"] += map(asdict, compare(comparison, methods, [budget]))
        print(f"{name}, T {temperature:g}, budget {budget}", file=sys.stderr, flush=True)
        if path is not None:
            write(document, path)


def write(document: dict, path: Path) -> None:
    """JSON, a cell a line, and Markdown."""
    cells = ",\n".join(map(json.dumps, document["cells"]))
    conditions = json.dumps(document["conditions"], indent=1)
    text = f'{{"conditions": {conditions},\n"cells": [\n{cells}\n]}}\n'
    path.write_text(text, encoding="utf-8")
    path.with_suffix(".md").write_text(to_markdown(document), encoding="utf-8")


def tokenized_prompts(count: int) -> Prompts:
    """Two sets of held-out prompts, nothing in both."""
    from sdengine.core.env import read_environment
    from sdengine.llm import BUNDLED
    from sdengine.model.registry import resolve_model
    from sdengine.model.tokenizer import load_tokenizer

    target = resolve_model(BUNDLED, bundled_dir=read_environment().bundled_dir).target
    tokenizer = load_tokenizer(target)
    fit = held_out_prompts(count, seed=1)
    titles = {prompt.title for prompt in fit}
    measured = held_out_prompts(count, seed=2, exclude=titles)
    ids = [[list(tokenizer.encode(p.text)) for p in some] for some in (fit, measured)]
    return Prompts(*ids)


def conditions(args: argparse.Namespace) -> dict[str, object]:
    """What the figures depend on."""
    found = describe_machine("python -m benchmarks.tree_methods", 1, with_limits=False)
    found |= {
        "bundled pair": fingerprint(),
        "dtype": "float32",
        "prompts": f"{args.prompts} held-out statements to measure, {args.prompts} others to fit",
        "new tokens": args.max_tokens,
        "new tokens of a fitting text": args.fit_tokens,
        "deepest tree": args.max_depth,
        "seed": args.seed,
        "replays by rejection walks": args.replays,
    }
    return found


def fingerprint() -> str:
    """Beginnings of the SHA-256 of the bundled weights: the pair may be trained anew."""
    from sdengine.core.env import read_environment
    from sdengine.llm import BUNDLED
    from sdengine.model.registry import resolve_model

    paths = resolve_model(BUNDLED, bundled_dir=read_environment().bundled_dir)
    parts = {"target": paths.target, "draft": paths.draft}
    digests = []
    for role, directory in parts.items():
        assert directory is not None
        digest = hashlib.sha256()
        for file in sorted(directory.glob("*.safetensors")):
            digest.update(file.read_bytes())
        digests.append(f"{role} {digest.hexdigest()[:12]}")
    return ", ".join(digests)


if __name__ == "__main__":
    sys.exit(main())
