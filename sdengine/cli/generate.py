"""`sdengine generate`: completes one prompt, streaming; or compares decoding with and without
speculation."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sdengine.cli.measure import Comparison, Run, alternate, run_request, short
from sdengine.cli.options import (
    BUNDLED_MODEL,
    SHAPING_OPTIONS,
    WITHOUT_DRAFT,
    add_model_options,
    add_sampling_options,
    add_thread_option,
    fresh_seed,
    model_paths,
    open_llm,
    sampling_params,
)
from sdengine.cli.prompts import PROMPTS
from sdengine.cli.stream_view import StreamView
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from sdengine.llm import LLM

__all__ = ["HELP", "add_arguments", "run", "statistics_line"]

HELP = "complete a prompt, streaming"
COMPARE_REPEATS = 5
COMPARE_BUDGET_S = 20.0
STDIN = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "prompt",
        nargs="?",
        metavar="PROMPT",
        help="text to continue; - reads it from standard input; without one the bundled pair "
        "completes an example",
    )
    add_model_options(parser)
    add_sampling_options(parser)
    add_thread_option(parser)
    parser.add_argument(
        "--compare",
        action="store_true",
        help="run with and without speculation in turn: both speeds, their ratio, same tokens?",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")


def run(args: argparse.Namespace) -> int:
    """Entry of the command.

    Raises:
        ConfigError, CheckpointError, RequestError, CacheFull: unusable input.
    """
    if args.compare and args.speculation == "off":
        raise ConfigError.from_parts(
            "a kind of speculation to compare with plain decoding", "--speculation off"
        )
    args.seed = fresh_seed() if args.seed is None else args.seed
    sampling_params(args)
    prompt = read_prompt(args)
    llm = open_llm(args)
    params = sampling_params(args, llm.engine.default_params)
    if args.compare:
        compare(args, llm, prompt, params)
        return 0
    if args.json:
        result = run_request(llm, prompt, params)
        print(json.dumps(run_document(args, result, params), indent=2))
        return 0
    view = StreamView(llm)
    view.show_prompt(prompt)
    result = run_request(llm, prompt, params, view.show)
    view.finish()
    print(statistics_line(result, params), file=sys.stderr)
    return 0


def read_prompt(args: argparse.Namespace) -> str:
    """The prompt that the command line means.

    Raises:
        RequestError: none, an empty one, or one that is not UTF-8.
    """
    if args.prompt is None:
        if args.model != BUNDLED_MODEL:
            raise RequestError.from_parts(
                "a prompt", "none", "put it behind the command, or - to read standard input"
            )
        return PROMPTS[0].text
    prompt: str = args.prompt
    try:
        if prompt == STDIN:
            prompt = sys.stdin.buffer.read().decode("utf-8")
        prompt.encode("utf-8")  # an argument's stray bytes arrive as lone surrogates
    except UnicodeError as error:
        raise RequestError.from_parts("a prompt in UTF-8", str(error)) from None
    if not prompt:
        raise RequestError.from_parts("a prompt", "an empty one")
    return prompt


def compare(args: argparse.Namespace, llm: LLM, prompt: str, params: SamplingParams) -> None:
    """Decodes the prompt both ways in turn and prints what came out."""
    plain = open_llm(args, speculation="off")
    for model in (plain, llm):
        run_request(model, prompt, short(params))
    start = perf_counter()
    comparison = alternate(
        partial(run_request, plain, prompt, params),
        partial(run_request, llm, prompt, params),
        COMPARE_REPEATS,
        lambda: perf_counter() - start > COMPARE_BUDGET_S,
    )
    result = comparison.speculative[-1]
    if args.json:
        document = run_document(args, result, params)
        document["comparison"] = comparison_document(comparison)
        print(json.dumps(document, indent=2))
        return
    view = StreamView(llm)
    view.show_prompt(prompt)
    view.show_whole(result.output.outputs[0].text)
    view.finish()
    print("\n".join(comparison_lines(comparison)))
    print(statistics_line(result, params), file=sys.stderr)


def statistics_line(result: Run, params: SamplingParams) -> str:
    """Tokens, speed, acceptance and seed in one line."""
    (token_ids,) = result.token_ids
    parts = [f"{len(token_ids)} tokens", f"{result.tokens_per_s:.1f} tok/s"]
    stats = result.output.metrics.speculation
    if stats is None:
        parts.append("no speculation")
    else:
        parts.append(f"mean acceptance length {stats.mean_acceptance_length:.2f}")
        parts.append(f"acceptance rate {stats.draft_acceptance_rate:.0%}")
    return ", ".join([*parts, f"seed {params.seed}"])


def comparison_lines(comparison: Comparison) -> list[str]:
    """Both speeds, their ratio, and whether the tokens agree."""
    pairs = len(comparison.plain)
    return [
        f"plain:            {comparison.plain_tokens_per_s:8.1f} tok/s",
        f"speculative:      {comparison.speculative_tokens_per_s:8.1f} tok/s",
        f"ratio:            {comparison.ratio:8.2f}x  (medians of {pairs} alternating runs each)",
        f"identical tokens: {'yes' if comparison.is_identical else 'no'}",
    ]


def run_document(args: argparse.Namespace, result: Run, params: SamplingParams) -> dict[str, Any]:
    """A finished request as JSON."""
    metrics, completion = result.output.metrics, result.output.outputs[0]
    return {
        "model": args.model,
        "draft": draft_that_ran(args),
        "prompt": result.output.prompt,
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "seed": params.seed,
        **{name: getattr(params, name) for name in SHAPING_OPTIONS},
        "num_prompt_tokens": metrics.num_prompt_tokens,
        "num_generated_tokens": metrics.num_generated_tokens,
        "tokens_per_s": result.tokens_per_s,
        "first_token_s": result.first_token_s[0],
        "speculation": None if metrics.speculation is None else asdict(metrics.speculation),
    }


def draft_that_ran(args: argparse.Namespace) -> str | None:
    """Directory of the draft model, the pair's own included; None where none ran."""
    draft = None if args.speculation in WITHOUT_DRAFT else model_paths(args).draft
    return None if draft is None else str(draft)


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON."""
    return {
        "plain_tokens_per_s": comparison.plain_tokens_per_s,
        "speculative_tokens_per_s": comparison.speculative_tokens_per_s,
        "ratio": comparison.ratio,
        "identical_tokens": comparison.is_identical,
        "runs_each": len(comparison.plain),
    }
