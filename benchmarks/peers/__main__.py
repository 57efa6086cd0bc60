"""The same two checkpoints, prompts and lengths on other engines: `python -m benchmarks.peers`.

Greedy decoding of batches, a table for each size. Contestants take turns within one process, speeds
are medians, ratios are taken within a batch, texts are compared token by token with our plain
decoding's. Whoever is not installed is left out, and the reason is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from benchmarks.conditions import describe_machine
from benchmarks.generate_runs import batches
from benchmarks.peers.comparison import Standing, compare, to_markdown
from benchmarks.peers.contestant import Contestant, LeftOut, Peer, Settings, Task
from benchmarks.peers.llama_cpp import LlamaCppPeer
from benchmarks.peers.openvino_genai_peer import OpenVinoPeer
from benchmarks.peers.own import PLAIN, SPECULATION, SPECULATIVE, OwnPeer
from benchmarks.peers.transformers_peer import TransformersPeer
from benchmarks.progress import progress_bar
from benchmarks.upscaled_pair import add_pair_options, upscaled_pair
from sdengine.cli.main import run_alone
from sdengine.cli.options import LineParser, add_debug, integer
from sdengine.cli.prompts import PROMPTS
from sdengine.core.argument import check_int
from sdengine.core.env import choose_num_threads, read_environment
from sdengine.errors import ConfigError, SdengineError
from sdengine.model.config_file import load_model_config
from sdengine.model.registry import ModelPaths, resolve_model
from sdengine.model.tokenizer import load_tokenizer

PEERS: tuple[Peer, ...] = (TransformersPeer(), LlamaCppPeer(), OpenVinoPeer())
WARM_UP_TOKENS = 8
LEAST_TOKENS = SPECULATION.max_depth + 2


def build_parser() -> LineParser:
    """The command line."""
    parser = LineParser(
        prog="python -m benchmarks.peers", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("--model", metavar="DIR", help="instead of the enlarged bundled pair")
    parser.add_argument("--draft", metavar="DIR")
    add_pair_options(parser)
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peers", nargs="*", choices=names, default=names)
    parser.add_argument("--num-prompts", type=integer, default=len(PROMPTS), metavar="N")
    parser.add_argument("--batch-sizes", type=integer, nargs="+", default=[1], help="(%(default)s)")
    parser.add_argument("--max-tokens", type=integer, default=64, metavar="N", help="(%(default)s)")
    parser.add_argument("--repeats", type=integer, default=3, metavar="N", help="(%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--num-threads", type=integer, metavar="N")
    parser.add_argument(
        "--draft-lengths", type=integer, nargs="*", default=[2, 4, 8], help="(%(default)s)"
    )
    parser.add_argument("--compile", action="store_true", help="transformers compiled, too")
    parser.add_argument("--llama-server", type=Path, metavar="FILE", help="(from PATH)")
    parser.add_argument("--limits", action="store_true", help="measure the machine's limits too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    add_debug(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the comparison and returns its exit code."""
    return run_alone(build_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    """Measures one batch size after the other; each table is printed when it is done."""
    check_arguments(args)
    pair = pair_of(args)
    conditions = describe(pair, args)
    if not args.json:
        lines = (f"- {name}: {value}" for name, value in conditions.items())
        print("\n".join(["# Beside other engines", "", *lines]))
    tables: list[dict[str, object]] = []
    for size in args.batch_sizes:
        standings, skipped = measure(make_settings(args, pair, size), args)
        tables.append(to_document(size, standings, skipped))
        if not args.json:
            print(to_section(size, standings, skipped), flush=True)
    if args.json:
        print(json.dumps({"conditions": conditions, "tables": tables}, indent=2))
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses what could not be compared before anything is made or loaded.

    Raises:
        ConfigError: a number is out of range.
    """
    for name, value in (
        ("--repeats", args.repeats),
        ("--num-prompts", args.num_prompts),
        ("--batch-sizes", min(args.batch_sizes)),
        ("--draft-lengths", min(args.draft_lengths, default=1)),
    ):
        check_int(ConfigError, name, value, 1)
    # A step may commit a whole path and one token more: behind the first there must be a second.
    way_out = "shorter answers may end with their first step"
    check_int(ConfigError, "--max-tokens", args.max_tokens, LEAST_TOKENS, way_out=way_out)


def measure(settings: Settings, args: argparse.Namespace) -> tuple[list[Standing], dict[str, str]]:
    """Everybody's standing at one batch size, and who has none and why."""
    tasks = make_tasks(settings, args.num_prompts, args.max_tokens)
    with ExitStack() as stack:
        contestants, skipped = gather(settings, args.peers, stack)
        for contestant in contestants:
            contestant.answer(Task(tasks[0].prompts, min(WARM_UP_TOKENS, args.max_tokens)))
        return run_all(contestants, tasks, args.repeats), skipped


def run_all(
    contestants: Sequence[Contestant], tasks: Sequence[Task], repeats: int
) -> list[Standing]:
    """Compares them behind a progress bar: slow ones take minutes."""
    with progress_bar() as bar:
        answers = bar.add_task("answers", total=len(contestants) * len(tasks) * repeats)
        return compare(
            contestants,
            tasks,
            repeats,
            plain=PLAIN,
            speculative=SPECULATIVE,
            on_answer=lambda: bar.advance(answers),
        )


def pair_of(args: argparse.Namespace) -> ModelPaths:
    """The pair of --model and --draft, or the enlarged one.

    Raises:
        ConfigError: a model without a draft.
    """
    if args.model is None:
        return upscaled_pair(args)
    paths = resolve_model(args.model, args.draft)
    if paths.draft is None:
        raise ConfigError.from_parts("--draft together with --model", "no draft")
    return paths


def make_settings(args: argparse.Namespace, pair: ModelPaths, batch_size: int) -> Settings:
    """What all contestants share; the work directory is made."""
    assert pair.draft is not None
    environment = read_environment()
    work_dir = (args.cache_dir or environment.cache_dir) / "peers"
    work_dir.mkdir(parents=True, exist_ok=True)
    models = [load_model_config(path) for path in (pair.target, pair.draft)]
    return Settings(
        target=pair.target,
        draft=pair.draft,
        dtype=args.dtype,
        num_threads=choose_num_threads(args.num_threads, environment),
        max_model_len=min(model.default_context for model in models),
        draft_lengths=tuple(args.draft_lengths),
        work_dir=work_dir,
        batch_size=batch_size,
        llama_server=args.llama_server,
        compiles=args.compile,
    )


def make_tasks(settings: Settings, num_prompts: int, max_tokens: int) -> list[Task]:
    """The first prompts, as the checkpoint's own tokens, in batches."""
    tokenizer = load_tokenizer(settings.target)
    prompts = [tokenizer.encode(prompt.text) for prompt in PROMPTS[:num_prompts]]
    return [Task(batch, max_tokens) for batch in batches(prompts, settings.batch_size)]


def gather(
    settings: Settings, wanted: Sequence[str], stack: ExitStack
) -> tuple[list[Contestant], dict[str, str]]:
    """Everybody who can run, and why the others cannot.

    Args:
        settings: of all.
        wanted: names of peers.
        stack: closes what was loaded.
    """
    contestants: list[Contestant] = []
    skipped: dict[str, str] = {}
    for peer in (OwnPeer(), *(peer for peer in PEERS if peer.name in wanted)):
        reason = peer.why_unavailable(settings)
        if reason is not None:
            skipped[peer.name] = reason
            continue
        try:
            for contestant in peer.contestants(settings):
                if isinstance(contestant, LeftOut):
                    skipped[contestant.name] = contestant.reason
                    continue
                stack.callback(contestant.close)
                contestants.append(contestant)
        except SdengineError as error:
            if isinstance(peer, OwnPeer):
                raise
            skipped[peer.name] = str(error)
    return contestants, skipped


def describe(pair: ModelPaths, args: argparse.Namespace) -> dict[str, object]:
    """What the figures depend on."""
    found = describe_machine("python -m benchmarks.peers", args.num_threads, args.limits)
    found["target"], found["draft"] = str(pair.target), str(pair.draft)
    found["prompts"] = min(args.num_prompts, len(PROMPTS))
    found["new tokens"] = f"{args.max_tokens}, greedy"
    found["repeats"] = args.repeats
    return found


def to_section(size: int, standings: Sequence[Standing], skipped: dict[str, str]) -> str:
    """One batch size in Markdown."""
    missing = "".join(f"- {name}: left out: {reason}\n" for name, reason in skipped.items())
    return f"\n## Batch {size}\n\n{to_markdown(standings)}{missing}"


def to_document(
    size: int, standings: Sequence[Standing], skipped: dict[str, str]
) -> dict[str, object]:
    """One batch size for JSON."""
    return {
        "batch size": size,
        "standings": [asdict(standing) for standing in standings],
        "left out": skipped,
    }


if __name__ == "__main__":
    sys.exit(main())
