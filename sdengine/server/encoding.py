"""Answers as bytes: events, and whole documents that are ready when their last token comes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import Any

from sdengine.server.forms import Form
from sdengine.server.generation import Delta

__all__ = ["Chunks", "Document", "event"]

DONE = b"data: [DONE]\n\n"
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
MARK = "\0text\0"
NO_LOGPROBS = b'"logprobs":null'
"""Stands nowhere in a text, whose quotes are escaped."""


def event(document: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return _encoded(f"data: {ENCODER.encode(document)}\n\n")


def _encoded(text: str) -> bytes:
    # Half of a surrogate pair cannot come from a tokenizer, but must not end a stream if it did.
    return text.encode("utf-8", "replace")


class Chunks:
    """Encodes deltas. Most differ from others of their choice by their text alone, so what stands
    around the text is encoded once.

    Args:
        form: the endpoint's.
    """

    def __init__(self, form: Form) -> None:
        self._form = form
        self._frames: dict[int, tuple[str, str]] = {}

    def encode(self, delta: Delta) -> bytes:
        """Events of a delta; empty when it says nothing."""
        opening = b""
        if delta.choice not in self._frames:
            opening = self._open(delta.choice)
        if delta.finish_reason or delta.logprobs:
            return opening + event(self._form.chunk(delta))
        if not delta.text:
            return opening
        before, after = self._frames[delta.choice]
        return opening + _encoded(before + encode_basestring(delta.text) + after)

    def end(self, usage: dict[str, int]) -> bytes:
        """The last events: counts, if they were asked for, and the mark of the end."""
        counts = self._form.counts(usage)
        return (b"" if counts is None else event(counts)) + DONE

    def _open(self, choice: int) -> bytes:
        usual = event(self._form.chunk(Delta(choice, MARK, (), None, None))).decode()
        before, _, after = usual.rpartition(encode_basestring(MARK))
        self._frames[choice] = before, after
        opening = self._form.opening(choice)
        return b"" if opening is None else event(opening)


class Document:
    """A whole answer, put together as its deltas come. Log-probabilities are most of a large one
    and are encoded at once: at the end they would hold up every other client for seconds (64
    choices of 240 tokens with 20 alternatives: 2.5 s).

    Args:
        form: the endpoint's.
    """

    def __init__(self, form: Form) -> None:
        self._form = form
        self._choices: dict[int, Choice] = {}

    def add(self, delta: Delta) -> None:
        """Appends a delta."""
        choice = self._choices.setdefault(delta.choice, Choice())
        choice.add(delta, self._form.logprobs(delta))

    def end(self, usage: dict[str, int]) -> bytes:
        """The document."""
        ordered = sorted(self._choices.items())
        choices = [Delta(i, "".join(c.text), (), None, c.finish_reason) for i, c in ordered]
        rest = _encoded(ENCODER.encode(self._form.document(choices, usage)))
        first, *others = rest.split(NO_LOGPROBS)
        parts = [first]
        for (_, choice), other in zip(ordered, others):
            parts += [b'"logprobs":', choice.encoded_logprobs(), other]
        return b"".join(parts)


@dataclass(slots=True)
class Choice:
    """A choice put together from its deltas; the items of each list of log-probabilities, which
    may be None for all time, are encoded."""

    text: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    logprobs: dict[str, list[bytes] | None] | None = None

    def add(self, delta: Delta, logprobs: dict[str, Any] | None) -> None:
        """Appends a delta."""
        self.text.append(delta.text)
        self.finish_reason = delta.finish_reason
        if logprobs is None:
            return
        if self.logprobs is None:
            self.logprobs = {name: None if new is None else [] for name, new in logprobs.items()}
        for name, known in self.logprobs.items():
            if known is not None and logprobs[name]:
                known.append(_encoded(ENCODER.encode(logprobs[name])[1:-1]))

    def encoded_logprobs(self) -> bytes:
        """All of them as JSON."""
        if self.logprobs is None:
            return b"null"
        fields = [
            b'"%b":%b' % (name.encode(), b"null" if known is None else b"[%b]" % b",".join(known))
            for name, known in self.logprobs.items()
        ]
        return b"{%b}" % b",".join(fields)
