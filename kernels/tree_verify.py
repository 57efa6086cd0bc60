"""tree_verify: walks each sequence's token tree from the root to the last accepted node.

mode "coupled": the target token of every node was drawn already (`sample`); the walk follows them
while they are in the tree. The tree cannot change the output, only how much of it one step yields.

    tree  root--a--b   target token after root: a, after a: b, after b: x
             `--c      path = [a, b], out_tokens = [a, b, x], num_accepted = 2
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels.backends import load_cpu
from sdengine.kernels.calibration import NUM_BINS, calibration_bin
from sdengine.kernels.spec import Case, Op, address, expect, expect_tensor
from sdengine.kernels.token_tree import TokenTree, expect_token_tree

OP_NAME = "tree_verify"


def check(
    *,
    mode: str,
    tree: TokenTree,
    logit_starts: torch.Tensor,
    wants_logits: torch.Tensor,
    num_seqs: torch.Tensor,
    target_tokens: torch.Tensor,
    num_accepted: torch.Tensor,
    path: torch.Tensor,
    out_tokens: torch.Tensor,
    final_node: torch.Tensor,
    tried: torch.Tensor,
    accepted: torch.Tensor,
) -> None:
    """Contract.

    Args:
        mode: Static; "coupled".
        tree: TokenTree [B, T + 1], read.
        logit_starts: [B] or [B + 1] int32; the logits of node i of sequence b are row
            logit_starts[b] + i.
        wants_logits: [B] int32; 0: no walk (num_accepted 0, out_tokens -1), 1: the tree, 2: the
            root only.
        num_seqs: [1] int32.
        target_tokens: [N] int32, from `sample`: what the target draws after each node; -1: nothing
            can be drawn (NaN logits), which ends the walk.
        num_accepted: [B] int32, written.
        path: [B, D] int32, written: num_accepted nodes, top first. D is the deepest path committed.
        out_tokens: [B, D + 1] int32, written: num_accepted + 1 tokens.
        final_node: [B] int32, written: the last accepted node, or the root 0.
        tried: [B, 32] int32, added to: children that were tested, by bin of their raw estimate.
        accepted: [B, 32] int32, added to: those of them that were accepted.
    """
    expect(OP_NAME, mode == "coupled", f"mode: expected 'coupled', got {mode!r}")
    expect_token_tree(OP_NAME, "tree", tree)
    batch = tree.batch_size
    starts = expect_tensor(OP_NAME, "logit_starts", logit_starts, torch.int32, (None,)).numel()
    expect(
        OP_NAME,
        starts in (batch, batch + 1),
        f"logit_starts: expected shape [{batch}] or [{batch + 1}], got [{starts}]",
    )
    depth = expect_tensor(OP_NAME, "path", path, torch.int32, (batch, None)).shape[1]
    for name, tensor, shape in (
        ("wants_logits", wants_logits, (batch,)),
        ("num_seqs", num_seqs, (1,)),
        ("target_tokens", target_tokens, (None,)),
        ("num_accepted", num_accepted, (batch,)),
        ("out_tokens", out_tokens, (batch, depth + 1)),
        ("final_node", final_node, (batch,)),
        ("tried", tried, (batch, NUM_BINS)),
        ("accepted", accepted, (batch, NUM_BINS)),
    ):
        expect_tensor(OP_NAME, name, tensor, torch.int32, shape)


def _children(tree: TokenTree, b: int, node: int) -> list[int]:
    children = []
    child = int(tree.first_child[b, node])
    while child >= 0:
        children.append(child)
        child = int(tree.next_sibling[b, child])
    return children


def reference(
    *,
    mode: str,
    tree: TokenTree,
    logit_starts: torch.Tensor,
    wants_logits: torch.Tensor,
    num_seqs: torch.Tensor,
    target_tokens: torch.Tensor,
    num_accepted: torch.Tensor,
    path: torch.Tensor,
    out_tokens: torch.Tensor,
    final_node: torch.Tensor,
    tried: torch.Tensor,
    accepted: torch.Tensor,
) -> None:
    """Sequence by sequence, node by node."""
    for b in range(int(num_seqs)):
        nodes: list[int] = []
        tokens = [-1]
        if int(wants_logits[b]):
            start = int(logit_starts[b])
            tokens = [int(target_tokens[start])]
        while int(wants_logits[b]) == 1 and tokens[-1] >= 0 and len(nodes) < path.shape[1]:
            children = _children(tree, b, nodes[-1] if nodes else 0)
            matches = [c for c in children if int(tree.tokens[b, c]) == tokens[-1]]
            for child in children:
                column = int(calibration_bin(tree.estimates[b, child]))
                tried[b, column] += 1
                accepted[b, column] += child in matches[:1]
            if not matches:
                break
            nodes.append(matches[0])
            tokens.append(int(target_tokens[start + matches[0]]))
        num_accepted[b] = len(nodes)
        path[b, : len(nodes)] = torch.tensor(nodes, dtype=torch.int32)
        out_tokens[b, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        final_node[b] = nodes[-1] if nodes else 0


def cpu(
    native: Any,
    *,
    mode: str,
    tree: TokenTree,
    logit_starts: torch.Tensor,
    wants_logits: torch.Tensor,
    num_seqs: torch.Tensor,
    target_tokens: torch.Tensor,
    num_accepted: torch.Tensor,
    path: torch.Tensor,
    out_tokens: torch.Tensor,
    final_node: torch.Tensor,
    tried: torch.Tensor,
    accepted: torch.Tensor,
) -> None:
    """Appends the native launch."""
    load_cpu().tree_verify(
        native,
        tree.addresses(),
        tree.max_nodes,
        tree.mask_words,
        address(logit_starts),
        address(wants_logits),
        address(num_seqs),
        address(target_tokens),
        address(num_accepted),
        address(final_node),
        address(path),
        address(out_tokens),
        path.shape[1],
        address(tried),
        address(accepted),
    )


def bench_cases() -> Iterator[Case]:
    """Chains of 8 nodes, all accepted: the longest walk."""
    for batch in (1, 8):
        tree = TokenTree.allocate(batch, 64)
        tree.num_nodes[:] = 8
        tree.tokens[:, 1:9] = torch.arange(8)
        tree.first_child[:, :8] = torch.arange(1, 9)
        tree.first_child[:, 8] = -1
        tree.next_sibling[:, :9] = -1
        ints = {"num_accepted": (batch,), "path": (batch, 8), "out_tokens": (batch, 9)}
        ints |= {"final_node": (batch,), "tried": (batch, NUM_BINS), "accepted": (batch, NUM_BINS)}
        args: dict[str, Any] = {n: torch.zeros(s, dtype=torch.int32) for n, s in ints.items()}
        args["mode"] = "coupled"
        args["tree"] = tree
        args["logit_starts"] = torch.arange(batch, dtype=torch.int32) * 9
        args["wants_logits"] = torch.ones(batch, dtype=torch.int32)
        args["num_seqs"] = torch.tensor([batch], dtype=torch.int32)
        args["target_tokens"] = torch.arange(9, dtype=torch.int32).repeat(batch)
        yield Case(f"coupled B={batch} depth=8", args)


OUTPUTS = ("num_accepted", "path", "out_tokens", "final_node", "tried", "accepted")
OP = Op(OP_NAME, check, reference, OUTPUTS, cpu, bench_cases=bench_cases)
