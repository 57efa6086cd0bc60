"""Reference of tree_verify: walks in plain Python, residuals in float64 by the literal formulas."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from sdengine.kernels import noise
from sdengine.kernels.calibration import calibration_bin, calibration_class
from sdengine.kernels.row_plan import GREEDY_TEMPERATURE, MASS_UNIT, RowPlan, integer_mass, plan_row
from sdengine.kernels.token_tree import NO_LOGITS, ROOT_AND_NODES, TokenTree
from sdengine.kernels.verdict import Verdict

NEGLIGIBLE_MASS = 1e-6
MAX_STRUCK = 64


@dataclass
class Walk:
    """A walk of one sequence in progress."""

    nodes: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    tried: list[tuple[int, int, bool]] = field(default_factory=list)  # child, rank, accepted

    @property
    def node(self) -> int:
        """The last accepted node, or the root."""
        return self.nodes[-1] if self.nodes else 0


@dataclass
class Residual:
    """What is left of the target law: max(0, p - taken * q) / mass, off the struck tokens."""

    taken: float = 0.0
    mass: float = 1.0
    num_rejected: int = 0
    struck: list[int] = field(default_factory=list)
    is_collapsed: bool = False


class TargetRow:
    """The target's law at one node."""

    def __init__(
        self, logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
    ):
        self.vocab = len(logits)
        self.plan: RowPlan = plan_row(logits, temperature, top_k, top_p, min_p)
        self.scaled = torch.where(self.plan.is_allowed, self.plan.scaled, float("-inf"))
        self.total = float(integer_mass(self.scaled).sum()) * MASS_UNIT

    def probability(self, token: int) -> float:
        """p of a token in float64."""
        return float(noise.stable_exp(self.scaled[token : token + 1])) / self.total

    def sample(self, key: tuple[int, int, int, int]) -> int:
        """What `sample` draws under this key."""
        if self.plan.is_greedy:
            return self.plan.argmax
        scores = self.scaled + noise.gumbel(*key, self.vocab)
        return int((scores == scores.max()).nonzero()[0])

    def draw(
        self, support: dict[int, float], struck: list[int], key: tuple[int, int, int, int]
    ) -> int:
        """A token from the residual: `support` maps tokens to the part of their p that is kept."""
        scores = self.scaled + noise.gumbel(*key, self.vocab)
        for token, kept in support.items():
            is_kept = kept >= 1e-30
            shift = noise.stable_log(torch.tensor([kept]))[0] if is_kept else float("-inf")
            scores[token] = scores[token] + shift
        scores[struck] = float("-inf")
        return int((scores == scores.max()).nonzero()[0])


def children_of(tree: TokenTree, b: int, node: int) -> list[int]:
    """Children in sibling order."""
    children = []
    child = int(tree.first_child[b, node])
    while child >= 0:
        children.append(child)
        child = int(tree.next_sibling[b, child])
    return children


class Verifier:
    """Walks the tree of one sequence.

    Args:
        b: Sequence.
        args: Keyword arguments of the op.
    """

    def __init__(self, b: int, args: dict[str, Any]):
        self.b = b
        self.args = args
        self.tree: TokenTree = args["tree"]
        self.walk = Walk()
        self.is_tree_walked = int(args["wants_logits"][b]) == ROOT_AND_NODES

    def may_descend(self) -> bool:
        """Whether children of the current node may be accepted."""
        return self.is_tree_walked and len(self.walk.nodes) < self.args["verdict"].max_depth

    def accept(self, child: int) -> None:
        """Descends into a child."""
        self.walk.nodes.append(child)

    def logits_row(self, node: int) -> int:
        """Row of logits of a node."""
        return int(self.args["logit_starts"][self.b]) + node

    def target_row(self, node: int) -> TargetRow:
        """Law of a node."""
        filters = self.args["sampling"].filters(self.b)
        return TargetRow(self.args["logits"][self.logits_row(node)], *filters)

    def key(self, position: int, purpose: int, extra: int) -> tuple[int, int, int, int]:
        """Noise key relative to the root's position."""
        root = int(self.args["tree_starts"][self.b]) - 1
        return int(self.args["sampling"].seeds[self.b]), root + position, purpose, extra

    def coupled_token(self, node: int) -> int:
        """What the target draws after a node."""
        if self.args.get("target_tokens") is not None:
            return int(self.args["target_tokens"][self.logits_row(node)])
        row = self.target_row(node)
        depth = int(self.tree.depths[self.b, node]) if node else 0
        return row.sample(self.key(depth + 1, noise.TARGET, 0)) if row.plan.argmax >= 0 else -1

    def walk_coupled(self) -> Walk:
        """Follows the target's tokens while they are in the tree."""
        while True:
            token = self.coupled_token(self.walk.node)
            self.walk.tokens.append(token)
            if token < 0 or not self.may_descend():
                return self.walk
            match = None
            for rank, child in enumerate(children_of(self.tree, self.b, self.walk.node)):
                is_match = int(self.tree.tokens[self.b, child]) == token
                self.walk.tried.append((child, rank, is_match))
                if is_match:
                    match = child
                    break
            if match is None:
                return self.walk
            self.accept(match)

    def walk_rejection(self) -> Walk:
        """Recursive rejection sampling, drawn children before chosen ones."""
        while True:
            node = self.walk.node
            row = self.target_row(node)
            if row.plan.argmax < 0:
                self.walk.tokens.append(-1)
                return self.walk
            residual = Residual()
            support = self.proposal(node) if self.may_descend() else []
            child = (
                self.accepted_child(node, row, support, residual) if self.may_descend() else None
            )
            if child is None:
                self.walk.tokens.append(self.final_token(node, row, support, residual))
                return self.walk
            self.walk.tokens.append(int(self.tree.tokens[self.b, child]))
            self.accept(child)

    def proposal(self, node: int) -> list[tuple[int, float]]:
        """(token, q) of the node's proposal in draw order."""
        row = int(self.tree.proposal_rows[self.b, node])
        if row < 0 or int(self.tree.first_child[self.b, node]) < 0:
            return []
        tokens = self.args["proposal_tokens"][row].tolist()
        probs = self.args["proposal_probs"][row].tolist()
        return [(token, prob) for token, prob in zip(tokens, probs) if token >= 0]

    def accepted_child(
        self, node: int, row: TargetRow, support: list[tuple[int, float]], residual: Residual
    ) -> int | None:
        """Tests the children in order; None when all are rejected."""
        key = self.key(0, noise.COIN, int(self.tree.creation_ids[self.b, node]))
        children = children_of(self.tree, self.b, node)
        drawn = [c for c in children if support and float(self.tree.probs[self.b, c]) > 0]
        ordinal = 0
        for child in drawn + [c for c in children if c not in drawn]:
            is_drawn = child in drawn
            if (
                is_drawn
                and sum(q for _, q in support[residual.num_rejected :][::-1]) < NEGLIGIBLE_MASS
            ):
                continue
            if not is_drawn and len(residual.struck) == MAX_STRUCK:
                break
            coin = noise.uniform(*key, ordinal)
            if is_drawn:
                is_accepted = self.test_drawn(row, support, residual, coin)
            else:
                token = int(self.tree.tokens[self.b, child])
                is_accepted = self.test_chosen(row, support, residual, token, coin)
            self.walk.tried.append((child, ordinal, is_accepted))
            ordinal += 1
            if is_accepted:
                return child
            if residual.is_collapsed:
                break
        return None

    def weight(
        self, row: TargetRow, support: list[tuple[int, float]], residual: Residual, i: int
    ) -> float:
        """Unnormalised residual of entry i of the support."""
        if i < residual.num_rejected:
            return 0.0
        token, prob = support[i]
        return max(0.0, row.probability(token) - residual.taken * prob)

    def test_drawn(
        self, row: TargetRow, support: list[tuple[int, float]], residual: Residual, coin: float
    ) -> bool:
        """Tests the next drawn child; updates the residual on rejection."""
        i = residual.num_rejected
        draft_mass = sum(prob for _, prob in support[i:][::-1])
        weight = self.weight(row, support, residual, i)
        if coin * support[i][1] * residual.mass < weight * draft_mass:
            return True
        residual.taken += residual.mass / draft_mass
        residual.num_rejected += 1
        mass = max(0.0, 1.0 - sum(row.probability(token) for token, _ in support))
        for j in range(residual.num_rejected, len(support)):
            mass += self.weight(row, support, residual, j)
        residual.mass = mass
        residual.is_collapsed = mass < NEGLIGIBLE_MASS
        return False

    def test_chosen(
        self,
        row: TargetRow,
        support: list[tuple[int, float]],
        residual: Residual,
        token: int,
        coin: float,
    ) -> bool:
        """Tests a chosen child; strikes it out on rejection."""
        places = [i for i, (other, _) in enumerate(support) if other == token]
        if token in residual.struck:
            weight = 0.0
        elif places:
            weight = self.weight(row, support, residual, places[0])
        else:
            weight = row.probability(token)
        if coin * residual.mass < weight:
            return True
        residual.struck.append(token)
        residual.mass -= weight
        residual.is_collapsed = residual.mass < NEGLIGIBLE_MASS
        return False

    def final_token(
        self, node: int, row: TargetRow, support: list[tuple[int, float]], residual: Residual
    ) -> int:
        """The token after the last accepted node."""
        key = self.key(0, noise.FINAL, int(self.tree.creation_ids[self.b, node]))
        if residual.is_collapsed or not (residual.num_rejected or residual.struck):
            return row.sample(key)
        kept = {}
        for i, (token, _) in enumerate(support):
            weight = self.weight(row, support, residual, i)
            kept[token] = weight / row.probability(token) if weight > 0 else 0.0
        return row.draw(kept, residual.struck, key)


def verify_sequence(b: int, args: dict[str, Any]) -> Walk:
    """The walk of sequence b."""
    if int(args["wants_logits"][b]) == NO_LOGITS:
        return Walk(tokens=[-1])
    verifier = Verifier(b, args)
    if args["mode"] == "coupled" or float(args["sampling"].temperature[b]) < GREEDY_TEMPERATURE:
        return verifier.walk_coupled()
    return verifier.walk_rejection()


def write_walk(b: int, walk: Walk, args: dict[str, Any]) -> None:
    """Writes a walk into the op's verdict."""
    verdict: Verdict = args["verdict"]
    verdict.num_accepted[b] = len(walk.nodes)
    verdict.path[b, : len(walk.nodes)] = torch.tensor(walk.nodes, dtype=torch.int32)
    verdict.out_tokens[b, : len(walk.tokens)] = torch.tensor(walk.tokens, dtype=torch.int32)
    for child, rank, is_accepted in walk.tried:
        cell = b, calibration_class(rank), int(calibration_bin(args["tree"].estimates[b, child]))
        verdict.tried[cell] += 1
        verdict.accepted[cell] += int(is_accepted)
