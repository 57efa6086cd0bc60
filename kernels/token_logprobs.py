"""token_logprobs: what the target says of the tokens that are about to be committed, and of the
likeliest ones beside them, before temperature and filters.

Each token comes from the logits of one row: the first from the root's, the next ones from those of
the nodes of the accepted path. Results lie by position, modulo the W places that there are, so that
several iterations leave them one behind the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels.backends import triton_kernel
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.spec import Case, Op, address, expect, expect_tensor
from sdengine.kernels.token_tree import NO_LOGITS, ROOT_AND_NODES
from sdengine.kernels.verdict import Verdict, expect_verdict

NAME = "token_logprobs"
MAX_ALTERNATIVES = 32
"""The most M can be; a Triton program holds so many."""


def check(
    *,
    logits: torch.Tensor,
    logit_starts: torch.Tensor,
    wants_logits: torch.Tensor,
    verdict: Verdict,
    history_lens: torch.Tensor,
    num_alternatives: torch.Tensor,
    num_seqs: torch.Tensor,
    out_logprobs: torch.Tensor,
    out_ranks: torch.Tensor,
    out_best_tokens: torch.Tensor,
    out_best_logprobs: torch.Tensor,
) -> None:
    """Contract. The token at position p has its results in place p % W.

    Args:
        logits: [N, V] float32, penalties and bias applied.
        logit_starts: [B + 1] int32, row of each sequence's root; those of its nodes follow.
        wants_logits: [B] int32, see `token_tree`; sequences with NO_LOGITS are left out.
        verdict: Verdict of this iteration, read: num_accepted + 1 tokens each. A token of -1
            (logits that are not finite) has no results.
        history_lens: [B] int32, known tokens before these: the first one's position.
        num_alternatives: [B] int32, likeliest tokens that are asked for, at most M; -1: neither
            these nor the token's own.
        num_seqs: [1] int32.
        out_logprobs: [B, W] float32, written: natural logarithm of the token's probability. W is at
            least D + 1.
        out_ranks: [B, W] int32, written: 1 + the number of larger logits.
        out_best_tokens: [B, W, M] int32, M <= 32, the first num_alternatives written: by falling
            logit, of equals the lower token first; -1 past those that are likelier than 0.
        out_best_logprobs: [B, W, M] float32, the same entries written; -inf with a token of -1.
    """
    expect_verdict(NAME, "verdict", verdict)
    batch, most_tokens = verdict.out_tokens.shape
    expect_tensor(NAME, "logits", logits, torch.float32, (None, None))
    expect_tensor(NAME, "logit_starts", logit_starts, torch.int32, (batch + 1,))
    for name, tensor in (
        ("wants_logits", wants_logits),
        ("history_lens", history_lens),
        ("num_alternatives", num_alternatives),
    ):
        expect_tensor(NAME, name, tensor, torch.int32, (batch,))
    expect_tensor(NAME, "num_seqs", num_seqs, torch.int32, (1,))
    _, places, most = expect_tensor(
        NAME, "out_best_tokens", out_best_tokens, torch.int32, (batch, None, None)
    ).shape
    expect(
        NAME,
        places >= most_tokens and 0 < most <= MAX_ALTERNATIVES,
        f"out_best_tokens: expected at least {most_tokens} places of 1 to {MAX_ALTERNATIVES}, got "
        f"{places} of {most}",
    )
    best = (batch, places, most)
    expect_tensor(NAME, "out_best_logprobs", out_best_logprobs, torch.float32, best)
    expect_tensor(NAME, "out_logprobs", out_logprobs, torch.float32, (batch, places))
    expect_tensor(NAME, "out_ranks", out_ranks, torch.int32, (batch, places))


def reference(
    *,
    logits: torch.Tensor,
    logit_starts: torch.Tensor,
    wants_logits: torch.Tensor,
    verdict: Verdict,
    history_lens: torch.Tensor,
    num_alternatives: torch.Tensor,
    num_seqs: torch.Tensor,
    out_logprobs: torch.Tensor,
    out_ranks: torch.Tensor,
    out_best_tokens: torch.Tensor,
    out_best_logprobs: torch.Tensor,
) -> None:
    """Token by token, each row's logits sorted."""
    for b in range(int(num_seqs)):
        wanted = int(num_alternatives[b])
        if wanted < 0 or int(wants_logits[b]) == NO_LOGITS:
            continue
        for i in range(int(verdict.num_accepted[b]) + 1):
            token = int(verdict.out_tokens[b, i])
            if token < 0:
                continue
            node = 0 if i == 0 else int(verdict.path[b, i - 1])
            row = logits[int(logit_starts[b]) + node]
            logprobs = torch.log_softmax(row.double(), dim=0).float()
            place = (int(history_lens[b]) + i) % out_logprobs.shape[1]
            out_logprobs[b, place] = logprobs[token]
            out_ranks[b, place] = 1 + int((row > row[token]).sum())
            best = torch.sort(row, descending=True, stable=True).indices[:wanted]
            best = best[row[best] > float("-inf")]
            out_best_tokens[b, place, :wanted] = -1
            out_best_logprobs[b, place, :wanted] = float("-inf")
            out_best_tokens[b, place, : len(best)] = best.int()
            out_best_logprobs[b, place, : len(best)] = logprobs[best]


def cpu(
    native: Any,
    *,
    logits: torch.Tensor,
    logit_starts: torch.Tensor,
    wants_logits: torch.Tensor,
    verdict: Verdict,
    history_lens: torch.Tensor,
    num_alternatives: torch.Tensor,
    num_seqs: torch.Tensor,
    out_logprobs: torch.Tensor,
    out_ranks: torch.Tensor,
    out_best_tokens: torch.Tensor,
    out_best_logprobs: torch.Tensor,
) -> None:
    """Appends the native launch."""
    load_cpu().token_logprobs(
        native,
        *map(address, (logits, logit_starts, wants_logits)),
        *map(address, (verdict.num_accepted, verdict.path, verdict.out_tokens)),
        *map(address, (history_lens, num_alternatives, num_seqs)),
        *map(address, (out_logprobs, out_ranks, out_best_tokens, out_best_logprobs)),
        logits.shape[1],
        verdict.max_depth,
        *out_best_tokens.shape[1:],
    )


def bench_cases() -> Iterator[Case]:
    """Three tokens of a walk, with and without alternatives."""
    for vocab, wanted in ((2048, 5), (128256, 0), (128256, 5)):
        yield bench_case(vocab, wanted)


def bench_case(vocab: int, wanted: int, accepted: int = 2) -> Case:
    """One sequence whose walk accepted the first nodes of its tree."""
    verdict = Verdict.allocate(1, 8)
    verdict.num_accepted[:] = accepted
    verdict.path[:] = torch.arange(1, 9, dtype=torch.int32)
    verdict.out_tokens[:] = torch.randint(0, vocab, (1, 9), dtype=torch.int32)
    args = {
        "logits": torch.randn(9, vocab) * 3,
        "logit_starts": torch.tensor([0, 9], dtype=torch.int32),
        "wants_logits": torch.full((1,), ROOT_AND_NODES, dtype=torch.int32),
        "verdict": verdict,
        "history_lens": torch.full((1,), 70, dtype=torch.int32),
        "num_alternatives": torch.full((1,), wanted, dtype=torch.int32),
        "num_seqs": torch.ones(1, dtype=torch.int32),
        "out_logprobs": torch.zeros(1, 16),
        "out_ranks": torch.zeros(1, 16, dtype=torch.int32),
        "out_best_tokens": torch.zeros(1, 16, 20, dtype=torch.int32),
        "out_best_logprobs": torch.zeros(1, 16, 20),
    }
    label = f"B=1 tokens={accepted + 1} V={vocab} alternatives={wanted}"
    return Case(label, args, bytes_moved=(accepted + 1) * vocab * 4)


OUTPUTS = ("out_logprobs", "out_ranks", "out_best_tokens", "out_best_logprobs")
OP = Op(NAME, check, reference, OUTPUTS, cpu, triton_kernel(NAME), bench_cases)
