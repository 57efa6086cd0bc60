"""draft_topk: the K best tokens of each row of draft logits, in order, with their probabilities.

noise "target" (coupled verifier): tokens are ranked with the very noise that the target will be
drawn with at that position, so a draft that resembles the target proposes what it will say.
noise "fresh" (rejection verifier): q is the softmax over the K best logits and the candidates are
the whole support, drawn from q without replacement. Fresh noise is keyed by the node, so that what
is drawn below one node says nothing about another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels import noise as keyed
from sdengine.kernels.backends import triton_kernel
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.row_plan import GREEDY_TEMPERATURE, MASS_UNIT, integer_mass, scaled_logits
from sdengine.kernels.spec import Case, Op, address, expect, expect_tensor

NAME = "draft_topk"
MAX_CANDIDATES = 64
MAX_SPLITS = 64  # of a row on a device, each with a program of its own
MIN_DEVICE_CANDIDATES = 16


def device_candidates(limit: int) -> int:
    """Candidates that a device keeps of every split, to find the best `limit`."""
    return max(MIN_DEVICE_CANDIDATES, 1 << (limit - 1).bit_length())


def device_scratch_size(num_rows: int, limit: int) -> int:
    """Elements of `scratch` on a device, for N rows and K candidates of any vocabulary."""
    return num_rows * MAX_SPLITS * (2 + device_candidates(limit))


def check(
    *,
    noise: str,
    logits: torch.Tensor,
    row_seq: torch.Tensor,
    positions: torch.Tensor,
    temperature: torch.Tensor,
    seeds: torch.Tensor,
    out_tokens: torch.Tensor,
    out_probs: torch.Tensor,
    num_rows: torch.Tensor,
    rows: torch.Tensor | None = None,
    node_slots: torch.Tensor | None = None,
    tree_starts: torch.Tensor | None = None,
    scratch: torch.Tensor | None = None,
) -> None:
    """Contract.

    Args:
        noise: Static; "target" or "fresh".
        logits: [N, V] float32. -inf is a masked token.
        row_seq: [N'] int32, sequence of each packed row.
        positions: [N'] int32, position of each packed row's token ("target").
        temperature: [B] float32; below 1e-5: no noise, plain descending logits.
        seeds: [B] int64.
        out_tokens: [N, K] int32, written, K <= 64; -1 where a row has fewer than K tokens that can
            be drawn (everywhere for a row with NaN or +inf).
        out_probs: [N, K] float32, written; 0 where the token is -1. "target": softmax over the
            whole row of the perturbed score (the logit when greedy). "fresh": q in draw order; sums
            to 1.
        num_rows: [1] int32.
        rows: [N] int32, packed row that row r of logits belongs to; None: row r itself.
        node_slots: [N'] int32, draft slot of the node that a row holds, 0 for a root ("fresh").
        tree_starts: [B] int32, position of the tree's root + 1 ("fresh").
        scratch: [any] int64, working memory of a GPU's kernel, see `device_scratch_size`; less is
            refused there. The CPU needs none.
    """
    expect(
        NAME, noise in ("target", "fresh"), f"noise: expected 'target' or 'fresh', got {noise!r}"
    )
    n, _ = expect_tensor(NAME, "logits", logits, torch.float32, (None, None)).shape
    batch = expect_tensor(NAME, "temperature", temperature, torch.float32, (None,)).shape[0]
    packed = expect_tensor(NAME, "row_seq", row_seq, torch.int32, (n if rows is None else None,))
    candidates = expect_tensor(NAME, "out_tokens", out_tokens, torch.int32, (n, None)).shape[1]
    limits = f"out_tokens: expected 1 <= K <= {MAX_CANDIDATES}, got {candidates}"
    expect(NAME, 1 <= candidates <= MAX_CANDIDATES, limits)
    expect_tensor(NAME, "positions", positions, torch.int32, tuple(packed.shape))
    expect_tensor(NAME, "seeds", seeds, torch.int64, (batch,))
    expect_tensor(NAME, "out_probs", out_probs, torch.float32, (n, candidates))
    expect_tensor(NAME, "num_rows", num_rows, torch.int32, (1,))
    if rows is not None:
        expect_tensor(NAME, "rows", rows, torch.int32, (n,))
    if scratch is not None:
        expect_tensor(NAME, "scratch", scratch, torch.int64, (None,))
    if noise == "fresh":
        expect_tensor(NAME, "node_slots", node_slots, torch.int32, tuple(packed.shape))
        expect_tensor(NAME, "tree_starts", tree_starts, torch.int32, (batch,))


def _order(scores: torch.Tensor, limit: int) -> torch.Tensor:
    """Token ids by score descending, id ascending, those above -inf only."""
    order = scores.argsort(descending=True, stable=True)[:limit]
    return order[scores[order] > float("-inf")]


def _softmax_of(tokens: torch.Tensor, scaled: torch.Tensor) -> torch.Tensor:
    """Probabilities of `tokens` under exp(scaled), the sum taken in integers."""
    total = (integer_mass(scaled).sum().double() * MASS_UNIT).float()
    return keyed.stable_exp(scaled[tokens]) / total


def reference(
    *,
    noise: str,
    logits: torch.Tensor,
    row_seq: torch.Tensor,
    positions: torch.Tensor,
    temperature: torch.Tensor,
    seeds: torch.Tensor,
    out_tokens: torch.Tensor,
    out_probs: torch.Tensor,
    num_rows: torch.Tensor,
    rows: torch.Tensor | None = None,
    node_slots: torch.Tensor | None = None,
    tree_starts: torch.Tensor | None = None,
    scratch: torch.Tensor | None = None,
) -> None:
    """Row by row over the whole vocabulary; the same bits as the kernel."""
    vocab, limit = logits.shape[1], out_tokens.shape[1]
    for r in range(int(num_rows)):
        packed = r if rows is None else int(rows[r])
        b = int(row_seq[packed])
        out_tokens[r], out_probs[r] = -1, 0.0
        if not bool(logits[r].max().isfinite()):
            continue
        is_greedy = float(temperature[b]) < GREEDY_TEMPERATURE
        scores = scaled_logits(logits[r], float(temperature[b]))
        if noise == "target":
            if not is_greedy:
                key = (int(seeds[b]), int(positions[packed]) + 1, keyed.TARGET, 0)
                scores = scores + keyed.gumbel(*key, vocab)
            tokens = _order(logits[r] if is_greedy else scores, limit)
            probs = _softmax_of(tokens, scores - scores.max())
        else:
            assert node_slots is not None and tree_starts is not None
            support = _order(logits[r], limit)
            scaled = torch.full_like(scores, float("-inf"))
            scaled[support] = scores[support]
            tokens = support
            if not is_greedy:
                key = (
                    int(seeds[b]),
                    int(tree_starts[b]) - 1,
                    keyed.DRAFT,
                    int(node_slots[packed]),
                )
                tokens = _order(scaled + keyed.gumbel(*key, vocab), limit)
            probs = _softmax_of(tokens, scaled)
        out_tokens[r, : len(tokens)] = tokens.int()
        out_probs[r, : len(tokens)] = probs


def cpu(
    native: Any,
    *,
    noise: str,
    logits: torch.Tensor,
    row_seq: torch.Tensor,
    positions: torch.Tensor,
    temperature: torch.Tensor,
    seeds: torch.Tensor,
    out_tokens: torch.Tensor,
    out_probs: torch.Tensor,
    num_rows: torch.Tensor,
    rows: torch.Tensor | None = None,
    node_slots: torch.Tensor | None = None,
    tree_starts: torch.Tensor | None = None,
    scratch: torch.Tensor | None = None,
) -> None:
    """Appends the native launch."""
    tensors = (logits, rows, row_seq, positions, node_slots, temperature, seeds)
    outputs = (tree_starts, out_tokens, out_probs, num_rows)
    load_cpu().draft_topk(
        native,
        *map(address, tensors + outputs),
        logits.shape[1],
        out_tokens.shape[1],
        noise == "fresh",
    )


def bench_cases() -> Iterator[Case]:
    """Small and large vocabularies, both kinds of noise."""
    for noise, rows, vocab, candidates in (
        ("target", 1, 2048, 8),
        ("target", 16, 2048, 8),
        ("fresh", 16, 2048, 16),
        ("target", 8, 32000, 8),
        ("target", 8, 128256, 8),
        ("fresh", 8, 128256, 64),
    ):
        yield bench_case(noise, rows, vocab, candidates)


def bench_case(noise: str, rows: int, vocab: int, candidates: int) -> Case:
    """One layer of one tree at temperature 0.8."""
    args = {
        "noise": noise,
        "logits": torch.randn(rows, vocab) * 3,
        "row_seq": torch.zeros(rows, dtype=torch.int32),
        "positions": torch.zeros(rows, dtype=torch.int32),
        "temperature": torch.tensor([0.8]),
        "seeds": torch.tensor([1]),
        "out_tokens": torch.empty(rows, candidates, dtype=torch.int32),
        "out_probs": torch.empty(rows, candidates),
        "num_rows": torch.tensor([rows], dtype=torch.int32),
        "node_slots": torch.arange(rows, dtype=torch.int32),
        "tree_starts": torch.ones(1, dtype=torch.int32),
        "scratch": torch.empty(device_scratch_size(rows, candidates), dtype=torch.int64),
    }
    label = f"{noise} N={rows} V={vocab} K={candidates} T=0.8"
    return Case(label, args, bytes_moved=rows * vocab * 4)


OP = Op(
    NAME,
    check,
    reference,
    ("out_tokens", "out_probs"),
    cpu,
    triton_kernel(NAME),
    bench_cases,
)
