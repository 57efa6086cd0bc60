"""An engine without a model: answers from a script, with real outputs and empty trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from sdengine.core.outputs import (
    CompletionOutput,
    RequestMetrics,
    RequestOutput,
    SpeculationStats,
)
from sdengine.core.plan import StepReport
from sdengine.core.sampling_params import SamplingParams
from sdengine.kernels.token_tree import TokenTree


@dataclass
class FakeEngine:
    """Every request commits `steps`, one a step: texts whose letters are tokens, all but the last
    of each drafted."""

    steps: Sequence[str] = ("ab", "c", "def")
    is_speculative: bool = True
    requests: list[tuple[str, SamplingParams]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._running: dict[str, int] = {}
        self.last_report = StepReport((), 0, 0, 0.0, 0.0, 0.0, False)
        zeros = torch.zeros(8, dtype=torch.int32)
        verdict = SimpleNamespace(num_accepted=zeros, path=zeros.view(8, 1))
        state = SimpleNamespace(wants_logits=zeros)
        workspace = SimpleNamespace(token_tree=TokenTree.allocate(8, 4), state=state)
        self.iteration = SimpleNamespace(workspace=workspace, verdict=verdict)

    def add_request(
        self, request_id: str, prompt: str, params: SamplingParams, group: str | None = None
    ) -> None:
        self.requests.append((prompt, params))
        self._running[request_id] = 0

    def has_unfinished_requests(self) -> bool:
        return bool(self._running)

    def step(self, *limits: float) -> list[RequestOutput]:
        outputs = []
        for request_id, done in list(self._running.items()):
            self._running[request_id] = done + 1
            outputs.append(self._output(request_id, self.steps[: done + 1]))
            if done + 1 == len(self.steps):
                del self._running[request_id]
        return outputs

    def _output(self, request_id: str, steps: Sequence[str]) -> RequestOutput:
        text = "".join(steps)
        histogram = [0] * max(len(step) for step in steps)
        for step in steps:
            histogram[len(step) - 1] += 1
        stats = SpeculationStats.from_histogram(histogram, 2 * len(text), len(text))
        finished = len(steps) == len(self.steps)
        reason = "length" if finished else None
        completion = CompletionOutput(0, text, [ord(c) for c in text], finish_reason=reason)
        speculation = stats if self.is_speculative else None
        metrics = RequestMetrics(0.0, 0.1, 0.2, 3, len(text), speculation)
        return RequestOutput(request_id, None, [1], [completion], finished, metrics)
