"""The engine: requests in, committed tokens out, one `step()` at a time.

No threads of its own besides the kernels' workers, no globals: a server owns the loop, and several
engines live side by side.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from threading import Lock
from time import monotonic
from typing import NoReturn

from sdengine.controllers.base import BudgetController
from sdengine.core.argument import check_float, check_int
from sdengine.core.config import EngineConfig
from sdengine.core.outputs import FinishReason, RequestOutput, StepTree
from sdengine.core.ownership import Ownership
from sdengine.core.plan import STREAM_SECONDS, StepReport
from sdengine.core.request import Request, RequestBook
from sdengine.core.sampling_params import SamplingParams
from sdengine.core.sequence import Sequence
from sdengine.errors import CheckpointError, ConfigError, EngineBusy, EngineFailed, RequestError
from sdengine.factory.build import EngineParts, MakeDrafter, build_engine_parts
from sdengine.runner.flight import Commit, Flight
from sdengine.runner.iteration import Iteration
from sdengine.scheduler.scheduler import Schedule

NOT_FINITE = "the target model's logits are not finite"


class Engine:
    """Continuous batching with lossless speculative decoding.

    One call at a time, from any thread: `add_request(s)`, `abort_request`, `step` and `close` raise
    EngineBusy in the middle of another one (of another thread, or of a finalizer that the garbage
    collector runs), and change nothing then. A process that was forked from the engine's gets
    EngineFailed: threads are not forked along. `close`, or the end of a `with` block, frees its
    memory and ends its threads at once; otherwise both go with the object.

    Args:
        config: an EngineConfig, or the path or bundled name of the target model.
        make_drafter: makes a drafter of the caller's own from the engine's buffers, in place of
            that of method "ngram"; see the protocol in `sdengine/runner/drafter.py`.
        **settings: fields of EngineConfig when `config` is a path or name.

    Raises:
        ConfigError: contradictory or impossible settings.
        CheckpointError: a checkpoint cannot be used.
        BackendUnavailable: a backend asked for does not exist here.
        CacheFull: weights and KV cache do not fit into memory.
    """

    def __init__(
        self,
        config: EngineConfig | str | os.PathLike[str],
        *,
        make_drafter: MakeDrafter | None = None,
        **settings: object,
    ) -> None:
        if not isinstance(config, EngineConfig):
            config = EngineConfig(config, **settings)  # type: ignore[arg-type]
        elif settings:
            config = config.with_changes(**settings)
        parts: EngineParts = build_engine_parts(config, make_drafter)
        self.config = config
        self.target_path = parts.target_path
        self.tokenizer = parts.tokenizer
        self.default_params = parts.default_params
        self._runner = parts.runner
        self._scheduler = parts.scheduler
        self._controller = parts.controller
        self._book = RequestBook(
            parts.tokenizer,
            parts.limits,
            parts.runner.pool_capacity_tokens,
            config.seed,
            parts.runner.spent,
        )
        self._commits: list[Commit] = []
        self._flight: Flight | None = None  # started ahead, to be read by the next step
        self.ownership = Ownership()  # of the AsyncEngine that steps this engine in its thread
        self._is_called = Lock()
        self._is_torn = False  # a call was cut short: what belongs together may not agree
        self._is_closed = False
        self._process = os.getpid()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "expected something to copy or pickle, got an engine, which is memory and threads of "
            "its process; make another one from its `config`"
        )

    @property
    def max_model_len(self) -> int:
        """Longest sequence, prompt included."""
        return self._book.limits.max_model_len

    @property
    def iteration(self) -> Iteration:
        """The recorded programs and their buffers: for benchmarks and tools, not for requests."""
        self.require_open()
        return self._runner.iteration

    @property
    def controller(self) -> BudgetController:
        """Decides about budgets: for benchmarks, to be exchanged between two steps."""
        self.require_open()
        return self._controller

    @controller.setter
    def controller(self, controller: BudgetController) -> None:
        self.require_open()
        self._controller = controller

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that no sequence has."""
        return self._scheduler.num_free_blocks

    @property
    def num_blocks(self) -> int:
        """KV blocks in all."""
        return self._scheduler.pool.num_blocks

    @property
    def num_running(self) -> int:
        """Sequences that have a slot."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a slot or for KV blocks."""
        return len(self._scheduler.waiting)

    @property
    def last_report(self) -> StepReport:
        """What the last iteration did, over all sequences."""
        return self.last_reports[-1]

    @property
    def last_reports(self) -> SequenceOf[StepReport]:
        """What the iterations of the last step did, over all sequences."""
        self.require_open()
        return self._runner.reports

    def add_request(
        self,
        request_id: str,
        prompt: str | SequenceOf[int],
        params: SamplingParams | None = None,
        group: str | None = None,
    ) -> None:
        """Queues a request.

        Args:
            request_id: unique among the unfinished requests.
            prompt: text, or token ids.
            params: how to sample; None takes the checkpoint's generation defaults.
            group: a name that requests have in common of which only the last one's end matters, as
                those of one `LLM.generate`: where nobody waits for a place, sequences that have
                more tokens left get more of the draft. None: the request's own completions.

        Raises:
            RequestError: bad prompt, id in use, token out of range, prompt too long for the context
                or for the KV cache.
            EngineBusy, EngineFailed: see above.
        """
        self.add_requests([(request_id, prompt, params)], group)

    def add_requests(
        self,
        requests: Iterable[tuple[str, str | SequenceOf[int], SamplingParams | None]],
        group: str | None = None,
    ) -> None:
        """Queues several requests, all of them or none.

        Args:
            requests: (request_id, prompt, params) of each, as `add_request`.
            group: of them all, as `add_request`.

        Raises:
            RequestError: one of them is refused; nothing was queued.
            EngineBusy, EngineFailed: see above.
        """
        defaults = self.default_params
        try:
            wanted = [(name, prompt, defaults if p is None else p) for name, prompt, p in requests]
        except (TypeError, ValueError) as error:
            raise RequestError.from_parts(
                "requests of (request_id, prompt, params)", str(error)
            ) from None
        self._check_call()
        with self._is_called:
            self._begin()
            self._queue(wanted, group)

    def abort_request(self, request_id: str) -> RequestOutput:
        """Ends a request now and frees its blocks; on a device, for others to use once the step
        that is under way has ended.

        Returns:
            What it had generated, with finish_reason "abort".

        Raises:
            RequestError: no such unfinished request.
            EngineBusy, EngineFailed: see above.
        """
        self._check_call()
        with self._is_called:
            self._begin()
            request = self._book.get(request_id)
            self._is_torn = True
            output = self._abort(request)
            self._is_torn = False
            return output

    def has_request(self, request_id: str) -> bool:
        """Whether a request of that id is unfinished."""
        return request_id in self._book

    def has_unfinished_requests(self) -> bool:
        """Whether a `step` has anything to do."""
        return self._scheduler.has_unfinished()

    def step(
        self, max_iterations: int = 1, max_seconds: float = STREAM_SECONDS
    ) -> list[RequestOutput]:
        """Runs one iteration: every running sequence moves by a prompt chunk or by one or more
        tokens.

        A caller who need not see every iteration may let several follow one another where nothing
        happens in between but decoding: on a CPU the host's work between two of them costs as much
        as a tenth of one of a small model.

        On a device the next iteration is started before this one is read, whenever it can be, so
        that the device does not wait for the host. A sequence that this one ends has then been
        scheduled once more in vain: what that computes of it is discarded.

        Args:
            max_iterations: most iterations that follow one another, 64 however many are asked for;
                a device runs ahead instead. One where a request has stop strings, or more stop
                tokens than the kernels' table: the host has to look.
            max_seconds: that more than one of them may take together, going by the last one. So
                long new requests and aborts wait.

        Returns:
            Cumulative outputs, one per sequence that got new tokens or came to an end.

        Raises:
            EngineBusy, EngineFailed: see above; nothing has begun.
            ConfigError: fewer than one iteration, or less than no time.

        Nothing else is raised on purpose. When something is (an interrupt), all sequences are in
        doubt: the next call ends them, as one after an interrupted `abort_request` does, and
        `abort_request` returns what they had.
        """
        self._check_call()
        if type(max_iterations) is not int or max_iterations != 1 or max_seconds != STREAM_SECONDS:
            check_int(ConfigError, "max_iterations", max_iterations, 1)
            check_float(ConfigError, "max_seconds", max_seconds, 0.0)
        with self._is_called:
            self._begin()
            self._is_torn = True
            flight = self._take_flight(max_iterations, max_seconds)
            following = self._start_ahead(flight) if self._runner.runs_ahead else None
            self._commits = self._runner.land(flight)
            if self._runner.runs_ahead:
                self._scheduler.let_go()
            if following is not None:
                self._scheduler.hold()
            outputs = list(map(self._advance, self._commits))
            for report in self._runner.reports:
                self._controller.observe(flight.plan, report)
            self._flight = following
            self._is_torn = False
            return outputs

    def step_tree(self, request_id: str, index: int = 0) -> StepTree | None:
        """The token tree that the last iteration verified for a sequence, for displays and studies.

        Args:
            request_id: a request that moved in the last step, finished or not.
            index: which of its completions.

        Returns:
            The tree, without nodes when the step decoded plainly; None when the sequence committed
            nothing in the last iteration. Tokens beyond a stop are still in it.

        Raises:
            EngineFailed: the engine is closed.
        """
        self.require_open()
        num_iterations = len(self._runner.reports)
        for commit in self._commits:
            if (commit.sequence.request_id, commit.sequence.index) == (request_id, index):
                is_last = len(commit.num_accepted) == num_iterations
                return self._runner.step_tree(commit) if is_last else None
        return None

    def close(self) -> None:
        """Aborts the unfinished requests, frees caches, buffers and weights that no other engine
        reads and ends the threads of the kernels, without waiting for the last reference to the
        engine; a GPU's memory goes back to torch. What was handed out stays, and so do the counts;
        whatever needs more gets EngineFailed from now on. Nothing happens the second time.

        Raises:
            EngineBusy, EngineFailed: see above; nothing has begun.
        """
        self._check_call()
        with self._is_called:
            if self._is_closed:
                return
            self._begin()
            self._is_torn = True
            for request in self._book.unfinished():
                self._abort(request)
            if self._runner.runs_ahead:
                self._settle()
            self._is_closed, self._is_torn = True, False
            self._commits, self._flight = [], None
            del self._runner, self._controller

    def _queue(
        self, wanted: list[tuple[str, str | SequenceOf[int], SamplingParams]], group: str | None
    ) -> None:
        """Enters requests into book and scheduler; after an interrupt in both or in none."""
        try:
            self._scheduler.add(*self._book.open(wanted, group))
        except BaseException:
            for request_id, _, _ in wanted:
                if request_id in self._book:
                    request = self._book.get(request_id)
                    if not any(map(self._scheduler.has, request.sequences)):
                        self._book.close(request)
            raise

    def _abort(self, request: Request) -> RequestOutput:
        self._end_sequences(request)
        return self._book.close(request)

    def _end_sequences(self, request: Request) -> None:
        for sequence, checker in zip(request.sequences, request.stop_checkers):
            if not sequence.is_finished:
                checker.end_text()
                slot = sequence.slot
                self._scheduler.finish(sequence, "abort")
                self._runner.release(slot)

    def _begin(self) -> None:
        if self._is_closed:
            raise closed()
        if self._is_torn:
            self._end_all()

    def _end_all(self) -> None:
        """After a call that was cut short: ends every sequence and begins anew with empty caches,
        because an interrupt may have come between any two lines."""
        if self._runner.runs_ahead:
            self._runner.drain()
        self._commits, self._flight = [], None
        self._scheduler.reset()
        self._runner.release_all()
        for request in self._book.unfinished():
            self._end_sequences(request)
        self._is_torn = False

    def require_open(self) -> None:
        """Raises EngineFailed when the engine has been closed."""
        if self._is_closed:
            raise closed()

    def _check_call(self) -> None:
        """Refuses a call in the middle of another. Two that pass this at the same moment take
        turns: what follows waits for the lock, which an interrupt cannot leave locked."""
        if os.getpid() != self._process:
            raise forked()
        is_owned = self.ownership.is_another_thread_s
        if is_owned or self._is_called.locked():
            raise EngineBusy.from_parts(
                "one call of an engine at a time, from the thread that owns it if one does",
                "another in the middle of it" if not is_owned else "one from another thread",
                "give the engine to an AsyncEngine, and ask that from wherever you are",
            )

    def _take_flight(self, max_iterations: int, max_seconds: float) -> Flight:
        """The iteration that is under way; a new one if there is none, or nobody is left in it."""
        flight, self._flight = self._flight, None
        if flight is not None and flight.is_needed:
            return flight
        if self._runner.runs_ahead:
            self._settle()
        schedule = self._scheduler.schedule()
        most = max_iterations
        if most > 1:
            most = self._runner.most_in_a_row(schedule, most, max_seconds)
        if most > 1:
            most = self._scheduler.num_in_a_row(schedule, most, self._runner.max_step_tokens)
        return self._start(schedule, max_iterations=most)

    def _settle(self) -> None:
        """Lets a device come to the end of what it was given, of which no one wants to know."""
        self._runner.drain()
        self._scheduler.let_go()

    def _start_ahead(self, flight: Flight) -> Flight | None:
        """The iteration after `flight`, started before that is read; None where that has to be read
        first."""
        if not self._runner.can_follow(flight):
            return None
        schedule = self._scheduler.schedule_ahead(flight.schedule, flight.max_tokens)
        return None if schedule is None else self._start(schedule, flight)

    def _start(
        self, schedule: Schedule, after: Flight | None = None, max_iterations: int = 1
    ) -> Flight:
        num_decoding = self._runner.prepare(schedule, after)
        plan = self._controller.plan(num_decoding, lambda: self._runner.outlook(schedule))
        return self._runner.start(schedule, plan, min(max_iterations, plan.num_iterations))

    def _advance(self, commit: Commit) -> RequestOutput:
        sequence = commit.sequence
        request = self._book.get(sequence.request_id)
        tokens = commit.token_ids
        is_finite = tokens[-1] >= 0  # -1 is the sampler's flag for NaN or infinite logits
        checker = request.stop_checkers[sequence.index]
        cut = checker.accept(tokens if is_finite else tokens[:-1])
        num_tokens = cut.num_tokens
        if sequence.logprobs is not None:
            self._runner.record_logprobs(commit, self.tokenizer)
        sequence.count_steps(num_tokens, commit.num_accepted, commit.num_nodes)
        request.num_generated += num_tokens
        if request.first_token_time is None and num_tokens:
            request.first_token_time = monotonic()
            request.spent_before = self._runner.spent.before
        if cut.finish_reason is not None:
            self._end(request, sequence, cut.finish_reason, cut.stop_reason)
        elif not is_finite:
            sequence.num_computed = 0  # not to be shared
            checker.end_text()
            self._end(request, sequence, "abort", NOT_FINITE)
        return self._book.output(request, sequence)

    def _end(
        self,
        request: Request,
        sequence: Sequence,
        reason: FinishReason,
        stop_reason: str | int | None,
    ) -> None:
        slot = sequence.slot
        self._scheduler.finish(sequence, reason, stop_reason)
        self._runner.release(slot)
        if request.is_finished:
            self._book.close(request)


def closed() -> EngineFailed:
    """The answer to a call of an engine that is no more."""
    return EngineFailed.from_parts("an open engine", "a closed one", "make another")


def forked() -> EngineFailed:
    """The answer to a call in a process that was forked from the engine's."""
    return EngineFailed.from_parts(
        "an engine of this process",
        "one that was made before a fork, which takes no threads along",
        'make another in the child, or start processes with the method "spawn"',
    )


def require_finite(output: RequestOutput) -> None:
    """Raises when a completion ended because its logits were NaN or infinite.

    Raises:
        CheckpointError: it did.
    """
    for completion in output.outputs:
        if completion.stop_reason == NOT_FINITE:
            raise CheckpointError.from_parts(
                "finite logits", NOT_FINITE, "check the checkpoint's weights for NaN and infinity"
            )


__all__ = ["Engine", "Request", "forked", "require_finite"]
