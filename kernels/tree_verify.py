"""tree_verify: walks each sequence's token tree from the root to the last accepted node.

mode "coupled": the walk follows the target's own tokens, those plain decoding would draw, while
they are in the tree. The tree cannot change the output, only how much of it one step yields.

    tree  root--a--b   target token after root: a, after a: b, after b: x
             `--c      path = [a, b], out_tokens = [a, b, x], num_accepted = 2

mode "rejection": recursive rejection sampling without replacement. A child of a node with a
proposal row was drawn from it (law Q; draw order); a child of another node, or one with draft
probability 0, was chosen (law DELTA). Drawn children are tested first. The law of the output is
the target's.

At temperature 0 both follow the argmax. Only rows of visited nodes are sampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels.cpu_library import cpu_op
from sdengine.kernels.cuda_library import cuda_op
from sdengine.kernels.sampling_tables import SamplingTables, expect_sampling_tables
from sdengine.kernels.spec import Case, Op, expect, expect_tensor
from sdengine.kernels.token_tree import ROOT_AND_NODES, TokenTree, expect_token_tree
from sdengine.kernels.tree_verify_reference import verify_sequence, write_walk
from sdengine.kernels.verdict import Verdict, expect_verdict

NAME = "tree_verify"
TEAM_WORDS = 2 * 16 * 256 + 1  # sdengine/tree_verify.h


def walk_scratch_size(batch_size: int) -> int:
    """Elements of the int64 scratch tensor that walking B trees on a GPU needs."""
    return batch_size * TEAM_WORDS


def check(
    *,
    mode: str,
    tree: TokenTree,
    logit_starts: torch.Tensor,
    wants_logits: torch.Tensor,
    num_seqs: torch.Tensor,
    verdict: Verdict,
    target_tokens: torch.Tensor | None = None,
    logits: torch.Tensor | None = None,
    tree_starts: torch.Tensor | None = None,
    sampling: SamplingTables | None = None,
    proposal_tokens: torch.Tensor | None = None,
    proposal_probs: torch.Tensor | None = None,
    scratch: torch.Tensor | None = None,
) -> None:
    """Contract.

    Args:
        mode: Static; "coupled" or "rejection".
        tree: TokenTree [B, T + 1], read.
        logit_starts: [B] or [B + 1] int32; the logits of node i of sequence b are row
            logit_starts[b] + i.
        wants_logits: [B] int32; NO_LOGITS: no walk (num_accepted 0, out_tokens -1), ROOT_AND_NODES:
            the tree, ROOT_ONLY: the root alone.
        num_seqs: [1] int32.
        verdict: Verdict [B, D], written, tried and accepted added to. D is the deepest path
            committed. The last of out_tokens is -1 when nothing can be drawn (NaN logits), or when
            the drawn children are not a prefix of the proposal.
        target_tokens: [N] int32, from `sample`, coupled only: what the target draws after each
            node. None: drawn here, for visited nodes only, from logits.
        logits: [N, V] float32; rows of one sequence are changed while its last token is drawn, and
            restored.
        tree_starts: [B] int32, root position + 1.
        sampling: SamplingTables [B], read; with logits and tree_starts required unless
            target_tokens is given.
        proposal_tokens: [M, K] int32, K <= 64, `rejection` only: candidates of `draft_topk` with
            fresh noise, by tree.proposal_rows; -1 past the support.
        proposal_probs: [M, K] float32, their q.
        scratch: [walk_scratch_size(B)] int64, on a GPU with logits: what the blocks that walk a
            tree tell one another. None elsewhere.
    """
    expect(
        NAME,
        mode in ("coupled", "rejection"),
        f"mode: expected 'coupled' or 'rejection', got {mode!r}",
    )
    expect_token_tree(NAME, "tree", tree)
    batch = tree.batch_size
    starts = expect_tensor(NAME, "logit_starts", logit_starts, torch.int32, (None,)).numel()
    expect(
        NAME,
        starts in (batch, batch + 1),
        f"logit_starts: expected shape [{batch}] or [{batch + 1}], got [{starts}]",
    )
    expect_tensor(NAME, "wants_logits", wants_logits, torch.int32, (batch,))
    expect_tensor(NAME, "num_seqs", num_seqs, torch.int32, (1,))
    expect_verdict(NAME, "verdict", verdict, batch)
    if target_tokens is not None:
        expect(NAME, mode == "coupled", "target_tokens: expected None with mode 'rejection'")
        expect_tensor(NAME, "target_tokens", target_tokens, torch.int32, (None,))
        return
    expect_tensor(NAME, "logits", logits, torch.float32, (None, None))
    expect_tensor(NAME, "tree_starts", tree_starts, torch.int32, (batch,))
    expect_sampling_tables(NAME, "sampling", sampling, batch)
    if mode == "rejection":
        store = expect_tensor(
            NAME, "proposal_tokens", proposal_tokens, torch.int32, (None, None)
        ).shape
        expect_tensor(NAME, "proposal_probs", proposal_probs, torch.float32, tuple(store))
        expect(NAME, store[1] <= 64, f"proposal_tokens: expected K <= 64, got {store[1]}")
    if scratch is not None:
        expect_tensor(NAME, "scratch", scratch, torch.int64, (walk_scratch_size(batch),))


def check_on_gpu(**args: Any) -> None:
    """As `check`, of a launch on a GPU: with logits it needs its scratch."""
    check(**args)
    expect(
        NAME,
        args.get("target_tokens") is not None or args.get("scratch") is not None,
        "scratch: expected a tensor, since target_tokens are not given",
    )


def reference(**args: Any) -> None:
    """Sequence by sequence, node by node; arguments as for `check`."""
    for b in range(int(args["num_seqs"])):
        write_walk(b, verify_sequence(b, args), args)


def _chain(batch: int, depth: int) -> TokenTree:
    tree = TokenTree.allocate(batch, 64)
    nodes = torch.arange(1, depth + 1, dtype=torch.int32)
    tree.num_nodes[:] = depth
    tree.tokens[:, 1 : depth + 1] = nodes
    tree.depths[:, 1 : depth + 1] = nodes
    tree.first_child[:, :depth] = nodes
    tree.first_child[:, depth] = -1
    tree.next_sibling[:, : depth + 1] = -1
    return tree


def bench_case(batch: int, depth: int, vocab: int, draws: bool) -> Case:
    """Chains of `depth` <= 64 nodes, all accepted: tokens given, or drawn from logits."""
    args: dict[str, Any] = {"mode": "coupled", "tree": _chain(batch, depth)}
    args["verdict"] = Verdict.allocate(batch, depth)
    args["logit_starts"] = torch.arange(batch, dtype=torch.int32) * (depth + 1)
    args["wants_logits"] = torch.full((batch,), ROOT_AND_NODES, dtype=torch.int32)
    args["num_seqs"] = torch.tensor([batch], dtype=torch.int32)
    if draws:
        logits = torch.randn(batch * (depth + 1), vocab) * 3
        nodes = torch.arange(depth)
        logits.view(batch, depth + 1, vocab)[:, nodes, nodes + 1] = 60
        args["logits"] = logits
        args["tree_starts"] = torch.ones(batch, dtype=torch.int32)
        args["sampling"] = SamplingTables(
            temperature=torch.full((batch,), 0.8),
            top_k=torch.zeros(batch, dtype=torch.int32),
            top_p=torch.ones(batch),
            min_p=torch.zeros(batch),
            seeds=torch.arange(batch),
        )
    else:
        args["target_tokens"] = torch.arange(1, depth + 2, dtype=torch.int32).repeat(batch)
    source = f"drawn from V={vocab}" if draws else "tokens given"
    label = f"coupled B={batch} depth={depth} {source}"
    moved = batch * (depth + 1) * vocab * 4 if draws else 0
    return Case(label, args, bytes_moved=moved)


def bench_cases() -> Iterator[Case]:
    """The longest walks of eight nodes."""
    for batch, draws in ((1, False), (8, False), (1, True), (8, True)):
        yield bench_case(batch, 8, 2048, draws)


OP = Op(
    NAME,
    check,
    reference,
    ("verdict",),
    cpu_op(NAME),
    backends={"cuda": cuda_op(NAME, check_on_gpu)},
    bench_cases=bench_cases,
)
