"""LLM: the blocking face of the engine. Prompts in, finished outputs out, or text as it is
committed."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from sdengine.core.argument import items_of
from sdengine.core.config import EngineConfig
from sdengine.core.outputs import RequestOutput
from sdengine.core.plan import MAX_ITERATIONS, STREAM_SECONDS, UNSEEN_SECONDS
from sdengine.core.request_checks import is_integer, prompt_items
from sdengine.core.sampling_params import SamplingParams
from sdengine.core.stop import StreamCursor
from sdengine.engine import Engine, require_finite
from sdengine.errors import EngineBusy, EngineFailed, RequestError, SdengineError
from sdengine.model.chat_template import load_chat_template

Prompt = str | SequenceOf[int]
BUNDLED = "python-completion"


@dataclass(frozen=True, slots=True)
class StreamDelta:
    """New text of a streamed completion.

    Args:
        text: what was added since the last delta.
        token_ids: the tokens committed since then.
        from_draft: of each, whether a draft proposed it and the target accepted it.
        output: the finished output, on the last delta only.
    """

    text: str
    token_ids: SequenceOf[int]
    from_draft: SequenceOf[bool]
    output: RequestOutput | None = None

    @property
    def num_accepted(self) -> int:
        """How many of the tokens came from the draft."""
        return sum(self.from_draft)


@dataclass(slots=True, eq=False)
class Inbox:
    """Outputs of one call's requests, filled by whichever call steps the engine.

    Args:
        request_ids: of the call's requests.
        outputs: the newest of each completion that was not taken yet: outputs are cumulative, and
            a stream may wait for its reader while other calls step.
        interruption: what cut a step short, so that no more will come; "" while all is well.
    """

    request_ids: list[str] = field(default_factory=list)
    outputs: dict[tuple[str, int], RequestOutput] = field(default_factory=dict)
    interruption: str = ""

    def put(self, output: RequestOutput) -> None:
        """Takes what a step gave a completion, in place of what came before."""
        self.outputs[output.request_id, output.outputs[0].index] = output


class LLM:
    """A loaded model pair.

    Calls and open streams share its engine, whichever of them steps it, in one thread at a time: a
    call in the middle of another thread's gets EngineBusy (`AsyncEngine` is for many). When a step
    is cut short, by Ctrl-C or an error, whoever stepped gets that exception, and every other open
    stream an SdengineError that says so: the step may have lost tokens of each. The object itself
    goes on. `close`, or the end of a `with` block, frees its memory at once.

    Args:
        model: directory in Hugging Face format, or the name of a bundled pair.
        draft: directory of the draft model, or the name of a bundled pair, for its draft; None
            takes the draft of the pair that `model` names, or none.
        **settings: every other field of `EngineConfig`.

    Raises:
        ConfigError, CheckpointError, BackendUnavailable, CacheFull: as `Engine`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        draft: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> None:
        self.engine = Engine(EngineConfig(model, draft, **settings))
        self._chat_template = load_chat_template(self.engine.target_path)
        self._ids = count()
        self._inboxes: dict[str, Inbox] = {}
        self._num_streams = 0  # open
        self._left: deque[str] = deque()  # requests to be aborted after the running call

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the engine, see `Engine.close`; open streams get a RequestError."""
        self.engine.close()

    @classmethod
    def from_bundled(cls, name: str = BUNDLED, **settings: Any) -> LLM:
        """The pair that comes with the package."""
        return cls(name, **settings)

    def generate(
        self,
        prompts: Prompt | SequenceOf[Prompt],
        params: SamplingParams | SequenceOf[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Completes prompts, as many at once as the engine has room for.

        Args:
            prompts: a text, token ids, or a list of either.
            params: one for all, or one per prompt; None takes the checkpoint's defaults.

        Returns:
            One output per prompt, in order.

        Raises:
            RequestError: a prompt or a parameter is unusable, and nothing was generated; or a
                request was aborted by somebody else.
            CheckpointError: the model produced logits that are not finite.
            EngineBusy, EngineFailed: as `Engine.step`.
        """
        with self._opened(self._pair_up(prompts, params)) as inbox:
            finished: dict[str, dict[int, RequestOutput]] = {name: {} for name in inbox.request_ids}
            unfinished = set(finished)
            while unfinished:
                for output in self._received(inbox, unfinished):
                    if output.outputs[0].is_finished:
                        finished[output.request_id][output.outputs[0].index] = output
                    if output.finished:
                        unfinished.discard(output.request_id)
        return [_joined(completions) for completions in finished.values()]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[StreamDelta]:
        """Completes one prompt and yields text as it is committed, of a small model what a few
        milliseconds bring at a time.

        Text that might be the beginning of a stop string is held back until it is not.

        Args:
            prompt: a text or token ids.
            params: as `generate`; n must be 1.

        Raises:
            RequestError: as `generate`, or n > 1.
            SdengineError: as `generate`, or a step was cut short by another call's interrupt.
        """
        params = self.engine.default_params if params is None else params
        if isinstance(params, SamplingParams) and params.n != 1:
            raise RequestError.from_parts("n = 1 when streaming", str(params.n), "call generate")
        deltas = self._deltas(prompt, params)
        next(deltas)  # queues the request; from here on dropping the iterator aborts it
        return deltas

    def chat(
        self,
        messages: SequenceOf[Mapping[str, Any]],
        params: SamplingParams | None = None,
    ) -> RequestOutput:
        """Answers a conversation with the checkpoint's own (sandboxed) chat template.

        Args:
            messages: dicts with "role" and "content".
            params: as `generate`.

        Raises:
            RequestError: as `render_chat`.
            SdengineError: as `generate`.
        """
        return self.generate([self.render_chat(messages)], params)[0]

    def render_chat(self, messages: SequenceOf[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer.

        Raises:
            RequestError: no tokenizer or chat template, or it refuses the messages.
        """
        if self.engine.tokenizer is None:
            raise RequestError.from_parts(
                "a checkpoint with tokenizer.json", "none", "call generate with token ids"
            )
        if self._chat_template is None:
            raise RequestError.from_parts(
                "a checkpoint with a chat template", "none", "call generate with a plain prompt"
            )
        text = self._chat_template.render(messages, add_generation_prompt=True)
        return self.engine.tokenizer.encode(text, add_special_tokens=False)

    def _deltas(self, prompt: Prompt, params: SamplingParams) -> Iterator[StreamDelta]:
        """An empty delta once the request is queued, then those of `stream`."""
        with self._opened([(prompt, params)]) as inbox, self._streaming():
            yield StreamDelta("", (), ())
            done, cursor = False, StreamCursor(params)
            while not done:
                for output in self._received(inbox, inbox.request_ids):
                    require_finite(output)
                    completion, done = output.outputs[0], output.finished
                    text, new = cursor.advance(completion)
                    tokens, from_draft = completion.token_ids[new], completion.from_draft[new]
                    yield StreamDelta(text, tokens, from_draft, output if done else None)

    @contextmanager
    def _streaming(self) -> Iterator[None]:
        self._num_streams += 1
        try:
            yield
        finally:
            self._num_streams -= 1

    @contextmanager
    def _opened(self, requests: list[tuple[Prompt, SamplingParams]]) -> Iterator[Inbox]:
        """Queues requests; whatever ends the block aborts those that are unfinished."""
        inbox = Inbox()
        try:
            inbox.request_ids += [self._free_id() for _ in requests]
            self._inboxes.update(dict.fromkeys(inbox.request_ids, inbox))
            named = [(name, *request) for name, request in zip(inbox.request_ids, requests)]
            self.engine.add_requests(named, inbox.request_ids[0])
            yield inbox
        finally:
            for request_id in inbox.request_ids:
                if request_id in self._inboxes:
                    self._abort(request_id)

    def _free_id(self) -> str:
        """An id that no unfinished request has, those included that were given to the engine."""
        names = (f"llm-{number}" for number in self._ids)
        return next(name for name in names if not self.engine.has_request(name))

    def _abort(self, request_id: str) -> None:
        """Ends a request of this object's and forgets it. A stream that the garbage collector drops
        in the middle of a step, or another thread, leaves that to the end of the step."""
        self._inboxes.pop(request_id, None)
        try:
            if self.engine.has_request(request_id):
                self.engine.abort_request(request_id)
        except EngineBusy:
            self._left.append(request_id)
        except EngineFailed:  # in a forked process there is nothing to end
            pass

    def _abort_left(self) -> None:
        for _ in range(len(self._left)):
            self._abort(self._left.popleft())

    def _received(self, inbox: Inbox, unfinished: Iterable[str]) -> list[RequestOutput]:
        """Outputs that came for an inbox; steps the engine, for every inbox, until there are some.

        Raises:
            RequestError: the requests were aborted behind this object's back.
            SdengineError: they were aborted because a step of another call was cut short.
        """
        while not inbox.outputs:
            if inbox.interruption:
                raise SdengineError.from_parts(
                    "every step to run to its end",
                    f"one cut short by {inbox.interruption}",
                    "send the request again",
                )
            if not any(map(self.engine.has_request, unfinished)):
                raise RequestError.from_parts("a request to run to its end", "an aborted one")
            self._step()
        received, inbox.outputs = inbox.outputs, {}
        return list(received.values())

    def _step(self) -> None:
        """Steps the engine and hands out what came, to every inbox."""
        try:
            outputs = self.engine.step(
                MAX_ITERATIONS, STREAM_SECONDS if self._num_streams else UNSEEN_SECONDS
            )
            self._abort_left()
            for output in outputs:
                inbox = self._inboxes.get(output.request_id)
                if inbox is not None:
                    inbox.put(output)
                    if output.finished:
                        del self._inboxes[output.request_id]
        except EngineBusy:  # nothing has begun: the call in the middle goes on
            raise
        except BaseException as error:
            self._give_up(type(error).__name__)
            raise

    def _give_up(self, interruption: str) -> None:
        """Aborts whatever runs: a step that was cut short may have lost tokens of every sequence,
        and to go on from there would make wrong text."""
        for inbox in self._inboxes.values():
            inbox.interruption = interruption
        for request_id in list(self._inboxes):
            self._abort(request_id)

    def _pair_up(
        self,
        prompts: Prompt | SequenceOf[Prompt],
        params: SamplingParams | SequenceOf[SamplingParams] | None,
    ) -> list[tuple[Prompt, SamplingParams]]:
        listed: list[Any] = [prompts] if isinstance(prompts, str) else prompt_items(prompts)
        if not listed:
            raise RequestError.from_parts("at least one prompt", "an empty list")
        if is_integer(listed[0]):
            listed = [listed]
        if params is None or isinstance(params, SamplingParams):
            params = self.engine.default_params if params is None else params
            return [(prompt, params) for prompt in listed]
        given = items_of(params)
        if given is None or len(given) != len(listed):
            raise RequestError.from_parts(
                f"one SamplingParams, or {len(listed)} for {len(listed)} prompts",
                type(params).__name__ if given is None else str(len(given)),
            )
        return list(zip(listed, given))


def _joined(outputs: Mapping[int, RequestOutput]) -> RequestOutput:
    """One output of a request with all its completions, metrics of the last to finish."""
    for output in outputs.values():
        require_finite(output)
    last = next(output for output in outputs.values() if output.finished)
    completions = [outputs[index].outputs[0] for index in sorted(outputs)]
    return replace(last, outputs=completions)
