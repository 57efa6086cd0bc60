"""Timing of requests: batches run to their end, and plain against speculative decoding in turns.

A batch starts at once and ends with its last request; a single request is a batch of one. Its speed
counts from the moment at which every request has its first token: prefill is left out, and with it
the tokens of those first commits, unless there are no others. Ratios are taken within one process,
the two sides alternating, so that a machine that slows down slows both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from sdengine.core.outputs import RequestOutput, SpeculationStats
from sdengine.core.plan import UNSEEN_SECONDS
from sdengine.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from sdengine.engine import Engine
    from sdengine.llm import LLM, Prompt, StreamDelta

__all__ = ["Comparison", "Run", "alternate", "run_batch", "run_request", "short"]

WARM_UP_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Run:
    """One batch, finished.

    Args:
        outputs: of every request, in order.
        first_token_s: of every request, from the start of the batch to its first commit.
        gaps_s: of every token after a request's first commit: the time since the commit before,
            shared evenly among the tokens of a commit.
        token_s: of every request, mean of its gaps; 0 where everything came at once.
        decode_s: from the moment at which every request had a token to the last commit.
        num_decoded: tokens committed in that time.
    """

    outputs: Sequence[RequestOutput]
    first_token_s: Sequence[float]
    gaps_s: Sequence[float]
    token_s: Sequence[float]
    decode_s: float
    num_decoded: int

    @classmethod
    def from_commits(
        cls, outputs: Sequence[RequestOutput], commits: Sequence[Sequence[tuple[float, int]]]
    ) -> Run:
        """From the time of every commit of every request, and how many tokens it had by then."""
        first = [history[0][0] for history in commits]
        all_started = max(first)
        end = max(history[-1][0] for history in commits)
        gaps: list[float] = []
        decoded = 0
        for history in commits:
            for (before, fewer), (now, more) in pairwise(history):
                gaps += [(now - before) / (more - fewer)] * (more - fewer)
                decoded += more - fewer if now > all_started else 0
        token_s = [
            (history[-1][0] - history[0][0]) / max(history[-1][1] - history[0][1], 1)
            for history in commits
        ]
        return cls(outputs, first, gaps, token_s, end - all_started, decoded)

    @property
    def has_decoded(self) -> bool:
        """Whether anything came after the first commits, so that decoding alone has a speed."""
        return self.num_decoded > 0 and self.decode_s > 0

    @property
    def tokens_per_s(self) -> float:
        """Of the whole batch; of all tokens in all the time when everything came at once."""
        return self.num_decoded / self.decode_s if self.has_decoded else self.whole_tokens_per_s

    @property
    def whole_tokens_per_s(self) -> float:
        """Of all tokens in all the time, prefill included."""
        return sum(map(len, self.token_ids)) / (max(self.first_token_s) + self.decode_s)

    @property
    def output(self) -> RequestOutput:
        """Of the only request."""
        (output,) = self.outputs
        return output

    @property
    def token_ids(self) -> list[list[int]]:
        """The generated tokens of every request."""
        return [list(output.outputs[0].token_ids) for output in self.outputs]

    @property
    def speculation(self) -> list[SpeculationStats]:
        """Statistics of every request; empty after plain decoding."""
        stats = [output.metrics.speculation for output in self.outputs]
        return [s for s in stats if s is not None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same batch decoded both ways, several times.

    Args:
        plain: runs without speculation, in order.
        speculative: runs with it, in order.
    """

    plain: Sequence[Run]
    speculative: Sequence[Run]

    @property
    def plain_tokens_per_s(self) -> float:
        """Median."""
        return self._speed(self.plain)

    @property
    def speculative_tokens_per_s(self) -> float:
        """Median."""
        return self._speed(self.speculative)

    @property
    def ratio(self) -> float:
        """How many times faster the speculative runs are: ratio of the medians."""
        return self.speculative_tokens_per_s / self.plain_tokens_per_s

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens committed per target forward, median over the speculative runs' requests."""
        stats = [s for run in self.speculative for s in run.speculation]
        return median(s.mean_acceptance_length for s in stats) if stats else 1.0

    @property
    def is_identical(self) -> bool:
        """Whether every run, plain or speculative, gave the same tokens."""
        first = self.plain[0].token_ids
        return all(run.token_ids == first for run in (*self.plain, *self.speculative))

    def _speed(self, runs: Sequence[Run]) -> float:
        """Median, prefill left out; but included on both sides where one of them has nothing else,
        as for an answer of three tokens that came with the prompt's own step."""
        if all(run.has_decoded for run in (*self.plain, *self.speculative)):
            return median(run.tokens_per_s for run in runs)
        return median(run.whole_tokens_per_s for run in runs)


def short(params: SamplingParams) -> SamplingParams:
    """For a run that touches memory and wakes workers, so that the first measured one pays for
    neither."""
    return replace(params, max_tokens=min(params.max_tokens, WARM_UP_TOKENS), min_tokens=0)


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
    commits: list[tuple[float, int]] = []
    num_tokens = 0
    output: RequestOutput | None = None
    with closing(llm.stream(prompt, params)) as deltas:  # an interrupted request is aborted
        for delta in deltas:
            if delta.token_ids or not commits:
                num_tokens += len(delta.token_ids)
                commits.append((perf_counter() - start, num_tokens))
            if on_delta is not None:
                on_delta(delta)
            output = delta.output
    assert output is not None, "a stream ends with its output"
    return Run.from_commits([output], [commits])


def run_batch(
    engine: Engine,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    after_step: Callable[[], None] | None = None,
    clock: Callable[[], float] = perf_counter,
    max_iterations: int = 1,
) -> Run:
    """Runs a batch; request i has the seed `params.seed + i`.

    Args:
        engine: with nothing else to do and room for the whole batch.
        prompts: one per request.
        params: with a seed; n must be 1.
        after_step: called after every step, untimed runs only: its time counts.
        clock: seconds that count.
        max_iterations: of a step; as many as `LLM.generate` asks for, where only the speed matters.

    Raises:
        SdengineError: a request came to logits that are not finite.
    """
    from sdengine.engine import require_finite

    assert params.seed is not None and params.n == 1, params
    ids = [f"batch-{i}" for i in range(len(prompts))]
    start = clock()
    for i, (request_id, prompt) in enumerate(zip(ids, prompts)):
        engine.add_request(request_id, prompt, replace(params, seed=params.seed + i), "batch")
    commits: dict[str, list[tuple[float, int]]] = {request_id: [] for request_id in ids}
    outputs: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        moved = engine.step(max_iterations, UNSEEN_SECONDS)
        now = clock() - start
        for output in moved:
            require_finite(output)
            commits[output.request_id].append((now, len(output.outputs[0].token_ids)))
            outputs[output.request_id] = output
        if after_step is not None:
            after_step()
    return Run.from_commits([outputs[i] for i in ids], [commits[i] for i in ids])


def alternate(
    plain: Callable[[], Run],
    speculative: Callable[[], Run],
    repeats: int,
    is_time_over: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Runs a batch both ways in turn; which goes first changes every time.

    Args:
        plain: runs it without speculation.
        speculative: runs it with the same models and speculation.
        repeats: pairs of runs.
        is_time_over: asked after every pair; True ends the measurement early.
    """
    return Comparison(*take_turns([plain, speculative], repeats, is_time_over))


def take_turns(
    contenders: Sequence[Callable[[], Run]],
    repeats: int,
    is_time_over: Callable[[], bool] = lambda: False,
) -> list[list[Run]]:
    """Every contender runs once a round, in every other round the last one first.

    Returns:
        The runs of each contender, in the order of the arguments.
    """
    runs: list[list[Run]] = [[] for _ in contenders]
    for repeat in range(repeats):
        turns = list(zip(contenders, runs))
        for contender, mine in turns if repeat % 2 == 0 else reversed(turns):
            mine.append(contender())
        if is_time_over():
            break
    return runs
