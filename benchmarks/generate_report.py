"""What the end-to-end benchmark reports: medians of its runs, and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from benchmarks.reliability import ReliabilityBin, expected_error
from sdengine.cli.measure import Comparison, Run
from sdengine.core.outputs import SpeculationStats
from sdengine.core.sampling_params import SamplingParams

__all__ = ["PLAIN", "Row", "plain_row", "summary", "to_markdown"]

PLAIN = "plain"
PARTS = ("draft", "verify", "other")
NGRAM_ORDER = 4
COLUMNS = (
    "batch",
    "T",
    "method",
    "budget",
    "tok/s",
    "ratio",
    "acceptance length",
    "drafted a step",
    "acceptance rate",
    "first token ms",
    "between tokens ms, p50 / p99",
    "draft : verify : other",
    "peak MB",
    "repeated 4-grams",
    "identical tokens",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One method with one budget at one batch size and temperature; medians over the batches.

    Args:
        batch_size: requests at once.
        temperature: of the requests.
        method: how trees are drafted; "plain" is decoding without.
        budget: "adaptive", or the fixed most draft tokens of a step; "0" for plain decoding.
        plain_tokens_per_s: plain decoding, measured in turn with the next.
        tokens_per_s: of the whole batch, prefill left out, as `Comparison` does.
        ratio: median of the batches' ratios.
        mean_acceptance_length: tokens committed per target forward and sequence.
        draft_tokens_per_step: tree nodes per target forward and sequence.
        acceptance_rate: accepted draft tokens / drafted ones.
        acceptance_by_depth: share of the steps that accepted a draft token at depth 1, 2, ...
        first_token_s: from the start of the batch to a request's first commit.
        inter_token_p50_s, inter_token_p99_s: between tokens of a request; tokens that were
            committed together share their time.
        time_shares: draft, verify and other time of the runs; they sum to 1. None: not measured.
        peak_memory_mb: 10^6 bytes that opening the engine and a first short batch added to the
            process; None: not measured.
        repeated_ngrams: share of the 4-grams of a completion that it contained before: loops are
            easy to draft and flatter speculation.
        identical_tokens: whether plain and speculative runs gave the same tokens; None where that
            is not promised.
        reliability: predicted against seen acceptance of drafted children.
    """

    batch_size: int
    temperature: float
    method: str
    budget: str
    plain_tokens_per_s: float
    tokens_per_s: float
    ratio: float
    mean_acceptance_length: float
    draft_tokens_per_step: float
    acceptance_rate: float
    acceptance_by_depth: Sequence[float]
    first_token_s: float
    inter_token_p50_s: float
    inter_token_p99_s: float
    time_shares: Sequence[float] | None
    peak_memory_mb: float | None
    repeated_ngrams: float
    identical_tokens: bool | None
    reliability: Sequence[ReliabilityBin] = ()


def plain_row(params: SamplingParams, pairs: list[Comparison], peak_memory_mb: float | None) -> Row:
    """Plain decoding, over all its runs against every method."""
    runs = [run for pair in pairs for run in pair.plain]
    speed = median(run.tokens_per_s for run in runs)
    return Row(
        batch_size=len(runs[0].outputs),
        temperature=params.temperature,
        method=PLAIN,
        budget="0",
        plain_tokens_per_s=speed,
        tokens_per_s=speed,
        ratio=1.0,
        mean_acceptance_length=1.0,
        draft_tokens_per_step=0.0,
        acceptance_rate=0.0,
        acceptance_by_depth=(),
        **_latencies(runs),
        time_shares=None,
        peak_memory_mb=peak_memory_mb,
        repeated_ngrams=_repeated([pair.plain[0] for pair in pairs]),
        identical_tokens=True,
    )


def summary(
    method: str,
    size: str,
    params: SamplingParams,
    pairs: list[Comparison],
    verifier: str,
    *,
    peak_memory_mb: float | None,
    reliability: Sequence[ReliabilityBin],
) -> Row:
    """One method and budget: medians over the batches, counts over all runs."""
    runs = [run for pair in pairs for run in pair.speculative]
    stats = [s for run in runs for s in run.speculation]
    drafted = sum(s.num_draft_tokens for s in stats)
    steps = sum(s.num_steps for s in stats)
    times = [sum(getattr(s, f"{part}_time_s") for s in stats) for part in PARTS]
    promises_identity = verifier == "coupled" or params.is_greedy
    return Row(
        batch_size=len(runs[0].outputs),
        temperature=params.temperature,
        method=method,
        budget=size,
        plain_tokens_per_s=median(pair.plain_tokens_per_s for pair in pairs),
        tokens_per_s=median(pair.speculative_tokens_per_s for pair in pairs),
        ratio=median(pair.ratio for pair in pairs),
        mean_acceptance_length=_committed(stats) / steps,
        draft_tokens_per_step=drafted / steps,
        acceptance_rate=sum(s.num_accepted_draft_tokens for s in stats) / drafted if drafted else 0,
        acceptance_by_depth=acceptance_by_depth(stats),
        **_latencies(runs),
        time_shares=tuple(time / (sum(times) or 1.0) for time in times),
        peak_memory_mb=peak_memory_mb,
        repeated_ngrams=_repeated([pair.plain[0] for pair in pairs]),
        identical_tokens=all(p.is_identical for p in pairs) if promises_identity else None,
        reliability=reliability,
    )


def _committed(stats: Iterable[SpeculationStats]) -> float:
    return sum(s.mean_acceptance_length * s.num_steps for s in stats)


def acceptance_by_depth(stats: Sequence[SpeculationStats]) -> list[float]:
    """Share of all steps that accepted a draft token at depth 1, 2, ..."""
    deepest = max((len(s.acceptance_histogram) for s in stats), default=0)
    histogram = np.zeros(deepest)
    for s in stats:
        histogram[: len(s.acceptance_histogram)] += s.acceptance_histogram
    reached = histogram[::-1].cumsum()[::-1]
    return [float(count / histogram.sum()) for count in reached[1:]]


def _latencies(runs: Sequence[Run]) -> dict[str, float]:
    gaps = np.concatenate([run.gaps_s for run in runs])
    if not len(gaps):
        gaps = np.zeros(1)
    return {
        "first_token_s": median(s for run in runs for s in run.first_token_s),
        "inter_token_p50_s": float(np.percentile(gaps, 50)),
        "inter_token_p99_s": float(np.percentile(gaps, 99)),
    }


def _repeated(runs: Sequence[Run]) -> float:
    from sdengine.train.sampling import repeated_ngram_share

    return repeated_ngram_share([ids for run in runs for ids in run.token_ids], NGRAM_ORDER)


def to_markdown(document: Mapping[str, Any]) -> str:
    """Conditions as a list, rows as a table, then what follows from them."""
    lines = ["# Plain against speculative decoding", ""]
    for name, value in document["conditions"].items():
        shown = ", ".join(value) if isinstance(value, list) else value
        lines.append(f"- {name}: {shown}")
    rows = document["rows"]
    lines += ["", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    for section in (adaptive_lines(rows), reliability_lines(rows), cost_lines(document["costs"])):
        lines += ["", *section] if section else []
    return "\n".join(lines) + "\n"


def cells(row: Mapping[str, Any]) -> list[str]:
    """One table row as text."""
    identity = {True: "yes", False: "no", None: "not promised"}
    shares, peak = row["time_shares"], row["peak_memory_mb"]
    p50, p99 = (1e3 * row[f"inter_token_{p}_s"] for p in ("p50", "p99"))
    return [
        str(row["batch_size"]),
        f"{row['temperature']:g}",
        row["method"],
        row["budget"],
        f"{row['tokens_per_s']:.0f}",
        f"{row['ratio']:.2f}x",
        f"{row['mean_acceptance_length']:.2f}",
        f"{row['draft_tokens_per_step']:.1f}",
        f"{row['acceptance_rate']:.0%}",
        f"{1e3 * row['first_token_s']:.1f}",
        f"{p50:.2f} / {p99:.2f}",
        "" if shares is None else " : ".join(f"{share:.0%}" for share in shares),
        "" if peak is None else f"{peak:.0f}",
        f"{row['repeated_ngrams']:.0%}",
        identity[row["identical_tokens"]],
    ]


def adaptive_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The adaptive budget beside the best fixed one that was measured."""
    lines = []
    by_setting: dict[tuple[int, float, str], dict[str, float]] = {}
    for row in rows:
        key = row["batch_size"], row["temperature"], row["method"]
        by_setting.setdefault(key, {})[row["budget"]] = row["ratio"]
    for (size, temperature, method), ratios in by_setting.items():
        adaptive = ratios.pop("adaptive", None)
        if adaptive is None or not ratios:
            continue
        best = max(ratios, key=lambda budget: ratios[budget])
        lines.append(
            f"- batch {size}, T {temperature:g}, {method}: adaptive {adaptive:.2f}x, best fixed "
            f"budget {best} {ratios[best]:.2f}x: {adaptive / ratios[best]:.2f} of it"
        )
    return ["Adaptive against the best fixed budget of this run:", "", *lines] if lines else []


def reliability_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Expected calibration error of every row that drafted."""
    lines = []
    for row in rows:
        bins = [ReliabilityBin(**b) for b in row["reliability"]]
        if bins:
            lines.append(
                f"- batch {row['batch_size']}, T {row['temperature']:g}, {row['method']} "
                f"{row['budget']}: {expected_error(bins):.3f} over {sum(b.count for b in bins)} "
                "children"
            )
    title = "Mean |predicted - seen| acceptance of a drafted child:"
    return [title, "", *lines] if lines else []


def cost_lines(costs: Mapping[str, Any] | None) -> list[str]:
    """T(M) of the target and the price of draft layers."""
    if costs is None:
        return []
    header = "| rows | " + " | ".join(map(str, costs["rows"])) + " |"
    times = "| ms | " + " | ".join(f"{1e3 * s:.3g}" for s in costs["verify_s"]) + " |"
    return [
        "Target pass by rows (minima of a few replays, context 64), draft layers: first "
        f"{1e3 * costs['draft_first_s']:.3g} ms, each further "
        f"{1e3 * costs['draft_layer_s']:.3g} ms.",
        "",
        header,
        "|---" * (len(costs["rows"]) + 1) + "|",
        times,
    ]
