"""An LLM without a model: answers from a script, with the real outputs and stream deltas."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

from sdengine.core.outputs import (
    CompletionOutput,
    RequestMetrics,
    RequestOutput,
    SpeculationStats,
)
from sdengine.core.sampling_params import SamplingParams
from sdengine.llm import StreamDelta


class LetterTokenizer:
    """Token id = code point."""

    def detokenizer(self, *, skip_special_tokens: bool, continues_text: bool) -> LetterStream:
        return LetterStream()


class LetterStream:
    def push(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))

    def finish(self) -> str:
        return ""


@dataclass
class FakeLLM:
    """Streams `steps`: the text that each step commits.

    Args:
        steps: texts; all but the last letter of each counts as accepted draft tokens.
        is_speculative: whether outputs carry statistics.
        log: names are appended here when a request runs.
        name: what is appended.
    """

    steps: Sequence[str] = ("ab", "c", "def")
    is_speculative: bool = True
    log: list[str] = field(default_factory=list)
    name: str = "fake"
    requests: list[tuple[object, SamplingParams]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = SimpleNamespace(
            tokenizer=LetterTokenizer(), default_params=SamplingParams(temperature=0.5, top_k=7)
        )

    def render_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return [len(message["content"]) for message in messages]

    def stream(self, prompt: object, params: SamplingParams) -> Iterator[StreamDelta]:
        self.log.append(self.name)
        self.requests.append((prompt, params))
        whole = self._output(prompt)
        for number, text in enumerate(self.steps, start=1):
            is_last = number == len(self.steps)
            ids = [ord(letter) for letter in text]
            from_draft = [True] * (len(ids) - 1) + [False]
            yield StreamDelta(text, ids, from_draft, whole if is_last else None)

    def _output(self, prompt: object) -> RequestOutput:
        text = "".join(self.steps)
        histogram = [0] * max(len(step) for step in self.steps)
        for step in self.steps:
            histogram[len(step) - 1] += 1
        stats = SpeculationStats.from_histogram(histogram, 2 * len(text), len(text))
        metrics = RequestMetrics(0.0, 0.1, 0.2, 3, len(text))
        return RequestOutput(
            "fake-0",
            prompt if isinstance(prompt, str) else None,
            [1, 2, 3],
            [CompletionOutput(0, text, [ord(letter) for letter in text], finish_reason="length")],
            True,
            replace(metrics, speculation=stats if self.is_speculative else None),
        )


class TerminalStream(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True
