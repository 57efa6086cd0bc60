"""AsyncEngine: the asyncio face of the engine.

One background thread owns the `Engine` and steps it while there is something to do; coroutines
submit requests, read their outputs and cancel them. Nothing else touches the engine, so nothing in
it needs a lock.
"""

from __future__ import annotations

import asyncio
import copy
import weakref
from collections.abc import AsyncIterator
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count

from sdengine.async_engine.options import CallOptions, checked_timeout
from sdengine.async_engine.stream import Outbox, RequestStream, out_of_time
from sdengine.async_engine.thread import EngineThread, StepTotals
from sdengine.core.argument import check_int, shown
from sdengine.core.outputs import RequestOutput
from sdengine.core.request_checks import prompt_items
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from sdengine.errors import ConfigError, RequestError
from sdengine.model.tokenizer import LONG_TEXT

__all__ = ["AsyncEngine", "EngineStatus"]

NUM_TOKENIZER_THREADS = 2
"""Long prompts are tokenised beside the engine; one of them does not keep a short one waiting."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A moment's state, for health checks and metrics.

    Args:
        state: "running", "draining" (finishes what it has), "stopped" or "failed".
        failure: what the engine failed of; None unless it did.
        num_requests: unfinished requests inside the engine.
        num_callers_waiting: requests that wait for a place in the engine.
        num_running, num_waiting: the engine's sequences with and without a slot.
        num_blocks, num_free_blocks: of the KV cache.
        totals: sums over all steps.
    """

    state: str
    failure: BaseException | None
    num_requests: int
    num_callers_waiting: int
    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    totals: StepTotals


class AsyncEngine:
    """An engine for coroutines.

    Args:
        engine: belongs to this object until that has ended. Its constants (config, tokenizer,
            default_params, max_model_len) may be read; everything else is its thread's.
        max_requests: most unfinished requests inside the engine; `submit` waits for a place.

    Raises:
        ConfigError: max_requests is not positive, the engine is none, or it is already in use: it
            has requests, or another AsyncEngine that has not ended.

        EngineFailed: the engine is closed.

    An object that is no longer needed is ended by `drain` or `close`, or by `async with`, which
    drains, or ends unfinished requests at once where an exception leaves the block; otherwise it
    ends with the process.
    """

    def __init__(self, engine: Engine, *, max_requests: int = 256) -> None:
        max_requests = check_int(ConfigError, "max_requests", max_requests, 1)
        if not isinstance(engine, Engine):
            raise ConfigError.from_parts("an Engine", shown(engine), "AsyncEngine(Engine(model))")
        self.engine = engine
        self._thread = EngineThread(engine, max_requests)
        self._tokenizers = ThreadPoolExecutor(NUM_TOKENIZER_THREADS, "sdengine-tokenizer")
        self._ids = map("async-{}".format, count())
        self._outbox: Outbox | None = None
        self._thread.start()
        self._finalizer = weakref.finalize(self, self._thread.join)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *exception: object) -> None:
        # An exception is not to wait for requests that nobody reads any more.
        await self.drain(None if exception[0] is None else 0.0)

    async def submit(
        self,
        prompt: str | SequenceOf[int],
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        may_wait: bool = True,
        timeout_s: float | None = None,
        wants_trees: bool = False,
        group: str | None = None,
    ) -> RequestStream:
        """Queues a request and returns when the engine has taken it.

        Args:
            prompt: text, or token ids.
            params: how to sample; None takes the checkpoint's generation defaults.
            request_id: unique among the unfinished requests; None makes up one that is.
            may_wait: wait for a place when the engine is full, first come, first served.
            timeout_s: from now on, not negative; a request that takes longer is ended with
                RequestTimeout.
            wants_trees: keep the token tree of the newest step in the stream's `step_tree`.
            group: as `Engine.add_request`.

        Returns:
            Its outputs. Close it, best with `async with`: an abandoned request runs to its end.

        Raises:
            RequestError: as `Engine.add_request`, or another argument is unusable.
            EngineBusy: the engine is full and may_wait is False.
            EngineStopped, EngineFailed: it takes no requests any more.
            RequestTimeout: it found no place in time.
        """
        call = CallOptions(request_id, may_wait, timeout_s, wants_trees, group)
        self._thread.require_open()  # before a long text is encoded in vain
        begun = asyncio.get_running_loop().time()
        if isinstance(prompt, str):
            token_ids = await self._encode_in_time(prompt, call.timeout_s)
            stream = self._open(token_ids, params, call, begun, prompt)
        else:
            stream = self._open(prompt, params, call, begun)
        admission = stream.expect_admission()
        self._thread.submit(stream, may_wait)
        try:
            await admission
        except BaseException:
            await stream.aclose()
            raise
        return stream

    def enqueue(
        self,
        token_ids: SequenceOf[int],
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        may_wait: bool = True,
        timeout_s: float | None = None,
        group: str | None = None,
    ) -> RequestStream:
        """Queues a request without waiting for the engine's word: the stream gives it, with its
        first output or by raising what `submit` raises.

        Args:
            token_ids, params, request_id, may_wait, timeout_s, group: as `submit`.

        Raises:
            RequestError: token_ids is no list of any kind, or request_id, may_wait, timeout_s or
                group is of no use to any engine.
        """
        if isinstance(token_ids, str):
            raise RequestError.from_parts(
                "token_ids to be a list of any kind", "text", "submit takes text, too"
            )
        call = CallOptions(request_id, may_wait, timeout_s, group=group)
        stream = self._open(token_ids, params, call, asyncio.get_running_loop().time())
        self._thread.submit(stream, may_wait)
        return stream

    def _open(
        self,
        token_ids: SequenceOf[int],
        params: SamplingParams | None,
        call: CallOptions,
        begun: float,
        text: str | None = None,
    ) -> RequestStream:
        # A list of our own: the engine's thread reads it when the caller's may be another one's.
        token_ids = prompt_items(token_ids)
        request_id = next(self._ids) if call.request_id is None else call.request_id
        outbox, cancel = self._current_outbox(), self._cancel
        stream = RequestStream(
            request_id, text, token_ids, params, outbox, cancel, call.wants_trees, call.group
        )
        if call.request_id is None:
            stream.spare_ids = self._ids
        if call.timeout_s is not None:
            stream.expire_after(call.timeout_s, begun)
        return stream

    async def generate(
        self,
        prompt: str | SequenceOf[int],
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
        group: str | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Submits a request and yields its outputs; leaving the loop cancels it.

        Args:
            prompt, params, request_id, timeout_s, group: as `submit`.

        Yields:
            Cumulative outputs, each with the one completion that moved.

        Raises:
            SdengineError: as `submit` and `RequestStream`.
        """
        stream = await self.submit(
            prompt, params, request_id=request_id, timeout_s=timeout_s, group=group
        )
        async with stream:
            async for output in stream:
                yield output

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; a long one is tokenised beside the event loop and the engine.

        Args:
            text: any text.
            add_special_tokens: as `Tokenizer.encode`.

        Raises:
            RequestError: the checkpoint has no tokenizer, or the text is not valid Unicode.
            EngineStopped, EngineFailed: the text is long, and the threads for it have ended.
        """
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            raise RequestError.from_parts(
                "token ids, because the checkpoint has no tokenizer.json", "text"
            )
        is_long = isinstance(text, str) and len(text) > LONG_TEXT
        if not is_long:  # sooner done than a thread is woken and heard
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)
        encode = partial(tokenizer.encode, text, add_special_tokens=add_special_tokens)
        try:
            encoded = asyncio.get_running_loop().run_in_executor(self._tokenizers, encode)
        except RuntimeError:  # shut down by `close`
            raise self._thread.reason() from None
        return await encoded

    async def _encode_in_time(self, text: str, timeout_s: float | None) -> list[int]:
        """As `encode`; RequestTimeout when a text that is tokenised elsewhere takes too long."""
        if timeout_s is None or len(text) <= LONG_TEXT:
            return await self.encode(text)
        try:
            return await asyncio.wait_for(self.encode(text), timeout_s)
        except asyncio.TimeoutError:
            raise out_of_time(timeout_s) from None

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Takes no more requests, finishes the others and ends the thread.

        Args:
            timeout_s: requests that are unfinished then get EngineStopped; None waits for all.

        Returns:
            Whether all were finished.

        Raises:
            ConfigError: timeout_s is no finite number >= 0; nothing has begun.
        """
        timeout_s = checked_timeout(ConfigError, timeout_s)
        self._thread.drain()
        ended = asyncio.wrap_future(self._thread.ended)
        done, _ = await asyncio.wait([ended], timeout=timeout_s)
        self._thread.stop()
        await asyncio.wait([ended])  # which a cancellation leaves alone, unlike `await ended`
        self.close()
        return bool(done) and self._thread.failure is None

    def close(self) -> None:
        """Ends the thread after the running step; unfinished requests get EngineStopped."""
        self._finalizer()
        self._tokenizers.shutdown(wait=False)

    def status(self) -> EngineStatus:
        """The state of this moment; may be asked for in any thread, also after the end."""
        thread, engine = self._thread, self.engine
        totals = copy.copy(thread.totals)
        totals.accepted_by_depth = list(totals.accepted_by_depth)
        return EngineStatus(
            state=self._state(),
            failure=thread.failure,
            num_requests=len(thread.streams),
            num_callers_waiting=len(thread.line),
            num_running=engine.num_running,
            num_waiting=engine.num_waiting,
            num_blocks=engine.num_blocks,
            num_free_blocks=engine.num_free_blocks,
            totals=totals,
        )

    def _state(self) -> str:
        if self._thread.failure is not None:
            return "failed"
        if self._thread.ended.done():
            return "stopped"
        return "draining" if self._thread.is_draining else "running"

    def _cancel(self, stream: RequestStream) -> None:
        self._thread.cancel(stream)

    def _current_outbox(self) -> Outbox:
        loop = asyncio.get_running_loop()
        outbox = self._outbox  # another thread's loop may replace it in between
        if outbox is None or outbox.loop is not loop:
            outbox = self._outbox = Outbox(loop)
        return outbox
