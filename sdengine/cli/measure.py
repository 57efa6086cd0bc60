"""Timing of whole requests: one run, and plain against speculative decoding in alternation.

Speeds are tokens per second of decoding: from the first commit to the last, the prompt's forward
and the tokens of that first commit left out. Ratios are taken within one process, the two sides
alternating, so that a machine that slows down slows both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from sdengine.core.outputs import RequestOutput, SpeculationStats
from sdengine.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from sdengine.llm import LLM, Prompt, StreamDelta

__all__ = ["Comparison", "Run", "alternate", "run_request", "warm_up"]

WARM_UP_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Run:
    """One finished request.

    Args:
        output: as `LLM.generate` returns it.
        first_token_s: from the call to the first commit.
        decode_s: from the first commit to the last.
        num_decoded: tokens committed in that time.
    """

    output: RequestOutput
    first_token_s: float
    decode_s: float
    num_decoded: int

    @property
    def tokens_per_s(self) -> float:
        """Speed of decoding; of the whole request when everything came in the first commit."""
        if self.num_decoded and self.decode_s > 0:
            return self.num_decoded / self.decode_s
        return len(self.token_ids) / self.first_token_s

    @property
    def token_ids(self) -> Sequence[int]:
        """The generated tokens."""
        return self.output.outputs[0].token_ids

    @property
    def text(self) -> str:
        """The generated text."""
        return self.output.outputs[0].text

    @property
    def speculation(self) -> SpeculationStats | None:
        """None after plain decoding."""
        return self.output.metrics.speculation


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same request decoded both ways, several times.

    Args:
        plain: runs without speculation, in order.
        speculative: runs with it, in order.
    """

    plain: Sequence[Run]
    speculative: Sequence[Run]

    @property
    def plain_tokens_per_s(self) -> float:
        """Median."""
        return median(run.tokens_per_s for run in self.plain)

    @property
    def speculative_tokens_per_s(self) -> float:
        """Median."""
        return median(run.tokens_per_s for run in self.speculative)

    @property
    def ratio(self) -> float:
        """How many times faster the speculative runs are: ratio of the medians."""
        return self.speculative_tokens_per_s / self.plain_tokens_per_s

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens committed per target forward, median over the speculative runs."""
        return median(
            run.speculation.mean_acceptance_length if run.speculation else 1.0
            for run in self.speculative
        )

    @property
    def is_identical(self) -> bool:
        """Whether every run, plain or speculative, gave the same tokens."""
        first = list(self.plain[0].token_ids)
        return all(list(run.token_ids) == first for run in (*self.plain, *self.speculative))


def run_request(
    llm: LLM,
    prompt: Prompt,
    params: SamplingParams,
    on_delta: Callable[[StreamDelta], None] | None = None,
) -> Run:
    """Streams one request and times it.

    Args:
        llm: with nothing else to do.
        prompt: text or token ids.
        params: with a seed, or the engine's next one is taken.
        on_delta: called with every delta; its time counts.
    """
    start = perf_counter()
    first: float | None = None
    num_first = num_tokens = 0
    output: RequestOutput | None = None
    for delta in llm.stream(prompt, params):
        num_tokens += len(delta.token_ids)
        if first is None:
            first, num_first = perf_counter(), len(delta.token_ids)
        if on_delta is not None:
            on_delta(delta)
        output = delta.output
    end = perf_counter()
    assert output is not None and first is not None, "a stream ends with its output"
    return Run(output, first - start, end - first, num_tokens - num_first)


def warm_up(llm: LLM, prompt: Prompt, params: SamplingParams) -> None:
    """Records programs and touches memory, so that the first measured run pays for neither."""
    from dataclasses import replace

    tokens = min(params.max_tokens, WARM_UP_TOKENS)
    run_request(llm, prompt, replace(params, max_tokens=tokens, min_tokens=0))


def alternate(
    plain: LLM,
    speculative: LLM,
    prompt: Prompt,
    params: SamplingParams,
    repeats: int,
    is_time_over: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Runs a request both ways in turn; which goes first changes every time.

    Args:
        plain: an LLM without speculation.
        speculative: the same models with speculation.
        prompt: text or token ids.
        params: greedy, or with a seed.
        repeats: pairs of runs.
        is_time_over: asked after every pair; True ends the measurement early.
    """
    runs: dict[bool, list[Run]] = {False: [], True: []}
    for repeat in range(repeats):
        for is_speculative in (False, True) if repeat % 2 == 0 else (True, False):
            llm = speculative if is_speculative else plain
            runs[is_speculative].append(run_request(llm, prompt, params))
        if is_time_over():
            break
    return Comparison(runs[False], runs[True])
