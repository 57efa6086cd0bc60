"""The thread that owns an engine: commands in, steps, outputs out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from os import getpid
from queue import SimpleQueue
from typing import Any

from sdengine.async_engine.stream import Delivery, Outbox, RequestStream
from sdengine.core.plan import MAX_ITERATIONS, STREAM_SECONDS, StepReport
from sdengine.engine import Engine, forked
from sdengine.errors import (
    ConfigError,
    EngineBusy,
    EngineFailed,
    EngineStopped,
    SdengineError,
)

__all__ = ["EngineThread", "StepTotals"]


@dataclass(slots=True)
class StepTotals:
    """What all steps together did, for metrics; as `StepReport`, summed up.

    Args:
        num_steps: iterations of the engine.
        num_sequence_steps: per iteration, sequences that drew a token; their sum.
        num_draft_tokens: tree nodes verified.
        accepted_by_depth: index d = draft tokens accepted at depth d + 1.
        draft_time_s, verify_time_s, step_time_s: durations.
    """

    num_steps: int = 0
    num_sequence_steps: int = 0
    num_draft_tokens: int = 0
    accepted_by_depth: list[int] = field(default_factory=list)
    draft_time_s: float = 0.0
    verify_time_s: float = 0.0
    step_time_s: float = 0.0

    def add(self, report: StepReport) -> None:
        """Counts an iteration."""
        self.num_steps += 1
        self.num_sequence_steps += len(report.num_accepted)
        self.num_draft_tokens += report.num_nodes
        self.draft_time_s += report.draft_time_s
        self.verify_time_s += report.verify_time_s
        self.step_time_s += report.step_s
        if not report.num_nodes:
            return
        depths = self.accepted_by_depth
        for num_accepted in report.num_accepted:
            depths += [0] * (num_accepted - len(depths))
            for depth in range(num_accepted):
                depths[depth] += 1


class EngineThread:
    """Steps an engine in a thread of its own and obeys commands between two steps.

    Args:
        engine: owned by the thread from `start` on.
        max_requests: most unfinished requests inside the engine; others wait in line.
    """

    def __init__(self, engine: Engine, max_requests: int) -> None:
        self.engine = engine
        self.max_requests = max_requests
        self.totals = StepTotals()
        self.ended: Future[None] = Future()
        self.failure: BaseException | None = None
        self.is_draining = False
        self.streams: dict[str, RequestStream] = {}
        self.line: deque[RequestStream] = deque()
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._is_stopping = False
        self._lock = threading.Lock()
        self._process = getpid()
        self._thread = threading.Thread(target=self._run, name="sdengine", daemon=True)

    def start(self) -> None:
        """Takes the engine, which is given back at the thread's end, and starts the thread.

        Raises:
            ConfigError: the engine is in use.
        """
        claim(self.engine)
        try:
            self._thread.start()
        except BaseException:  # no more threads are to be had
            self.engine.ownership.give_up()
            raise

    def require_open(self) -> None:
        """Raises when requests are no longer taken, as far as is known now.

        Raises:
            EngineStopped, EngineFailed: they are not.
        """
        if self.is_draining:
            raise self.reason()

    def submit(self, stream: RequestStream, may_wait: bool) -> None:
        """Asks for a place; the stream learns what came of it."""
        self._post(partial(self._submit, stream, may_wait))

    def cancel(self, stream: RequestStream) -> None:
        """Ends a request; nothing happens when it is finished."""
        self._post(partial(self._remove, stream))

    def drain(self) -> None:
        """Refuses new requests and ends the thread when those submitted before are finished."""
        self._post(self._begin_to_drain)

    def stop(self) -> None:
        """Ends the thread after the running step; unfinished requests get EngineStopped."""
        self.is_draining = self._is_stopping = True
        self._post(lambda: None)

    def join(self) -> None:
        """Stops the thread and waits for its end."""
        self.stop()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _post(self, command: Callable[[], None]) -> None:
        if getpid() != self._process and not self.ended.done():  # the thread is the parent's
            self.failure, self.is_draining = forked(), True
            self.ended.set_result(None)
        with self._lock:  # a command is either taken by the thread or run after its end, never lost
            if not self.ended.done():
                self._commands.put(command)
                return
        command()

    def _run(self) -> None:
        self.engine.ownership.enter()
        try:
            while not self._is_stopping and not (self.is_draining and self._is_empty()):
                self._obey()
                if self.engine.has_unfinished_requests() and not self._is_stopping:
                    self._step()
        except BaseException as error:
            self.failure = error
        for stream in (*self.streams.values(), *self.line):
            self._tell(stream, stream.end, self.reason())
            self._release(stream)
        self.line.clear()
        self.engine.ownership.give_up()  # nothing below touches it: no stream is inside
        with self._lock:
            self.is_draining = True
            self.ended.set_result(None)
        while not self._commands.empty():
            self._commands.get()()

    def _begin_to_drain(self) -> None:
        self.is_draining = True

    def _is_empty(self) -> bool:
        return not self.streams and not self.line and self._commands.empty()

    def _obey(self) -> None:
        """Carries out what was asked; waits for something when the engine is idle."""
        if not self.engine.has_unfinished_requests():
            self._commands.get()()
        while not self._commands.empty():  # nobody else takes from it
            self._commands.get()()

    def _step(self) -> None:
        is_watched = any(stream.wants_trees for stream in self.streams.values())
        outputs = self.engine.step(1 if is_watched else MAX_ITERATIONS, STREAM_SECONDS)
        self._count()
        by_outbox: dict[Outbox, list[Delivery]] = {}
        urgent = []
        for output in outputs:
            stream = self.streams.get(output.request_id)
            if stream is None:
                continue
            tree = None
            if stream.wants_trees:
                tree = self.engine.step_tree(output.request_id, output.outputs[0].index)
            if output.finished:
                del self.streams[output.request_id]
                stream.is_inside = False
            if output.finished or stream.is_silent:
                stream.is_silent = False
                urgent.append(stream)
            deliveries = by_outbox.get(stream.outbox)
            if deliveries is None:
                deliveries = by_outbox[stream.outbox] = []
            deliveries.append((stream, output, tree))
        for outbox, deliveries in by_outbox.items():
            try:
                outbox.post(deliveries, [stream for stream in urgent if stream.outbox is outbox])
            except RuntimeError:  # its event loop is closed: nobody can read these any more
                for stream, _, _ in deliveries:
                    self._remove(stream)
        self._admit_next()

    def _count(self) -> None:
        for report in self.engine.last_reports:
            self.totals.add(report)

    def _submit(self, stream: RequestStream, may_wait: bool) -> None:
        if self.is_draining:
            self._tell(stream, stream.end, self.reason())
        elif len(self.streams) < self.max_requests and not self.line:
            self._admit(stream)
        elif may_wait:
            self.line.append(stream)
        else:
            busy = EngineBusy.from_parts(
                f"fewer than {self.max_requests} unfinished requests", "one more", "try again later"
            )
            self._tell(stream, stream.end, busy)

    def _admit_next(self) -> None:
        while self.line and len(self.streams) < self.max_requests:
            self._admit(self.line.popleft())

    def _admit(self, stream: RequestStream) -> None:
        try:
            self._settle_id(stream)
            self.engine.add_request(
                stream.request_id, stream.token_ids, stream.params, stream.group
            )
        except Exception as error:  # this request's own fault: the others go on
            self._tell(stream, stream.end, error)
            return
        self.streams[stream.request_id] = stream
        stream.is_inside = True
        if stream.admission is not None:
            self._tell(stream, stream.admit)

    def _settle_id(self, stream: RequestStream) -> None:
        """Renames a request whose id was made up and has meanwhile been given by a caller."""
        while stream.spare_ids is not None and self.engine.has_request(stream.request_id):
            stream.request_id = next(stream.spare_ids)

    def _remove(self, stream: RequestStream) -> None:
        if stream in self.line:
            self.line.remove(stream)
        else:
            self._release(stream)
            if not self.ended.done():
                self._admit_next()

    def _release(self, stream: RequestStream) -> None:
        """Takes a request out of the engine; a failed engine is left alone. The id of a request
        that is not inside says nothing: it may be another's, or be refused and of any type."""
        if stream.is_inside:
            del self.streams[stream.request_id]
            stream.is_inside = False
            if self.failure is None:
                self.engine.abort_request(stream.request_id)

    def reason(self) -> SdengineError:
        """Why requests are not taken, or are ended."""
        if self.failure is None:
            return EngineStopped.from_parts("a running engine", "one that is shutting down")
        what = f"{type(self.failure).__name__}: {self.failure}"
        error = EngineFailed.from_parts("a working engine", what, "make a new engine")
        error.__cause__ = self.failure
        return error

    def _tell(self, stream: RequestStream, what: Callable[..., None], *args: Any) -> None:
        try:
            stream.loop.call_soon_threadsafe(what, *args)
        except RuntimeError:  # as in _step
            if what == stream.admit:
                self._release(stream)


def claim(engine: Engine) -> None:
    """Takes an engine for one thread, until its ownership is given up.

    Raises:
        ConfigError: it has requests, or is another thread's.
        EngineFailed: it is closed.
    """
    engine.require_open()
    is_free = engine.ownership.claim()
    if is_free and engine.has_unfinished_requests():
        engine.ownership.give_up()
        is_free = False
    if not is_free:
        raise ConfigError.from_parts(
            "an engine without requests and without another AsyncEngine",
            "one that is in use",
            "drain or close the other one, or make an engine of its own",
        )
