"""Hugging Face transformers: plain, assisted generation, prompt lookup; all share one model."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch

from benchmarks.peers.contestant import (
    Answer,
    Contestant,
    LeftOut,
    Settings,
    Task,
    left_padded,
)
from sdengine.errors import ConfigError

__all__ = ["TransformersPeer"]

ATTENTION = "sdpa"  # torch's fused attention, its fastest on CPUs
LOOKUP_NGRAM = 3


class CommitClock:
    """A streamer that only looks at the clock: when, and how many tokens of all sequences."""

    def __init__(self) -> None:
        self.first_s = self.last_s = 0.0
        self.num_first = self.num_tokens = 0
        self._has_prompt = False

    def put(self, tokens: torch.Tensor) -> None:
        """Called with the prompt once, then with what every step commits."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        self.last_s = perf_counter()
        self.num_tokens += tokens.numel()
        if not self.num_first:
            self.first_s, self.num_first = self.last_s, tokens.numel()

    def end(self) -> None:
        """Called after the last step."""


class EndMask:
    """A logits processor that lets no text end. (`suppress_tokens` would do, but for assisted
    generation, which hands the assistant both the option and the processor made from it.)
    """

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] with the end tokens at minus infinity."""
        masked = scores.clone()
        masked[:, self._tokens] = -torch.inf
        return masked


class TransformersContestant:
    """One mode of `generate`."""

    def __init__(
        self, mode: str, model: Any, settings: Settings, options: dict[str, Any], shown: str
    ) -> None:
        self.name = f"transformers {mode}"
        self.configuration = f"{settings.dtype}, {settings.num_threads} threads, {shown}"
        self._model = model
        self._num_threads = settings.num_threads
        self._options = options

    def answer(self, task: Task) -> Answer:
        """As `Contestant.answer`."""
        tokens, mask = map(torch.from_numpy, left_padded(task.prompts))
        clock = CommitClock()
        before = torch.get_num_threads()
        torch.set_num_threads(self._num_threads)
        try:
            found = self._model.generate(
                tokens,
                attention_mask=mask,
                max_new_tokens=task.max_tokens,
                do_sample=False,
                streamer=clock,
                **self._options,
            )
        finally:
            torch.set_num_threads(before)
        added = tuple(tuple(row) for row in found[:, tokens.shape[1] :].tolist())
        return Answer(added, clock.last_s - clock.first_s, clock.num_tokens - clock.num_first)

    def close(self) -> None:
        """Drops the weights, once the other modes have done so too."""
        self._model = None
        self._options = {}


class TransformersPeer:
    """Reads the checkpoints as they are."""

    name = "transformers"

    def why_unavailable(self, settings: Settings) -> str | None:
        """Not installed."""
        if find_spec("transformers") is None:
            return "transformers is not installed (pip install transformers)"
        return None

    def contestants(self, settings: Settings) -> Iterator[Contestant | LeftOut]:
        """Plain (twice if it compiles), assisted and prompt lookup for each draft length."""
        model, end = _load(settings.target, settings.dtype)
        base = {"logits_processor": [EndMask(end)]}

        def mode(name: str, options: dict[str, Any], shown: str) -> Contestant:
            shown = f"{ATTENTION} attention, {shown}"
            return TransformersContestant(name, model, settings, {**base, **options}, shown)

        yield mode("plain", {}, "dynamic cache")
        if settings.compiles:
            yield _compiled(settings, base)
        if settings.batch_size > 1:
            yield LeftOut("transformers assisted, prompt lookup", "one sequence at a time only")
            return
        draft, _ = _load(settings.draft, settings.dtype)
        # Its own rule: draft until the draft is unsure of itself, at most num_assistant_tokens.
        yield mode("assisted", {"assistant_model": draft}, "draft model, length by confidence")
        for length in settings.draft_lengths:
            draft_fixed, _ = _load(settings.draft, settings.dtype)
            _draft_length(draft_fixed, length)
            options = {"assistant_model": draft_fixed}
            yield mode(f"assisted {length}", options, f"draft model, {length} draft tokens")
            lookup = {"prompt_lookup_num_tokens": length, "max_matching_ngram_size": LOOKUP_NGRAM}
            shown = f"n-grams of {LOOKUP_NGRAM}, {length} draft tokens"
            yield mode(f"prompt lookup {length}", lookup, shown)


def _load(path: Any, dtype: str) -> tuple[Any, list[int]]:
    """Model, and the tokens that would end a text.

    Raises:
        ConfigError: transformers is installed, but cannot be imported.
    """
    try:
        from transformers import AutoModelForCausalLM, GenerationConfig

        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), attn_implementation=ATTENTION
        ).eval()
    except ImportError as error:  # a torchvision of another torch is enough
        raise ConfigError.from_parts(
            "packages that transformers can use", str(error), "see what importing it says"
        ) from error
    found = model.generation_config.eos_token_id
    end = found if isinstance(found, list) else [] if found is None else [found]
    # Nothing of the checkpoint's sampling defaults. The end stays known, though it is masked:
    # prompt lookup cannot do without.
    model.generation_config = GenerationConfig(
        bos_token_id=model.generation_config.bos_token_id,
        eos_token_id=end or None,
        pad_token_id=end[0] if end else None,
    )
    return model, end


def _draft_length(draft: Any, length: int) -> None:
    draft.generation_config.num_assistant_tokens = length
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0


def _compiled(settings: Settings, base: dict[str, Any]) -> Contestant:
    model, _ = _load(settings.target, settings.dtype)
    model.forward = torch.compile(model.forward, dynamic=False)
    options = {**base, "cache_implementation": "static"}
    shown = f"{ATTENTION} attention, static cache, torch.compile"
    return TransformersContestant("plain compiled", model, settings, options, shown)
