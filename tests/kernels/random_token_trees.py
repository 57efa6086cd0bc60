"""Random selected trees for tests of the verifiers."""

from __future__ import annotations

import random

import torch

from sdengine.kernels.token_tree import TokenTree


def fill_token_tree(
    tree: TokenTree, b: int, parents: list[int], tokens: list[int], estimates: list[float]
) -> None:
    """Writes nodes 1, 2, ... of sequence b; node i's parent is parents[i - 1]."""
    count = len(parents)
    tree.num_nodes[b] = count
    tree.first_child[b, : count + 1] = -1
    tree.next_sibling[b, : count + 1] = -1
    last_child: dict[int, int] = {}
    for i, (parent, token, estimate) in enumerate(zip(parents, tokens, estimates), start=1):
        tree.tokens[b, i] = token
        tree.parents[b, i] = parent
        tree.depths[b, i] = tree.depths[b, parent] + 1
        tree.estimates[b, i] = estimate
        tree.creation_ids[b, i] = i
        tree.draft_slots[b, i] = -1
        if parent in last_child:
            tree.next_sibling[b, last_child[parent]] = i
        else:
            tree.first_child[b, parent] = i
        last_child[parent] = i


def random_token_tree(rng: random.Random, batch: int, max_nodes: int, vocab: int) -> TokenTree:
    """Trees of 0 .. max_nodes nodes, siblings with different tokens."""
    tree = TokenTree.allocate(batch, max_nodes)
    for b in range(batch):
        parents: list[int] = []
        tokens: list[int] = []
        used: set[tuple[int, int]] = set()
        for i in range(rng.randint(0, max_nodes)):
            parent, token = rng.randint(max(0, i - 3), i), rng.randrange(vocab)
            if (parent, token) in used:
                parent = i  # the newest node has no children yet
            used.add((parent, token))
            parents.append(parent)
            tokens.append(token)
        fill_token_tree(tree, b, parents, tokens, [rng.random() for _ in parents])
    return tree


def forward_prefix(rng: random.Random, tree: TokenTree) -> None:
    """Draft slots for a random part of each tree that is closed under parents."""
    tree.draft_slots[:, 0] = 0
    for b in range(tree.batch_size):
        slots = list(range(1, int(tree.num_nodes[b]) + 2))
        rng.shuffle(slots)
        for i in range(1, int(tree.num_nodes[b]) + 1):
            is_open = int(tree.draft_slots[b, int(tree.parents[b, i])]) >= 0
            tree.draft_slots[b, i] = max(slots[i], i) if is_open and rng.random() < 0.7 else -1


def int_tensor(values: list[int]) -> torch.Tensor:
    """[len(values)] int32."""
    return torch.tensor(values, dtype=torch.int32)
