"""Verdict: what a walk through the trees found, as a struct of tensors.

`tree_verify` writes it, `commit_plan` reads it. After a walk that accepted the nodes 2 and 5:

    path        2  5  .         num_accepted = 2
    out_tokens  a  b  c  .      a, b: their tokens; c: the target's own after node 5
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdengine.kernels.calibration import CELLS
from sdengine.kernels.spec import expect, expect_tensor


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """One walk per sequence, at most D nodes deep.

    Args:
        num_accepted: [B] int32.
        path: [B, D] int32, the num_accepted nodes of the TokenTree, top first; those past them
            meaningless.
        out_tokens: [B, D + 1] int32, num_accepted + 1 tokens: those of the path and one more. The
            last is -1 when nothing could be drawn.
        tried: [B, 8, 32] int32, children that were tested, by class of their rank and bin of their
            raw estimate; only ever added to.
        accepted: [B, 8, 32] int32, those of them that were accepted; only ever added to.
    """

    num_accepted: torch.Tensor
    path: torch.Tensor
    out_tokens: torch.Tensor
    tried: torch.Tensor
    accepted: torch.Tensor

    @classmethod
    def allocate(
        cls, batch_size: int, max_depth: int, device: str | torch.device = "cpu"
    ) -> Verdict:
        """All zero: B walks with room for `max_depth` nodes each."""
        b, depth = batch_size, max_depth
        shapes = ((b,), (b, depth), (b, depth + 1), (b, *CELLS), (b, *CELLS))
        return cls(*(torch.zeros(shape, dtype=torch.int32, device=device) for shape in shapes))

    @property
    def batch_size(self) -> int:
        """B."""
        return self.path.shape[0]

    @property
    def max_depth(self) -> int:
        """D."""
        return self.path.shape[1]


def expect_verdict(op: str, name: str, verdict: object, batch_size: int | None = None) -> Verdict:
    """Checks every tensor of a Verdict argument at the door and returns it."""
    expect(
        op,
        isinstance(verdict, Verdict),
        f"{name}: expected a Verdict, got {type(verdict).__name__}",
    )
    assert isinstance(verdict, Verdict)
    path = expect_tensor(op, f"{name}.path", verdict.path, torch.int32, (batch_size, None))
    b, depth = path.shape
    for field, shape in (
        ("num_accepted", (b,)),
        ("out_tokens", (b, depth + 1)),
        ("tried", (b, *CELLS)),
        ("accepted", (b, *CELLS)),
    ):
        expect_tensor(op, f"{name}.{field}", getattr(verdict, field), torch.int32, shape)
    return verdict
