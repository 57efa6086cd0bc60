"""Log-probabilities of emitted tokens, from the target's logits before temperature and filters."""

from __future__ import annotations

from typing import Protocol

import torch

from sdengine.core.outputs import Logprob
from sdengine.core.sequence import Sequence


class TokenText(Protocol):
    """What naming a token needs of a tokenizer."""

    def token_text(self, token_id: int) -> str:
        """Text of one token alone."""


def append_logprobs(
    sequence: Sequence, token_ids: list[int], logits: torch.Tensor, codec: TokenText | None
) -> None:
    """Extends `sequence.logprobs` by one entry per token.

    Args:
        sequence: with logprobs asked for.
        token_ids: emitted tokens.
        logits: [len(token_ids), V] float32, row i drew token i; penalties and bias applied.
        codec: tokenizer, or None for empty token texts.
    """
    assert sequence.logprobs is not None and sequence.params.logprobs is not None
    logprobs = torch.log_softmax(logits, dim=-1)
    num_alternatives = sequence.params.logprobs
    best = logprobs.topk(num_alternatives) if num_alternatives else None
    for i, token in enumerate(token_ids):
        own = float(logprobs[i, token])
        rank = int((logprobs[i] > logprobs[i, token]).sum()) + 1
        entry = {token: Logprob(own, rank, _text(codec, token))}
        if best is not None:
            for j, other in enumerate(best.indices[i].tolist()):
                value = float(best.values[i, j])
                entry.setdefault(other, Logprob(value, j + 1, _text(codec, other)))
        sequence.logprobs.append(entry)
        sequence.cumulative_logprob += own


def _text(codec: TokenText | None, token: int) -> str:
    return "" if codec is None else codec.token_text(token)
