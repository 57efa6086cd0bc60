"""Between the engine's thread and an event loop: the outputs of one request, and how they travel.

Outputs are cumulative, so a slow reader needs only the newest one per completion: nothing piles up.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from time import thread_time
from typing import TypeAlias

from sdengine.core.outputs import RequestOutput, StepTree
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import require_finite
from sdengine.errors import RequestTimeout, SdengineError

__all__ = ["Delivery", "Outbox", "RequestStream", "out_of_time"]

PAUSE_PER_WORK = 59.0
"""Deliveries and what their readers do with them may take 1/60 of the loop's time."""
LONGEST_PAUSE_S = 0.05
"""A text that grows 20 times a second is still seen as flowing."""

Delivery: TypeAlias = "tuple[RequestStream, RequestOutput, StepTree | None]"
"""An output on its way to the stream of its request."""


class RequestStream:
    """The outputs of one request, as they come: `async for output in stream`.

    Each output is cumulative and holds the one completion that moved. Leaving the iteration early
    cancels the request when the stream is used as `async with stream:` or closed with `aclose`.
    Belongs to the event loop it was made in.

    Args:
        request_id: its name in the engine; one that was made up is final with the admission.
        prompt: its text, for the outputs; None when it came as token ids.
        token_ids: what the engine is to continue.
        params: how to sample; None takes the checkpoint's defaults.
        outbox: brings outputs into the event loop.
        cancel: tells the engine that nobody reads any more.
        wants_trees: whether `step_tree` is to follow the outputs.
        group: of requests that are waited for together.
    """

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        token_ids: SequenceOf[int],
        params: SamplingParams | None,
        outbox: Outbox,
        cancel: Callable[[RequestStream], None],
        wants_trees: bool,
        group: str | None = None,
    ) -> None:
        self.request_id = request_id
        self.outbox = outbox
        self.loop = outbox.loop
        self.admission: asyncio.Future[None] | None = None
        self.step_tree: StepTree | None = None
        self.is_silent = True  # whether the engine has made no output yet
        self.is_inside = False  # whether the engine has the request; the thread's own
        self.spare_ids: Iterator[str] | None = None  # when its id was made up and may be another
        self.wants_trees = wants_trees
        self.group = group
        self.token_ids = token_ids
        self.params = params
        self._prompt = prompt
        self._cancel = cancel
        self._outputs: dict[int, RequestOutput] = {}
        self._error: BaseException | None = None
        self._is_over = False
        self._reader: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._take: Callable[[RequestOutput], bool] | None = None

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> RequestOutput:
        """The next output.

        Raises:
            EngineFailed: the engine broke down.
            EngineStopped: it was shut down before the request was finished.
            RequestTimeout: the request's time is over.
            RequestError, EngineBusy: it was refused, after `AsyncEngine.enqueue`.
            SdengineError: the model produced logits that are not finite, or somebody else waits for
                the next output: each goes to one reader.
        """
        while not self._outputs:
            if self._error is not None:
                raise self._error
            if self._is_over:
                raise StopAsyncIteration
            if self._reader is not None and not self._reader.done():
                raise SdengineError.from_parts(
                    "one reader of a stream at a time", "another", "let one read for both"
                )
            self._reader = self.loop.create_future()
            await self._reader
        output = self._outputs.pop(next(iter(self._outputs)))
        require_finite(output)
        return self._with_prompt(output)

    @property
    def is_ready(self) -> bool:
        """Whether the next output, or the end, comes without being waited for."""
        return bool(self._outputs) or self._is_over

    async def __aenter__(self) -> RequestStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancels the request unless it is finished; its blocks are free after the running step."""
        self.end(None)

    def relay(self, take: Callable[[RequestOutput], bool]) -> None:
        """Lets outputs pass by the reader, who is then not woken for them.

        Args:
            take: is called in the event loop with an output as it comes, when none before it waits
                to be read; says whether it took it. What it did not take is read as usual, and so
                is every output that ends a completion. What it raises ends the request and is
                raised to the reader.
        """
        self._take = take

    def expire_after(self, timeout_s: float, begun: float) -> None:
        """Ends the request with RequestTimeout unless it is finished within so many seconds.

        Args:
            timeout_s: a finite number; has been checked.
            begun: from when they count, by the loop's clock.
        """
        self._timer = self.loop.call_at(begun + timeout_s, self.end, out_of_time(timeout_s))

    def receive(self, output: RequestOutput, tree: StepTree | None) -> None:
        """Takes an output from the engine; called in the stream's event loop."""
        if self._is_over:
            return
        self.step_tree = tree
        completion = output.outputs[0]
        if self._take is not None and not self._outputs and completion.finish_reason is None:
            try:
                if self._take(self._with_prompt(output)):
                    return
            except Exception as error:  # this reader's own fault: the others' outputs go on
                self.end(error)
                return
        self._outputs.pop(completion.index, None)  # the last one stays the last
        self._outputs[completion.index] = output
        if output.finished:
            self._finish()
        self._wake()

    def expect_admission(self) -> asyncio.Future[None]:
        """To be awaited until the request is in the engine; asked for before it is queued."""
        self.admission = self.loop.create_future()
        return self.admission

    def admit(self) -> None:
        """Notes that the request is in the engine; called in the stream's event loop."""
        if self.admission is not None and not self.admission.done():
            self.admission.set_result(None)

    def end(self, error: BaseException | None) -> None:
        """Ends the stream, with an error or as cancelled; called in the stream's event loop."""
        if self._is_over:
            return
        self._error = error
        self._finish()
        self._cancel(self)
        if error is not None and self.admission is not None and not self.admission.done():
            self.admission.set_exception(error)
        self._wake()

    def _with_prompt(self, output: RequestOutput) -> RequestOutput:
        return output if self._prompt is None else replace(output, prompt=self._prompt)

    def _finish(self) -> None:
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


def out_of_time(timeout_s: float) -> RequestTimeout:
    """What ends a request that was not finished within its time."""
    return RequestTimeout.from_parts(
        f"a request to be finished within {timeout_s:g} s", "one that was not"
    )


class Outbox:
    """Carries outputs into one event loop, a whole step's at once.

    After every delivery there is a pause, so long that deliveries take a small share of the loop's
    time: a loop with many streams gets fewer and larger outputs, because what it has not fetched is
    replaced by what is newer, and a loop with one stream gets them almost as they come. During the
    pause only first and last outputs of requests wake the loop, which would take the interpreter,
    and a processor, from the engine.

    Args:
        loop: where the streams are read.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = threading.Lock()
        self._newest: dict[tuple[RequestStream, int], Delivery] = {}
        self._urgent: set[RequestStream] = set()
        self._is_pausing = False

    def post(self, deliveries: SequenceOf[Delivery], urgent: Iterable[RequestStream] = ()) -> None:
        """Hands a step's outputs over; called in the engine's thread, between two steps: what it
        takes is waited for, and finds cold caches.

        Args:
            deliveries: in the order in which they were made.
            urgent: streams whose outputs are not to wait for the end of a pause.

        Raises:
            RuntimeError: the loop is closed.
        """
        with self._lock:
            was_calling = bool(self._urgent) or bool(self._newest and not self._is_pausing)
            for delivery in deliveries:
                completion = delivery[0], delivery[1].outputs[0].index
                self._newest.pop(completion, None)  # to the end: the last output stays the last
                self._newest[completion] = delivery
            self._urgent.update(urgent)
            calls = bool(self._urgent) or not self._is_pausing
        if (calls and not was_calling) or self.loop.is_closed():
            try:
                self.loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                self._newest, self._urgent = {}, set()  # so that the next one is refused, too
                raise

    def _deliver(self) -> None:
        """Delivers what is urgent, and the rest unless this is a pause, and begins one."""
        with self._lock:
            taken, self._newest = self._newest, {}
            urgent, self._urgent = self._urgent, set()
            begins_pause = bool(taken) and not self._is_pausing
            self._is_pausing |= begins_pause
            if not begins_pause:
                self._newest = {key: one for key, one in taken.items() if key[0] not in urgent}
                taken = {key: one for key, one in taken.items() if key[0] in urgent}
        begin = thread_time()
        for stream, output, tree in taken.values():
            stream.receive(output, tree)
        if begins_pause:
            self.loop.call_soon(self._pause, begin)  # runs after the readers that were woken

    def _pause(self, begin: float) -> None:
        spent = thread_time() - begin
        self.loop.call_later(min(PAUSE_PER_WORK * spent, LONGEST_PAUSE_S), self._end_pause)

    def _end_pause(self) -> None:
        self._is_pausing = False
        self._deliver()
