"""One HTTP request's prompts in the engine: submitted, merged, and cut into deltas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

from sdengine.async_engine import AsyncEngine, RequestStream
from sdengine.core.outputs import CompletionOutput, Logprob, RequestOutput
from sdengine.core.sampling_params import SamplingParams
from sdengine.core.stop import StreamCursor
from sdengine.errors import RequestError
from sdengine.server.errors import ApiError
from sdengine.server.metrics import Metrics
from sdengine.server.settings import ServerSettings

__all__ = ["Delta", "Generation", "Usage", "check_prompt", "longest_sequence"]

ENTRIES_PER_TURN = 336
"""Log-probabilities, those of alternatives counted: encoding them keeps the event loop for 2 ms."""


class Delta(NamedTuple):
    """What is new of one choice.

    Args:
        choice: its index over all prompts.
        text: new text that no stop string can take back.
        token_ids: new tokens.
        logprobs: of these, when they were asked for.
        finish_reason: on the choice's last delta.
    """

    choice: int
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[dict[int, Logprob]] | None
    finish_reason: str | None

    def turns(self, num_tokens: int) -> Iterator[Delta]:
        """Itself, in deltas of so many tokens when there are log-probabilities."""
        num = len(self.token_ids)
        if self.logprobs is None or num <= num_tokens:
            yield self
            return
        for begin in range(0, num, num_tokens):
            end = begin + num_tokens
            yield Delta(
                self.choice,
                "" if begin else self.text,
                self.token_ids[begin:end],
                self.logprobs[begin:end],
                self.finish_reason if end >= num else None,
            )


@dataclass(slots=True)
class Usage:
    """Counts of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def document(self) -> dict[str, int]:
        """As OpenAI writes it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class Generation:
    """The prompts of one HTTP request.

    Args:
        engine: where they run.
        settings: the server's limits.
        metrics: where tokens and times are counted.
        params: for every prompt.
        in_own_words: makes an error of the engine one that names the client's fields.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        settings: ServerSettings,
        metrics: Metrics,
        params: SamplingParams,
        in_own_words: Callable[[RequestError], RequestError],
    ) -> None:
        self.usage = Usage()
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        self._params = params
        self._in_own_words = in_own_words
        self._streams: list[RequestStream] = []
        self._begun_at = perf_counter()
        self._progress: dict[int, Progress] = {}
        self._tokens_per_turn = ENTRIES_PER_TURN // (1 + (params.logprobs or 0))
        self._is_closed = False
        self._is_telling = False  # parts of a delta, which nothing may overtake

    async def begin(self, prompts: Sequence[str | Sequence[int]], field: str = "prompt") -> None:
        """Queues the prompts. What the engine refuses is raised by `deltas`, and nothing of the
        other prompts stays behind.

        Args:
            prompts: texts or token ids.
            field: what the client calls them.

        Raises:
            ApiError: more prompts or completions than the server allows.
            RequestError: more tokens than the server allows, or as `AsyncEngine.encode`.
        """
        self._check_counts(len(prompts), field)
        token_ids: list[Sequence[int]] = []
        for prompt in prompts:
            if token_ids:  # others' turn: 128 texts of 1 kB take 0.13 s
                await asyncio.sleep(0)
            if isinstance(prompt, str):
                prompt = await self._engine.encode(prompt)
            token_ids.append(prompt)
        for ids in token_ids:
            check_prompt(len(ids), self._engine, self._settings, field)
        timeout_s, group = self._settings.request_timeout_s, f"http {id(self)}"
        for ids in token_ids:
            self._streams.append(
                self._engine.enqueue(
                    ids, self._params, may_wait=False, timeout_s=timeout_s, group=group
                )
            )
            self.usage.prompt_tokens += len(ids)

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Everything the choices say, as it comes; leaving cancels what is unfinished.

        Raises:
            SdengineError: as `AsyncEngine.submit` and `RequestStream`.
        """
        try:
            async for prompt_index, output in self._outputs():
                delta = self._delta(prompt_index * self._params.n, output.outputs[0])
                self._is_telling = True
                for part in delta.turns(self._tokens_per_turn):
                    yield part
                    if part.logprobs:  # or an engine that is faster would stop the event loop
                        await asyncio.sleep(0)
                self._is_telling = False
            if not self._is_closed:
                self._metrics.request_seconds.observe(perf_counter() - self._begun_at)
        except RequestError as error:
            raise self._in_own_words(error) from None
        finally:
            await self.aclose()

    def is_ready(self) -> bool:
        """Whether the next delta, or the end, comes without the engine."""
        return all(stream.is_ready for stream in self._streams)

    def relay(self, can_say: Callable[[], bool], say: Callable[[Delta], None]) -> None:
        """Says deltas past the reader of `deltas`, who is then not woken for them: all but those
        that end a choice or take several turns, and while `can_say`. The outputs of several prompts
        are merged by their reader, so nothing is said past it there.

        Args:
            can_say: whether a delta may be said now.
            say: takes it.
        """

        def take(output: RequestOutput) -> bool:
            completion = output.outputs[0]
            if self._is_telling or not can_say() or self._takes_turns(completion):
                return False
            say(self._delta(0, completion))
            return True

        if len(self._streams) == 1:
            self._streams[0].relay(take)

    async def aclose(self) -> None:
        """Cancels what is unfinished; its deltas end."""
        self._is_closed = True
        for stream in self._streams:
            await stream.aclose()

    def _takes_turns(self, completion: CompletionOutput) -> bool:
        """Whether what is new of the only prompt's completion is more than goes in a turn."""
        progress = self._progress.get(completion.index)
        num_told = 0 if progress is None else progress.cursor.num_tokens
        num_new = len(completion.token_ids) - num_told
        return completion.logprobs is not None and num_new > self._tokens_per_turn

    def _delta(self, first_choice: int, completion: CompletionOutput) -> Delta:
        choice = first_choice + completion.index
        if not self._progress:  # nothing was refused
            self._metrics.prompt_tokens += self.usage.prompt_tokens
        progress = self._progress.get(choice)
        if progress is None:
            progress = self._progress[choice] = Progress(StreamCursor(self._params))
        delta = progress.take(choice, completion)
        num_tokens = len(delta.token_ids)
        self.usage.completion_tokens += num_tokens
        self._metrics.generated_tokens += num_tokens
        now = perf_counter()
        if progress.moved_at is None:
            self._metrics.first_token_seconds.observe(now - self._begun_at)
        elif num_tokens:
            self._metrics.inter_token_seconds.observe((now - progress.moved_at) / num_tokens)
        progress.moved_at = now
        return delta

    async def _outputs(self) -> AsyncIterator[tuple[int, RequestOutput]]:
        """Outputs of all prompts, with their prompt's index; each of several streams is one step
        ahead of the reader at most."""
        if len(self._streams) == 1:
            async for output in self._streams[0]:
                yield 0, output
            return
        waiting = {
            asyncio.ensure_future(anext(stream)): index
            for index, stream in enumerate(self._streams)
        }
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    index = waiting.pop(task)
                    try:
                        output = task.result()
                    except StopAsyncIteration:
                        continue
                    waiting[asyncio.ensure_future(anext(self._streams[index]))] = index
                    yield index, output
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _check_counts(self, num_prompts: int, field: str) -> None:
        settings, params = self._settings, self._params
        if num_prompts > settings.max_requests:  # not busy: this would never fit
            message = f"expected at most {settings.max_requests} prompts in one request"
            raise ApiError(400, f"{message}, got {num_prompts}; send several", param=field)
        limit, num = settings.max_completions, num_prompts * params.n
        if num > limit:
            at_fault = field if num_prompts > limit else "n"
            message = f"expected at most {limit} completions in one request, got {num}"
            raise ApiError(400, message, param=at_fault)
        limit_tokens = settings.max_output_tokens
        if limit_tokens is not None and params.max_tokens > limit_tokens:
            raise self._in_own_words(
                RequestError.from_parts(
                    f"max_tokens of at most {limit_tokens}", str(params.max_tokens)
                )
            )


def check_prompt(
    num_tokens: int, engine: AsyncEngine, settings: ServerSettings, field: str = "prompt"
) -> None:
    """Refuses a prompt that is too long for the server, the model or the KV cache.

    Args:
        num_tokens: its length.
        engine: the model's.
        settings: the server's limits.
        field: what the client calls it.

    Raises:
        ApiError: it is too long.
    """
    limit = longest_sequence(engine) - 1
    if settings.max_prompt_tokens is not None:
        limit = min(limit, settings.max_prompt_tokens)
    if num_tokens > limit:
        raise ApiError(
            400,
            f"expected a prompt of at most {limit} tokens, got {num_tokens}",
            param=field,
            code="context_length_exceeded",
        )


def longest_sequence(engine: AsyncEngine) -> int:
    """Tokens that the model's context and the whole KV cache have room for, prompt included."""
    inner = engine.engine
    return min(inner.max_model_len, inner.num_blocks * inner.config.block_size)


@dataclass(slots=True)
class Progress:
    """How far a choice has been told to the client."""

    cursor: StreamCursor
    moved_at: float | None = None

    def take(self, choice: int, completion: CompletionOutput) -> Delta:
        """What is new in a cumulative output."""
        text, new = self.cursor.advance(completion)
        tokens, logprobs = completion.token_ids[new], completion.logprobs
        new_logprobs = None if logprobs is None else logprobs[new]
        return Delta(choice, text, tokens, new_logprobs, completion.finish_reason)
