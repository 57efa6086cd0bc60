"""Runs a batch of requests to its end and notes when every token came.

A batch starts at once and ends with its last request. Its speed counts from the moment at which
every request has its first token, so that prefill is left out; what came in those first commits is
left out with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from sdengine.core.outputs import RequestOutput, SpeculationStats
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import require_finite

if TYPE_CHECKING:
    from collections.abc import Callable

    from sdengine.engine import Engine

__all__ = ["BatchPair", "BatchRun", "batches", "run_batch", "take_turns"]

WARM_UP_TOKENS = 32


@dataclass(frozen=True, slots=True)
class BatchRun:
    """One batch, finished.

    Args:
        outputs: of every request, in order.
        first_token_s: of every request, from the start of the batch to its first commit.
        gaps_s: of every token after a request's first commit: the time since the commit before,
            shared evenly among the tokens of a commit.
        decode_s: from the moment at which every request had a token to the end.
        num_decoded: tokens committed in that time.
    """

    outputs: Sequence[RequestOutput]
    first_token_s: Sequence[float]
    gaps_s: Sequence[float]
    decode_s: float
    num_decoded: int

    @property
    def tokens_per_s(self) -> float:
        """Of the whole batch; of all tokens in all the time when everything came at once."""
        if self.num_decoded and self.decode_s > 0:
            return self.num_decoded / self.decode_s
        return sum(map(len, self.token_ids)) / max(self.first_token_s)

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
class BatchPair:
    """The same batch decoded plainly and speculatively, in turns."""

    plain: Sequence[BatchRun]
    speculative: Sequence[BatchRun]

    @property
    def ratio(self) -> float:
        """How many times faster speculation is: ratio of the medians."""
        fast, slow = (
            median(r.tokens_per_s for r in runs) for runs in (self.speculative, self.plain)
        )
        return fast / slow

    @property
    def is_identical(self) -> bool:
        """Whether every run gave the same tokens."""
        first = self.plain[0].token_ids
        return all(run.token_ids == first for run in (*self.plain, *self.speculative))


def batches(prompts: Sequence[str], batch_size: int) -> list[list[str]]:
    """Prompts in groups of one size; the beginning of the list fills the last group up."""
    count = -(-len(prompts) // batch_size)
    cycled = [prompts[i % len(prompts)] for i in range(count * batch_size)]
    return [cycled[i * batch_size : (i + 1) * batch_size] for i in range(count)]


def run_batch(
    engine: Engine,
    prompts: Sequence[str],
    params: SamplingParams,
    after_step: Callable[[], None] | None = None,
) -> BatchRun:
    """Runs a batch; request i has the seed `params.seed + i`.

    Args:
        engine: with nothing else to do and room for the whole batch.
        prompts: one per request.
        params: with a seed; n must be 1.
        after_step: called after every step, untimed runs only: its time counts.

    Raises:
        SdengineError: a request came to logits that are not finite.
    """
    assert params.seed is not None and params.n == 1, params
    ids = [f"batch-{i}" for i in range(len(prompts))]
    start = perf_counter()
    for i, (request_id, prompt) in enumerate(zip(ids, prompts)):
        engine.add_request(request_id, prompt, replace(params, seed=params.seed + i))
    commits: dict[str, list[tuple[float, int]]] = {request_id: [] for request_id in ids}
    outputs: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        moved = engine.step()
        now = perf_counter() - start
        for output in moved:
            require_finite(output)
            commits[output.request_id].append((now, len(output.outputs[0].token_ids)))
            outputs[output.request_id] = output
        if after_step is not None:
            after_step()
    return _batch_run([outputs[i] for i in ids], [commits[i] for i in ids])


def _batch_run(outputs: list[RequestOutput], commits: list[list[tuple[float, int]]]) -> BatchRun:
    """From the cumulative token counts after every commit."""
    first = [history[0][0] for history in commits]
    all_started = max(first)
    end = max(history[-1][0] for history in commits)
    gaps: list[float] = []
    decoded = 0
    for history in commits:
        for (before, fewer), (now, more) in pairwise(history):
            gaps += [(now - before) / (more - fewer)] * (more - fewer)
            decoded += more - fewer if now > all_started else 0
    return BatchRun(outputs, first, gaps, end - all_started, decoded)


def warm_up(engine: Engine, prompts: Sequence[str], params: SamplingParams) -> None:
    """Touches memory and wakes workers, so that the first measured run pays for neither."""
    run_batch(engine, prompts, replace(params, max_tokens=min(params.max_tokens, WARM_UP_TOKENS)))


def take_turns(
    plain: Engine,
    speculative: Engine,
    prompts: Sequence[str],
    params: SamplingParams,
    repeats: int,
) -> BatchPair:
    """Runs a batch both ways in turn; which goes first changes every time."""
    runs: dict[bool, list[BatchRun]] = {False: [], True: []}
    for repeat in range(repeats):
        for is_speculative in (False, True) if repeat % 2 == 0 else (True, False):
            engine = speculative if is_speculative else plain
            runs[is_speculative].append(run_batch(engine, prompts, params))
    return BatchPair(runs[False], runs[True])
