"""`python -m sdengine.cli.demo`: the bundled pair completes Python, then plain and speculative
decoding run side by side.

Streams every prompt of `sdengine.cli.prompts` with accepted draft tokens tinted, then decodes the
same prompts with and without speculation in alternation, in one process, and prints medians.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from sdengine.cli.main import run_alone
from sdengine.cli.measure import Comparison, alternate, run_request, short
from sdengine.cli.options import BUNDLED_MODEL, LineParser, add_debug
from sdengine.cli.prompts import PROMPTS
from sdengine.cli.stream_view import StreamView
from sdengine.cli.terminal import Palette, palette_for
from sdengine.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from sdengine.llm import LLM

__all__ = ["main"]

SHOWN_TOKENS = 96
MEASURED_TOKENS = 160
TEMPERATURES = (0.0, 0.8)
SEED = 1
MAX_REPEATS = 5
BUDGET_S = 45.0
"""The demo promises to end within a minute: measuring repeats less when streaming took longer."""
LEAST_MEASURING_S = 8.0


@dataclass(frozen=True, slots=True)
class Result:
    """What one temperature gave over all prompts."""

    temperature: float
    comparisons: list[Comparison]

    @property
    def plain(self) -> float:
        """Median over the prompts, tokens per second."""
        return median(c.plain_tokens_per_s for c in self.comparisons)

    @property
    def speculative(self) -> float:
        """Median over the prompts, tokens per second."""
        return median(c.speculative_tokens_per_s for c in self.comparisons)

    @property
    def ratio(self) -> float:
        """Median over the prompts of each one's ratio."""
        return median(c.ratio for c in self.comparisons)

    @property
    def acceptance_length(self) -> float:
        """Median over the prompts."""
        return median(c.mean_acceptance_length for c in self.comparisons)

    @property
    def is_identical(self) -> bool:
        """Whether every prompt gave the same tokens both ways, every time."""
        return all(c.is_identical for c in self.comparisons)


def main(argv: list[str] | None = None) -> int:
    """Runs the demo and returns its exit code."""
    parser = LineParser(prog="python -m sdengine.cli.demo", description=__doc__)
    add_debug(parser)
    return run_alone(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    """Streams completions, then measures.

    Returns:
        0, or 1 when the tokens differ: then something is broken.
    """
    start = perf_counter()
    from sdengine.llm import LLM

    palette = palette_for(sys.stdout)
    speculative = LLM(BUNDLED_MODEL, max_num_seqs=1)
    plain = LLM(BUNDLED_MODEL, speculation=None, max_num_seqs=1)
    show_completions(speculative, palette)
    left = BUDGET_S - (perf_counter() - start)
    results = measure(plain, speculative, max(left, LEAST_MEASURING_S))
    print(palette.strong("\nplain against speculative decoding, medians over the prompts"))
    print("\n".join(table_lines(results)))
    is_identical = all(result.is_identical for result in results)
    print(f"identical tokens: {'yes' if is_identical else 'no'}")
    return 0 if is_identical else 1


def show_completions(llm: LLM, palette: Palette) -> None:
    """Streams a completion of every prompt, sampled as the checkpoint would have it."""
    params = replace(llm.engine.default_params, max_tokens=SHOWN_TOKENS, seed=SEED)
    for number, prompt in enumerate(PROMPTS, start=1):
        print(palette.strong(f"\n--- {number} of {len(PROMPTS)}: {prompt.title}"))
        view = StreamView(llm)
        view.show_prompt(prompt.text, in_pipe=True)
        run_request(llm, prompt.text, params, view.show)
        view.finish()
    if palette.has_color:
        print(f"\n{palette.accepted('tinted')}: proposed by the draft, accepted by the target")


def measure(plain: LLM, speculative: LLM, budget_s: float) -> list[Result]:
    """Decodes every prompt both ways at every temperature, in turn, in about `budget_s` seconds."""
    settings = [
        SamplingParams(max_tokens=MEASURED_TOKENS, temperature=t, seed=SEED, ignore_eos=True)
        for t in TEMPERATURES
    ]
    for llm in (plain, speculative):
        run_request(llm, PROMPTS[0].text, short(settings[0]))
    end, left = perf_counter() + budget_s, len(settings) * len(PROMPTS)
    results = []
    for params in settings:
        comparisons = []
        for prompt in PROMPTS:
            # A share of what is left: the last pair of runs of every prompt takes longer than that.
            now = perf_counter()
            deadline = now + (end - now) / left
            left -= 1
            comparisons.append(
                alternate(
                    partial(run_request, plain, prompt.text, params),
                    partial(run_request, speculative, prompt.text, params),
                    MAX_REPEATS,
                    lambda deadline=deadline: perf_counter() > deadline,
                )
            )
        results.append(Result(params.temperature, comparisons))
    return results


def table_lines(results: list[Result]) -> list[str]:
    """One line per temperature."""
    lines = ["temperature   plain tok/s   speculative tok/s   ratio   mean acceptance length"]
    for r in results:
        lines.append(
            f"{r.temperature:11.1f}   {r.plain:11.0f}   {r.speculative:17.0f}   {r.ratio:4.2f}x"
            f"   {r.acceptance_length:22.2f}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
