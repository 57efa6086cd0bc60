"""How answers look: the documents and chunks of the two endpoints, and their log-probabilities."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from sdengine.core.outputs import Logprob
from sdengine.server.generation import Delta
from sdengine.server.token_texts import TextOffsets, TokenTexts

__all__ = ["ChatForm", "CompletionForm", "Form"]

NO_USAGE: dict[str, Any] = {"usage": None}
"""What OpenAI's chunks say until the one with the counts."""


class Form(Protocol):
    """Shapes the answers of one request."""

    def opening(self, choice: int) -> dict[str, Any] | None:
        """A chunk before a choice's first text, if there is one."""

    def chunk(self, delta: Delta) -> dict[str, Any]:
        """A chunk of a stream."""

    def counts(self, usage: dict[str, int]) -> dict[str, Any] | None:
        """The chunk that ends a stream with counts, if they were asked for."""

    def logprobs(self, delta: Delta) -> dict[str, Any] | None:
        """Of a choice's new tokens, in lists that those of its other deltas continue."""

    def document(self, choices: Sequence[Delta], usage: dict[str, int]) -> dict[str, Any]:
        """The whole answer, each choice one delta."""


class CompletionForm:
    """Answers of /v1/completions.

    Args:
        model: what the client called the model.
        texts: write the tokens of log-probabilities.
        includes_usage: whether a stream ends with counts, and says null until then.
    """

    def __init__(self, model: str, texts: TokenTexts, includes_usage: bool = False) -> None:
        self._head = _head("cmpl", "text_completion", model)
        self._no_usage = NO_USAGE if includes_usage else {}
        self._texts = texts
        self._offsets: dict[int, TextOffsets] = {}

    def opening(self, choice: int) -> None:
        """None: text comes at once."""

    def chunk(self, delta: Delta) -> dict[str, Any]:
        """As `Form.chunk`."""
        return {**self._with_choices([self._choice(delta)]), **self._no_usage}

    def counts(self, usage: dict[str, int]) -> dict[str, Any] | None:
        """As `Form.counts`."""
        return {**self._with_choices([]), "usage": usage} if self._no_usage else None

    def logprobs(self, delta: Delta) -> dict[str, Any] | None:
        """As `Form.logprobs`."""
        if delta.logprobs is None:
            return None
        tokens, own = delta.token_ids, _own_entries(delta)
        if delta.choice not in self._offsets:
            self._offsets[delta.choice] = self._texts.offsets()
        offsets = self._offsets[delta.choice].of(tokens, [e.decoded_token for e in own])
        return {
            "tokens": list(map(self._texts.name, tokens, own)),
            "token_logprobs": [_finite(entry.logprob) for entry in own],
            "top_logprobs": [self._top(entries) for entries in delta.logprobs],
            "text_offset": offsets,
        }

    def document(self, choices: Sequence[Delta], usage: dict[str, int]) -> dict[str, Any]:
        """As `Form.document`."""
        return {**self._with_choices([self._choice(delta) for delta in choices]), "usage": usage}

    def _with_choices(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "choices": choices}

    def _choice(self, delta: Delta) -> dict[str, Any]:
        return {
            "index": delta.choice,
            "text": delta.text,
            "logprobs": self.logprobs(delta),
            "finish_reason": delta.finish_reason,
        }

    def _top(self, entries: dict[int, Logprob]) -> dict[str, float]:
        top: dict[str, float] = {}
        for token, entry in _best(entries, len(entries)):  # of two with one name the likelier stays
            top.setdefault(self._texts.name(token, entry), _finite(entry.logprob))
        return top


class ChatForm:
    """Answers of /v1/chat/completions.

    Args:
        model: what the client called the model.
        num_logprobs: alternatives per token to show.
        texts: write the tokens of log-probabilities.
        includes_usage: whether a stream ends with counts, and says null until then.
    """

    def __init__(
        self, model: str, num_logprobs: int | None, texts: TokenTexts, includes_usage: bool = False
    ) -> None:
        self._texts = texts
        self._no_usage = NO_USAGE if includes_usage else {}
        self._head = _head("chatcmpl", "chat.completion", model)
        self._chunk_head = {**self._head, "object": "chat.completion.chunk"}
        self._num_logprobs = num_logprobs or 0

    def opening(self, choice: int) -> dict[str, Any]:
        """The chunk that says who speaks."""
        delta = {"role": "assistant", "content": ""}
        return self._chunk_with([self._part(choice, "delta", delta, None, None)])

    def chunk(self, delta: Delta) -> dict[str, Any]:
        """As `Form.chunk`."""
        content = {"content": delta.text} if delta.text or delta.token_ids else {}
        logprobs = self.logprobs(delta)
        return self._chunk_with(
            [self._part(delta.choice, "delta", content, logprobs, delta.finish_reason)]
        )

    def counts(self, usage: dict[str, int]) -> dict[str, Any] | None:
        """As `Form.counts`."""
        return {**self._chunk_with([]), "usage": usage} if self._no_usage else None

    def logprobs(self, delta: Delta) -> dict[str, Any] | None:
        """As `Form.logprobs`."""
        if delta.logprobs is None:
            return None
        content = [
            {
                **self._logprob(token, entries[token]),
                "top_logprobs": [self._logprob(*e) for e in _best(entries, self._num_logprobs)],
            }
            for token, entries in zip(delta.token_ids, delta.logprobs)
        ]
        return {"content": content, "refusal": None}

    def document(self, choices: Sequence[Delta], usage: dict[str, int]) -> dict[str, Any]:
        """As `Form.document`."""
        parts = [
            self._part(
                delta.choice,
                "message",
                {"role": "assistant", "content": delta.text, "refusal": None},
                self.logprobs(delta),
                delta.finish_reason,
            )
            for delta in choices
        ]
        return {**self._head, "choices": parts, "usage": usage}

    def _chunk_with(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._chunk_head, "choices": choices, **self._no_usage}

    def _part(
        self, index: int, name: str, content: dict[str, Any], logprobs: Any, reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, name: content, "logprobs": logprobs, "finish_reason": reason}

    def _logprob(self, token: int, entry: Logprob) -> dict[str, Any]:
        told = list(self._texts.bytes_of(token))
        return {"token": entry.decoded_token, "logprob": _finite(entry.logprob), "bytes": told}


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def _own_entries(delta: Delta) -> list[Logprob]:
    return [entries[token] for token, entries in zip(delta.token_ids, delta.logprobs or ())]


def _best(entries: dict[int, Logprob], num: int) -> list[tuple[int, Logprob]]:
    return sorted(entries.items(), key=lambda item: item[1].rank)[:num]


def _finite(value: float) -> float:
    """JSON has no infinity: a token that cannot come gets OpenAI's floor."""
    return max(value, -9999.0)
