"""What the end-to-end benchmark reports: medians of its runs, the conditions, Markdown."""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from dataclasses import dataclass
from statistics import median
from typing import Any

from sdengine import __version__
from sdengine.cli.info import isa_text, processor, usable_cores
from sdengine.cli.measure import Comparison
from sdengine.cli.prompts import Prompt
from sdengine.core.sampling_params import SamplingParams

__all__ = ["Row", "conditions", "summary", "to_markdown"]

PARTS = ("draft", "verify", "other")
NGRAM_ORDER = 4
COLUMNS = (
    "T",
    "method",
    "budget",
    "plain tok/s",
    "tok/s",
    "ratio",
    "acceptance length",
    "acceptance rate",
    "first token ms",
    "draft : verify : other",
    "repeated 4-grams",
    "identical tokens",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One method with one budget at one temperature; medians over the prompts.

    Args:
        temperature: of the requests.
        method: how trees are drafted.
        budget: "adaptive", or the fixed most draft tokens of a step.
        plain_tokens_per_s: decoding speed without speculation, measured in turn with the next.
        tokens_per_s: decoding speed with speculation.
        ratio: median of the prompts' ratios.
        mean_acceptance_length: tokens committed per target forward.
        acceptance_rate: accepted draft tokens / drafted ones, over all prompts.
        first_token_s: from the request to its first commit.
        time_shares: draft, verify and other time of the speculative runs; they sum to 1.
        repeated_ngrams: share of the 4-grams of a completion that it contained before: loops are
            easy to draft and flatter speculation.
        identical_tokens: whether plain and speculative runs gave the same tokens; None where that
            is not promised.
    """

    temperature: float
    method: str
    budget: str
    plain_tokens_per_s: float
    tokens_per_s: float
    ratio: float
    mean_acceptance_length: float
    acceptance_rate: float
    first_token_s: float
    time_shares: tuple[float, float, float]
    repeated_ngrams: float
    identical_tokens: bool | None


def summary(
    method: str,
    size: str,
    params: SamplingParams,
    comparisons: list[Comparison],
    verifier: str,
) -> Row:
    """Medians over the prompts."""
    from sdengine.train.sampling import repeated_ngram_share

    runs = [run for comparison in comparisons for run in comparison.speculative]
    stats = [run.speculation for run in runs if run.speculation is not None]
    drafted = sum(s.num_draft_tokens for s in stats)
    times = [sum(getattr(s, f"{part}_time_s") for s in stats) for part in PARTS]
    texts = [c.plain[0].token_ids for c in comparisons if len(c.plain[0].token_ids) >= NGRAM_ORDER]
    promises_identity = verifier == "coupled" or params.is_greedy
    return Row(
        temperature=params.temperature,
        method=method,
        budget=size,
        plain_tokens_per_s=median(c.plain_tokens_per_s for c in comparisons),
        tokens_per_s=median(c.speculative_tokens_per_s for c in comparisons),
        ratio=median(c.ratio for c in comparisons),
        mean_acceptance_length=median(c.mean_acceptance_length for c in comparisons),
        acceptance_rate=sum(s.num_accepted_draft_tokens for s in stats) / drafted if drafted else 0,
        first_token_s=median(run.first_token_s for run in runs),
        time_shares=tuple(time / (sum(times) or 1.0) for time in times),  # type: ignore[arg-type]
        repeated_ngrams=repeated_ngram_share(texts, NGRAM_ORDER) if texts else 0.0,  # type: ignore[arg-type]
        identical_tokens=all(c.is_identical for c in comparisons) if promises_identity else None,
    )


def conditions(args: argparse.Namespace, prompts: list[Prompt]) -> dict[str, Any]:
    """What the figures depend on, and the command that makes them."""
    import torch

    from sdengine.kernels.backends import load_cpu

    native = load_cpu()
    found: dict[str, Any] = {
        "command": shlex.join(["sdengine", "bench", "generate", *sys.argv[1:]]),
        "processor": processor()[0],
        "instruction set": isa_text(native.detected_isa(), native.selected_isa()),
        "threads": args.num_threads or usable_cores(),
        "model": args.model,
        "draft": args.draft or "the pair's own",
        "dtype": args.dtype,
        "verifier": args.verifier,
        "batch size": 1,
        "prompts": [prompt.title for prompt in prompts],
        "new tokens": args.max_tokens,
        "repeats": args.repeats,
        "versions": f"sdengine {__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
    }
    if args.limits:
        found["machine limits"] = machine_limits(found["threads"])
    return found


def machine_limits(num_threads: int) -> str:
    """Memory bandwidth and arithmetic peaks, measured now."""
    from sdengine.kernels.machine_limits import LimitProbe
    from sdengine.kernels.program import make_pool

    limits = LimitProbe(make_pool(num_threads)).limits(3)
    return (
        f"DRAM {limits.dram_gbps:.1f} GB/s, cache {limits.cache_gbps:.1f} GB/s, "
        f"fp32 {limits.fp32_gflops:.0f} GFLOP/s, bf16 {limits.bf16_gflops:.0f} GFLOP/s"
    )


def to_markdown(found: dict[str, Any], rows: list[Row]) -> str:
    """Conditions as a list, rows as a table."""
    lines = ["# Plain against speculative decoding", ""]
    for name, value in found.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        lines.append(f"- {name}: {shown}")
    lines += ["", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def cells(row: Row) -> list[str]:
    """One table row as text."""
    identity = {True: "yes", False: "no", None: "not promised"}
    return [
        f"{row.temperature:g}",
        row.method,
        row.budget,
        f"{row.plain_tokens_per_s:.0f}",
        f"{row.tokens_per_s:.0f}",
        f"{row.ratio:.2f}x",
        f"{row.mean_acceptance_length:.2f}",
        f"{row.acceptance_rate:.0%}",
        f"{1e3 * row.first_token_s:.1f}",
        " : ".join(f"{share:.0%}" for share in row.time_shares),
        f"{row.repeated_ngrams:.0%}",
        identity[row.identical_tokens],
    ]
