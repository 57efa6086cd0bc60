"""LLM: the blocking face of the engine. Prompts in, finished outputs out, or text as it is
committed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from sdengine.core.config import EngineConfig
from sdengine.core.outputs import RequestOutput
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import NOT_FINITE, Engine
from sdengine.errors import RequestError, SdengineError
from sdengine.model.chat_template import load_chat_template
from sdengine.model.registry import resolve_model

Prompt = str | SequenceOf[int]
BUNDLED = "python-completion"


@dataclass(frozen=True, slots=True)
class StreamDelta:
    """New text of a streamed completion.

    Args:
        text: what was added since the last delta.
        token_ids: the tokens committed in this step.
        num_accepted: how many of these came from the draft; the last one is the target's own.
        output: the finished output, on the last delta only.
    """

    text: str
    token_ids: SequenceOf[int]
    num_accepted: int
    output: RequestOutput | None = None


class LLM:
    """A loaded model pair.

    Args:
        model: directory in Hugging Face format, or the name of a bundled pair.
        draft: directory of the draft model; None takes the bundled pair's, or none.
        **settings: every other field of `EngineConfig`.

    Raises:
        ConfigError, CheckpointError, BackendUnavailable, CacheFull: as `Engine`.
    """

    def __init__(self, model: str, draft: str | None = None, **settings: Any) -> None:
        self.engine = Engine(EngineConfig(model, draft, **settings))
        self._chat_template = load_chat_template(resolve_model(model, draft).target)
        self._ids = count()

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
            RequestError: a prompt or a parameter is unusable; nothing was generated.
            SdengineError: the model produced logits that are not finite.
        """
        requests = self._pair_up(prompts, params)
        ids = [f"generate-{next(self._ids)}" for _ in requests]
        self._add_all(ids, requests)
        finished: dict[str, dict[int, RequestOutput]] = {request_id: {} for request_id in ids}
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                if output.request_id in finished and output.outputs[0].is_finished:
                    finished[output.request_id][output.outputs[0].index] = output
        return [_joined(finished[request_id]) for request_id in ids]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[StreamDelta]:
        """Completes one prompt and yields text as it is committed.

        Text that might be the beginning of a stop string is held back until it is not.

        Args:
            prompt: a text or token ids.
            params: as `generate`; n must be 1.

        Raises:
            RequestError: as `generate`, or n > 1.
        """
        params = params or self.engine.default_params
        if params.n != 1:
            raise RequestError.from_parts("n = 1 when streaming", str(params.n), "call generate")
        request_id = f"stream-{next(self._ids)}"
        self.engine.add_request(request_id, prompt, params)
        held_back = max(map(len, params.stop or ()), default=1) - 1
        return self._stream(request_id, held_back)

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
            RequestError: no chat template, or it refuses the messages.
        """
        return self.generate([self.render_chat(messages)], params)[0]

    def render_chat(self, messages: SequenceOf[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer."""
        if self._chat_template is None:
            raise RequestError.from_parts(
                "a checkpoint with a chat template", "none", "call generate with a plain prompt"
            )
        text = self._chat_template.render(messages, add_generation_prompt=True)
        return self.engine.tokenizer.encode(text, add_special_tokens=False)

    def _stream(self, request_id: str, held_back: int) -> Iterator[StreamDelta]:
        sent_text, sent_tokens, done = 0, 0, False
        try:
            while not done:
                for output in self.engine.step():
                    if output.request_id != request_id:
                        continue
                    completion = output.outputs[0]
                    done = completion.is_finished
                    end = len(completion.text) if done else len(completion.text) - held_back
                    tokens = completion.token_ids[sent_tokens:]
                    sent_tokens = len(completion.token_ids)
                    text = completion.text[sent_text : max(end, sent_text)]
                    sent_text += len(text)
                    _raise_if_failed(output)
                    yield StreamDelta(
                        text, tokens, max(len(tokens) - 1, 0), output if done else None
                    )
        finally:
            if not done:
                self.engine.abort_request(request_id)

    def _pair_up(
        self,
        prompts: Prompt | SequenceOf[Prompt],
        params: SamplingParams | SequenceOf[SamplingParams] | None,
    ) -> list[tuple[Prompt, SamplingParams]]:
        is_single = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int))
        listed: list[Any] = [prompts] if is_single else list(prompts)
        if not listed:
            raise RequestError.from_parts("at least one prompt", "an empty list")
        if params is None or isinstance(params, SamplingParams):
            return [(prompt, params or self.engine.default_params) for prompt in listed]
        if len(params) != len(listed):
            raise RequestError.from_parts(
                f"one SamplingParams, or {len(listed)} for {len(listed)} prompts", str(len(params))
            )
        return list(zip(listed, params))

    def _add_all(self, ids: list[str], requests: list[tuple[Prompt, SamplingParams]]) -> None:
        added: list[str] = []
        try:
            for request_id, (prompt, params) in zip(ids, requests):
                self.engine.add_request(request_id, prompt, params)
                added.append(request_id)
        except SdengineError:
            for request_id in added:
                self.engine.abort_request(request_id)
            raise


def _joined(outputs: Mapping[int, RequestOutput]) -> RequestOutput:
    """One output of a request with all its completions, metrics of the last to finish."""
    for output in outputs.values():
        _raise_if_failed(output)
    last = next(output for output in outputs.values() if output.finished)
    completions = [outputs[index].outputs[0] for index in sorted(outputs)]
    return replace(last, outputs=completions)


def _raise_if_failed(output: RequestOutput) -> None:
    if output.outputs[0].stop_reason == NOT_FINITE:
        raise SdengineError.from_parts(
            "finite logits", NOT_FINITE, "check the checkpoint's weights for NaN and infinity"
        )
