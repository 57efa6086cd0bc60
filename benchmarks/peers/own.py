"""sdengine itself: plain decoding and dynamic trees."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.peers.contestant import Answer, Contestant, Settings, Task
from sdengine.cli.measure import run_batch
from sdengine.core.config import SpeculationConfig
from sdengine.core.plan import MAX_ITERATIONS
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine

__all__ = ["PLAIN", "SPECULATION", "SPECULATIVE", "OwnPeer"]

PLAIN = "sdengine plain"
SPECULATIVE = "sdengine dyspec"
SPECULATION = SpeculationConfig(method="dyspec")


class OwnContestant:
    """An engine with room for one batch."""

    def __init__(
        self, name: str, settings: Settings, speculation: SpeculationConfig | None
    ) -> None:
        self.name = name
        budget = "" if speculation is None else ", adaptive budget"
        self.configuration = f"{settings.dtype}, {settings.num_threads} threads{budget}"
        self._engine: Engine | None = Engine(
            str(settings.target),
            draft=None if speculation is None else str(settings.draft),
            speculation=speculation,
            dtype=settings.dtype,
            num_threads=settings.num_threads,
            max_num_seqs=settings.batch_size,
            max_model_len=settings.max_model_len,
        )

    def answer(self, task: Task) -> Answer:
        """As `Contestant.answer`."""
        assert self._engine is not None, "closed"
        params = SamplingParams(
            max_tokens=task.max_tokens, min_tokens=task.max_tokens, temperature=0, seed=0
        )
        prompts = [list(prompt) for prompt in task.prompts]
        run = run_batch(self._engine, prompts, params, max_iterations=MAX_ITERATIONS)
        return Answer(tuple(map(tuple, run.token_ids)), run.decode_s, run.num_decoded)

    def close(self) -> None:
        """Drops the weights."""
        self._engine = None


class OwnPeer:
    """Always there; the others are measured against it."""

    name = "sdengine"

    def why_unavailable(self, settings: Settings) -> str | None:
        """Never."""
        return None

    def contestants(self, settings: Settings) -> Iterator[Contestant]:
        """Plain, then speculative."""
        yield OwnContestant(PLAIN, settings, None)
        yield OwnContestant(SPECULATIVE, settings, SPECULATION)
