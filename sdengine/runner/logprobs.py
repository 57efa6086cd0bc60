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
    tokens = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)[:, None]
    chosen = logprobs.gather(1, tokens)
    ranks = (logprobs > chosen).sum(dim=1) + 1
    best = logprobs.topk(min(sequence.params.logprobs, logprobs.shape[1]))
    # Four reads for all tokens: each one waits for the device.
    values, ids = best.values.tolist(), best.indices.tolist()
    own = zip(token_ids, chosen[:, 0].tolist(), ranks.tolist(), strict=True)
    for i, (token, value, rank) in enumerate(own):
        entry = {token: Logprob(value, rank, _text(codec, token))}
        for j, other in enumerate(ids[i]):
            entry.setdefault(other, Logprob(values[i][j], j + 1, _text(codec, other)))
        sequence.logprobs.append(entry)
        sequence.cumulative_logprob += value


def _text(codec: TokenText | None, token: int) -> str:
    return "" if codec is None else codec.token_text(token)
